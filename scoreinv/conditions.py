"""What two scans must have in common for the intervals, or the constants, of the one to be those of the other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scoreinv import arguments
from scoreinv.linop import Operator

LEAST_NOISE = 1e-6
"""Relative noise below which levels do not differ."""
SIMILAR = 1.5
"""Ratio of numbers of views, of noise levels, and of sizes (pixels, images, detector cells) up to which scans count as alike."""
SIZES = {
    "pixel_mm": ("pixels of", "mm"),
    "image_side": ("images of", "pixels a side"),
    "cell_pixels": ("detector cells of", "pixels"),
}
"""Of `Conditions`, in words, and their units."""
SIMILAR_SHARE = 0.1
"""Difference of the shares of a turn, and of the image in view, up to which they do."""


def share_of(A: Operator, name: str) -> float:
    """What an operator's method of that name, `covered` or `in_view`, says of its geometry; 1 for operators without it."""
    said = getattr(A, name, None)
    return float(said()) if said else 1.0


def geometry_of(A: Operator) -> dict[str, Any]:
    """What `Conditions` have of an operator beside its name and its views."""
    pixel_mm, rays = getattr(A, "pixel_mm", None), getattr(A, "rays_per_pixel", None)
    return {
        "arc": _rounded(share_of(A, "covered")),
        "in_view": _rounded(share_of(A, "in_view")),
        "pixel_mm": None if pixel_mm is None else (_rounded(pixel_mm),) * 2,
        "image_side": (min(A.in_shape[-2:]),) * 2,
        "cell_pixels": None if rays is None else (_rounded(1 / rays),) * 2,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def require(name: str, words: str, value: object, holds: bool) -> None:
    """Raises ValueError, in words, for a field for which something does not hold."""
    if not holds:
        raise ValueError(f"{name} should be {words}, got {value!r}")


@dataclass(frozen=True)
class Conditions:
    """What must be alike for a calibration to hold.

    Attributes:
        operator: name of its class.
        method: registered name.
        samples: draws an image.
        prior: checksum of the prior's weights.
        n_views: of the scan (its first data dimension).
        relative_noise: standard deviation of the noise over the mean of the data.
        settings: all others of the method, defaults included, as JSON has them.
        arc: share of a turn within which the views lie (the operator's `covered`); 1 for operators without one.
        in_view: share of the disc inscribed in the image that every view sees (the operator's `in_view`); 1 for operators without one, and
            in files that do not say, which were made so.
        pixel_mm: least and largest side of a pixel [mm].
        image_side: of the images' shorter sides [pixels].
        cell_pixels: of a detector cell's width at the rotation axis [pixels].

    These three are None for operators that have none, and in files that do not say, which hold for such operators alone.
    """

    operator: str
    method: str
    samples: int
    prior: str
    n_views: int
    relative_noise: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    arc: float = 1.0
    in_view: float = 1.0
    pixel_mm: tuple[float, float] | None = None
    image_side: tuple[int, int] | None = None
    cell_pixels: tuple[float, float] | None = None

    def changed(self, other: Conditions) -> dict[str, tuple[Any, Any]]:
        """Settings of the method that are not the same: their values here and there, None where there is no such setting."""
        ours, theirs = ({"samples": c.samples, **c.settings} for c in (self, other))
        names = dict.fromkeys([*ours, *theirs])
        return {k: (ours.get(k), theirs.get(k)) for k in names if ours.get(k) != theirs.get(k)}

    def check(self) -> None:
        """Raises ValueError for a field that is not of its type or outside its range."""
        arguments.check("conditions", Conditions, vars(self))
        require("settings", "an object", self.settings, isinstance(self.settings, Mapping))
        for name in ("samples", "n_views"):
            require(name, "at least 1", (count := getattr(self, name)), count >= 1)
        require("relative_noise", "finite and not negative", self.relative_noise, 0 <= self.relative_noise < math.inf)
        for name in ("arc", "in_view"):
            require(name, "a share from 0 to 1", (share := getattr(self, name)), 0 <= share <= 1)
        for name in SIZES:
            ends = getattr(self, name)
            require(name, "None or two ends", ends, ends is None or 0 < ends[0] <= ends[1] < math.inf)

    def comparable(self, other: Conditions) -> bool:
        """Whether operator, method and prior are the same."""
        return all(getattr(self, k) == getattr(other, k) for k in ("operator", "method", "prior"))

    def apart(self, other: Conditions) -> list[str]:
        """What is not near enough of the scans, here and there, in words."""

        def far(one: float, another: float) -> bool:
            return not 1 / SIMILAR <= one / another <= SIMILAR

        noise, others = (max(c.relative_noise, LEAST_NOISE) for c in (self, other))
        found = []
        if far(self.n_views, max(other.n_views, 1)):
            found.append(f"{self.n_views} views and not {other.n_views}")
        if far(noise, others):
            found.append(
                f"a noise of {self.relative_noise:.2g} of the mean of the data and not {other.relative_noise:.2g}"
            )
        if abs(self.arc - other.arc) > SIMILAR_SHARE:
            found.append(f"views within {self.arc:.0%} of a whole scan's turn and not {other.arc:.0%}")
        if abs(self.in_view - other.in_view) > SIMILAR_SHARE:
            found.append(
                f"views that see {self.in_view:.0%} of the disc inscribed in the image and not {other.in_view:.0%}"
            )
        for name, (words, unit) in SIZES.items():
            ours, theirs = getattr(self, name), getattr(other, name)
            if not _within(ours, theirs):
                found.append(f"{words} {_size(ours, unit)} and not {_size(theirs, unit)}")
        return found

    def sizes(self) -> list[str]:
        """Of pixels, images and detector cells, those that are known, in words."""
        known = {name: ends for name in SIZES if (ends := getattr(self, name)) is not None}
        return [f"{SIZES[name][0]} {_size(ends, SIZES[name][1])}" for name, ends in known.items()]

    def distance(self, other: Conditions) -> float:
        """How far numbers of views and noise levels are apart, as the sum of the logarithms of their ratios."""
        noise, others = (max(c.relative_noise, LEAST_NOISE) for c in (self, other))
        return abs(math.log(self.n_views / other.n_views)) + abs(math.log(noise / others))


def _within(ours: tuple[float, float] | None, theirs: tuple[float, float] | None) -> bool:
    """Whether their sizes are ours, or `SIMILAR` times beyond them at most."""
    if ours is None or theirs is None:
        return ours == theirs
    return ours[0] / SIMILAR <= theirs[0] and theirs[1] <= ours[1] * SIMILAR


def _size(ends: tuple[float, float] | None, unit: str) -> str:
    """Such as "1 to 2 mm"."""
    if ends is None:
        return "unstated size"
    low, high = (f"{end:.3g}" for end in ends)
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def joined(conditions: Sequence[Conditions]) -> Conditions:
    """Those of several scans: their sizes from the least to the largest, their mean share in view, in all else the first's."""
    sizes: dict[str, Any] = {
        k: (min(own[0] for own in known), max(own[1] for own in known))
        for k in SIZES
        if (known := [own for c in conditions if (own := getattr(c, k)) is not None])
    }
    return replace(conditions[0], in_view=_rounded(statistics.fmean(c.in_view for c in conditions)), **sizes)
