"""The one loop of all samplers, a generator: watch it, stop it early, or film it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser, checked
from scoreinv.sampling.steps import Constraint, Step, constrained
from scoreinv.streams import split


def sample(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    step: Step,
    rngs: Sequence[Generator],
    constrain: Constraint | None = None,
) -> Iterator[Tensor]:
    """Walk down the noise levels, yielding x after every step.

    Args:
        denoise: prior or posterior mean.
        x: (batch, *image_shape), a draw at the first level.
        sigmas: (n + 1,), not increasing, for n steps; in the unit of x.
        step: how to go from one level to the next.
        rngs: one generator for each member of the batch.
        constrain: applied before every step.

    Yields:
        x at sigmas[1], sigmas[2], ..., without gradients.

    Raises:
        ValueError: fewer than two levels, levels that increase or are negative, or a wrong number of generators.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2 or (sigmas.diff() > 0).any() or (sigmas[:-1] <= 0).any() or sigmas[-1] < 0:
        raise ValueError(
            f"sample: expected 2 or more noise levels that never increase, 0 at most as the last; got {sigmas}"
        )
    if len(rngs) != x.shape[0]:
        raise ValueError(f"sample: a batch of {x.shape[0]} needs as many generators, got {len(rngs)}")
    if constrain is not None:
        step = constrained(step, constrain)
    return _walk(denoise, x, sigmas.to(x), step, rngs)


@torch.no_grad()  # a `with torch.no_grad()` inside a generator would leak to the caller between two iterates
def _walk(denoise: Denoiser, x: Tensor, sigmas: Tensor, step: Step, rngs: Sequence[Generator]) -> Iterator[Tensor]:
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = checked(step(denoise, x, sigma, sigma_next, rngs), x)
        yield x


def last(iterates: Iterable[Tensor]) -> Tensor:
    """The last of the iterates.

    Raises:
        ValueError: there is none.
        ArithmeticError: one holds NaN or infinity: what comes after it is lost.
    """
    x = None
    for k, x in enumerate(iterates, 1):
        check_finite(x, f"step {k}")
    if x is None:
        raise ValueError("last: there are no iterates")
    return x


def check_finite(x: Tensor, where: str) -> None:
    """Raise ArithmeticError where images hold NaN or infinity."""
    if not torch.isfinite(x).all():
        raise ArithmeticError(
            f"the images hold NaN or infinity after {where}: the prior or the operator made that of finite numbers (try each on one "
            "image), or a level, a step or the noise is beyond what the dtype holds"
        )


def member_streams(rng: Generator, samples: int, batch: int) -> list[Generator]:
    """One stream for each draw of each member, in the order of a tensor (samples, batch, ...) flattened to one batch.

    The stream of draw s of member b depends on (s, b) alone, not on how many draws and members there are.
    """
    streams = [split(of_member, samples) for of_member in split(rng, batch)]
    return [streams[b][s] for s in range(samples) for b in range(batch)]
