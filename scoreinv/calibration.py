"""Intervals that hold: measure how wrong reconstructions of known images are, and widen the draws' spread to match.

For an image with mean m and standard deviation s of its draws, pixel by pixel, the interval is

    m ± q √(G s² + s₀²)                                                                                           (1)

with s₀ a few HU, so that pixels on which all draws agree still have a width, and G the mean over neighbours by a Gaussian of one pixel,
since the variance of a few draws is uncertain itself: for four draws of the default that makes intervals narrower by a quarter (23 views,
0.5 % noise, seven patients: 90 instead of 118 HU on average). With R_i(q) the share of the tissue of patient i (pixels
above -900 HU in m) that lies outside, q is the smallest number for which

    (Σ_i R_i(q) + 1) / (n + 1) <= 1 − level                                                                       (2)

Then for a new patient, exchangeable with those n, the share outside is at most 1 − level on average (conformal risk control:
Angelopoulos, Bates, Fisch, Lei, Schuster 2024, arXiv:2208.02814, theorem 1). It holds for scans like those that it was measured
on: the same method with the same settings, the same prior, about as many views over about the same arc that see about as much of the
image, about as much noise. Data without noise come from the operator itself when they are simulated; real ones do not, which
shows in what the draws leave of them (`Calibration.residual`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scoreinv import configure
from scoreinv.files.atomic import replacing
from scoreinv.linop import LinearOperator

FLOOR_HU = 10.0
POOLED_PIXELS = 1.0
TISSUE_HU = -900.0
SIMILAR = 1.5
"""Ratio of numbers of views, and of noise levels, up to which scans count as alike."""
SIMILAR_SHARE = 0.1
"""Difference of the shares of a turn, and of the image in view, up to which they do."""


def share_of(A: LinearOperator, name: str) -> float:
    """What an operator's method of that name, `covered` or `in_view`, says of its geometry; 1 for operators without it."""
    said = getattr(A, name, None)
    return float(said()) if said else 1.0


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

    def cover(self, other: Conditions) -> bool:
        """Whether a calibration under these conditions holds under the others."""
        return self.alike(other) and not self.changed(other)

    def changed(self, other: Conditions) -> dict[str, tuple[Any, Any]]:
        """Settings of the method that are not the same: their values here and there, None where there is no such setting."""
        ours, theirs = ({"samples": c.samples, **c.settings} for c in (self, other))
        names = dict.fromkeys([*ours, *theirs])
        return {k: (ours.get(k), theirs.get(k)) for k in names if ours.get(k) != theirs.get(k)}

    def alike(self, other: Conditions) -> bool:
        """Whether everything but the settings is near enough."""
        return self.comparable(other) and not self.apart(other)

    def comparable(self, other: Conditions) -> bool:
        """Whether operator, method and prior are the same."""
        return all(getattr(self, k) == getattr(other, k) for k in ("operator", "method", "prior"))

    def apart(self, other: Conditions) -> list[str]:
        """What is not near enough of the scans, here and there, in words."""

        def far(one: float, another: float) -> bool:
            return not 1 / SIMILAR <= one / another <= SIMILAR

        found = []
        if far(self.n_views, max(other.n_views, 1)):
            found.append(f"{self.n_views} views and not {other.n_views}")
        if far(max(self.relative_noise, 1e-6), max(other.relative_noise, 1e-6)):
            found.append(
                f"a noise of {self.relative_noise:.2g} of the mean of the data and not {other.relative_noise:.2g}"
            )
        if abs(self.arc - other.arc) > SIMILAR_SHARE:
            found.append(f"views within {self.arc:.0%} of a whole scan's turn and not {other.arc:.0%}")
        if abs(self.in_view - other.in_view) > SIMILAR_SHARE:
            found.append(
                f"views that see {self.in_view:.0%} of the disc inscribed in the image and not {other.in_view:.0%}"
            )
        return found


@dataclass(frozen=True)
class Calibration:
    """A measured factor q of eq. (1), and how it was measured.

    Attributes:
        conditions: under which it holds.
        level: of the interval.
        factor: q.
        floor_hu: s₀ [HU].
        pooled_pixels: standard deviation of G [pixels]; 0 for none, as in files that do not say.
        patients: how many.
        coverage_before: share of the tissue inside m ± z s with z of the normal law: what the draws claim by themselves.
        coverage_after: mean share inside eq. (1), each patient with the q of the others.
        coverage_least: of the worst patient.
        chi2: mean of the draws' chi^2 over the patients, at least 1; 1 in files that do not say.
        residual: mean of the draws' relative residual for noise-free data; None for noisy ones, and in files that do not say.
    """

    conditions: Conditions
    level: float
    factor: float
    floor_hu: float
    patients: int
    coverage_before: float
    coverage_after: float
    coverage_least: float
    pooled_pixels: float = 0.0
    chi2: float = 1.0
    residual: float | None = None

    def half_width(self, std: Tensor, mu_water_per_mm: float) -> Tensor:
        """Half the width of the interval of images (*batch, H, W), in the unit of std [1/mm]."""
        return self.factor * spread(std, self.floor_hu / 1000 * mu_water_per_mm, self.pooled_pixels)


