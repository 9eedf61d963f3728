"""How far a prior D(x, σ) is from what it should be: the mean of x₀ given x = x₀ + σ n, the gradient of a log-density."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.testing.operators import normal, require

SIGMAS = (0.001, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 50.0)
"""Noise levels of `check_denoiser`, in the prior's own coordinate; the first and the last show the limits."""
STEP = 0.01
"""Step of central differences, in units of σ."""
PIXELS_AT_ONCE = 2**16
"""Pixels in one graph."""
_Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DenoiserFigures:
    """How a prior keeps the laws of D(x, σ) = E[x₀ | x] at one noise level, x = x₀ + σ n with d pixels.

    With p the density of x, D = x + σ² ∇ ln p(x) and J = ∂D/∂x = Cov(x₀ | x) / σ² (Tweedie's two identities). So J is
    symmetric, and on average over x: E‖D − x₀‖² = σ² tr J, E‖D − x‖² = σ² (d − tr J), tr Var D = tr Var x₀ − σ² tr J.
    No figure depends on the unit of the images.

    Attributes:
        sigma: σ in the prior's own coordinate.
        asymmetry: ‖J − Jᵀ‖ / ‖J‖ (Frobenius), the rms of vᵀJw − wᵀJv over that of ‖Jv‖ for random signs v, w at all images.
        divergence: tr J / d, the mean squared error in units of σ² that the prior claims; from 0 to 1.
        error: ‖D − x₀‖² / (d σ²), the one that the images show.
        standard_error: of error − divergence, over the images; nan for one image.
        displacement: rms(D − x) / σ, at most 1; goes to 0 with σ where the images have a smooth density.
        spread: standard deviation of D over the images relative to theirs, at most 1; goes to 0 as σ → ∞ (for smooth
            images, where σ is far above √d of their standard deviations). nan for one image.
        flip: rms(F D(F x) − D(x)) / rms(D(x) − x) over flips F of rows and columns; 0 for images without handedness.
    """

    sigma: float
    asymmetry: float
    divergence: float
    error: float
    standard_error: float
    displacement: float
    spread: float
    flip: float

    @property
    def calibration(self) -> float:
        """Error over divergence: 1 where the images follow the prior, above 1 where the prior is too sure."""
        return _ratio(self.error, self.divergence)


@dataclass(frozen=True)
class DenoiserReport:
    """What `check_denoiser` found: print it, or hold it to bounds with `require`.

    Attributes:
        name: of the prior's class, or of the function.
        figures: one entry a noise level.
        batch: rms difference between D of a batch, each member with its own σ, and D of the members alone, in units of σ;
            the worst member's.
        gradient: relative mismatch of vᵀJw between reverse mode and central differences; nan where D has no gradient, and
            central differences gave J everywhere.
    """

    name: str
    figures: tuple[DenoiserFigures, ...]
    batch: float
    gradient: float

    def require(
        self, *, asymmetry: float = 0.05, divergence: float = 0.02, calibration: float = 0.1, displacement: float = 1.05,
        spread: float = 1.1, far_spread: float = math.inf, flip: float = math.inf, batch: float = 1e-3, gradient: float = 0.02,
    ) -> None:  # fmt: skip
        """Hold the figures to bounds. The defaults suit an exact prior and its own images; networks need wider ones.

        Args:
            asymmetry, displacement, spread, flip, batch, gradient: the largest allowed at any noise level; nan passes.
            divergence: how far below 0 or above 1 it may lie.
            calibration: |error − divergence| allowed, relative to divergence and beyond three standard errors.
            far_spread: the largest spread allowed at the largest noise level.

        Raises:
            AssertionError: names every figure that is out of bounds, with its value.
        """
        farthest = max(f.sigma for f in self.figures)
        broken = []
        for f in self.figures:
            slack = calibration * abs(f.divergence) + 3 * f.standard_error
            limit = min(spread, far_spread) if f.sigma == farthest else spread
            for figure, value, low, high in (
                ("asymmetry |J - J'| / |J|", f.asymmetry, 0.0, asymmetry),
                ("divergence tr J / d", f.divergence, -divergence, 1 + divergence),
                ("calibration: |D - x0|^2 / (d sigma^2)", f.error, f.divergence - slack, f.divergence + slack),
                ("displacement rms(D - x) / sigma", f.displacement, 0.0, displacement),
                ("spread of D over spread of the images", f.spread, 0.0, limit),
                ("flip error", f.flip, 0.0, flip),
            ):
                if value < low or value > high:
                    broken.append(f"sigma {f.sigma:g}: {figure} = {value:.4g}, not in [{low:.4g}, {high:.4g}]")
        if self.batch > batch:
            broken.append(f"a batch and its members differ by {self.batch:.2e} sigma, more than {batch:.0e}")
        if self.gradient > gradient:
            broken.append(f"gradient and differences of D differ by {self.gradient:.2e}, more than {gradient:.0e}")
        require(not broken, "\n".join([f"{self.name} is no posterior mean of these images", *broken]))

    def __str__(self) -> str:
        """A Markdown table, and a line on what concerns all noise levels."""
        titles = ("sigma", "asymmetry", "tr J / d", "error", "calibration", "displacement", "spread", "flip")
        lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
        for f in self.figures:
            calibration = f"{f.calibration:.3g} ± {_ratio(f.standard_error, abs(f.divergence)):.1g}"
            before, after = (f.sigma, f.asymmetry, f.divergence, f.error), (f.displacement, f.spread, f.flip)
            cells = [*(f"{v:.3g}" for v in before), calibration, *(f"{v:.3g}" for v in after)]
            lines.append(f"| {' | '.join(cells)} |")
        gradient = f"gradient against central differences {self.gradient:.1e}"
        if math.isnan(self.gradient):
            gradient = "D has no gradient, J by central differences"
        return "\n".join([*lines, "", f"{self.name}: a batch against its members {self.batch:.1e} sigma; {gradient}."])


