"""How far to trust a reconstruction: does it fit the data, and what in it do the data determine?

Fit. If x is a draw from the posterior p(x | y), then x and the true image have the same law given y, so the misfit
χ² = ‖(A x − y) / σ‖² / m of a draw is that of the truth: 1 on average, with a standard deviation of √(2 / m) for m data. Draws
well above 1 do not explain the data; draws well below follow the noise, or the noise that is stated is too large, which χ² cannot tell
apart. The mean x̄ of the draws fits better than a draw and the truth, well below 1 where data are few. Photons N ~ Poisson(N̂), N̂ = P exp(−A x), are judged by Pearson's

    χ² = Σ (N − N̂)² / N̂ / m                                                                                       (1)

which is 1 on average for any number of photons, since a Poisson law's variance is its mean; its fourth central moment is
N̂ + 3 N̂², so that the variance of χ² is (2 + mean 1 / N̂) / m. With 1 / √N of the data as σ instead, χ² of the true image is 0.81 at
2 photons a ray and 3.0 at 0.05.

M draws that a method moves together, so that their mean is its image (`CENTRED`), lie at x̄ + d_m − mean d: their χ² exceeds that
of x̄ by 1 − 1 / M of what a draw's does. With χ²_m of draw m, that of a draw is then without bias

    χ² = χ²(x̄) + M / (M − 1) · mean (χ²_m − χ²(x̄))                                                                (2)

and mean χ²_m where they are not moved. It is exact for Gaussian noise, as χ² is quadratic.

Support. x = A⁺A x + (I − A⁺A) x: the first part is what data without noise would tell, the second comes from the prior alone.
With noise the singular directions that it buries belong to the prior too:

    measured part   x_A = (AᵀW A + ρ I)⁻¹ AᵀW A x,   W = 1 / σ_y²,   ρ = 1 / s²                                       (3)

with s the standard deviation of images around their prior. ρ → 0 gives A⁺A x, which no data tell in practice: at 60 views within 100
degrees it is all of the image, however small the singular values. So data that are called noise-free count as `LEAST_NOISE` off.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreinv import metrics
from scoreinv.problem import Problem
from scoreinv.solvers import cg, like, noise_weights

MODEL_ERROR = 0.15
"""Misfit, relative to 1, that is put down to the model (geometry, discretisation) rather than to the reconstruction."""
LEAST_NOISE = 1e-3
"""Noise of noise-free data over their root mean square: what discretisation and float32 leave."""
SEVERAL = 3.0
"""How many times the usual residual of noise-free data is too much: on data of a grid twice as fine it is 3.6 and 4.3 times (two patients,
23 views)."""
RESIDUAL = 1.5e-3
"""Relative residual of noise-free data that is too much. Draws of `proximal` leave 1.2e-4 to 3.5e-4 of data of the operator itself (32 in
benchmarks/results/presets.csv and methods.csv), so about 1e-3 of data of a grid twice as fine (`SEVERAL`)."""
HOPELESS = 3.0
"""chi^2 of one image beyond which it is said that it does not fit; draws are judged more closely."""
CENTRED = ("proximal",)
"""Methods that move their draws so that their mean is the image."""
WINDOW = 9
"""Side of the neighbourhoods of `support_map` [pixels]."""


def chi_squared(problem: Problem, x: Tensor) -> Tensor:
    """The misfit that is judged: eq. (1) where the problem carries its photon counts, else `metrics.chi_squared`.

    Args:
        problem: data, noise, counts.
        x: (*lead, *batch, *A.in_shape) in the operator's unit.

    Returns:
        (*lead, *batch).
    """
    if problem.counts is None:
        return metrics.chi_squared(problem, x)
    expected, arrived = _expected(problem, x), problem.counts.arrived.double()
    return _mean_over_data(problem, (arrived - expected).square() / expected)


def inverse_photons(problem: Problem, x: Tensor) -> float:
    """Mean of 1 / N̂ over data and images x (*lead, *batch, *A.in_shape), for `slack`; 0 for problems without counts."""
    return 0.0 if problem.counts is None else float(_mean_over_data(problem, 1 / _expected(problem, x)).mean())


def _expected(problem: Problem, x: Tensor) -> Tensor:
    """N̂ of images, in float64 and never 0."""
    assert problem.counts is not None
    return (problem.counts.photons * torch.exp(-problem.A(x).double())).clamp(min=1e-12)


def _mean_over_data(problem: Problem, values: Tensor) -> Tensor:
    """(*batch, *A.out_shape) -> (*batch), over the data that the operator sees."""
    return problem.A.of_seen(values).sum(tuple(range(-len(problem.A.out_shape), 0))) / max(problem.A.n_data, 1)


def of_a_draw(method: str, of_mean: Tensor, of_draws: Tensor) -> Tensor:
    """χ² of a draw of the posterior that a method's draws stand for: eq. (2) for those of `CENTRED`, else their mean.

    Args:
        method: its name.
        of_mean: χ² of the mean of the draws, (*batch,).
        of_draws: χ² of each, (M, *batch).

    Returns:
        (*batch,).
    """
    n, mean = len(of_draws), of_draws.mean(0)
    return of_mean + n / (n - 1) * (mean - of_mean) if method in CENTRED and n > 1 else mean


def standing(misfit: float, n_data: int, inverse_photons: float = 0.0, *, noise: str = "stated") -> float:
    """What a misfit says, as a number: 1 for images that do not explain the data, -1 for those that follow their noise, or whose noise
    is stated too large, 0 for neither, NaN where nothing can be said. Noise that was estimated may itself be wrong: of images that fit
    better than it nothing is said.

    Args:
        misfit: χ² of a draw (`of_a_draw`); of noise-free data the relative residual.
        n_data: m.
        inverse_photons: mean of 1 / N̂ for photon counts.
        noise: "stated", "estimated", "raised" (estimated, then raised to what an image leaves of the data) or "absent".
    """
    if not math.isfinite(misfit):
        return math.nan
    if noise == "absent":
        return float(misfit > RESIDUAL)
    if misfit < least(n_data, inverse_photons):
        return -1.0 if noise == "stated" else math.nan
    return float(misfit > 1 + slack(n_data, inverse_photons))


def verdict(misfit: float, n_data: int, inverse_photons: float = 0.0, *, noise: str = "stated") -> str:
    """What a misfit says, in a word and a sentence; arguments are those of `standing`."""
    found = standing(misfit, n_data, inverse_photons, noise=noise)
    if not math.isfinite(misfit):
        return f"no verdict: {'all data are 0' if noise == 'absent' else 'the noise of the data is unknown'}"
    if noise == "absent" and found:
        return (
            f"inconsistent with the data: larger than the {RESIDUAL:.1e} of noise-free data that the operator explains (is the geometry right, "
            "is there noise, metal or motion? Methods that do not meet the data exactly leave more, too)"
        )
    if noise == "absent":
        return "consistent: the images explain the measurements as far as noise-free data are explained"
    if found == 1:
        return (
            f"inconsistent with the data: the images do not explain the measurements down to the {noise} noise "
            "(is the geometry right, is the noise larger, is there metal or motion?)"
        )
    if found == 0:
        return f"consistent: the images explain the measurements down to the {noise} noise"
    either = f"either the {noise} noise is too large, or the images follow the noise of the measurements"
    if noise == "stated":
        return f"over-fitted, or judged by too large a noise: chi^2 is too small, {either}"
    return f"no verdict: chi^2 is too small, {either} (--noise-std states it)"


def worse_fit(
    chi2_samples: Tensor | None,
    usual: float,
    problem: Problem,
    *,
    residual: float | None = None,
    inverse_photons: float = 0.0,
) -> str:
    """How much worse draws fit than usual, in words; empty where they do not, or where nothing is known.

    Args:
        chi2_samples: `chi_squared` of the draws, for noise-free data their relative residual.
        usual: mean of it, for noisy data.
        problem: data and noise.
        residual: mean of it for noise-free data, where it is known.
        inverse_photons: see `verdict`.
    """
    if chi2_samples is None:
        return ""
    noisy, own = bool((torch.as_tensor(problem.noise_std) > 0).any()), float(chi2_samples.mean())
    name, usually = ("chi^2", usual) if noisy else ("relative residual", residual)
    most = 1 + slack(problem.A.n_data, inverse_photons) if noisy else SEVERAL
    if usually is None or not own > usually * most:
        return ""
    return f"the draws leave a {name} of {own:.2g}, those of the nearest calibration {usually:.2g}"


def slack(n_data: int, inverse_photons: float = 0.0) -> float:
    """How far the mean misfit of so many data may be above 1; of photon counts with a mean of 1 / N̂."""
    return MODEL_ERROR + 3 * math.sqrt((2 + inverse_photons) / max(n_data, 1))


def least(n_data: int, inverse_photons: float = 0.0) -> float:
    """The least misfit that noise leaves of so many data: three standard deviations below 1 on the scale of cube roots, where χ² is
    nearly normal also of few data (Wilson, Hilferty 1931, doi:10.1073/pnas.17.12.684), and `MODEL_ERROR` less."""
    ninth = (2 + inverse_photons) / (9 * max(n_data, 1))
    return (1 - MODEL_ERROR) * max(1 - ninth - 3 * math.sqrt(ninth), 0.0) ** 3


@torch.no_grad()
def measured_part(problem: Problem, x: Tensor, *, spread: float, iterations: int = 500) -> Tensor:
    """The part of an image that the data determine, eq. (3); the rest, x minus this, comes from the prior.

    Args:
        problem: operator and noise; of noise-free data the root mean square counts (`LEAST_NOISE`), of others nothing.
        x: (*batch, *A.in_shape).
        spread: s, in the unit of the images.
        iterations: CG steps at most, each an application of A and of Aᵀ; they end at the images' rounding. In float32 the maps of 256 x 256
            pixels take 70 to 190.

    Returns:
        Shaped like x.
    """
    flat = problem.flat()
    images = x.reshape(-1, *problem.A.in_shape)
    A = problem.A
    weights, sigma = noise_weights(flat)
    sigma = torch.where(sigma > 0, sigma, LEAST_NOISE * _mean_over_data(flat, flat.y.square()).sqrt())
    ridge = like((sigma / spread) ** 2, images)

    def normal(z: Tensor) -> Tensor:
        data = A(z)
        return A.H(data if weights is None else weights * data)

    part = cg(lambda z: normal(z) + ridge * z, normal(images), max_iterations=iterations)
    return part.reshape(x.shape)


def support_map(measured: Tensor, x: Tensor, *, window: int = WINDOW) -> Tensor:
    """Share of each pixel's neighbourhood that the data determine, from 0 (prior alone) to 1.

    E_A / (E_A + E_0), with E_A and E_0 the local energies of the measured part and of the rest, each less its own mean over the
    image: what is judged is structure. 0 where nothing is measured, and the square of the share of an amplitude over its sum with that
    of the rest: 1/2 where the data determine half of it.

    Args:
        measured: `measured_part` of x, (*batch, H, W).
        x: (*batch, H, W).
        window: side of the neighbourhood [pixels].
    """

    def energy(image: Tensor) -> Tensor:
        squares = image.reshape(-1, 1, *image.shape[-2:]).square()
        local = F.avg_pool2d(squares, window, stride=1, padding=window // 2, count_include_pad=False)
        return local.reshape(image.shape)

    def structure(image: Tensor) -> Tensor:
        return image - image.mean((-2, -1), keepdim=True)

    seen, unseen = energy(structure(measured)), energy(structure(x - measured))
    share: Tensor = seen / (seen + unseen).clamp(min=torch.finfo(x.dtype).tiny)
    return share
