"""Pictures of the gallery: panels side by side, each with a heading and a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreinv.pictures import FAINT, SERIES, write_figure


class Panel(NamedTuple):
    """One of several pictures: words above it, in bold and in gray, and what draws it on matplotlib's axes."""

    heading: str
    caption: str
    draw: Callable[[Any], None]


def panels(
    path: Path,
    shown: Sequence[Panel],
    columns: int,
    *,
    width: float = 2.3,
    aspect: float = 1.0,
    title: str = "",
    gap: float = 0.22,
    left: float | None = None,
    below: float = 0.0,
) -> None:
    """A PNG of panels in rows.

    Args:
        path: where to write it.
        shown: the panels, row by row.
        columns: panels a row.
        width: of a panel [inch].
        aspect: height of a panel over its width.
        title: a line above all.
        gap: between columns [inch].
        left: margin [inch]; the gap without.
        below: room for ticks and labels below each panel [inch].
    """

    def figure() -> Any:
        from matplotlib.figure import Figure

        margin = gap if left is None else left
        rows, height, words, top = -(-len(shown) // columns), width * aspect, 0.5, 0.45 if title else 0.05
        between = max(gap, margin) if left is not None else gap
        total = (margin + columns * width + (columns - 1) * between + gap, top + rows * (words + height + below) + 0.15)
        made = Figure(figsize=total)
        for k, panel in enumerate(shown):
            x = margin + (k % columns) * (width + between)
            y = total[1] - top - (k // columns) * (words + height + below) - words - height
            axes = made.add_axes((x / total[0], y / total[1], width / total[0], height / total[1]))
            panel.draw(axes)
            made.text(x / total[0], (y + height + 0.24) / total[1], panel.heading, fontsize=10, fontweight="bold")
            made.text(x / total[0], (y + height + 0.08) / total[1], panel.caption, fontsize=8, color=FAINT)
        if title:
            made.text(margin / total[0], 1 - 0.26 / total[1], title, fontsize=12.5, va="center")
        return made

    write_figure(path, figure)


def gray(
    image: Tensor | np.ndarray, low: float = -1.0, high: float = 1.0, colours: str = "gray"
) -> Callable[[Any], None]:
    """An image (H, W), or (H, W, 3) in [0, 1]."""

    def drawn(axes: Any) -> None:
        axes.imshow(np.asarray(image), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        axes.set_axis_off()

    return drawn


def tiled(images: Tensor, columns: int, *, pad: int = 1, filled: float = 1.0) -> Tensor:
    """Images (n, H, W) or (n, 3, H, W) side by side in rows, (rows (H + pad) - pad, ...)[, 3 last]."""
    n, (h, w) = len(images), images.shape[-2:]
    rows = -(-n // columns)
    sheet = torch.full((*images.shape[1:-2], rows * (h + pad) - pad, columns * (w + pad) - pad), filled)
    for k, image in enumerate(images):
        top, left = k // columns * (h + pad), k % columns * (w + pad)
        sheet[..., top : top + h, left : left + w] = image
    return sheet.movedim(0, -1) if sheet.ndim == 3 else sheet


def cloud(
    points: Tensor, reach: float, *, colours: Any = None, size: float = 2.0, behind: Callable[[Any], None] | None = None
) -> Callable[[Any], None]:
    """Points (n, ..., 2) of the plane within a square of half side `reach`."""
    flat = points.reshape(-1, 2).numpy()

    def drawn(axes: Any) -> None:
        if behind is not None:
            behind(axes)
        colour = {"color": SERIES[0]} if colours is None else {"c": np.asarray(colours), "cmap": "viridis"}
        axes.scatter(flat[:, 0], flat[:, 1], s=size, linewidths=0, alpha=0.6, **colour)
        _square(axes, reach)

    return drawn


def density(log_density: Callable[[Tensor], Tensor], reach: float, n: int = 160) -> Callable[[Any], None]:
    """exp of a function of points (n, 1, 2) as shades."""
    line = torch.linspace(-reach, reach, n)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 1, 2)
    values = log_density(grid).reshape(n, n)
    shades = (values - values.max()).exp().numpy()

    def drawn(axes: Any) -> None:
        axes.imshow(shades, origin="lower", extent=(-reach, reach, -reach, reach), cmap="Blues", vmax=1.4)
        _square(axes, reach)

    return drawn


def curves(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    log: str = "",
    marks: bool = True,
    dashed: Sequence[str] = (),
    colours: Sequence[str] = SERIES,
    names: bool = True,
    legend: tuple[float, float] | None = None,
) -> Callable[[Any], None]:
    """Curves (name, x, y) with their names in a legend, that of a level dashed line on the line itself.

    Args:
        lines: the curves.
        x, y: labels of the axes.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        marks: a mark at every point.
        dashed: names of those that are.
        colours: in turn.
        names: show the legend.
        legend: where the middle of its lower edge is, in shares of the axes; None where it is in nobody's way.
    """

    def drawn(axes: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        for k, (name, xs, ys) in enumerate(lines):
            level = name in dashed and min(ys) == max(ys)
            if level and names:
                place = {"textcoords": "offset points", "xytext": (2, 3), "fontsize": 7.5}
                axes.annotate(name, (xs[0], ys[0]), color=colours[k % len(colours)], **place)
            style = "--" if name in dashed else "-"
            mark = {"marker": "o", "markersize": 3.5} if marks and not level else {}
            label = None if level else name
            axes.plot(xs, ys, style, color=colours[k % len(colours)], linewidth=1.6, label=label, **mark)
        for axis, letter in ((axes.xaxis, "x"), (axes.yaxis, "y")):
            if letter in log:
                axes.set(**{f"{letter}scale": "log"})
                low, high = axis.get_view_interval()
                if high / low < 1000:
                    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                    axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(x, fontsize=9)
        axes.set_ylabel(y, fontsize=9)
        axes.tick_params(length=2, labelsize=8)
        axes.grid(color="#e7eaee", linewidth=0.7)
        axes.set_axisbelow(True)
        if names:
            place = {} if legend is None else {"loc": "lower center", "bbox_to_anchor": legend, "ncols": 2}
            axes.legend(fontsize=7.5, frameon=False, **place)

    return drawn


def _square(axes: Any, reach: float) -> None:
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#d5dae0")
