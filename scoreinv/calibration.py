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
image, about as much noise, and pixels, images and detector cells of about the same size (`conditions.SIMILAR` times beyond the patients' at
most). Data without noise come from the operator itself when they are simulated; real ones do not, which
shows in what the draws leave of them: a calibration without noise that does not say it (`Calibration.residual`) is not applied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scoreinv import arguments, configure
from scoreinv.conditions import Conditions, require
from scoreinv.files.atomic import replacing

FLOOR_HU = 10.0
POOLED_PIXELS = 1.0
TISSUE_HU = -900.0
LEVEL = 0.9
"""Of the intervals that are taken where there are several."""


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
        provenance: files and checksum of the images, operator and its arguments, seed, date, versions; None in files that do not say.

    Raises:
        ValueError: a field, or one of the conditions, is not of its type or outside its range.
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
    provenance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check(self)

    def apart(self, other: Conditions) -> list[str]:
        """What keeps it from scans of the same operator, method and prior, their settings aside, in words."""
        found = self.conditions.apart(other)
        if self.conditions.relative_noise == 0 and self.residual is None:
            found.append("noise-free data before residuals were kept (measure anew)")
        return found

    def alike(self, other: Conditions) -> bool:
        """Whether it holds under the conditions, but for the settings."""
        return self.conditions.comparable(other) and not self.apart(other)

    def half_width(self, std: Tensor, mu_water_per_mm: float) -> Tensor:
        """Half the width of the interval of images (*batch, H, W), in the unit of std [1/mm]."""
        return self.factor * spread(std, self.floor_hu / 1000 * mu_water_per_mm, self.pooled_pixels)


def _check(c: Calibration) -> None:
    """Raises ValueError for a field that is not of its type or outside its range."""
    arguments.check("Calibration", Calibration, vars(c))
    c.conditions.check()
    require("level", "a share between 0 and 1", c.level, 0 < c.level < 1)
    for name in ("coverage_before", "coverage_after", "coverage_least"):
        require(name, "a share from 0 to 1", (share := getattr(c, name)), 0 <= share <= 1)
    for name in ("factor", "floor_hu", "pooled_pixels", "chi2"):
        require(name, "finite and not negative", (value := getattr(c, name)), 0 <= value < math.inf)
    require("residual", "None or finite and not negative", c.residual, c.residual is None or 0 <= c.residual < math.inf)
    require("patients", "at least 1", c.patients, c.patients >= 1)
    require("provenance", "None or an object", c.provenance, isinstance(c.provenance, Mapping | None))


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


def read_calibrations(path: Path | None = None, level: float | None = None) -> list[Calibration]:
    """Those of a file, or the ones that ship. An entry without settings is one of the method's defaults.

    Args:
        path: of a JSON file.
        level: of the intervals; all by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or no intervals of that level.
    """
    source = path or Path(str(files("scoreinv").joinpath("calibrations.json")))
    try:
        entries = json.loads(source.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise TypeError(f"a list is expected, this is a {type(entries).__name__}")
        found = [_from_dict(k, entry) for k, entry in enumerate(entries)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: holds no calibrations ({error}); make them with `scoreinv calibrate`") from error
    chosen = [c for c in found if level is None or math.isclose(c.level, level)]
    if level is not None and not chosen:
        levels = ", ".join(f"{known:g}" for known in sorted({c.level for c in found})) or "none"
        raise ValueError(f"{source}: has no intervals of level {level:g}, its levels: {levels}")
    return chosen


def _from_dict(k: int, entry: Any) -> Calibration:
    try:
        if not isinstance(entry, dict):
            raise TypeError(f"an object is expected, this is a {type(entry).__name__}")
        arguments.check("calibration", Calibration, entry, noun="field")
        return Calibration(**{**entry, "conditions": conditions_from(entry["conditions"])})
    except (TypeError, ValueError) as error:
        raise ValueError(f"entry {k}: {error}") from error


def conditions_from(stated: Mapping[str, Any]) -> Conditions:
    """Conditions as JSON has them.

    Raises:
        TypeError, ValueError: it is no object; a field is unknown, missing or not of its type.
    """
    stated = dict(stated)
    if "settings" not in stated and "method" in stated:  # as files were written at first
        stated["settings"] = configure.default_settings(stated["method"], without=("samples",))
    arguments.check("conditions", Conditions, stated, noun="field")
    return Conditions(**{k: arguments.as_tuple(v) for k, v in stated.items()})


def add_calibration(path: Path, calibration: Calibration) -> None:
    """Put a calibration into a file, in the place of an older one of the same conditions and level.

    Raises:
        ValueError: the file holds something else.
    """
    earlier = read_calibrations(path) if path.exists() else []
    own = (calibration.conditions, calibration.level)
    write_calibrations(path, [*(c for c in earlier if (c.conditions, c.level) != own), calibration])


def find(calibrations: Sequence[Calibration], conditions: Conditions) -> Calibration | None:
    """The nearest that holds under the conditions, None where none does: of those whose level is nearest to 90 % the one of the most
    similar views and noise, the last of several."""
    holding = [c for c in reversed(calibrations) if c.alike(conditions) and not c.conditions.changed(conditions)]
    return min(holding, key=lambda c: (round(abs(c.level - LEVEL), 9), c.conditions.distance(conditions)), default=None)


def unfit(calibrations: Sequence[Calibration], conditions: Conditions) -> dict[str, tuple[Any, Any]]:
    """The settings for want of which the nearest calibration does not hold: measured with, and asked for; empty where there is none
    that is alike in all else."""
    misses = [c.conditions.changed(conditions) for c in calibrations if c.alike(conditions)]
    return min(misses, key=len, default={})


def refusal(calibrations: Sequence[Calibration], conditions: Conditions) -> str:
    """Why no calibration is for such scans: none is of their operator, method or prior, or what the nearest of those was measured with;
    empty where one is, or where there are none at all."""
    near = list(calibrations)
    of = {"operator": conditions.operator, "method": f"method {conditions.method}", "prior": "this prior"}
    for key, words in of.items():
        kept = [c for c in near if getattr(c.conditions, key) == getattr(conditions, key)]
        if near and not kept:
            return f"none was measured with {words}"
        near = kept
    misses = min((c.apart(conditions) for c in near), key=len, default=[])
    return f"the nearest calibration was measured with {', '.join(misses)}" if misses else ""
