"""The operators of a cell: the one that reconstructs, and the one that makes the data.

Both measure the same rays with the same detector. The one that makes the data may see the image on a finer grid and weigh pixels in another
way, so that no method is rewarded for inverting the very matrix that the data come from (an inverse crime: Kaipio, Somersalo,
Statistical and computational inverse problems, 2005, section 1.2).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

from scoreinv import plugins
from scoreinv.arguments import ArgumentError, different
from scoreinv.configure import operator_for_image
from scoreinv.linop import LinearOperator
from scoreinv.plugins import did_you_mean

ANGLES = ("angles", "arc", "start")
"""Arguments in radians; with the ending _degrees they are in degrees."""


def operator(call: Mapping[str, Any], shape: tuple[int, ...], pixel_mm: float) -> LinearOperator:
    """The operator of a cell for images of a shape with pixels of a side [mm].

    Raises:
        ValueError: it refuses its arguments.
    """
    cls = plugins.get("operators", call["name"])
    arguments = different(getattr(cls, "for_image", cls), {k: v for k, v in call.items() if k != "name"})
    return operator_for_image(call["name"], shape, pixel_mm, arguments)


def data_operator(A: LinearOperator, simulate: Mapping[str, Any]) -> LinearOperator:
    """The operator that makes the data: A itself, or A on a grid `refine` times as fine, with other fields.

    It is applied once: where an operator can do without a matrix in memory, none is made.

    Raises:
        ValueError: an unknown field, or A knows nothing of pixels.
    """
    if not simulate:
        return A
    cls = type(A).__name__
    known: set[str] = {f.name for f in dataclasses.fields(A)} if dataclasses.is_dataclass(A) else set()
    change = dict(simulate)
    refine = change.pop("refine", 1)
    for key in change:
        if key not in known or key in ("image_shape", "pixel_mm"):
            hint = did_you_mean(key, ["refine", *known])
            raise ValueError(
                f"simulate: {cls} has no field {key!r}.{hint} Known: {', '.join(['refine', *sorted(known)])}"
            )
    if not isinstance(refine, int) or isinstance(refine, bool) or refine < 1:
        raise ValueError(f"simulate: refine should be a whole number of at least 1, got {refine!r}")
    if refine > 1:
        if not {"image_shape", "pixel_mm"} <= known:
            raise ValueError(f"simulate: {cls} has no image_shape and pixel_mm to refine")
        fine: Any = A
        change["image_shape"] = tuple(n * refine for n in fine.image_shape)
        change["pixel_mm"] = fine.pixel_mm / refine
    if "memory_budget_bytes" in known:
        change.setdefault("memory_budget_bytes", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about that budget; the geometry's own are A's, which has given them
        made: LinearOperator = dataclasses.replace(A, **change)  # type: ignore[type-var]
    return made


def in_radians(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments whose angles in degrees are in radians, under their own names.

    Raises:
        ArgumentError: an angle is given in both, or is no number.
    """
    out = dict(arguments)
    for name in ANGLES:
        key = f"{name}_degrees"
        if key not in out:
            continue
        value = out.pop(key)
        if name in out:
            raise ArgumentError(f"{key} and {name} exclude each other: give one of them", key)
        try:
            if isinstance(value, bool):
                raise TypeError
            out[name] = [math.radians(v) for v in value] if isinstance(value, list | tuple) else math.radians(value)
        except TypeError:
            raise ArgumentError(f"{key} should be a number of degrees, got {value!r}", key) from None
    return out


def check_radians(key: str, value: Any) -> None:
    """Raises ArgumentError for angles of more than two turns, which are degrees in a place for radians."""
    largest = max(
        (abs(v) for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int | float)),
        default=0,
    )
    if largest > 4 * math.pi + 1e-6:
        raise ArgumentError(
            f"{key} is in radians, and {largest:g} are more than two turns: write {key}_degrees for degrees", key
        )
