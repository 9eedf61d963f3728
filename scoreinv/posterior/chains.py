"""What methods of another form than `guidance.Guided` share: one loop over members with their own streams."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Generator, Tensor

from scoreinv.arguments import check_fields
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


def check_settings(method: object, *, levels: tuple[float, float], of: str = "sigma", **counts: int) -> None:
    """Settings that every such method has.

    Args:
        method: a dataclass.
        levels: the last and the first noise level.
        of: their name, before "_min" and "_max".
        counts: numbers of things.

    Raises:
        ValueError: a setting is NaN, a count is no whole number of at least 1, or not 0 < last <= first < infinity.
    """
    name = type(method).__name__
    for key, value in counts.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected {key} of at least 1, a whole number, got {value}")
    comparable = all(isinstance(level, numbers.Real) and not math.isnan(level) for level in levels)
    if comparable and not 0 < levels[0] <= levels[1] < math.inf:
        raise ValueError(f"{name}: expected 0 < {of}_min <= {of}_max, finite, got {levels[0]} and {levels[1]}")
    check_numbers(method)


def check_numbers(method: Any) -> None:
    """Raises ValueError for a setting that is NaN, which comparisons do not find, that is infinite but for those in the class's `UNBOUNDED`,
    that counts and is no whole number, or that is otherwise not of its type."""
    name, unbounded = type(method).__name__, getattr(method, "UNBOUNDED", ())
    for f in dataclasses.fields(method):
        value = getattr(method, f.name)
        if isinstance(value, float) and not math.isfinite(value) and (math.isnan(value) or f.name not in unbounded):
            raise ValueError(
                f"{name}: {f.name} must be a {'number' if math.isnan(value) else 'finite number'}, got {value}"
            )
        if f.type in ("int", "int | None") and isinstance(value, float):
            raise ValueError(f"{name}: expected {f.name} to be a whole number, got {value}")
    check_fields(method, without=("prior",))
