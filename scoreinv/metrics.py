"""How good a reconstruction is. Every function gives one number a member and says which range its input has.

Computed tomography is scored on the window of −1000 to 1000 HU mapped to [0, 1] (`window`) with data_range = 1,
errors in HU without any window. No function rescales a reconstruction to its reference.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreinv.problem import Problem


def window(hu: Tensor, low: float = -1000.0, high: float = 1000.0) -> Tensor:
    """Map a window of Hounsfield units to [0, 1] and clip what lies outside.

    Args:
        hu: any shape [HU].
        low, high: ends of the window [HU].
    """
    if not low < high:
        raise ValueError(f"window: low must be below high, got {low} and {high}")
    return ((hu - low) / (high - low)).clamp(0, 1)


def psnr(x: Tensor, ref: Tensor, data_range: float) -> Tensor:
    """Peak signal-to-noise ratio, 10 log₁₀(data_range² / mean (x − ref)²) [dB]; nothing is clipped.

    Args:
        x, ref: (*batch, H, W) in the same unit; for CT the output of `window`.
        data_range: largest minus smallest possible value; 1 for the output of `window`.

    Returns:
        (*batch,), infinite for equal images.
    """
    _check("psnr", x, ref, data_range)
    mse = (x.double() - ref.double()).square().mean((-2, -1))
    return 10 * torch.log10(data_range**2 / mse)


def ssim(x: Tensor, ref: Tensor, data_range: float) -> Tensor:
    """Structural similarity with Gaussian weights, 11 x 11, σ = 1.5, population covariance (Wang et al. 2004,
    doi:10.1109/TIP.2003.819861), by scikit-image; its mean leaves out a border of 5 pixels.

    Args:
        x, ref: (*batch, H, W) in the same unit, H and W at least 11; for CT the output of `window`.
        data_range: largest minus smallest possible value; 1 for the output of `window`.

    Returns:
        (*batch,).
    """
    return _ssim(x, ref, data_range, gaussian=True)


def ssim_uniform(x: Tensor, ref: Tensor, data_range: float) -> Tensor:
    """Structural similarity as LoDoPaB-CT's tables have it: uniform 7 x 7 window, sample covariance (scikit-image's
    default).

    Args:
        x, ref: (*batch, H, W) in the same unit, H and W at least 7. Those tables are of attenuation, not of HU: SSIM depends on where
            zero is.
        data_range: largest minus smallest possible value. Those tables use max(ref) − min(ref) of each image.

    Returns:
        (*batch,).
    """
    return _ssim(x, ref, data_range, gaussian=False)


LPIPS_SIDE = 31
"""Smallest side of an image that AlexNet's layers leave something of."""


