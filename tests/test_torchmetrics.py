"""PSNR and SSIM against torchmetrics and scikit-image, in both conventions of SSIM.

All in float64, where SSIM agrees to 1e-9, and PSNR to 1e-9 dB with scikit-image and to 1e-7 of itself with torchmetrics, which takes ln 10
and the range in float32. What differs is convention, and is taken out exactly:

    border       ours and scikit-image's mean is over the pixels whose window lies inside the image (5 from the border for the Gaussian
                 11 x 11, 3 for the uniform 7 x 7). torchmetrics reflects the image and takes the mean over all pixels; the inner part of its
                 map (`return_full_image`) is the same map.
    covariance   the uniform convention (scikit-image's default) has sample covariances, 49 / 48 of torchmetrics' population ones. A factor
                 c on all covariances is the constant C₂ / c: (2 c s + C₂) / (c v + C₂) = (2 s + C₂ / c) / (v + C₂ / c), so torchmetrics
                 gives it with k₂ = 0.03 √(48 / 49).
    range        a number for all images, or max − min of each truth; torchmetrics takes one number a call, hence one call an image.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from scoreinv import metrics
from scoreinv.study.computing import scores

functional = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")

TOLERANCE = 1e-9
GAUSSIAN: dict[str, Any] = {"gaussian_kernel": True, "sigma": 1.5, "kernel_size": 11}
UNIFORM: dict[str, Any] = {"gaussian_kernel": False, "kernel_size": 7, "k2": 0.03 * math.sqrt(48 / 49)}


@pytest.fixture(params=[(23, 31), (40, 17)], ids=str)
def pairs(request: pytest.FixtureRequest, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three reconstructions and truths in [0, 1], smooth with an edge, each with errors of another size; sides odd and even."""
    h, w = request.param
    i, j = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    truth = (0.3 * torch.sin(4 * i + torch.arange(3.0)[:, None, None]) * torch.cos(3 * j) + 0.5).double()
    truth = truth + 0.2 * (i**2 + j**2 < 0.4)
    errors = torch.tensor([0.01, 0.05, 0.2])[:, None, None] * torch.randn(3, h, w, generator=rng)
    return truth + errors, truth


def similarity(x: Tensor, ref: Tensor, data_range: float, settings: dict[str, Any]) -> tuple[float, float]:
    """torchmetrics' SSIM of one image: the mean over pixels whose window lies inside, and over all pixels."""
    border = settings["kernel_size"] // 2
    whole, full = functional.structural_similarity_index_measure(
        x[None, None], ref[None, None], data_range=data_range, return_full_image=True, **settings
    )
    return float(full[0, 0, border:-border, border:-border].mean()), float(whole)


def test_psnr(pairs: tuple[Tensor, Tensor]) -> None:
    x, ref = pairs
    for k in range(len(x)):
        for data_range in (1.0, float(ref[k].max() - ref[k].min())):
            mine = float(metrics.psnr(x[k], ref[k], data_range))
            theirs = functional.peak_signal_noise_ratio(x[k], ref[k], data_range=data_range)
            assert mine == pytest.approx(float(theirs), rel=1e-7)
            theirs = peak_signal_noise_ratio(ref[k].numpy(), x[k].numpy(), data_range=data_range)
            assert mine == pytest.approx(float(theirs), abs=TOLERANCE)


@pytest.mark.parametrize("convention", ["gaussian", "uniform"])
def test_ssim(pairs: tuple[Tensor, Tensor], convention: str) -> None:
    x, ref = pairs
    gaussian = convention == "gaussian"
    ours, settings = (metrics.ssim, GAUSSIAN) if gaussian else (metrics.ssim_uniform, UNIFORM)
    skimage = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if gaussian else {}
    for k in range(len(x)):
        for data_range in (1.0, float(ref[k].max() - ref[k].min())):
            mine = float(ours(x[k], ref[k], data_range))
            inner, whole = similarity(x[k], ref[k], data_range, settings)
            assert mine == pytest.approx(inner, abs=TOLERANCE)
            theirs = structural_similarity(ref[k].numpy(), x[k].numpy(), data_range=data_range, **skimage)
            assert mine == pytest.approx(float(theirs), abs=TOLERANCE)
            assert mine != pytest.approx(whole, abs=1e-4)  # the border counts


def test_the_two_conventions_are_not_the_same(pairs: tuple[Tensor, Tensor]) -> None:
    """And torchmetrics' uniform window without the change of k₂ is neither."""
    x, ref = pairs
    mine = metrics.ssim_uniform(x, ref, 1.0)
    assert float((mine - metrics.ssim(x, ref, 1.0)).abs().max()) > 1e-3
    population = [similarity(a, b, 1.0, {**UNIFORM, "k2": 0.03})[0] for a, b in zip(x, ref, strict=True)]
    assert float((mine - torch.tensor(population)).abs().max()) > 1e-5


def test_the_figures_of_a_row() -> None:
    """`psnr`, `ssim` on the window; `psnr_range`, `ssim_range` and `psnr_full`, `ssim_full` without one, of attenuation. HU are float32: 1e-5."""
    rng = torch.Generator().manual_seed(1)
    truth = torch.full((24, 32), -1000.0)
    truth[4:20, 4:28], truth[12:15, 20:24] = 40.0, 1500.0
    hu = truth + 30 * torch.randn(24, 32, generator=rng)
    found = scores(hu[None], truth, 4000.0)
    u, v = metrics.window(hu).double(), metrics.window(truth).double()
    x, y = hu.double() + 1000, truth.double() + 1000  # attenuation, in thousandths of water's
    for name, a, b, data_range, settings in (
        ("", u, v, 1.0, GAUSSIAN), ("_range", x, y, 2500.0, UNIFORM), ("_full", x, y, 4000.0, UNIFORM),
    ):  # fmt: skip
        psnr = float(functional.peak_signal_noise_ratio(a, b, data_range=data_range))
        assert found[f"psnr{name}"] == pytest.approx(psnr, abs=1e-5)
        assert found[f"ssim{name}"] == pytest.approx(similarity(a, b, data_range, settings)[0], abs=1e-5)
