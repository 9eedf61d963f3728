"""DDPM's ancestral step with other variances than the smallest.

On x = x_t / √ᾱ the mean of x_{t'} given x_t and x₀ = D is, whatever the schedule,

    x' = D + (σ'² / σ²) (x − D) + c z                                                                               (1)

    small     c² = σ'² (1 − σ'² / σ²)                          β̃_t: exact where x₀ given x is certain
    large     c² = (σ² − σ'²) (1 + σ'²) / (1 + σ²)             β_t: exact for images N(0, I)
    learned   c² = large^v small^(1 − v)                       v from the network

The small one is `steps.Ancestral(1)`. (Ho et al. 2020, arXiv:2006.11239, eq. 7 and sec. 3.2; Nichol, Dhariwal 2021,
arXiv:2102.09672, eq. 15.) Steps may skip any number of the training's; the last one, to 0, takes D. The 1 in the large
variance is in the unit of the network (x_t = √ᾱ x₀ + ...): with a `Rescaled` prior, walk with its `denoiser`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser
from scoreinv.streams import normal


def large_variance(
    denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
) -> Tensor:
    """DDPM's step with σ_t² = β_t, eq. (1) of the module's head."""
    clean = denoise(x, sigma)
    if sigma_next == 0:
        return clean
    return torch.lerp(clean, x, (sigma_next / sigma) ** 2) + large(sigma, sigma_next).sqrt() * normal(rngs, x)


@dataclass(frozen=True)
class LearnedVariance:
    """Improved DDPM's step with the variance that the network has learnt, eq. (1) of the module's head.

    The prior must have `with_variance(x, sigma) -> D, v`, as `Parametrised` has around a network of 2C channels
    (`adapters.adm.adm_prior`); else a call raises ValueError.
    """

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        clean, log_variance = with_learned_variance(denoise, x, sigma, sigma_next)
        if sigma_next == 0:
            return clean
        return torch.lerp(clean, x, (sigma_next / sigma) ** 2) + torch.exp(log_variance / 2) * normal(rngs, x)


def with_learned_variance(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """D, and the logarithm of the learned c² (for sigma_next > 0), both shaped like x; raises as `LearnedVariance`."""
    both = getattr(denoise, "with_variance", None)
    if both is None:
        raise ValueError(
            f"LearnedVariance: {type(denoise).__name__} has no with_variance(x, sigma); take a network that learnt its "
            "variance (adapters.adm.adm_prior), or the steps Ancestral(1) and large_variance"
        )
    clean, v = both(x, sigma)
    return clean, v * large(sigma, sigma_next).log() + (1 - v) * small(sigma, sigma_next).log()


def small(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The small c²."""
    return sigma_next**2 * (1 - (sigma_next / sigma) ** 2)


def large(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The large c²."""
    return (sigma**2 - sigma_next**2) * (1 + sigma_next**2) / (1 + sigma**2)
