"""Tables and pictures of methods.py, from its rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from _problems import PROBLEMS

from scoreinv.pictures import FAINT, INK, SERIES, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, str]
ENOUGH_DB = 0.3
SHOWN_DB = 10.0
"""Methods further below the best than this are not worth a place in the picture."""
NAMED = 5
"""Of the dominated ones of each kind, the best so many are named, too."""


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        title: its head.
        field: of a row.
        one: of the run for one image, not of that for N draws.
        digits: after the point.
        worse: how far a value is from the best there could be; None where being best is no merit of its own.
    """

    title: str
    field: str
    one: bool
    digits: int
    worse: Callable[[float], float] | None = None


def largest(value: float) -> float:
    return -value


def near(ideal: float) -> Callable[[float], float]:
    return lambda value: abs(math.log(max(value, 1e-9) / ideal))


def columns(noise_free: bool) -> list[Column]:
    chi2 = Column("residual of a draw", "chi2_draw", False, 5, abs)
    return [
        Column("evaluations", "evaluations", True, 0),
        Column("s", "seconds", True, 1),
        Column("PSNR", "psnr", True, 2, largest),
        Column("SSIM", "ssim", True, 3, largest),
        Column("s, N draws", "seconds", False, 1),
        Column("PSNR of the mean", "psnr", False, 2, largest),
        Column("SSIM of the mean", "ssim", False, 3, largest),
        Column("std / error, tissue", "spread_tissue", False, 2, near(1.0)),
        Column("all", "spread_all", False, 2, near(1.0)),
        Column("coverage, tissue", "coverage_tissue", False, 3, near(0.9)),
        Column("all", "coverage_all", False, 3, near(0.9)),
        Column("CRPS [HU], tissue", "crps_tissue", False, 1, abs),
        chi2 if noise_free else Column("χ² of a draw", "chi2_draw", False, 2, near(1.0)),
    ]


