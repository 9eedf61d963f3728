"""Priors whose denoiser, flow and posterior have closed forms: what every sampler can be verified against.

Gaussian N(μ, Σ), Σ = Q diag(λ) Qᵀ, on x = x₀ + σ n:

    denoiser          D(x, σ) = μ + Q diag(λ / (λ + σ²)) Qᵀ (x − μ),  its Jacobian J = Q diag(λ / (λ + σ²)) Qᵀ
    score             ∇ ln p(x) = −Q diag(1 / (λ + σ²)) Qᵀ (x − μ) = (D − x) / σ²
    probability flow  x' = μ + Q diag(√((λ + σ'²) / (λ + σ²))) Qᵀ (x − μ)                                          (1)
    posterior         μ_p = μ + K (y − A μ),  K = Σ Aᵀ M⁺,  M = A Σ Aᵀ + Σ_y,
                      Σ_p = (I − K A) Σ (I − K A)ᵀ + K Σ_y Kᵀ                                                       (2)
    evidence          p(y) = N(y; A μ, M)

(2) is Σ − K A Σ in a form without cancellation (Joseph's). M⁺ is that of D⁻¹ M D⁻¹ between two D⁻¹, D² = diag M: the pseudo-inverse
cuts what is small beside the largest eigenvalue, and that must not be the noise of one datum. Data that the operator does not see are
left out.

Mixture Σ_k w_k N(μ_k, Σ_k): see `scoreinv.priors.mixture`; the posterior is the mixture of the components' posteriors with
weights ∝ w_k N(y; A μ_k, A Σ_k Aᵀ + Σ_y). A posterior is a prior of the same kind, so that its denoiser, flow and density
are there too.

Everything here is dense and computed in float64: for images of up to about 1000 pixels. For larger ones with a stationary
covariance see `scoreinv.priors.fourier`; published examples are in `scoreinv.priors.references`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.linop import LinearOperator
from scoreinv.priors.mixture import Mixture, check_draws, check_numbers, check_weights, flow_factor, gain, variance_of
from scoreinv.problem import Problem


def dense(A: LinearOperator) -> Tensor:
    """The matrix of an operator, (data, pixels) in float64, one column a pixel: for small images only.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    n = math.prod(A.in_shape)
    columns = A(torch.eye(n, dtype=torch.float64).reshape(n, *A.in_shape))
    if not torch.isfinite(columns).all():
        raise ValueError(f"{type(A).__name__}: the operator makes NaN or infinity of images that are 1 in one pixel")
    return columns.reshape(n, -1).T


