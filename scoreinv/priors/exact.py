"""Priors whose denoiser, flow and posterior have closed forms: what every sampler can be verified against.

Gaussian N(μ, Σ), Σ = Q diag(λ) Qᵀ, on x = x₀ + σ n:

    denoiser          D(x, σ) = μ + Q diag(λ / (λ + σ²)) Qᵀ (x − μ)
    probability flow  x' = μ + Q diag(√((λ + σ'²) / (λ + σ²))) Qᵀ (x − μ)                                          (1)
    posterior         μ_p = μ + K (y − A μ),  Σ_p = Σ − K A Σ,  K = Σ Aᵀ (A Σ Aᵀ + Σ_y)⁺

Mixture Σ_k w_k N(μ_k, Σ_k): D = Σ r_k D_k with r_k ∝ w_k N(x; μ_k, Σ_k + σ² I); the posterior is the mixture of the
components' posteriors with weights ∝ w_k N(y; A μ_k, A Σ_k Aᵀ + Σ_y).

Everything is dense and computed in float64: for images of up to about 1000 pixels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.linop import LinearOperator
from scoreinv.problem import Problem


def dense(A: LinearOperator) -> Tensor:
    """The matrix of an operator, (data, pixels) in float64, one column a pixel: for small images only."""
    n = math.prod(A.in_shape)
    columns = A(torch.eye(n, dtype=torch.float64).reshape(n, *A.in_shape))
    return columns.reshape(n, -1).T


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """N(mean, covariance): a denoiser, and with `posterior` the exact answer to any linear problem.

    Attributes:
        mean: (*image_shape).
        covariance: (d, d) with d the number of pixels; symmetric, positive semi-definite.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if tuple(self.covariance.shape) != (d, d):
            got = tuple(self.covariance.shape)
            raise ValueError(f"GaussianPrior: a mean of {d} pixels needs a covariance ({d}, {d}), got {got}")
        if (self.covariance - self.covariance.T).abs().max() > 1e-4 * self.covariance.abs().max():
            raise ValueError("GaussianPrior: the covariance must be symmetric")
        lowest, highest = self._eigen[2]
        if lowest < -1e-5 * highest:
            raise ValueError(
                f"GaussianPrior: expected a positive semi-definite covariance, an eigenvalue is {lowest:g}"
            )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | x = x₀ + σ n] for x (batch, *image_shape) and sigma a scalar or (batch,)."""
        eigenvalues = self._eigen[0].to(x.device)
        variance = _column(sigma, x) ** 2
        return self._filter(x, torch.nan_to_num(eigenvalues / (eigenvalues + variance)))

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Where the probability flow takes x from sigma to sigma_next, exactly: eq. (1)."""
        eigenvalues = self._eigen[0].to(x.device)
        before, after = _column(sigma, x) ** 2, _column(sigma_next, x) ** 2
        return self._filter(x, torch.nan_to_num((eigenvalues + after) / (eigenvalues + before)).sqrt())

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln N(x; μ, Σ + σ² I) of every member, (batch,) in float64; −∞ or nan where that matrix is singular."""
        eigenvalues, vectors, _ = self._eigen
        total = eigenvalues.to(x.device) + _column(sigma, x) ** 2
        z = (x.double() - self.mean.to(x.device, torch.float64)).flatten(1) @ vectors.to(x.device)
        return -0.5 * (z**2 / total + total.log() + math.log(2 * math.pi)).sum(1)

    def posterior(self, problem: Problem) -> GaussianPrior:
        """The law of x₀ given y, again Gaussian; noise-free data are conditioned on exactly.

        Raises:
            ValueError: the problem has batch dimensions, or its images are not those of the prior.
        """
        return self._condition(problem)[0]

    def draw(self, n: int, rng: Generator) -> Tensor:
        """n independent images, (n, *image_shape), in the mean's dtype."""
        eigenvalues, vectors, _ = self._eigen
        z = torch.randn((n, len(eigenvalues)), generator=rng, dtype=torch.float64)
        x = (z * eigenvalues.sqrt()) @ vectors.T
        return (self.mean.double() + x.reshape(n, *self.mean.shape)).to(self.mean)

    def _condition(self, problem: Problem) -> tuple[GaussianPrior, GaussianPrior]:
        """The law of x₀ given y, and the law of the data, N(A μ, A Σ Aᵀ + Σ_y)."""
        A, y = problem.A, problem.y
        if problem.batch_shape or A.in_shape != tuple(self.mean.shape):
            raise ValueError(
                f"posterior: expected data {A.out_shape} of one image {tuple(self.mean.shape)}, "
                f"got {tuple(y.shape)} of images {A.in_shape}"
            )
        matrix, prior_cov = dense(A), self.covariance.double()
        std = torch.as_tensor(problem.noise_std, dtype=torch.float64).expand(A.out_shape).flatten()
        cross = prior_cov @ matrix.T
        data_cov = _symmetric(matrix @ cross + torch.diag(std**2))
        gain = cross @ torch.linalg.pinv(data_cov, hermitian=True)
        predicted = matrix @ self.mean.double().flatten()
        mean = self.mean.double().flatten() + gain @ (y.double().flatten() - predicted)
        eigenvalues, vectors = torch.linalg.eigh(_symmetric(prior_cov - gain @ cross.T))
        cov = (vectors * eigenvalues.clamp(min=0)) @ vectors.T  # rounding may leave small negative ones
        posterior = GaussianPrior(mean.reshape(self.mean.shape).to(self.mean), cov.to(self.covariance))
        return posterior, GaussianPrior(predicted.reshape(A.out_shape), data_cov)

    @functools.cached_property
    def _eigen(self) -> tuple[Tensor, Tensor, tuple[float, float]]:
        """λ (not negative), Q, and the smallest and largest λ before that."""
        eigenvalues, vectors = torch.linalg.eigh(_symmetric(self.covariance.double()))
        return eigenvalues.clamp(min=0), vectors, (float(eigenvalues[0]), float(eigenvalues[-1]))

    def _filter(self, x: Tensor, factor: Tensor) -> Tensor:
        """μ + Q diag(factor) Qᵀ (x − μ)."""
        vectors, mean = self._eigen[1].to(x.device), self.mean.to(x.device, torch.float64)
        centred = (x.double() - mean).flatten(1)
        return (mean + (((centred @ vectors) * factor) @ vectors.T).reshape(x.shape)).to(x.dtype)


