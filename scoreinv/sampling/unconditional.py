"""Images that a prior makes up by itself: what it has learnt, for people to look at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser, Rescaled, scale_of
from scoreinv.priors.latent import LatentPrior
from scoreinv.progress import track
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import Step, heun
from scoreinv.streams import normal


def generate(
    prior: Denoiser,
    shape: tuple[int, ...],
    n: int,
    rng: Generator,
    *,
    n_levels: int = 32,
    sigma_min: float = 0.005,
    sigma_max: float = 40.0,
    step: Step = heun,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Draws from a prior, by default by Heun's method on the probability flow (Karras et al. 2022, arXiv:2206.00364, alg. 1).

    Args:
        prior: D; of one of latents, latents are drawn and decoded.
        shape: of an image.
        n: how many; each depends on the seed and its own number alone.
        rng: source of all randomness.
        n_levels: noise levels; 2 n_levels - 1 evaluations of the prior by Heun's method.
        sigma_min, sigma_max: last and first of them, in the prior's own unit.
        step: any step of this room that takes x to level 0 (`finished` makes one of any other), in the prior's own unit.
        device: where the prior is.

    Returns:
        (n, *shape).
    """
    how: dict[str, Any] = {
        "n_levels": n_levels,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "step": step,
        "device": device,
    }
    if isinstance(prior, LatentPrior):
        z = generate(prior.denoiser, prior.autoencoder.latent_shape(shape), n, rng, **how)
        return _decoded(prior, z)
    if isinstance(prior, Rescaled):
        return prior.shift + prior.scale * generate(prior.denoiser, shape, n, rng, **how)
    rngs = member_streams(rng, n, 1)
    sigmas = (karras(n_levels, sigma_min, sigma_max) * scale_of(prior)).float().to(device)
    x = getattr(prior, "shift", 0.0) + sigmas[0] * normal(rngs, torch.zeros(n, *shape, device=device))
    return last(track(sample(prior, x, sigmas, step=step, rngs=rngs), "samples", n_levels))


@torch.no_grad()
def _decoded(prior: LatentPrior, z: Tensor) -> Tensor:
    return prior.autoencoder.decode(z)