NO_DENSITY = (
    "the data have no density: some are noise-free and follow from others; give the problem a positive noise_std"
)


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """N(mean, covariance): a denoiser, and with `posterior` the exact answer to any linear problem.

    x is (batch, *image_shape), sigma a scalar or (batch,).

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
        check_numbers("GaussianPrior", mean=self.mean, covariance=self.covariance)
        if (self.covariance - self.covariance.T).abs().max() > 1e-4 * self.covariance.abs().max():
            raise ValueError("GaussianPrior: the covariance must be symmetric")
        lowest, highest = self._eigen[2]
        if lowest < -1e-5 * highest:
            raise ValueError(
                f"GaussianPrior: expected a positive semi-definite covariance, an eigenvalue is {lowest:g}"
            )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | x = x₀ + σ n]."""
        return self._affine(x, self._gain(x, sigma))

    def jvp(self, x: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
        """J v with J = ∂D/∂x, and Jᵀ v, which is the same; v is shaped like x."""
        return self._linear(v, self._gain(x, sigma)).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """∇ ln p(x) at noise level sigma, which may be 0 where the covariance is regular."""
        total = self._eigen[0].to(x.device) + self._variance(sigma, x)
        return self._linear(self.mean.to(x.device, torch.float64) - x, 1 / total).to(x.dtype)

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Where the probability flow takes x from sigma to sigma_next, exactly: eq. (1). From 0 it needs a regular covariance."""
        before, after = self._variance(sigma, x), self._variance(sigma_next, x)
        return self._affine(x, flow_factor(self._eigen[0].to(x.device), before, after))

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln N(x; μ, Σ + σ² I) of every member, (batch,) in float64; −∞ or nan where that matrix is singular."""
        eigenvalues, vectors, _ = self._eigen
        total = eigenvalues.to(x.device) + self._variance(sigma, x)
        z = (x.double() - self.mean.to(x.device, torch.float64)).flatten(1) @ vectors.to(x.device)
        return -0.5 * (z**2 / total + total.log() + math.log(2 * math.pi)).sum(1)

    def posterior(self, problem: Problem) -> GaussianPrior:
        """The law of x₀ given y, again Gaussian, its covariance in float64 whatever the prior's; noise-free data are conditioned on exactly.

        Raises:
            ValueError: the problem has batch dimensions, or its images are not those of the prior.
        """
        return self._condition(problem)[0]

    def log_evidence(self, problem: Problem) -> Tensor:
        """ln p(y), a number in float64.

        Raises:
            ValueError: as `posterior` does, or the data have no density (noise-free and dependent).
        """
        return self._condition(problem)[1]()

    def draw(self, n: int, rng: Generator) -> Tensor:
        """n independent images, (n, *image_shape), in the mean's dtype.

        White noise times the symmetric root of the covariance, so that the draws of a seed do not hang on the signs of eigenvectors, which
        linear algebra is free to choose.
        """
        check_draws(n, rng)
        eigenvalues, vectors, _ = self._eigen
        z = torch.randn((n, len(eigenvalues)), generator=rng, dtype=torch.float64)
        x = (z @ vectors * eigenvalues.sqrt()) @ vectors.T
        return (self.mean.double() + x.reshape(n, *self.mean.shape)).to(self.mean)

    def _condition(self, problem: Problem) -> tuple[GaussianPrior, Callable[[], Tensor]]:
        """The law of x₀ given y, and what tells ln p(y)."""
        check_problem(problem, self.mean)
        A, mean = problem.linear, self.mean.double().flatten()
        seen = torch.ones(A.out_shape, dtype=torch.bool) if A.seen is None else A.seen.cpu()
        matrix = dense(A)[seen.flatten()]
        std = torch.as_tensor(problem.noise_std, dtype=torch.float64).expand(A.out_shape)[seen]
        off = problem.y.double()[seen] - matrix @ mean
        eigenvalues, vectors, _ = self._eigen
        root = vectors * eigenvalues.sqrt()  # Σ = root rootᵀ
        projected = matrix @ root
        law = _DataLaw.of(projected, std)
        K = root @ projected.T @ law.inverse
        left = root - K @ projected
        posterior = GaussianPrior(
            (mean + K @ off).reshape(self.mean.shape).to(self.mean),
            _symmetric(left @ left.T + (K * std**2) @ K.T),
        )
        return posterior, lambda: law.log_density(off)

    @functools.cached_property
    def _eigen(self) -> tuple[Tensor, Tensor, tuple[float, float]]:
        """λ (not negative), Q, and the smallest and largest λ before that."""
        eigenvalues, vectors = torch.linalg.eigh(_symmetric(self.covariance.double()))
        return eigenvalues.clamp(min=0), vectors, (float(eigenvalues[0]), float(eigenvalues[-1]))

    def _gain(self, x: Tensor, sigma: Tensor) -> Tensor:
        """λ / (λ + σ²)."""
        return gain(self._eigen[0].to(x.device), self._variance(sigma, x))

    def _variance(self, sigma: Tensor, x: Tensor) -> Tensor:
        """σ² as (1 or batch, 1)."""
        return variance_of(sigma, x, self.mean).flatten(1)

    def _affine(self, x: Tensor, factor: Tensor) -> Tensor:
        """μ + Q diag(factor) Qᵀ (x − μ)."""
        mean = self.mean.to(x.device, torch.float64)
        return (mean + self._linear(x - mean, factor)).to(x.dtype)

    def _linear(self, v: Tensor, factor: Tensor) -> Tensor:
        """Q diag(factor) Qᵀ v in float64."""
        vectors = self._eigen[1].to(v.device)
        return (((v.double().flatten(1) @ vectors) * factor) @ vectors.T).reshape(v.shape)


@dataclass(frozen=True, eq=False)
class GaussianMixturePrior(Mixture):
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
        check_weights("GaussianMixturePrior", self.weights, means=self.means, covariances=self.covariances)
        _ = self.components  # which look at their covariances

    @functools.cached_property
    def components(self) -> tuple[GaussianPrior, ...]:
        """The K Gaussians."""
        return tuple(GaussianPrior(m, c) for m, c in zip(self.means, self.covariances, strict=True))

    @property
    def covariance(self) -> Tensor:
        """Of the whole mixture, (d, d): Σ w_k (Σ_k + (μ_k − μ)(μ_k − μ)ᵀ)."""
        off = (self.means - self.mean).flatten(1).double()
        parts = self.covariances.double() + off[:, :, None] * off[:, None, :]
        return (parts * self._log_weights.exp()[:, None, None]).sum(0).to(self.covariances)

    def posterior(self, problem: Problem) -> GaussianMixturePrior:
        """The law of x₀ given y, again a mixture.

        Raises:
            ValueError: as for `GaussianPrior.posterior`, or the data have no density (noise-free and dependent).
        """
        posteriors, joint = self._condition(problem)
        weights = torch.softmax(joint, dim=0)
        kept = [i for i, w in enumerate(weights) if w > 0]  # a weight can underflow to zero
        return GaussianMixturePrior(
            weights[kept],
            torch.stack([posteriors[i].mean for i in kept]),
            torch.stack([posteriors[i].covariance for i in kept]),
        )

    def log_evidence(self, problem: Problem) -> Tensor:
        """ln p(y), a number in float64; raises as `posterior` does."""
        return torch.logsumexp(self._condition(problem)[1], dim=0)

    def _condition(self, problem: Problem) -> tuple[list[GaussianPrior], Tensor]:
        """The components' posteriors, and ln w_k p(y | component k), (K,)."""
        conditioned = [c._condition(problem) for c in self.components]
        evidence = torch.stack([log_evidence() for _, log_evidence in conditioned])
        return [posterior for posterior, _ in conditioned], self._log_weights + evidence


def check_problem(problem: Problem, mean: Tensor) -> None:
    """Raise ValueError unless the problem is of one image, shaped like the prior's mean."""
    if problem.batch_shape or problem.A.in_shape != tuple(mean.shape):
        raise ValueError(
            f"posterior: expected data {problem.A.out_shape} of one image {tuple(mean.shape)}, "
            f"got {tuple(problem.y.shape)} of images {problem.A.in_shape}"
        )


@dataclass(frozen=True, eq=False)
class _DataLaw:
    """N(·, M) with D⁻¹ M D⁻¹ = Q diag(λ) Qᵀ, D² = diag M.

    Attributes:
        scale: D, 1 for data that are certain.
        eigenvalues: λ, ascending; 0 where rounding is all that is left.
        vectors: Q.
    """

    scale: Tensor
    eigenvalues: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, root: Tensor, std: Tensor) -> _DataLaw:
        """That of M = root rootᵀ + diag(std²)."""
        M = root @ root.T + torch.diag(std**2)
        size = M.diagonal().sqrt()
        scale = torch.where(size > 0, size, 1)
        eigenvalues, vectors = torch.linalg.eigh(_symmetric(M / scale / scale[:, None]))
        least = len(M) * torch.finfo(M.dtype).eps * eigenvalues[-1:]
        return cls(scale, torch.where(eigenvalues > least, eigenvalues, 0), vectors)

    @property
    def inverse(self) -> Tensor:
        """M⁺."""
        inverse = torch.where(self.eigenvalues > 0, 1 / self.eigenvalues, 0)
        return (self.vectors * inverse) @ self.vectors.T / self.scale / self.scale[:, None]

    def log_density(self, off: Tensor) -> Tensor:
        """ln of the density at the mean + off.

        Raises:
            ValueError: there is none.
        """
        if not (self.eigenvalues > 0).all():
            raise ValueError(NO_DENSITY)
        z = (off / self.scale) @ self.vectors
        log_det = self.eigenvalues.log().sum() + 2 * self.scale.log().sum()
        log_density: Tensor = -0.5 * ((z**2 / self.eigenvalues).sum() + log_det + len(off) * math.log(2 * math.pi))
        return log_density


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
