"""The verification table: rows of figures as CSV, as Markdown for reading, as a picture for talks.

Methods are in the order of how far off they are: of their figure that is furthest from that of exact draws, as `_shade` counts.
"""

from __future__ import annotations

import csv
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scoreinv.files.versions import versions
from scoreinv.pictures import FAINT, INK, write_figure
from scoreinv.verification.run import DIRECTIONS, Case, Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = ("case", "method", "settings", "made")
NUMBERS = tuple(f.name for f in fields(Figures))
COLUMNS = {
    "problems": ("problems", ""),
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
ORDERED = ("mean_error", "variance", "variance_range", "variance_null", "wasserstein")
"""Figures that say how far off a method is."""
SHADED = (*ORDERED, "coverage_90")
"""Figures of the picture."""
ACROSS = 3
"""Cases side by side in the picture."""


def append(path: Path, key: tuple[str, str, str, str], figures: Figures) -> None:
    """Add a row to a CSV file, which is made with its header where there is none; flushed to the disk. The key is that of KEYS."""
    new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*KEYS, *NUMBERS], lineterminator="\n")
        if new:
            writer.writeheader()
        numbers = {k: f"{v:.4g}" for k, v in asdict(figures).items()}
        writer.writerow(dict(zip(KEYS, key, strict=True)) | numbers)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, str]]:
    """The rows of such a file; none where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or []) != [*KEYS, *NUMBERS]:
            raise ValueError(
                f"{path}: its columns are not those of this version, {', '.join(KEYS)} ...: move it away to begin a new table"
            )
        return list(reader)


def markdown(rows: Sequence[Mapping[str, str]], cases: Sequence[Case], preface: str = "") -> str:
    """One table a case, the methods that are least off first; the preface stands before them."""
    lines = [
        "# Which method samples the posterior?",
        "",
        "Every method on problems whose posterior is known in closed form: `scoreinv verify` makes this page, the same rows as numbers "
        "([verification.csv](verification.csv)) and as a [picture](verification.png). Below each heading stands the value that exact "
        "draws have.",
        "",
        "- Mean error: squared, in units of the posterior's variance, less what as many exact draws would have; the mean over problems.",
        "- Variances: of the draws over the exact one, in all directions, in those that the data see and in those that they do not; "
        "medians over problems.",
        "- Sliced W₂: relative to two sets of exact draws; the median over problems.",
        "- 50 %, 90 %, 95 %: share of true coordinates inside the central interval of the draws, with its standard error. The error "
        "takes an image for as many independent coordinates as it is worth when exact draws are measured in the same way.",
        "- Rank p: p-value of the truth's ranks among the draws being uniform (simulation-based calibration), in directions that the data "
        f"see and in those that they do not: up to {DIRECTIONS} independent ones of each where the posterior is Gaussian, else 2; the smallest "
        "p-value counts, times the number of tests. With so few images a large p proves little.",
        "- Evaluations: of the prior, a draw.",
        "",
        "Methods are in the order of their worst figure among mean error, variances and W₂. Methods of few evaluations get more "
        "problems; the first ones are the same for all.",
        *(["", preface] if preface else []),
        *_overview(rows),
    ]
    for case in cases:
        mine = sorted((r for r in rows if r["case"] == case.name), key=_off)
        if not mine:
            continue
        lines += ["", f"## {case.name}", "", f"{case.about} {how_many(case)} problems, {case.n_draws} draws each.", ""]
        lines.append("| method | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " | settings |")
        lines.append("| --- " * (len(COLUMNS) + 2) + "|")
        lines.append("| exact | " + " | ".join(exact for _, exact in COLUMNS.values()) + " | |")
        for row in mine:
            cells = [_with_error(name, row) for name in COLUMNS]
            lines.append(f"| {row['method']} | " + " | ".join(cells) + f" | {row['settings']} |")
    software = ", ".join(f"{k} {v}" for k, v in versions().items())
    return "\n".join([*lines, "", software, ""])


def how_many(case: Case) -> str:
    """Numbers of problems, as in the table."""
    most = case.most_problems or case.n_problems
    return str(most) if most == case.n_problems else f"{case.n_problems} to {most}"


def _overview(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The worst of all cases, method by method."""
    labels = _labels(rows)
    grouped: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        grouped.setdefault(labels[row["method"], row["settings"]], []).append(row)
    lines = [
        "", "## All cases", "",
        "The largest mean error, the least and the largest variance ratios, the least and largest coverage of intervals of 90 %.", "",
        "| method | cases | mean error | in range | in null space | 90 % | evaluations |", "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for label in sorted(grouped, key=lambda k: max(_off(r) for r in grouped[k])):
        mine = grouped[label]
        error = _cell("mean_error", max((r["mean_error"] for r in mine), key=float))
        between = [
            _between(name, [r[name] for r in mine]) for name in ("variance_range", "variance_null", "coverage_90")
        ]
        cost = _between("evaluations", [r["evaluations"] for r in mine])
        lines.append(f"| {label} | {len(mine)} | {error} | " + " | ".join([*between, cost]) + " |")
    return lines


def _between(name: str, texts: Sequence[str]) -> str:
    """Least and largest of the numbers, once where they read the same."""
    ordered = sorted((t for t in texts if not math.isnan(float(t))), key=float)
    ends = [_cell(name, t) for t in (ordered[:1] + ordered[-1:])]
    return " to ".join(dict.fromkeys(ends))


def picture(path: Path, rows: Sequence[Mapping[str, str]], cases: Sequence[Case]) -> None:
    """A PNG: methods down, cases and figures across; white is exact, red too little spread or too far off, blue too much.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("the verification table has no rows yet")
    write_figure(path, lambda: _figure(rows, [c.name for c in cases if any(r["case"] == c.name for r in rows)]))


def _off(row: Mapping[str, str]) -> float:
    """The largest shade of a row without regard to sign; what cannot be measured does not count."""
    return float(np.nanmax(np.abs(_shade(np.array([float(row[name]) for name in SHADED]))[: len(ORDERED)])))


def _labels(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], str]:
    """(method, settings) -> the method's name, with those settings that not all of its rows have in common."""
    settings: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        settings.setdefault(row["method"], {})[row["settings"]] = row["settings"].split(", ")
    labels = {}
    for method, variants in settings.items():
        common = set.intersection(*(set(v) for v in variants.values()))
        for text, parts in variants.items():
            labels[method, text] = ", ".join([method, *(p for p in parts if p and p not in common)])
    return labels


def _with_error(name: str, row: Mapping[str, str]) -> str:
    cell = _cell(name, row[name])
    error = row.get(name.replace("coverage", "error")) if name.startswith("coverage") else None
    return cell if error is None else f"{cell} ± {_decimal(float(error))}"


def _cell(name: str, text: str) -> str:
    value = float(text)
    if math.isnan(value):
        return ""
    if name in ("evaluations", "problems"):
        return f"{value:.0f}"
    return _decimal(value) if abs(value) < 100 else f"{value:.0f}"


def _decimal(value: float) -> str:
    """Two decimals, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _figure(rows: Sequence[Mapping[str, str]], cases: list[str]) -> Figure:
    from matplotlib.figure import Figure

    labels = _labels(rows)
    at = {(r["case"], labels[r["method"], r["settings"]]): r for r in rows}

    def how_far(method: str) -> float:
        found = [min(_off(at[c, method]), 3.0) for c in cases if (c, method) in at]
        return sum(found) / len(found)

    methods = sorted(set(labels.values()), key=how_far)
    n_rows = -(-len(cases) // ACROSS)
    left, bottom, top, line, column = 3.4, 0.55, 1.0, 0.24, 2.9
    panel = line * len(methods)
    width, height = left + column * min(ACROSS, len(cases)) + 0.45, bottom + (panel + top) * n_rows
    figure = Figure(figsize=(width, height))
    for k, case in enumerate(cases):
        x, y = left + column * (k % ACROSS), height - (panel + top) * (k // ACROSS + 1)
        axes = figure.add_axes((x / width, y / height, (column - 0.15) / width, panel / height))
        values = np.array([[_value(at.get((case, m)), name) for name in SHADED] for m in methods])
        shade = _shade(values)
        axes.imshow(shade, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            there = (case, methods[i]) in at
            text = "" if math.isnan(value) and there else "–" if not there else _short(value)
            colour = FAINT if not there else "white" if abs(shade[i, j]) > 1.3 else INK
            axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
        headings = [COLUMNS[name][0] if name in ORDERED else f"{COLUMNS[name][0]} interval" for name in SHADED]
        axes.set_xticks(range(len(SHADED)), headings, fontsize=7, rotation=25, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        named = [textwrap.fill(m, 46) for m in methods] if k % ACROSS == 0 else []
        axes.set_yticks(range(len(methods)), named, fontsize=7.5, linespacing=0.9)
        axes.tick_params(length=0)
        axes.set_title(case, fontsize=10, fontweight="bold", loc="left", pad=10)
        for side in axes.spines.values():
            side.set_visible(False)
    key = (
        "White: as exact draws. Red: the draws vary too little or are too far off; blue: they vary too much; darkest at 4 times.\n"
        "Mean error: squared, in units of the exact variance. Variances: over the exact ones. –: not for this operator."
    )
    figure.text(1 - 0.1 / width, 0.1 / height, key, ha="right", fontsize=8, color=INK)
    return figure


def _short(value: float) -> str:
    if abs(value) < 9.995:
        return _decimal(value)
    return f"{value:.0f}" if value < 1000 else f"{value:.0e}".replace("e+0", "e")


def _value(row: Any, name: str) -> float:
    return math.nan if row is None else float(row[name])


def _shade(values: np.ndarray) -> np.ndarray:
    """log₂ of ratios to what exact draws have, so that half and double are equally far from white: of variances, of 1 + mean error
    and of distances (these two are red alone), and of how often intervals of 90 % miss, red where too often and blue to half as often.
    """
    off = np.maximum(values, 1e-3)
    for k, name in enumerate(SHADED):
        if name == "mean_error":
            off[..., k] = 1 / (1 + np.maximum(values[..., k], 0))
        elif name == "wasserstein":
            off[..., k] = 1 / np.maximum(values[..., k], 1)
        elif name == "coverage_90":
            off[..., k] = 0.1 / np.maximum(1 - values[..., k], 0.05)
    return np.asarray(np.log2(off))
