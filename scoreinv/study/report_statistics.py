"""What a sweep's figures say about patients, not about images: the numbers of its report.

x_p      mean of a figure over the slices and seeds of patient p (of phantoms, every image is a patient)
mean     of the x_p of n patients, with mean ± t(0.975, n − 1) s / √n, Student's t, s the standard deviation of the x_p
Δ        the same of the differences d_p = x_p − b_p to the baseline, over the patients that both have, each by the slices and seeds that both
         have
p        of Wilcoxon's signed-rank test that the d_p lie symmetrically around 0, two-sided (scipy.stats.wilcoxon)
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scoreinv.plugins import did_you_mean
from scoreinv.study.tables import FURTHER, METHOD, PROBLEM, groups

Row = Mapping[str, Any]
BASELINE = "fista_tv"


@dataclass(frozen=True)
class Figure:
    """A column of rows.

    Attributes:
        key: its name.
        words: the head of a table's column, with the unit.
        digits: after the point.
        better: 1 where more is better, -1 where less is, 0 where neither is.
        percent: whether it is a share.
        in_markdown: whether every Markdown table has it.
    """

    key: str
    words: str
    digits: int
    better: int
    percent: bool = False
    in_markdown: bool = True

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


FIGURES = (
    Figure("psnr", "PSNR [dB]", 2, 1),
    Figure("ssim", "SSIM", 3, 1),
    Figure("rmse_hu", "RMSE [HU]", 1, -1),
    Figure("calibration", "calibration ratio", 2, 0),
    Figure("coverage_90", "coverage of 90 % [%]", 0, 0, percent=True),
    Figure("chi2", "χ²", 2, 0),
    Figure("seconds", "seconds", 2, -1),
    Figure("evaluations", "evaluations", 0, -1, in_markdown=False),
    Figure("rmse_hu_lung", "RMSE lung [HU]", 1, -1, in_markdown=False),
    Figure("rmse_hu_soft", "RMSE soft tissue [HU]", 1, -1, in_markdown=False),
    Figure("rmse_hu_bone", "RMSE bone [HU]", 1, -1, in_markdown=False),
    Figure("psnr_range", FURTHER["psnr_range"][0], 2, 1, in_markdown=False),
    Figure("ssim_range", FURTHER["ssim_range"][0], 3, 1, in_markdown=False),
    Figure("psnr_full", FURTHER["psnr_full"][0], 2, 1, in_markdown=False),
    Figure("ssim_full", FURTHER["ssim_full"][0], 3, 1, in_markdown=False),
    Figure("lpips", FURTHER["lpips"][0], 3, -1, in_markdown=False),
    Figure("gradients", FURTHER["gradients"][0], 0, -1, in_markdown=False),
)
COMPARED = ("psnr", "ssim", "rmse_hu")
"""Figures that are tested against the baseline."""


def mean_interval(
    values: Sequence[float], *, least: float = -math.inf, most: float = math.inf
) -> dict[str, float | None]:
    """Mean and 95 % confidence interval by Student's t, which ends at the least and the largest possible value; of one value there is no
    interval."""
    from scipy import stats

    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": max(least, mean - half), "high": min(most, mean + half)}


def _least(values: Mapping[str, float]) -> float:
    """0 for figures of which none is negative."""
    return 0.0 if min(values.values()) >= 0 else -math.inf


MOST = {"ssim": 1.0, "ssim_range": 1.0, "ssim_full": 1.0, "coverage_90": 1.0}
"""The largest possible value of figures that have one."""


def paired_test(values: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, Any] | None:
    """Differences to a baseline over the patients that both have; None where there are none.

    Returns:
        `difference` as `mean_interval` gives it, `p` of Wilcoxon's test (None of fewer than 2 patients), `n` and `wins`: patients in
        all, and with a positive difference.
    """
    from scipy import stats

    differences = [values[p] - baseline[p] for p in values if p in baseline]
    if not differences:
        return None
    p: float | None = None
    if len(differences) > 1:
        p = 1.0
        if any(differences):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that ties make p approximate, in some versions of scipy
                p = float(stats.wilcoxon(differences).pvalue)
    wins = sum(d > 0 for d in differences)
    return {"difference": mean_interval(differences), "p": p, "n": len(differences), "wins": wins}


def problems(rows: Sequence[Row], baseline: str | None = None) -> list[dict[str, Any]]:
    """For each problem its methods, with what their figures are and how they compare with the baseline; `short` is what the name of
    a problem has and not all others have.

    Args:
        rows: as `study.read` gives them.
        baseline: label or name of a method; None is fista_tv, or nothing where there is none.

    Raises:
        ValueError: no method has that label or name.
    """
    called = names(rows)
    known = {str(row[k]) for row in rows for k in ("label", "method")} | set(called.values())
    if baseline is not None and baseline not in known:
        hint = did_you_mean(baseline, known)
        raise ValueError(f"--baseline {baseline}: no method is called so.{hint} Known: {', '.join(sorted(known))}")
    found = [_problem(own, called, baseline or BASELINE) for own in groups(rows, PROBLEM)]
    common = set(shared([p["problem"] for p in found]).split(", ")) if len(found) > 1 else set()
    for p in found:
        p["short"] = ", ".join(part for part in p["problem"].split(", ") if part not in common) or p["problem"]
    return found


def names(rows: Sequence[Row]) -> dict[str, str]:
    """What tables call the method of a row, for each `key`: its label, and where several share it the settings and the prior that tell
    them apart."""
    lines = groups(rows, METHOD)
    labels = [line[-1]["label"] for line in lines]
    told = [
        _told(line[-1], [other[-1] for other in lines if other[-1]["label"] == line[-1]["label"]]) for line in lines
    ]
    found: dict[str, str] = {}
    for k, line in enumerate(lines):
        earlier = [told[j] for j in range(k) if labels[j] == labels[k]]
        words = [*told[k], *([str(earlier.count(told[k]) + 1)] if told[k] in earlier else [])]
        found |= {row["key"]: f"{labels[k]} ({', '.join(words)})" if words else labels[k] for row in line}
    return found


def _told(row: Row, others: Sequence[Row]) -> list[str]:
    """What tells a method from the others of its label."""
    differing = [k for k in row if k.startswith("method.") and len({repr(o.get(k)) for o in others}) > 1]
    words = [f"{k.partition('.')[2]}={row[k]}" for k in differing]
    if row["prior"] and len({o["prior_sha256"] for o in others}) > 1:
        words.append(f"prior {row['prior']}, {row['prior_sha256'][:8]}")
    return words


def unit(row: Row) -> str:
    """The patient of a row; the image itself of a phantom."""
    return str(row["image.patient"] if row.get("image.patient") is not None else row["image"])


def by_unit(rows: Sequence[Row], figure: str) -> dict[str, float]:
    """The mean of a figure for each patient that has it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["status"] == "done" and row.get(figure) is not None:
            values.setdefault(unit(row), []).append(float(row[figure]))
    return {name: statistics.fmean(own) for name, own in values.items()}