def table(rows: Sequence[Row], head: Sequence[str], draws: int) -> str:
    """The Markdown report: for each problem the means over patients of every method, best of one image first."""
    lines = [
        f"# Posterior methods on CT, one image and {draws} draws",
        "",
        *head,
        "",
        f"Columns: for one image, network evaluations, seconds, PSNR [dB] and SSIM; for N = {draws} draws, seconds, PSNR and SSIM of "
        "their mean; the draws' standard deviation over the error of their mean (both rms, with the √(1 + 1/N) that makes exact draws "
        "1) and the share of pixels in their 90 % intervals (Student's), both on tissue (truth above -500 HU) and on all pixels "
        "(proximal's are moved so that their mean is its image, which has no error of N draws: its ratio and the width of its intervals "
        "are too large by √(1 + 1/N)); their continuous ranked probability score, which is small only for draws that are both near the truth and spread as they should; χ² of "
        "a draw (noise-free: relative residual). Bold: the best of the methods with all patients of a problem, but for costs; a line's "
        "figures are all of the same patients, and lines of fewer patients are not to be compared with the others.",
        "",
    ]
    for name, setting in PROBLEMS.items():
        at = [r for r in rows if r["problem"] == name]
        if not at:
            continue
        noise_free = setting.relative_noise == 0 and setting.photons is None
        lines += [f"## {setting.title}", "", *_section(at, columns(noise_free), draws), ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(rows: Sequence[Row], shown: list[Column], draws: int) -> list[str]:
    one, many = paired(by_method(rows, 1), by_method(rows, draws))
    values = {
        m: [_mean((one if c.one else many).get(m, []), c.field) for c in shown] for m in dict.fromkeys((*one, *many))
    }
    if draws > 1:
        for m in values:
            if m not in many and m in one:  # what gives one image has no draws, but a misfit
                values[m][-1] = _mean(one[m], "chi2_draw")
    patients = {m: len((one if m in one else many)[m]) for m in values}
    whole = [values[m] for m, n in patients.items() if n == max(patients.values())]
    best = [
        min((c.worse(v[i]) for v in whole if not math.isnan(v[i])), default=math.nan) if c.worse else math.nan
        for i, c in enumerate(shown)
    ]
    titles = ["method", *(c.title for c in shown), "patients"]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for m in sorted(values, key=lambda m: -values[m][2] if not math.isnan(values[m][2]) else math.inf):
        cells = []
        for c, value, least in zip(shown, values[m], best, strict=True):
            text = "" if math.isnan(value) else f"{value:.{c.digits}f}"
            bold = text and c.worse and c.worse(value) <= least and values[m] in whole
            cells.append(f"**{text}**" if bold else text)
        lines.append(f"| {m} | {' | '.join(cells)} | {patients[m]} |")
    machines: dict[str, dict[str, None]] = {}
    for m in values:
        for r in (*one.get(m, []), *many.get(m, [])):
            machines.setdefault(r["machine"], {})[m] = None
    for machine, methods in sorted(machines.items(), key=lambda item: -len(item[1])):
        named = "" if len(machines) == 1 else f": {', '.join(methods)}"
        lines += ["", f"Seconds on {machine}{named}."]
    failed: dict[tuple[str, str], int] = {}
    for r in rows:
        if r["error"]:
            failed[r["method"], r["error"]] = failed.get((r["method"], r["error"]), 0) + 1
    if failed:
        lines += ["", *(f"- {method}: {error} ({n} runs)" for (method, error), n in failed.items())]
    return lines


def by_method(rows: Iterable[Row], draws: int) -> dict[str, list[Row]]:
    """Rows without an error of every method, one a patient: with its newest settings."""
    found: dict[str, dict[str, dict[str, Row]]] = {}
    for r in rows:
        if r["draws"] == str(draws) and not r["error"]:
            found.setdefault(r["method"], {}).setdefault(r["settings"], {})[r["patient"]] = r
    return {m: list(list(by_settings.values())[-1].values()) for m, by_settings in found.items()}


def paired(one: dict[str, list[Row]], many: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Both without patients that only one of them has, for methods that both have."""
    for m in one.keys() & many.keys():
        common = {r["patient"] for r in one[m]} & {r["patient"] for r in many[m]}
        if common:
            one[m], many[m] = ([r for r in rows[m] if r["patient"] in common] for rows in (one, many))
    return one, many


def _mean(rows: Sequence[Row], field: str) -> float:
    values = [float(r[field]) for r in rows if r[field]]
    return statistics.fmean(values) if values else math.nan


def pareto_picture(path: Path, rows: Sequence[Row], draws: int) -> None:
    """Seconds against PSNR, a panel a problem: of one image and of the mean of N draws, the undominated named."""
    panels = {p: [r for r in rows if r["problem"] == p and not r["error"]] for p in PROBLEMS}
    panels = {p: at for p, at in panels.items() if at}
    if panels:
        write_figure(path, lambda: _pareto_figure(panels, draws))


def _pareto_figure(panels: dict[str, list[Row]], draws: int) -> Figure:
    figure, all_axes = _grid(len(panels), 6.4, 4.6)
    for axes, (problem, at) in zip(all_axes, panels.items(), strict=True):
        _pareto_panel(axes, by_method(at, 1), by_method(at, draws) if draws > 1 else {})
        axes.set_title(PROBLEMS[problem].title, loc="left", fontsize=11, color=INK)
        axes.set_xlabel("seconds an image")
        axes.set_ylabel("PSNR [dB]")
    handles = [all_axes[0].scatter([], [], s=34, facecolor=SERIES[0], label="one image")]
    if draws > 1:
        label = f"mean of {draws} draws"
        handles.append(all_axes[0].scatter([], [], s=34, facecolor="white", edgecolor=SERIES[5], label=label))
    figure.legend(handles=handles, frameon=False, loc="outside upper right", ncols=2, fontsize=9)
    return figure


def _grid(n: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of n panels of that size [inch], two a row."""
    from matplotlib.figure import Figure

    columns, rows = min(2, n), math.ceil(n / 2)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, k + 1) for k in range(n)]


