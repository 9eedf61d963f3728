"""Gaussians and mixtures whose components share one covariance, evaluated in its eigenvectors: a method asks 10⁵ times.

With Σ_k = Q diag(λ) Qᵀ for all k, z = Qᵀ x, m_k = Qᵀ μ_k and t = λ + σ²,

    responsibilities  ln r_k = ln w_k + Σ_i (z m_k / t − m_k² / 2 t)_i + constant
    denoiser          D = Q ((λ z + σ² Σ_k r_k m_k) / t)                                                            (1)

which is eq. (1) of `scoreinv.priors.mixture` with one change of basis there and one back, not one for each component.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior


@dataclass(frozen=True, eq=False)
class SharedCovariance:
    """A mixture of K Gaussians of one covariance as a denoiser, eq. (1).

    Attributes:
        log_weights: (K,), normalised.
        means: m_k (K, d).
        eigenvalues: λ (d,), not negative.
        vectors: Q (d, d).
        scale: standard deviation of the images, root mean square over pixels: the size of the prior's own unit.
    """

    log_weights: Tensor
    means: Tensor
    eigenvalues: Tensor
    vectors: Tensor
    scale: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | x = x₀ + σ n]: x (batch, *image_shape), sigma a scalar or (batch,); as x in shape and dtype.

        The changes of basis are in x's dtype, what is between them in float64.
        """
        variance = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1) ** 2
        total = self.eigenvalues + variance
        z = (x.flatten(1) @ self.vectors.to(x.dtype)).double()
        towards = z @ (self.means / total[:1]).T if len(total) == 1 else (z / total) @ self.means.T
        r = torch.softmax(self.log_weights + towards - (1 / total) @ self.means.square().T / 2, dim=1)
        clean = (self.eigenvalues * z + variance * (r @ self.means)) / total
        return (clean.to(x.dtype) @ self.vectors.to(x.dtype).T).reshape(x.shape)


def shared(prior: GaussianPrior | GaussianMixturePrior) -> SharedCovariance:
    """The same prior in this form.

    Raises:
        ValueError: the components have different covariances.
    """
    mixture = isinstance(prior, GaussianMixturePrior)
    covariances = prior.covariances if isinstance(prior, GaussianMixturePrior) else prior.covariance[None]
    weights = prior.weights if isinstance(prior, GaussianMixturePrior) else torch.ones(1)
    means = (prior.means if isinstance(prior, GaussianMixturePrior) else prior.mean[None]).double().flatten(1)
    if mixture and not all(torch.equal(c, covariances[0]) for c in covariances):
        raise ValueError("shared: expected components of one covariance, got different ones")
    eigenvalues, vectors = torch.linalg.eigh(covariances[0].double())
    return SharedCovariance(
        torch.log_softmax(weights.double().log(), 0),
        means @ vectors,
        eigenvalues.clamp(min=0),
        vectors,
        float(prior.covariance.double().diagonal().mean().sqrt()),
    )
