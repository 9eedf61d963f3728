"""The verification table: rows of figures as CSV, as Markdown for reading, as a picture for talks."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scoreinv.files.versions import versions
from scoreinv.pictures import FAINT, INK, write_figure
from scoreinv.verification.run import Case, Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = ("case", "method", "settings")
NUMBERS = tuple(f.name for f in fields(Figures))
COLUMNS = {
    "mean_error": ("mean error", "0"),
    "variance": ("variance", "1"),
    "variance_range": ("in range", "1"),
    "variance_null": ("in null space", "1"),
    "wasserstein": ("sliced W₂", "1"),
    "coverage_50": ("50 %", "0.5"),
    "coverage_90": ("90 %", "0.9"),
    "coverage_95": ("95 %", "0.95"),
    "rank_p": ("rank p", "> 0.01"),
    "evaluations": ("evaluations", ""),
}
"""Heading of each figure, and its value for exact draws."""
SHADED = ("mean_error", "variance", "variance_range", "variance_null", "wasserstein")


def append(path: Path, case: str, method: str, settings: str, figures: Figures) -> None:
    """Add a row to a CSV file, which is made with its header where there is none; flushed to the disk."""
    new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*KEYS, *NUMBERS], lineterminator="\n")
        if new:
            writer.writeheader()
        numbers = {k: f"{v:.4g}" for k, v in asdict(figures).items()}
        writer.writerow({"case": case, "method": method, "settings": settings, **numbers})
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, str]]:
    """The rows of such a file; none where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(rows: Sequence[Mapping[str, str]], cases: Sequence[Case]) -> str:
    """One table a case, the methods with the smallest sliced distance first."""
    lines = [
        "# Which method samples the posterior?",
        "",
        "Every method on problems whose posterior is known in closed form: `scoreinv verify` makes this page. Below each heading "
        "stands the value that exact draws have. Mean error: squared, in units of the posterior's variance, less what as many "
        "exact draws would have. Variances: of the draws over the exact one, in all directions, in those that the data see and in "
        "those that they do not; medians over problems. Sliced W₂: relative to two sets of exact draws. Coverage: share of true "
        "coordinates inside the central interval of the draws. Rank p: that the truth's ranks among the draws are uniform.",
    ]
    for case in cases:
        mine = sorted((r for r in rows if r["case"] == case.name), key=lambda r: _number(r["wasserstein"]))
        if not mine:
            continue
        lines += ["", f"## {case.name}", "", f"{case.about} {case.n_problems} problems, {case.n_draws} draws each.", ""]
        lines.append("| method | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |")
        lines.append("| --- " * (len(COLUMNS) + 1) + "|")
        lines.append("| exact | " + " | ".join(exact for _, exact in COLUMNS.values()) + " |")
        for row in mine:
            cells = [_cell(name, row[name]) for name in COLUMNS]
            lines.append(f"| {_label(row)} | " + " | ".join(cells) + " |")
    software = ", ".join(f"{k} {v}" for k, v in versions().items())
    return "\n".join([*lines, "", software, ""])


def picture(path: Path, rows: Sequence[Mapping[str, str]], cases: Sequence[Case]) -> None:
    """A PNG: methods down, cases and figures across; white is exact, red too little spread or too far off, blue too much.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("the verification table has no rows yet")
    write_figure(path, lambda: _figure(rows, [c.name for c in cases if any(r["case"] == c.name for r in rows)]))


def _number(text: str) -> float:
    value = float(text)
    return math.inf if math.isnan(value) else value


def _label(row: Mapping[str, str]) -> str:
    return row["method"] + (f" ({row['settings']})" if row["settings"] else "")


def _cell(name: str, text: str) -> str:
    value = float(text)
    if math.isnan(value):
        return ""
    if name == "evaluations":
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.2g}"


def _figure(rows: Sequence[Mapping[str, str]], cases: list[str]) -> Figure:
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(_label(r) for r in rows))
    at = {(r["case"], _label(r)): r for r in rows}

    def mean_distance(method: str) -> float:
        found = [_number(at[c, method]["wasserstein"]) for c in cases if (c, method) in at]
        return sum(min(v, 100.0) for v in found) / len(found)

    methods.sort(key=mean_distance)
    width, height = 2.4 + 2.5 * len(cases), 1.3 + 0.27 * len(methods)
    figure = Figure(figsize=(width, height))
    for k, case in enumerate(cases):
        axes = figure.add_axes(((2.3 + 2.5 * k) / width, 0.1 / height, 2.35 / width, 0.27 * len(methods) / height))
        values = np.array([[_value(at.get((case, m)), name) for name in SHADED] for m in methods])
        shade = _shade(values)
        axes.imshow(shade, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if not math.isnan(value):
                text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1g}" if value > 1000 else f"{value:.0f}"
                colour = "white" if abs(shade[i, j]) > 1.3 else INK
                axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_xticks(range(len(SHADED)), [COLUMNS[name][0] for name in SHADED], fontsize=6.5, rotation=25, ha="left")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(methods)), methods if k == 0 else [], fontsize=7.5)
        axes.tick_params(length=0)
        axes.set_title(case, fontsize=9, fontweight="bold", pad=16)
        for side in axes.spines.values():
            side.set_color(FAINT)
    return figure


def _value(row: Any, name: str) -> float:
    return math.nan if row is None else float(row[name])


def _shade(values: np.ndarray) -> np.ndarray:
    """log₂ of ratios, so that half and double are equally far from white; errors of the mean and distances are red alone."""
    one_sided = np.array([name in ("mean_error", "wasserstein") for name in SHADED])
    off = np.where([name == "mean_error" for name in SHADED], 1 + np.maximum(values, 0), np.maximum(values, 1e-3))
    shade = np.log2(off)
    return np.asarray(np.where(one_sided, -np.maximum(shade, 0), shade))
