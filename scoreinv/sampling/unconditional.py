"""Images that a prior makes up by itself: what it has learnt, for people to look at."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.progress import track
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import heun
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
) -> Tensor:
    """Draws from a prior by Heun's method on the probability flow (Karras et al. 2022, arXiv:2206.00364, algorithm 1).

    Args:
        prior: D.
        shape: of an image.
        n: how many; each depends on the seed and its own number alone.
        rng: source of all randomness.
        n_levels: noise levels; 2 n_levels - 1 evaluations of the prior.
        sigma_min, sigma_max: last and first of them, in the prior's own unit.

    Returns:
        (n, *shape).
    """
    rngs = member_streams(rng, n, 1)
    sigmas = (karras(n_levels, sigma_min, sigma_max) * scale_of(prior)).float()
    x = sigmas[0] * normal(rngs, torch.zeros(n, *shape))
    if hasattr(prior, "shift"):
        x = x + prior.shift
    return last(track(sample(prior, x, sigmas, step=heun, rngs=rngs), "samples", n_levels))