def _problem(rows: Sequence[Row], called: Mapping[str, str], baseline: str) -> dict[str, Any]:
    lines = groups(rows, METHOD)
    values = [{f.key: by_unit(line, f.key) for f in FIGURES} for line in lines]
    base = _baseline(lines, values, [called[line[-1]["key"]] for line in lines], baseline)
    methods = []
    for k, line in enumerate(lines):
        tests: dict[str, Any] = {}
        if base is not None and k != base:
            tests = {f: paired_test(*paired(line, lines[base], f)) for f in COMPARED}
        methods.append(
            {
                "label": called[line[0]["key"]], "prior": line[0]["prior"], "rows": len(line),
                "failed": sum(row["status"] != "done" for row in line),
                "n": len({unit(row) for row in line if row["status"] == "done"}),
                "values": {f: mean_interval([*own.values()], least=_least(own), most=MOST.get(f, math.inf)) for f, own in values[k].items() if own},
                "tests": {f: t for f, t in tests.items() if t is not None},
            }
        )  # fmt: skip
    patients = any(row.get("image.patient") is not None for row in rows)
    return {
        "problem": rows[-1]["problem"], "unit": "patients" if patients else "images", "methods": methods,
        "baseline": None if base is None else methods[base]["label"],
    }  # fmt: skip


def paired(rows: Sequence[Row], others: Sequence[Row], figure: str) -> tuple[dict[str, float], dict[str, float]]:
    """`by_unit` of two methods, over the images and seeds that both have."""

    def of(row: Row) -> tuple[str, Any] | None:
        return (str(row["image"]), row["seed"]) if row["status"] == "done" and row.get(figure) is not None else None

    both = {of(row) for row in rows} & {of(row) for row in others} - {None}
    one, other = ([row for row in own if of(row) in both] for own in (rows, others))
    return by_unit(one, figure), by_unit(other, figure)


def _baseline(
    lines: Sequence[Sequence[Row]], values: Sequence[Mapping[str, Any]], called: Sequence[str], baseline: str
) -> int | None:
    """Which method is the baseline; the one of the highest mean PSNR where several have its label or name."""

    def psnr(k: int) -> float:
        own = values[k]["psnr"]
        return statistics.fmean(own.values()) if own else -math.inf

    if baseline in called:
        return called.index(baseline)
    for column in ("label", "method"):
        found = [k for k, line in enumerate(lines) if line[-1][column] == baseline]
        if found:
            return max(found, key=psnr)
    return None


AXES = (
    ("operator.n_views", "views", True, 1.0),
    ("noise.photons", "photons a ray", True, 1.0),
    ("noise.relative", "noise [%]", False, 100.0),
    ("operator.arc", "arc [degrees]", False, 180 / math.pi),
)
"""Columns along which figures are plotted: what they are called, whether the scale is logarithmic, and a factor to the unit."""


def axes(rows: Sequence[Row], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each axis of the sweep the problems that differ in nothing else: their index in `problems(rows)` and the value of each."""
    heads = [own[0] for own in groups(rows, PROBLEM)]
    plots = []
    for column, words, logarithmic, factor in AXES:
        plain = [{**row, column: None, "index": k} for k, row in enumerate(heads) if row.get(column) is not None]
        for family in groups(plain, PROBLEM):
            points = sorted((factor * float(heads[row["index"]][column]), row["index"]) for row in family)
            if len({value for value, _ in points}) > 1:
                title = shared([str(found[k]["problem"]) for _, k in points])
                plots.append({"axis": words, "log": logarithmic, "title": title, "points": points})
    return plots


def shared(texts: Sequence[str]) -> str:
    """Parts between commas that all texts have."""
    parts = [text.split(", ") for text in texts]
    return ", ".join(p for p in parts[0] if all(p in other for other in parts))
