"""Checks of a CT geometry: errors for what cannot be, warnings for what is seldom meant."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Sequence

import torch

_STACK = 6  # from warnings.warn up to the line that constructs the operator


class GeometryWarning(UserWarning):
    """A scan geometry is possible but looks like a mistake."""


class MemoryWarning(UserWarning):
    """A system matrix does not fit the operator's memory budget."""


def angles(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """The angles as plain floats.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    result = tuple(torch.as_tensor(values, dtype=torch.float64).reshape(-1).tolist())
    if not result:
        raise ValueError(f"{name}: angles must hold at least one view, got none")
    bad = [i for i, a in enumerate(result) if not math.isfinite(a)]
    if bad:
        raise ValueError(f"{name}: angles must be finite, got {result[bad[0]]} for view {bad[0]}")
    return result


def positive(name: str, **values: float) -> None:
    """Raise ValueError for the first value that is not positive and finite."""
    for what, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: {what} must be positive and finite, got {value:g}")


def finite(name: str, **values: float) -> None:
    """Raise ValueError for the first value that is not finite."""
    for what, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: {what} must be finite, got {value}")


def choice(name: str, what: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError, with the nearest name, for a value that is not among the known ones."""
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: {what} {value!r} is not supported.{hint} Supported: {', '.join(map(repr, known))}")


def warn_of_degrees(name: str, values: Sequence[float]) -> None:
    """Angles beyond two turns."""
    largest = max(abs(a) for a in values)
    if largest > 4 * math.pi + 1e-6:
        _warn(f"{name}: angles reach {largest:g}: they are in radians; for degrees use numpy.deg2rad", GeometryWarning)


def warn_of_repeats(name: str, values: Sequence[float], period: float) -> None:
    """Two views that measure the same lines."""
    order = sorted(range(len(values)), key=lambda i: values[i] % period)
    for i, j in zip(order, order[1:] + order[:1], strict=True):
        distance = abs(math.remainder(values[j] - values[i], period))
        if i != j and distance < 1e-6:
            first, second = sorted((i, j))
            degrees = f"{math.degrees(values[first]):g} and {math.degrees(values[second]):g} degrees"
            _warn(f"{name}: views {first} and {second} ({degrees}) measure the same lines", GeometryWarning)
            return


def warn_of_truncation(name: str, detector: tuple[float, float], shadow: float, cell: float) -> None:
    """The shadow of the disc inscribed in the image, [-shadow, shadow] on the detector, is not covered."""
    if detector[0] > -shadow * (1 - 1e-6) or detector[1] < shadow * (1 - 1e-6):
        needed = math.ceil(2 * shadow / cell - 1e-6)
        _warn(
            f"{name}: the detector covers {detector[0]:g} to {detector[1]:g} mm, the disc inscribed in the image casts "
            f"a shadow from {-shadow:g} to {shadow:g} mm ({needed} cells without offset): the object must be smaller, "
            "or data are missing",
            GeometryWarning,
        )


def warn_of_memory(name: str, needed: int, budget: int) -> None:
    """The matrix is too large to hold."""
    _warn(
        f"{name}: the sparse matrix would take about {needed / 2**20:.0f} MiB, more than memory_budget_bytes "
        f"({budget / 2**20:.0f} MiB): ASTRA's own projectors are used instead, which is slower for batches",
        MemoryWarning,
    )


def _warn(message: str, category: type[Warning]) -> None:
    warnings.warn(message, category, stacklevel=_STACK)