def check_denoiser(
    denoiser: _Denoiser,
    images: Tensor,
    *,
    sigmas: Sequence[float] = SIGMAS,
    rng: Generator | None = None,
    probes: int = 4,
) -> DenoiserReport:
    """Measure how far a prior D(x, σ) is from a posterior mean, the gradient of a log-density: see `DenoiserFigures`.

    Args:
        denoiser: D.
        images: x₀ that the prior should know, (n, *image_shape) in the unit of its images. The Jacobian is taken at them
            plus noise; the more there are, the better are error and spread known.
        sigmas: noise levels in the prior's own coordinate, in units of its attribute `scale` (1 where it has none).
        rng: source of noise and probes, on the CPU; seeded with 0 by default.
        probes: random signs an image for the Jacobian, at least 2; each costs a backward pass.

    Raises:
        AssertionError: a result of D differs from x in shape or dtype, or is not finite. All else is only reported.
        ValueError: no images, no noise levels or too few probes.
    """
    sound = images.ndim > 1 and images.numel() > 0 and images.is_floating_point()
    if not sound or probes < 2 or len(sigmas) == 0 or min(sigmas) <= 0:
        raise ValueError(
            "check_denoiser: expected floating-point images (n, *image_shape), positive sigmas and at least 2 probes, "
            f"got {images.dtype} images {tuple(images.shape)}, sigmas {tuple(sigmas)}, {probes} probes"
        )
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    unit = float(getattr(denoiser, "scale", 1.0))  # as priors.denoiser.scale_of, which lies a floor above
    images = images.detach()
    batch, gradient = _members(denoiser, images, [s * unit for s in sigmas], rng)
    figures = tuple(_figures(denoiser, images, s, s * unit, _noise(rng, probes, images)) for s in sigmas)
    return DenoiserReport(getattr(denoiser, "__name__", type(denoiser).__name__), figures, batch, gradient)


def _members(D: _Denoiser, images: Tensor, levels: list[float], rng: Generator) -> tuple[float, float]:
    """The figures `batch` and `gradient`, of members with a noise level each."""
    n = max(2, len(levels))
    x0 = images[torch.arange(n) % len(images)]
    noise, v = _noise(rng, 2, x0)
    level = torch.tensor([levels[i % len(levels)] for i in range(n)], dtype=x0.dtype, device=x0.device)
    x = x0 + _column(level, x0) * noise
    with torch.no_grad():
        alone = torch.cat([_denoised(D, x[i : i + 1], level[i]) for i in range(n)])
        apart = _mean_square(_denoised(D, x, level) - alone).sqrt() / level.double()
    _, Jtv, has_gradient = _linearised(D, x, level, v)
    expected = _inner(v, _differences(D, x, level, v))
    mismatch = _ratio(float((_inner(Jtv, v) - expected).norm()), float(expected.norm()))
    return float(apart.max()), mismatch if has_gradient else math.nan


