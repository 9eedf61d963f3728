"""Stationary Gaussian priors on a torus: exact references for images of 256 x 256 and more, never a dense matrix.

Σ = F⁻¹ diag(λ) F with the discrete Fourier transform F over all dimensions of the image: the covariance of two pixels
depends on their distance alone, the image's edges meet. λ is the spectrum: a pixel's variance is its mean. All formulas of
`scoreinv.priors.exact` hold with F in the place of Qᵀ. The posterior of y = A x₀ + n, n ~ N(0, Σ_y),

    mean         μ + Σ Aᵀ M⁺ (y − A μ),  M = A Σ Aᵀ + Σ_y                                                           (1)
    draw         x̃ + Σ Aᵀ M⁺ (y − A x̃ − ñ) with x̃ ~ N(μ, Σ), ñ ~ N(0, Σ_y): perturb and solve                       (2)
    covariance   cᵀ Σ_p c' = cᵀ Σ c' − (A Σ c)ᵀ M⁺ (A Σ c') of linear functionals c, c' of the image                   (3)

needs M only as a map: D M D v = D b, u = D v is solved by conjugate gradients in the space of the data, to a tolerance that is checked,
with D^-2 = σ_y² and the mean of the diagonal of A Σ Aᵀ, so that one very noisy datum does not hide what others leave; D is 0 for data that
the operator does not see.
(2): Papandreou, Yuille 2010, "Gaussian sampling by local perturbations"; in geostatistics Matheron's rule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.priors.exact import NO_DENSITY, GaussianPrior, check_problem
from scoreinv.priors.mixture import check_draws, check_numbers, flow_factor, gain, variance_of
from scoreinv.problem import Problem
from scoreinv.solvers import cg, inner

LARGEST_DENSE = 4096
"""Data at most for which ln det M is computed, from M as a dense matrix (128 MiB)."""


def matern(shape: Sequence[int], *, std: float, length: float, smoothness: float = 1.0) -> Tensor:
    """The spectrum of Matérn's family, λ(k) ∝ (length⁻² + |2π k|²)^(−smoothness − dimensions / 2).

    Args:
        shape: of the image.
        std: standard deviation of a pixel.
        length: correlation length [pixels].
        smoothness: ν; draws are ⌈ν⌉ − 1 times differentiable; large values give smooth blobs.

    Returns:
        (*shape) in float64, with the mean std².

    Raises:
        ValueError: std is negative, or length or smoothness not positive and finite.
    """
    if not 0 <= std < math.inf or not 0 < length < math.inf or not 0 < smoothness < math.inf:
        raise ValueError(
            f"matern: expected std >= 0, length > 0 and smoothness > 0, all finite, got {std}, {length} and {smoothness}"
        )
    frequencies = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in shape), indexing="ij")
    squared = sum(((2 * math.pi * f) ** 2 for f in frequencies), torch.zeros(tuple(shape), dtype=torch.float64))
    spectrum = (length**-2 + squared) ** (-smoothness - len(shape) / 2)
    return std**2 * spectrum / spectrum.mean()


@dataclass(frozen=True, eq=False)
class StationaryPrior:
    """N(mean, F⁻¹ diag(spectrum) F); x is (batch, *image_shape), sigma a scalar or (batch,).

    Attributes:
        mean: (*image_shape).
        spectrum: λ (*image_shape), in the order of `torch.fft.fftn`; not negative, and λ(−k) = λ(k).
    """

    mean: Tensor
    spectrum: Tensor

    def __post_init__(self) -> None:
        if self.spectrum.shape != self.mean.shape:
            shapes = f"{tuple(self.spectrum.shape)} and {tuple(self.mean.shape)}"
            raise ValueError(f"StationaryPrior: spectrum and mean must have one shape, got {shapes}")
        dims = tuple(range(self.spectrum.ndim))
        mirrored = self.spectrum.flip(dims).roll([1] * len(dims), dims)
        check_numbers("StationaryPrior", mean=self.mean, spectrum=self.spectrum)
        uneven = (mirrored - self.spectrum).abs().max() > 1e-5 * self.spectrum.abs().max()
        if uneven or not (self.spectrum >= 0).all():
            raise ValueError("StationaryPrior: the spectrum must not be negative, and be the same at k and -k")

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | x = x₀ + σ n]."""
        return self._affine(x, self._gain(x, sigma))

    def jvp(self, x: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
        """J v with J = ∂D/∂x, and Jᵀ v, which is the same; v is shaped like x."""
        return self._linear(v, self._gain(x, sigma)).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """∇ ln p(x) at noise level sigma, which may be 0 where the spectrum is positive."""
        total = self._spectrum(x) + variance_of(sigma, x, self.mean)
        return self._linear(self.mean.to(x.device, torch.float64) - x, 1 / total).to(x.dtype)

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Where the probability flow takes x from sigma to sigma_next, exactly. From 0 it needs a positive spectrum."""
        before, after = (variance_of(s, x, self.mean) for s in (sigma, sigma_next))
        return self._affine(x, flow_factor(self._spectrum(x), before, after))

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln N(x; μ, Σ + σ² I) of every member, (batch,) in float64; −∞ or nan where that matrix is singular."""
        total = self._spectrum(x) + variance_of(sigma, x, self.mean)
        z = torch.fft.fftn(x.double() - self.mean.to(x.device, torch.float64), dim=self._dims)
        power = z.abs() ** 2 / self.mean.numel()
        log_density: Tensor = -0.5 * (power / total + total.log() + math.log(2 * math.pi)).flatten(1).sum(1)
        return log_density

    def posterior(self, problem: Problem, *, tolerance: float = 1e-10, iterations: int = 5000) -> StationaryPosterior:
        """The law of x₀ given y, see `StationaryPosterior`."""
        return StationaryPosterior(self, problem, tolerance, iterations)

    def draw(self, n: int, rng: Generator) -> Tensor:
        """n independent images, (n, *image_shape), in the mean's dtype."""
        check_draws(n, rng)
        z = torch.randn((n, *self.mean.shape), generator=rng, dtype=torch.float64)
        return (self.mean.double() + self._linear(z, self.spectrum.double().sqrt())).to(self.mean)

    def dense(self) -> GaussianPrior:
        """The same prior with its covariance as a matrix: for small images."""
        return GaussianPrior(self.mean, self.times(_identity(self.mean)).flatten(1).to(self.mean))

    def times(self, v: Tensor) -> Tensor:
        """Σ v for v (batch, *image_shape), in float64."""
        return self._linear(v, self._spectrum(v))

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-self.mean.ndim, 0))

    def _spectrum(self, x: Tensor) -> Tensor:
        return self.spectrum.to(x.device, torch.float64)

    def _gain(self, x: Tensor, sigma: Tensor) -> Tensor:
        """λ / (λ + σ²)."""
        return gain(self._spectrum(x), variance_of(sigma, x, self.mean))

    def _affine(self, x: Tensor, factor: Tensor) -> Tensor:
        """μ + F⁻¹ diag(factor) F (x − μ)."""
        mean = self.mean.to(x.device, torch.float64)
        return (mean + self._linear(x - mean, factor)).to(x.dtype)

    def _linear(self, v: Tensor, factor: Tensor) -> Tensor:
        """F⁻¹ diag(factor) F v in float64; v is real, half of the frequencies tell the rest."""
        transformed = factor[..., : v.shape[-1] // 2 + 1] * torch.fft.rfftn(v.double(), dim=self._dims)
        filtered: Tensor = torch.fft.irfftn(transformed, self.mean.shape, self._dims)
        return filtered


@dataclass(frozen=True, eq=False)
class StationaryPosterior:
    """The posterior of a stationary prior, by conjugate gradients: eqs. (1) to (3) of the module's head.

    Attributes:
        prior: N(μ, Σ).
        problem: A, y of one image, and σ_y: any tensor that broadcasts to y, 0 for noise-free data.
        tolerance: relative residual of the solutions.
        iterations: of conjugate gradients, at most.

    Raises:
        ValueError: as `GaussianPrior.posterior` does.
        ArithmeticError: (of the methods) the tolerance was not reached.
    """

    prior: StationaryPrior
    problem: Problem
    tolerance: float = 1e-10
    iterations: int = 5000

    def __post_init__(self) -> None:
        check_problem(self.problem, self.prior.mean)
        if not self.tolerance > 0 or self.iterations < 1:
            raise ValueError(
                f"StationaryPosterior: expected tolerance > 0 and iterations >= 1, got {self.tolerance} and {self.iterations}"
            )

    @functools.cached_property
    def mean(self) -> Tensor:
        """Eq. (1), (*image_shape) in the prior's dtype."""
        mean = self.prior.mean.double()[None]
        return (mean + self._correction(self._y - self.problem.A(mean)))[0].to(self.prior.mean)

    def draw(self, n: int, rng: Generator) -> Tensor:
        """n independent draws, (n, *image_shape): eq. (2)."""
        x = self.prior.draw(n, rng).double()
        noise = torch.randn((n, *self.problem.A.out_shape), generator=rng, dtype=torch.float64)
        residual = self._y - self.problem.A(x) - self._std * noise.to(x.device)
        return (x + self._correction(residual)).to(self.prior.mean)

    def covariance_of(self, functionals: Tensor) -> Tensor:
        """Of linear functionals c of the image, (k, *image_shape) -> (k, k) in float64: eq. (3).

        Pixel variances are the diagonal for functionals that are 1 in one pixel and 0 elsewhere, see `pixel_variance`.
        """
        seen = self.problem.A(self.prior.times(functionals))
        before = functionals.double().flatten(1) @ self.prior.times(functionals).flatten(1).T
        return before - seen.flatten(1) @ self._solve(seen).flatten(1).T

    def pixel_variance(self, pixels: Sequence[tuple[int, ...]]) -> Tensor:
        """Posterior variance of chosen pixels, (k,) in float64.

        Raises:
            ValueError: a pixel has not as many indices as the image has dimensions.
        """
        wrong = [p for p in pixels if len(p) != self.prior.mean.ndim]
        if wrong:
            raise ValueError(f"pixel_variance: expected {self.prior.mean.ndim} indices a pixel, got {wrong[0]}")
        functionals = torch.zeros(len(pixels), *self.prior.mean.shape, dtype=torch.float64)
        for k, pixel in enumerate(pixels):
            functionals[(k, *pixel)] = 1
        return self.covariance_of(functionals).diagonal()

    def log_evidence(self) -> Tensor:
        """ln p(y), a number in float64, for at most `LARGEST_DENSE` data.

        Raises:
            ValueError: there are more, or some are noise-free and dependent.
        """
        m = self.problem.A.n_data
        if m > LARGEST_DENSE:
            raise ValueError(
                f"log_evidence: ln det of a {m} x {m} matrix ({8 * m**2 / 2**30:.1f} GiB) is too much, at most "
                f"{LARGEST_DENSE} data; mixtures whose components share one spectrum do without"
            )
        scale, counted = self._scale.flatten(), (self._scale > 0).flatten()
        matrix = self._scaled_covariance(_identity(self._y[0])[counted]).flatten(1)[:, counted]
        eigenvalues = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
        if (eigenvalues <= m * torch.finfo(torch.float64).eps * eigenvalues[-1:]).any():
            raise ValueError(f"log_evidence: {NO_DENSITY}")
        log_det = eigenvalues.log().sum() - 2 * scale[counted].log().sum()
        log_density: Tensor = -0.5 * (self.distance + log_det + m * math.log(2 * math.pi))
        return log_density

    @functools.cached_property
    def distance(self) -> Tensor:
        """(y − A μ)ᵀ M⁺ (y − A μ): how surprising the data are, squared; m on average."""
        residual = self._y - self.problem.A(self.prior.mean.double()[None])
        return inner(residual, self._solve(residual))[0]

    @property
    def _y(self) -> Tensor:
        return self.problem.y.double()[None]

    @property
    def _std(self) -> Tensor:
        return torch.as_tensor(self.problem.noise_std, dtype=torch.float64, device=self.problem.y.device)

    @functools.cached_property
    def _scale(self) -> Tensor:
        """D of the module's head, (*A.out_shape)."""
        A = self.problem.A
        x = self.prior.draw(8, Generator().manual_seed(0)).double() - self.prior.mean.double()
        signal = A.of_seen(A(x)).square().sum() / (8 * max(A.n_data, 1))
        total = (self._std**2 + signal).expand(A.out_shape)
        return A.of_seen(torch.where(total > 0, total, 1).rsqrt())

    def _scaled_covariance(self, v: Tensor) -> Tensor:
        """D M D v for v (batch, *A.out_shape)."""
        A, u = self.problem.A, self._scale * v
        return self._scale * (A(self.prior.times(A.H(u))) + self._std**2 * u)

    def _correction(self, residual: Tensor) -> Tensor:
        """Σ Aᵀ M⁺ residual."""
        return self.prior.times(self.problem.A.H(self._solve(residual)))

    def _solve(self, b: Tensor) -> Tensor:
        b = self._scale * b
        v = cg(self._scaled_covariance, b, max_iterations=self.iterations, tolerance=self.tolerance)
        left = (b - self._scaled_covariance(v)).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1).clamp(min=1e-300)
        if not (left <= 10 * self.tolerance).all():
            raise ArithmeticError(
                f"StationaryPosterior: conjugate gradients left a relative residual of {float(left.max()):.1e} after at "
                f"most {self.iterations} iterations, wanted {self.tolerance:.0e}: raise iterations or tolerance, or "
                "give the data (more) noise"
            )
        return self._scale * v


def _identity(like: Tensor) -> Tensor:
    """The unit vectors of a space, (n, *like.shape) in float64."""
    return torch.eye(like.numel(), dtype=torch.float64, device=like.device).reshape(-1, *like.shape)
