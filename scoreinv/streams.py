"""Independent random streams, one a member of a batch, so that a draw does not depend on the draws beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def split(rng: Generator, n: int) -> list[Generator]:
    """n generators seeded from one; the first k of them are the same for every n >= k.

    Raises:
        TypeError: rng is no generator.
    """
    if not isinstance(rng, Generator):
        raise TypeError(
            f"expected a torch.Generator as the source of all randomness, got {type(rng).__name__}; torch.Generator().manual_seed(0) makes one"
        )
    seeds = [int(torch.randint(2**62, (), generator=rng)) for _ in range(n)]
    return [Generator().manual_seed(seed) for seed in seeds]


def normal(rngs: Sequence[Generator], like: Tensor) -> Tensor:
    """Standard normal noise shaped like a batch; member k comes from stream k, whatever the device."""
    if len(rngs) != like.shape[0]:
        raise ValueError(f"normal: {like.shape[0]} members need as many streams, got {len(rngs)}")
    drawn = torch.empty(like.shape, dtype=torch.float32)
    for member, g in zip(drawn, rngs, strict=True):
        member.normal_(generator=g)
    return drawn.to(like)
