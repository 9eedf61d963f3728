"""Images of a Gaussian from independent weights of its principal components: of a seed they are other ones than those of
`GaussianPrior.draw`. Figures that hold for one image were measured on these."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from scoreinv.priors.exact import GaussianPrior


def principal_draws(prior: GaussianPrior, n: int, rng: Generator) -> Tensor:
    """(n, *image_shape), in the mean's dtype."""
    eigenvalues, vectors = torch.linalg.eigh(prior.covariance.double())
    z = torch.randn((n, len(eigenvalues)), generator=rng, dtype=torch.float64)
    x = (z * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
    return (prior.mean.double() + x.reshape(n, *prior.mean.shape)).to(prior.mean)