def lpips(x: Tensor, ref: Tensor, network: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """Learned perceptual distance, 0 for equal images, the less the better (Zhang, Isola, Efros, Shechtman, Wang 2018,
    arXiv:1801.03924): version 0.1 with AlexNet, of the package lpips.

    Args:
        x, ref: (*batch, H, W) in [0, 1], sides of at least 31: for CT the output of `window`. They are mapped to [-1, 1] and repeated
            in three channels; the network was trained on photographs.
        network: two (n, 3, H, W) in [-1, 1] -> n distances; by default `lpips_network`.

    Returns:
        (*batch,).

    Raises:
        ValueError, FileNotFoundError: see `lpips_network`; or images of other shapes, or too small.
    """
    _check("lpips", x, ref, 1.0)
    if min(x.shape[-2:]) < LPIPS_SIDE:
        raise ValueError(f"lpips: expected sides of at least {LPIPS_SIDE} pixels, got {tuple(x.shape)}")
    measure = network or lpips_network()
    a, b = (
        (2 * t.detach().float().cpu() - 1).reshape(-1, 1, *t.shape[-2:]).expand(-1, 3, *t.shape[-2:]) for t in (x, ref)
    )
    with torch.no_grad():
        return measure(a, b).double().reshape(x.shape[:-2])


@functools.cache
def lpips_network() -> Callable[[Tensor, Tensor], Tensor]:
    """The network of `lpips`, which needs weights that the package does not bring.

    Raises:
        ValueError: the package is not installed.
        FileNotFoundError: AlexNet's weights are not on the disk; nothing is downloaded here.
    """
    try:
        import lpips as package
        from torchvision.models import AlexNet_Weights
    except ImportError as error:
        raise ValueError(f"LPIPS needs its package: pip install 'scoreinv[lpips]' brings it ({error})") from error
    url = AlexNet_Weights.IMAGENET1K_V1.url
    weights = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not weights.is_file():
        raise FileNotFoundError(
            f"LPIPS needs AlexNet's weights (244 MB), which are not here: download {url} to {weights}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision in an old way
        network: Callable[[Tensor, Tensor], Tensor] = package.LPIPS(net="alex", verbose=False)
    return network


def rmse_hu(hu: Tensor, ref_hu: Tensor) -> Tensor:
    """Root mean square error [HU], not clipped: (*batch, H, W) in HU -> (*batch,)."""
    _check("rmse_hu", hu, ref_hu, 1.0)
    return (hu.double() - ref_hu.double()).square().mean((-2, -1)).sqrt()


def chi_squared(problem: Problem, x: Tensor) -> Tensor:
    """Misfit to the data, ‖(A x − y) / σ‖² / m with m the number of data (those that `A.seen`); about 1 when x explains them down to the
    noise.

    Noise-free members (σ = 0) have no χ²: for them it is the relative residual ‖A x − y‖ / ‖y‖ that is returned.

    Args:
        problem: data and noise.
        x: (*lead, *batch, *A.in_shape) in the operator's unit; `lead` may be the samples that a method returns.

    Returns:
        (*lead, *batch).

    Raises:
        ValueError: a member's noise is zero for some data and positive for others.
    """
    y, dims = problem.y.double(), tuple(range(-len(problem.A.out_shape), 0))
    residual, y = problem.A.of_seen(problem.A(x).double() - y), problem.A.of_seen(y)
    std = torch.as_tensor(problem.noise_std, device=y.device, dtype=y.dtype).expand(y.shape)
    exact = (std == 0).all(dims[0]) if len(dims) == 1 else (std == 0).flatten(dims[0]).all(-1)
    if ((std == 0).flatten(dims[0]).any(-1) & ~exact).any():
        raise ValueError("chi_squared: noise_std is zero for some data of a member and positive for others")
    misfit = (residual / torch.where(std == 0, 1.0, std)).square().sum(dims) / max(problem.A.n_data, 1)
    relative = residual.square().sum(dims).sqrt() / y.square().sum(dims).sqrt()
    return torch.where(exact, relative, misfit)


def coverage(samples: Tensor, truth: Tensor, level: float) -> Tensor:
    """Share of pixels whose true value lies in the central interval that the samples give for it; `level` if
    calibrated.

    The ends are the quantiles (1 ± level) / 2 in Weibull's definition (position q (n + 1) among n sorted draws),
    because then the interval between two draws holds one more draw of the same law with exactly the stated
    probability, however few they are.

    Args:
        samples: (n, *batch, H, W), any unit.
        truth: (*batch, H, W), in the same unit.
        level: between 0 and 1; 0.9 needs at least 19 draws.

    Returns:
        (*batch,).

    Raises:
        ValueError: too few draws for that level.
    """
    if not 0 < level < 1:
        raise ValueError(f"coverage: level must lie between 0 and 1, got {level}")
    if samples.shape[1:] != truth.shape:
        raise ValueError(f"coverage: expected samples (n, {tuple(truth.shape)}), got {tuple(samples.shape)}")
    needed = math.ceil(2 / (1 - level) - 1e-9) - 1
    if samples.shape[0] < needed:
        raise ValueError(f"coverage: level {level} needs at least {needed} samples, got {samples.shape[0]}")
    ordered = samples.sort(0).values
    low, high = _order_statistic(ordered, (1 - level) / 2), _order_statistic(ordered, (1 + level) / 2)
    return ((truth >= low) & (truth <= high)).double().mean((-2, -1))


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of every pixel, mean |xᵢ − truth| − ½ mean |xᵢ − xⱼ| (i ≠ j), in the unit of the images.

    A proper score: its expectation is least for draws from the law of the truth. The mean over pairs of different draws is the
    fair estimate, whose expectation does not depend on their number (Gneiting, Raftery 2007,
    doi:10.1198/016214506000001437, eq. 21; Ferro 2014, doi:10.1002/qj.2270).

    Args:
        samples: (n, *batch, H, W), any unit.
        truth: (*batch, H, W), in the same unit.

    Returns:
        (*batch, H, W); below 0 by chance where few draws are close to the truth.

    Raises:
        ValueError: fewer than 2 samples, or shapes that do not match.
    """
    n = samples.shape[0]
    if samples.shape[1:] != truth.shape or n < 2:
        raise ValueError(f"crps: expected at least 2 samples (n, {tuple(truth.shape)}), got {tuple(samples.shape)}")
    rank = torch.arange(1, n + 1, dtype=torch.float64).reshape(-1, *[1] * truth.ndim)
    ordered = samples.double().cpu().sort(dim=0).values
    spread = ((2 * rank - n - 1) * ordered).sum(dim=0) / (n * (n - 1))  # ½ of the mean over pairs, by ranks
    return ((samples.double().cpu() - truth.double().cpu()).abs().mean(dim=0) - spread).to(samples.device)


def rmse_hu_between(hu: Tensor, ref_hu: Tensor, low: float, high: float) -> Tensor:
    """Root mean square error [HU] of the pixels whose true value lies between low and high, both included: one kind of tissue.

    Args:
        hu, ref_hu: (*batch, H, W) [HU].
        low, high: ends of the range [HU]; may be infinite.

    Returns:
        (*batch,), NaN for an image without such pixels.
    """
    _check("rmse_hu_between", hu, ref_hu, 1.0)
    inside = (ref_hu >= low) & (ref_hu <= high)
    squares = torch.where(inside, (hu.double() - ref_hu.double()).square(), 0).sum((-2, -1))
    return (squares / inside.sum((-2, -1))).sqrt()


def calibration_ratio(samples: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """√(1 + 1/n) rms(std) / rms(mean − truth) over some pixels: 1 for draws from the law of the truth, below 1 where they are too
    much alike.

    The mean of n exact draws of standard deviation s is off by s √(1 + 1/n).

    Args:
        samples: (n, *batch, H, W), n at least 2, any unit.
        truth: (*batch, H, W), in the same unit.
        where: (*batch, H, W) bool, which pixels count.

    Returns:
        (*batch,), NaN where no pixel counts.
    """
    std, error = _predicted(samples, truth, "calibration_ratio")
    mean_squares = [torch.where(where, t.square(), 0).sum((-2, -1)) for t in (std, error)]
    return (mean_squares[0] / mean_squares[1]).sqrt()


def coverage_of_normal(samples: Tensor, truth: Tensor, where: Tensor, level: float) -> Tensor:
    """Share of some pixels whose true value lies in mean ± t √(1 + 1/n) std, t of Student's law with n − 1 degrees: `level` for
    normal draws, however few they are (unlike `coverage`, which assumes no law and needs many).

    Args:
        samples, truth, where: see `calibration_ratio`.
        level: between 0 and 1.

    Returns:
        (*batch,), NaN where no pixel counts.
    """
    _, error = _predicted(samples, truth, "coverage_of_normal")
    held = error <= half_width_of_normal(samples.double(), level)
    return (held & where).sum((-2, -1)) / where.sum((-2, -1)).double()


def half_width_of_normal(samples: Tensor, level: float) -> Tensor:
    """t √(1 + 1/n) std, t of Student's law with n − 1 degrees: a further normal draw lies within mean ± this with the probability `level`.

    Args:
        samples: (n, *batch, H, W), n at least 2, any unit.
        level: between 0 and 1.

    Returns:
        (*batch, H, W).
    """
    from scipy import stats

    if not 0 < level < 1:
        raise ValueError(f"half_width_of_normal: level must lie between 0 and 1, got {level}")
    n = len(samples)
    if n < 2:
        raise ValueError(f"half_width_of_normal: expected at least 2 samples, got {n}")
    return float(stats.t.ppf((1 + level) / 2, n - 1)) * math.sqrt(1 + 1 / n) * samples.std(0)


def _predicted(samples: Tensor, truth: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The error's standard deviation that draws predict, √(1 + 1/n) std, and the error of their mean, in float64."""
    n = samples.shape[0]
    if samples.shape[1:] != truth.shape or n < 2:
        raise ValueError(f"{name}: expected at least 2 samples (n, {tuple(truth.shape)}), got {tuple(samples.shape)}")
    draws = samples.double()
    return math.sqrt(1 + 1 / n) * draws.std(0), (draws.mean(0) - truth.double()).abs()


def _order_statistic(ordered: Tensor, q: float) -> Tensor:
    """The quantile q of draws sorted along the first dimension, in Weibull's definition."""
    n = ordered.shape[0]
    position = min(max(q * (n + 1) - 1, 0.0), n - 1.0)
    k = min(int(position), n - 2)
    return torch.lerp(ordered[k], ordered[k + 1], position - k)


def _ssim(x: Tensor, ref: Tensor, data_range: float, *, gaussian: bool) -> Tensor:
    from skimage.metrics import structural_similarity

    _check("ssim", x, ref, data_range)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if gaussian else {}
    a, b = (t.detach().cpu().double().reshape(-1, *t.shape[-2:]).numpy() for t in (x, ref))
    similarity: Any = structural_similarity
    values = [similarity(i, j, data_range=data_range, **settings) for i, j in zip(a, b, strict=True)]
    return torch.from_numpy(np.array(values)).reshape(x.shape[:-2])


def _check(name: str, x: Tensor, ref: Tensor, data_range: float) -> None:
    if x.shape != ref.shape or x.ndim < 2:
        raise ValueError(
            f"{name}: expected two tensors (*batch, H, W) of one shape, got {tuple(x.shape)} and {tuple(ref.shape)}"
        )
    if not data_range > 0:
        raise ValueError(f"{name}: data_range must be positive, got {data_range}")