class Point(NamedTuple):
    """A method's place in the picture."""

    method: str
    seconds: float
    psnr: float
    mean_of_draws: bool

    @property
    def colour(self) -> str:
        return SERIES[5] if self.mean_of_draws else SERIES[0]


def _pareto_panel(axes: Axes, one: dict[str, list[Row]], many: dict[str, list[Row]]) -> None:
    points = [
        Point(m, _mean(rows, "seconds"), _mean(rows, "psnr"), mean_of_draws)
        for mean_of_draws, at in ((False, one), (True, many))
        for m, rows in at.items()
    ]
    if not points:
        return
    best = max(p.psnr for p in points)
    shown = [p for p in points if p.psnr > best - SHOWN_DB]
    front = [p for p in shown if not any(dominates(q, p) for q in shown)]
    for p in shown:
        for q in shown:
            if p.method == q.method and q.mean_of_draws > p.mean_of_draws:
                axes.plot((p.seconds, q.seconds), (p.psnr, q.psnr), color=FAINT, linewidth=0.5, alpha=0.35, zorder=1)
        face, alpha = ("white" if p.mean_of_draws else p.colour), (1.0 if p in front else 0.45)
        size = 44 if p in front else 22
        axes.scatter(
            p.seconds, p.psnr, s=size, facecolor=face, edgecolor=p.colour, linewidth=1.4, alpha=alpha, zorder=3
        )
    front.sort(key=lambda p: p.seconds)
    stairs = {"color": FAINT, "linewidth": 1, "linestyle": ":", "zorder": 1}
    axes.step([p.seconds for p in front], [p.psnr for p in front], where="post", **stairs)
    axes.set_xscale("log")
    least, longest = min(p.seconds for p in shown), max(p.seconds for p in shown)
    low = min(p.psnr for p in shown)
    axes.set_xlim(least / 2.5, longest * (longest / least) ** 0.22)
    axes.set_ylim(low - 0.1 * (best - low) - 0.1, best + 0.1 * (best - low) + 0.1)
    others = [
        p
        for kind in (False, True)
        for p in sorted((p for p in shown if p not in front and p.mean_of_draws == kind), key=lambda p: -p.psnr)[:NAMED]
    ]
    _name(axes, front, others)
    hidden = sorted({p.method for p in points} - {p.method for p in shown})
    if hidden:
        text = f"more than {SHOWN_DB:g} dB below the best: {', '.join(hidden)}"
        axes.text(0.01, 0.015, text, transform=axes.transAxes, fontsize=7, color=FAINT)


def dominates(a: Point, b: Point) -> bool:
    """As cheap and as good, and one of the two strictly."""
    return a.seconds <= b.seconds and a.psnr >= b.psnr and (a.seconds, a.psnr) != (b.seconds, b.psnr)


def _name(axes: Axes, edge: Sequence[Point], others: Sequence[Point]) -> None:
    """Names of the undominated to the upper left, where a staircase leaves room; of the best others, gray, to the right."""
    low, high = axes.get_ylim()
    gap = 0.034 * (high - low)
    taken = -math.inf
    for p in edge:
        taken = max(p.psnr + 0.3 * gap, taken + gap)
        axes.annotate(
            p.method, (p.seconds, p.psnr), (p.seconds, taken), ha="right", va="bottom", fontsize=8.5, color=p.colour
        )
    ranked = sorted(others, key=lambda p: p.psnr)
    for p, height in zip(ranked, apart([p.psnr for p in ranked], gap, high), strict=True):
        axes.annotate(
            p.method,
            (p.seconds, p.psnr),
            (max(q.seconds for q in others) * 1.35, height),
            va="center",
            fontsize=7.5,
            color=p.colour,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.4, "alpha": 0.5, "shrinkB": 4},
        )


