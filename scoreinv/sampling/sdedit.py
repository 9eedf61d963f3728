"""SDEdit: a guide, a picture painted by hand, made into an image of the prior.

    x ~ N(guide, σ_s² I),   then any unconditional sampler from σ_s down to 0                                        (1)

(Meng, He, Song, Song, Wu, Zhu, Ermon 2022, arXiv:2108.01073, algorithm 1, in the coordinate x = x₀ + σ n.) The strength σ_s decides between
the two: what is coarser than noise of that level stays as it was painted, what is finer is the prior's. Pixels that are to stay as
they are have noise of the level of x around their known values at every step (algorithm 2, with a mask).

What it draws, for a prior N(μ, Σ) with an eigenvalue λ of Σ and g = λ / (λ + σ_s²), along that direction:

    flow of the reverse ODE    mean μ + √g (guide − μ),   variance g σ_s²                                            (2)
    reverse SDE                mean μ + g (guide − μ),    variance g σ_s² + g² σ_s²                                  (3)

as levels are added. Neither is a posterior: a guide is no measurement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.progress import track
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import Ancestral, Constraint, Step
from scoreinv.streams import normal


def sdedit(
    prior: Denoiser,
    guide: Tensor,
    strength: float,
    n: int,
    rng: Generator,
    *,
    n_levels: int = 50,
    sigma_min: float = 0.01,
    step: Step | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Images like a guide, eq. (1).

    Args:
        prior: D.
        guide: (*image_shape), in the unit of the prior's images.
        strength: σ_s, in the prior's own unit.
        n: how many; each depends on the seed and its own number alone.
        rng: source of all randomness.
        n_levels: noise levels from σ_s down.
        sigma_min: the last of them, in the prior's own unit.
        step: any step of this room that takes x to level 0 (`finished` makes one of any other); ancestral without one.
        kept: true for pixels that stay as they are in the guide, broadcast to it; none without.

    Returns:
        (n, *image_shape).

    Raises:
        ValueError: not 0 < sigma_min <= strength, or n or n_levels is below 1.
    """
    if not 0 < sigma_min <= strength < float("inf"):
        raise ValueError(f"sdedit: expected 0 < sigma_min <= strength, got {sigma_min:g} and {strength:g}")
    if n < 1:
        raise ValueError(f"sdedit: expected n of at least 1, got {n}")
    rngs = member_streams(rng, n, 1)
    sigmas = (karras(n_levels, sigma_min, strength) * scale_of(prior)).to(guide)
    start = guide.expand(n, *guide.shape)
    x = start + sigmas[0] * normal(rngs, start)
    iterates = sample(
        prior, x, sigmas, step=step or Ancestral(), rngs=rngs, constrain=None if kept is None else _keeping(guide, kept)
    )
    x = last(track(iterates, "SDEdit", n_levels))
    return x if kept is None else torch.where(kept, guide, x)


def _keeping(guide: Tensor, kept: Tensor) -> Constraint:
    """x with the kept pixels drawn anew around the guide."""

    def constrain(x: Tensor, sigma: Tensor, rngs: Sequence[Generator]) -> Tensor:
        return torch.where(kept, guide + sigma * normal(rngs, x), x)

    return constrain