@dataclass(frozen=True, eq=False)
class GaussianMixturePrior:
    """Σ_k w_k N(mean_k, covariance_k).

    Attributes:
        weights: (K,), positive; they are normalised.
        means: (K, *image_shape).
        covariances: (K, d, d).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        k = len(self.weights)
        if len(self.means) != k or len(self.covariances) != k or k == 0 or not (self.weights > 0).all():
            raise ValueError(
                "GaussianMixturePrior: expected one positive weight, one mean and one covariance a component, "
                f"got weights {self.weights.tolist()}, {len(self.means)} means and {len(self.covariances)} covariances"
            )

    @functools.cached_property
    def components(self) -> tuple[GaussianPrior, ...]:
        """The K Gaussians."""
        return tuple(GaussianPrior(m, c) for m, c in zip(self.means, self.covariances, strict=True))

    def responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """P(component | x = x₀ + σ n), (batch, K) in float64."""
        log_density = torch.stack([c.log_density(x, sigma) for c in self.components], dim=1)
        return torch.softmax(self.weights.to(log_density).log() + log_density, dim=1)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | x = x₀ + σ n] for x (batch, *image_shape) and sigma > 0 a scalar or (batch,)."""
        estimates = torch.stack([c(x, sigma).double() for c in self.components], dim=-1)
        r = self.responsibilities(x, sigma)
        return (estimates * r.reshape(len(x), *[1] * (x.ndim - 1), -1)).sum(-1).to(x.dtype)

    def posterior(self, problem: Problem) -> GaussianMixturePrior:
        """The law of x₀ given y, again a mixture.

        Raises:
            ValueError: as for `GaussianPrior.posterior`, or the data have no density (noise-free and dependent).
        """
        conditioned = [c._condition(problem) for c in self.components]
        y, zero = problem.y.double()[None], torch.zeros(())
        evidence = torch.cat([law.log_density(y, zero) for _, law in conditioned])
        if not torch.isfinite(evidence).all():
            raise ValueError("GaussianMixturePrior: the data have no density; give the problem a positive noise_std")
        weights = torch.softmax(self.weights.double().log() + evidence, dim=0)
        kept = [i for i, w in enumerate(weights) if w > 0]  # a weight can underflow to zero
        return GaussianMixturePrior(
            weights[kept],
            torch.stack([conditioned[i][0].mean for i in kept]),
            torch.stack([conditioned[i][0].covariance for i in kept]),
        )

    def draw(self, n: int, rng: Generator) -> Tensor:
        """n independent images, (n, *image_shape)."""
        which = torch.multinomial(self.weights.double(), n, replacement=True, generator=rng)
        x = torch.empty(n, *self.means.shape[1:], dtype=self.means.dtype)
        for k, component in enumerate(self.components):
            x[which == k] = component.draw(int((which == k).sum()), rng)
        return x


def _column(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma, a scalar or (batch,), as (1 or batch, 1) in float64 on x's device."""
    return torch.as_tensor(sigma).to(x.device, torch.float64).reshape(-1, 1)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