def apart(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Increasing heights moved until neighbours are a gap apart and none is above the top: clusters stay where their middle is."""
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _bottom(clusters[-1], gap) < _bottom(clusters[-2], gap) + len(clusters[-2]) * gap:
            last = clusters.pop()
            clusters[-1] += last
    placed = [_bottom(c, gap) + k * gap for c in clusters for k in range(len(c))]
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], top)
        top = placed[k] - gap
    return placed


def _bottom(cluster: Sequence[float], gap: float) -> float:
    return statistics.fmean(cluster) - gap * (len(cluster) - 1) / 2


def evaluations_table(rows: Sequence[Row], head: Sequence[str]) -> str:
    """PSNR of one image by network evaluations, and the fewest that come near the method's own best."""
    lines = ["# How many network evaluations?", "", *head, ""]
    lines += [
        f"PSNR [dB] of one image, mean over patients, with the evaluations that it took. Enough: the fewest within {ENOUGH_DB} dB of the method's best.",
        "",
    ]
    for problem, setting in PROBLEMS.items():
        curves = evaluation_curves([r for r in rows if r["problem"] == problem])
        if not curves:
            continue
        lines += [f"## {setting.title}", ""]
        for method, curve in curves.items():
            if not lines[-1].startswith("| "):
                lines += ["| method | PSNR [dB] (evaluations) | best | enough |", "| --- | --- | --- | --- |"]
            best = max(curve.values())
            cells = ", ".join(f"{value:.2f} ({n:g})" for n, value in curve.items())
            lines.append(f"| {method} | {cells} | {best:.2f} | {enough(curve):g} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def evaluation_curves(rows: Iterable[Row]) -> dict[str, dict[float, float]]:
    """For each method, evaluations -> PSNR, mean over the patients of the number that has most."""
    found: dict[str, dict[float, list[float]]] = {}
    for r in rows:
        if not r["error"]:
            found.setdefault(r["method"], {}).setdefault(float(r["evaluations"]), []).append(float(r["psnr"]))
    return {
        m: {n: statistics.fmean(at[n]) for n in sorted(at) if len(at[n]) == max(map(len, at.values()))}
        for m, at in found.items()
    }


def enough(curve: dict[float, float]) -> float:
    """The fewest evaluations from which on nothing is more than ENOUGH_DB below the best."""
    best = max(curve.values())
    return next(n for n, value in sorted(curve.items()) if value >= best - ENOUGH_DB)


def evaluations_picture(path: Path, rows: Sequence[Row]) -> None:
    """PSNR against evaluations, a panel a problem, a ring where it is enough."""
    panels = {p: evaluation_curves([r for r in rows if r["problem"] == p]) for p in PROBLEMS}
    panels = {p: curves for p, curves in panels.items() if curves}
    if panels:
        write_figure(path, lambda: _evaluations_figure(panels))


def _evaluations_figure(panels: dict[str, dict[str, dict[float, float]]]) -> Figure:
    figure, all_axes = _grid(len(panels), 5.8, 4.2)
    for axes, (problem, curves) in zip(all_axes, panels.items(), strict=True):
        for colour, (method, curve) in zip(SERIES * len(curves), curves.items(), strict=False):
            axes.plot(list(curve), list(curve.values()), color=colour, marker="o", markersize=4, label=method)
            axes.scatter(enough(curve), curve[enough(curve)], s=110, facecolor="none", edgecolor=colour, zorder=3)
        best = max(max(curve.values()) for curve in curves.values())
        lowest = min(min(curve.values()) for curve in curves.values())
        axes.set_ylim(max(best - SHOWN_DB, lowest) - 0.3, best + 0.5)
        axes.set_xscale("log")
        axes.set_xticks([5, 10, 20, 50, 100], labels=["5", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set_title(PROBLEMS[problem].title, loc="left", fontsize=11, color=INK)
        axes.set_xlabel(f"network evaluations (ring: within {ENOUGH_DB} dB of the method's best)")
        axes.set_ylabel("PSNR of one image [dB]")
        axes.legend(frameon=False, fontsize=8.5)
    return figure