def spread(std: Tensor, floor: float, pooled_pixels: float) -> Tensor:
    """√(G s² + s₀²) of eq. (1) for std s (*batch, H, W)."""
    over = [0.0] * (std.ndim - 2) + [pooled_pixels] * 2
    variance = torch.from_numpy(gaussian_filter((std**2).cpu().numpy(), over)).to(std)
    return (variance + floor**2).sqrt()


@dataclass(frozen=True, eq=False)
class Case:
    """One patient: mean, standard deviation and truth, (H, W) [HU]."""

    mean: Tensor
    std: Tensor
    truth: Tensor

    def scores(self) -> Tensor:
        """|error| / √(G s² + s₀²) of the tissue, sorted: q covers those below it."""
        tissue = self.mean > TISSUE_HU
        score = (self.mean - self.truth).abs() / spread(self.std, FLOOR_HU, POOLED_PIXELS)
        return score[tissue].sort().values


def _needed(level: float) -> int:
    return math.ceil(1 / (1 - level) - 1e-9) - 1


def check_enough(patients: int, level: float) -> None:
    """Raises ValueError where so many patients are too few for a factor from all but one of them, or the level is no share."""
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, such as 0.9, got {level:g}")
    if patients < _needed(level) + 1:
        raise ValueError(
            f"a level of {level} needs at least {_needed(level) + 1} patients, got {patients}: each is left out once"
        )


def conformal_factor(scores: Sequence[Tensor], level: float) -> float:
    """The smallest q of eq. (2).

    Args:
        scores: of each patient, sorted.
        level: in (0, 1).

    Raises:
        ValueError: too few patients: even with nothing outside, (2) asks for 1 / (n + 1) <= 1 − level.
    """
    n, alpha = len(scores), 1 - level
    if n < _needed(level):
        raise ValueError(f"a level of {level} needs at least {_needed(level)} patients, got {n}")

    def outside(q: float) -> float:
        return sum(1 - float(torch.searchsorted(s, q, right=True)) / max(len(s), 1) for s in scores)

    low, high = 0.0, max(float(s[-1]) for s in scores if len(s))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if (outside(middle) + 1) / (n + 1) <= alpha + 1e-9 else (middle, high)
    return high


def calibrated(cases: Sequence[Case], conditions: Conditions, level: float) -> Calibration:
    """The calibration that these patients give, with the coverage that it has on each when it is left out.

    Raises:
        ValueError: too few patients for the level, one of them left out; or an image without tissue.
    """
    check_enough(len(cases), level)
    scores = [case.scores() for case in cases]
    if empty := [k for k, own in enumerate(scores) if not len(own)]:
        raise ValueError(
            f"calibrated: {len(empty)} of {len(cases)} images have no tissue (nothing above {TISSUE_HU:g} HU), the first is number {empty[0]} from 0: "
            "leave them out"
        )
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    before = [_share((c.mean - c.truth).abs() <= z * c.std, c.mean > TISSUE_HU) for c in cases]
    after = []
    for k, own in enumerate(scores):
        q = conformal_factor(scores[:k] + scores[k + 1 :], level)
        after.append(float((own <= q).double().mean()))
    return Calibration(
        conditions, level, conformal_factor(scores, level), FLOOR_HU, len(cases),
        sum(before) / len(before), sum(after) / len(after), min(after), POOLED_PIXELS,
    )  # fmt: skip


def _share(inside: Tensor, where: Tensor) -> float:
    return float(inside[where].double().mean())


def write_calibrations(path: Path, calibrations: Iterable[Calibration]) -> None:
    """Write a JSON file of calibrations, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps([asdict(c) for c in calibrations], indent=2) + "\n", encoding="utf-8")


def read_calibrations(path: Path | None = None) -> list[Calibration]:
    """Those of a file, or the ones that ship. An entry without settings is one of the method's defaults.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    source = path or Path(str(files("scoreinv").joinpath("calibrations.json")))
    try:
        entries = json.loads(source.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise TypeError(f"a list is expected, this is a {type(entries).__name__}")
        return [_from_dict(entry) for entry in entries]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{source}: holds no calibrations ({error}); make them with `scoreinv calibrate`") from error


def _from_dict(entry: dict[str, Any]) -> Calibration:
    stated = dict(entry["conditions"])
    if "settings" not in stated:  # as files were written at first
        stated["settings"] = configure.default_settings(stated["method"], without=("samples",))
    return Calibration(**{**entry, "conditions": Conditions(**stated)})


def find(calibrations: Sequence[Calibration], conditions: Conditions) -> Calibration | None:
    """The first that holds under the conditions, None where none does."""
    return next((c for c in calibrations if c.conditions.cover(conditions)), None)


def unfit(calibrations: Sequence[Calibration], conditions: Conditions) -> dict[str, tuple[Any, Any]]:
    """The settings for want of which the nearest calibration does not hold: measured with, and asked for; empty where there is none
    that is alike in all else."""
    misses = [c.conditions.changed(conditions) for c in calibrations if c.conditions.alike(conditions)]
    return min(misses, key=len, default={})


def refusal(calibrations: Sequence[Calibration], conditions: Conditions) -> str:
    """Why the nearest calibration of the same operator, method and prior is not for such scans; empty where there is none."""
    misses = [c.conditions.apart(conditions) for c in calibrations if c.conditions.comparable(conditions)]
    words = min(misses, key=len, default=[])
    return f"the nearest calibration was measured with {', '.join(words)}" if words else ""
