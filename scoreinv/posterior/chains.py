"""What methods of another form than `guidance.Guided` share: one loop over members with their own streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Generator, Tensor

from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.sampling.loop import last, member_streams

Walk = Callable[[Problem, Sequence[Generator]], Iterator[Tensor]]
"""(problem of one batch dimension, a generator for each member) -> iterates (batch, *A.in_shape), the last one counts."""


def run(walk: Walk, problem: Problem, rng: Generator, *, samples: int, name: str, n: int) -> Tensor:
    """The end of a walk for every draw of every member of a problem.

    Args:
        walk: the method.
        problem: of any batch shape.
        rng: source of all randomness.
        samples: draws of each member.
        name: for the progress bar.
        n: number of iterates.

    Returns:
        (samples, *batch, *A.in_shape).
    """
    flat = problem.flat().repeated(samples)
    rngs = member_streams(rng, samples, len(flat.y) // samples)
    x = last(track(walk(flat, rngs), name, n))
    return x.reshape(samples, *problem.batch_shape, *problem.A.in_shape)


def check_settings(name: str, *, levels: tuple[float, float], of: str = "sigma", **counts: int) -> None:
    """Settings that every such method has.

    Args:
        name: of the method.
        levels: the last and the first noise level.
        of: their name, before "_min" and "_max".
        counts: numbers of things.

    Raises:
        ValueError: a count is below 1, or not 0 < last <= first.
    """
    for key, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: expected {key} of at least 1, got {value}")
    if not 0 < levels[0] <= levels[1]:
        raise ValueError(f"{name}: expected 0 < {of}_min <= {of}_max, got {levels[0]} and {levels[1]}")
