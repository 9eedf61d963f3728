"""The picture of `scoreinv edit`: what there was, some of the images made of it, and how much they differ."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from scoreinv.pictures import FAINT, SERIES, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 4
"""Draws that are shown."""

Panel = tuple[str, np.ndarray, np.ndarray | None, tuple[float, float] | None, str]
"""Heading, image (H, W) or (H, W, 3), what is tinted in it, limits of a colour scale, its unit."""


def edit_picture(
    path: str | os.PathLike[str],
    *,
    source: Tensor,
    draws: Tensor,
    unknown: Tensor | None = None,
    title: str = "",
    window: tuple[float, float] = (-1000.0, 1000.0),
) -> None:
    """A PNG with the source, up to four draws, and their standard deviation where there are two or more.

    Args:
        path: where to write it.
        source: (H, W) [HU] or (3, H, W) in [0, 1].
        draws: (M, H, W) [HU] or (M, 3, H, W) in [0, 1].
        unknown: (H, W), true where the source was made anew; tinted in it.
        title: a line above.
        window: ends of the gray scale [HU].

    Raises:
        ValueError: images differ in size.
    """
    sizes = {tuple(t.shape[-2:]) for t in (source, draws, unknown) if t is not None}
    if len(sizes) > 1:
        raise ValueError(f"edit_picture: images differ in size: {', '.join(map(str, sorted(sizes)))}")
    tint = None if unknown is None else unknown.cpu().numpy()
    panels: list[Panel] = [("Input", _shown(source, window), tint, None, "")]
    shown = draws[:MOST]
    for k, draw in enumerate(shown):
        heading = "Result" if len(draws) == 1 else f"Draw {k + 1}" + (f" of {len(draws)}" if k == 0 else "")
        panels.append((heading, _shown(draw, window), None, None, ""))
    if len(draws) > 1:
        std, unit = (draws.std(0), "HU") if draws.ndim == 3 else (255 * draws.std(0).square().mean(0).sqrt(), "of 255")
        where = std if unknown is None else std[unknown]
        limit = max(float(np.quantile(where.numpy(), 0.995)), 1e-3)
        panels.append(("Standard deviation", std.numpy(), None, (0.0, float(f"{limit:.2g}")), unit))
    write_figure(path, lambda: _figure(panels, title))


def _shown(image: Tensor, window: tuple[float, float]) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    picture = image.detach().cpu().float()
    if picture.ndim == 2:
        picture = ((picture - window[0]) / (window[1] - window[0])).expand(3, *picture.shape)
    return np.asarray(picture.clamp(0, 1).permute(1, 2, 0).numpy())


def _figure(panels: list[Panel], title: str) -> Figure:
    from matplotlib.figure import Figure

    rows, columns = panels[0][1].shape[:2]
    width, gap, side, top, bottom = 2.9, 0.18, 0.25, 0.78 if title else 0.45, 0.5
    height = width * min(rows / columns, 1.6)
    total = (2 * side + len(panels) * (width + gap) - gap, top + height + bottom)
    figure = Figure(figsize=total)
    for k, (heading, image, tint, limits, unit) in enumerate(panels):
        left = side + k * (width + gap)
        axes: Any = figure.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))
        smooth = "nearest" if columns < 200 else "antialiased"
        low, high = limits or (0.0, 1.0)
        drawn = axes.imshow(image, cmap="inferno", vmin=low, vmax=high, interpolation=smooth)
        if tint is not None:
            _tinted(axes, tint)
        axes.set_axis_off()
        figure.text(left / total[0], (bottom + height + 0.09) / total[1], heading, fontsize=11, fontweight="bold")
        if limits is not None:
            scale = figure.add_axes((left / total[0], (bottom - 0.17) / total[1], width / total[0], 0.07 / total[1]))
            bar = figure.colorbar(drawn, cax=scale, orientation="horizontal", ticks=[low, high])
            bar.outline.set_visible(False)
            scale.tick_params(length=0, pad=4, labelsize=8.5)
            scale.set_xticklabels([f"{low:g}", f"{high:g} {unit}"])
            first, last = scale.get_xticklabels()
            first.set_horizontalalignment("left")
            last.set_horizontalalignment("right")
    if title:
        figure.text(side / total[0], 1 - 0.27 / total[1], title, fontsize=13, va="center", color="black")
    if panels[0][2] is not None:
        words = "tinted: made anew"
        figure.text(side / total[0], (bottom - 0.2) / total[1], words, fontsize=8.5, color=FAINT)
    return figure


def _tinted(axes: Any, tint: np.ndarray) -> None:
    """A flat colour where something was unknown."""
    from matplotlib.colors import to_rgba

    overlay = np.zeros((*tint.shape, 4))
    overlay[tint] = to_rgba(SERIES[4], 0.6)
    axes.imshow(overlay, interpolation="nearest")