def _figures(D: _Denoiser, images: Tensor, sigma: float, level: float, noise: tuple[Tensor, Tensor]) -> DenoiserFigures:
    """All figures at one noise level, which is `level` in the unit of the images; noise: n and the probes."""
    n, d = len(images), images[0].numel()
    x, v = images + level * noise[0], noise[1]
    levels = torch.full((n,), level, dtype=x.dtype, device=x.device)
    out, Jtv, _ = _linearised(D, x, levels, v)
    vJw = _inner(Jtv, v)
    p, q = torch.triu_indices(len(v), len(v), 1)
    skew, square = (vJw[:, p, q] - vJw[:, q, p]).square().mean(), Jtv.double().square().flatten(2).sum(-1).mean()
    divergence, error = vJw.diagonal(dim1=1, dim2=2).mean(1) / d, _mean_square(out - images) / level**2
    moved = float(_mean_square(out - x).mean().sqrt())
    with torch.no_grad():
        turned = [_denoised(D, x.flip(k), levels).flip(k) for k in range(max(1, x.ndim - 2), x.ndim)]
    return DenoiserFigures(
        sigma=sigma,
        asymmetry=_ratio(float(skew.sqrt()), float(square.sqrt())),
        divergence=float(divergence.mean()),
        error=float(error.mean()),
        standard_error=float((error - divergence).std()) / math.sqrt(n) if n > 1 else math.nan,
        displacement=moved / level,
        spread=_ratio(*(float(t.double().var(0).mean().sqrt()) for t in (out, images))) if n > 1 else math.nan,
        flip=_ratio(float(torch.stack([_mean_square(t - out) for t in turned]).mean().sqrt()), moved),
    )


def _denoised(D: _Denoiser, x: Tensor, level: Tensor) -> Tensor:
    out = D(x, level)
    what = f"D(x, sigma) of x {tuple(x.shape)} in {x.dtype} and sigma {tuple(level.shape)}"
    require(out.shape == x.shape, f"{what}: the result has shape {tuple(out.shape)}")
    require(out.dtype == x.dtype, f"{what}: the result has dtype {out.dtype}")
    require(bool(out.isfinite().all()), f"{what}: the result is not finite")
    return out


def _linearised(D: _Denoiser, x: Tensor, level: Tensor, v: Tensor) -> tuple[Tensor, Tensor, bool]:
    """D(x); Jᵀv of every probe by reverse mode, or J v by central differences where D has no gradient; and whether it has.

    The figures are the same for J and Jᵀ. A few images at a time, so that the graph stays small.
    """
    outs, products, step = [], [], max(1, PIXELS_AT_ONCE // x[0].numel())
    try:
        for a, s, w in zip(torch.split(x, step), torch.split(level, step), torch.split(v, step, 1), strict=True):
            point = a.clone().requires_grad_()
            with torch.enable_grad():
                out = _denoised(D, point, s)
            outs.append(out.detach())
            products.append(torch.stack([torch.autograd.grad(out, point, u, retain_graph=True)[0] for u in w]))
    except RuntimeError:  # torch's, for .numpy(), no_grad or a missing derivative; other faults return at the next call
        with torch.no_grad():
            return _denoised(D, x, level), _differences(D, x, level, v), False
    return torch.cat(outs), torch.cat(products, 1), True


@torch.no_grad()
def _differences(D: _Denoiser, x: Tensor, level: Tensor, v: Tensor) -> Tensor:
    """J v of every probe, by central differences."""
    h = STEP * _column(level, x)
    return torch.stack([(_denoised(D, x + h * u, level) - _denoised(D, x - h * u, level)) / (2 * h) for u in v])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_p, b_q⟩ for every image: (probes, n, *image_shape) twice -> (n, probes, probes) in float64."""
    return torch.einsum("pni,qni->npq", a.flatten(2).double(), b.flatten(2).double())


def _noise(rng: Generator, probes: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """Normal noise like the images, and probes of random signs, (probes, n, *image_shape)."""
    shape = tuple(images.shape)
    signs = 2 * torch.randint(0, 2, (probes, *shape), generator=rng) - 1
    return normal(rng, shape, images.dtype).to(images), signs.to(images)


def _column(level: Tensor, x: Tensor) -> Tensor:
    return level.reshape(-1, *[1] * (x.ndim - 1))


def _mean_square(x: Tensor) -> Tensor:
    """Of every image, (n,) in float64."""
    return x.double().flatten(1).square().mean(1)


def _ratio(a: float, b: float) -> float:
    """a / b, where 0 / 0 is 0."""
    return a / b if b else math.copysign(math.inf, a) if a else 0.0
