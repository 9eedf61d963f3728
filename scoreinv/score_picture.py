"""The picture of `scoreinv score`: an image, and where in it the prior is surprised."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from scoreinv.pictures import FAINT, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panel = tuple[str, str, np.ndarray, str, tuple[float, float]]
"""Heading, what its numbers are, image, colour map, limits."""


def score_picture(
    path: str | os.PathLike[str],
    *,
    hu: Tensor,
    unusual: Tensor,
    bits: Tensor | None = None,
    title: str = "",
    window: tuple[float, float] = (-1000.0, 1000.0),
) -> None:
    """A PNG with the image, its unusual places, and where known the bits of its pixels.

    Args:
        path: where to write it.
        hu: (H, W) [HU].
        unusual: (H, W), 1 where the image is as hard to denoise as is usual; shown from 0 to 10.
        bits: (H, W) bits per pixel, smoothed.
        title: a line above.
        window: ends of the gray scale [HU].

    Raises:
        ValueError: the maps are not shaped like the image.
    """
    maps = {"unusual": unusual, "bits": bits}
    for name, found in maps.items():
        if found is not None and found.shape != hu.shape:
            raise ValueError(f"score_picture: {name} {tuple(found.shape)} is not shaped like hu {tuple(hu.shape)}")
    panels: list[Panel] = [
        ("Image", "HU", _array(hu), "gray", window),
        ("Unusual places", "squared denoising error, 1 is usual", _array(unusual), "inferno", (0.0, 10.0)),
    ]
    if bits is not None:
        shown = _array(bits)
        limits = (
            float(np.percentile(shown, 1)),
            max(float(np.percentile(shown, 99)), float(np.percentile(shown, 1)) + 1),
        )
        panels.append(("Surprise", "bits per pixel", shown, "viridis", limits))
    write_figure(path, lambda: _figure(panels, title))


def _array(image: Tensor) -> np.ndarray:
    return np.asarray(image.detach().cpu().numpy(), dtype=np.float32)


def _figure(panels: list[Panel], title: str) -> Figure:
    from matplotlib.figure import Figure

    rows, columns = panels[0][2].shape
    width, gap, top, bottom = 3.2, 0.25, 0.75 if title else 0.4, 0.65
    height = width * min(rows / columns, 1.6)
    total = (gap + len(panels) * (width + gap), top + height + bottom)
    figure = Figure(figsize=total)
    for k, (heading, unit, image, colours, limits) in enumerate(panels):
        left = gap + k * (width + gap)
        axes = figure.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))
        shown = axes.imshow(image, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
        axes.set_axis_off()
        figure.text(left / total[0], (bottom + height + 0.1) / total[1], heading, fontsize=11, fontweight="bold")
        scale = figure.add_axes((left / total[0], (bottom - 0.17) / total[1], width / total[0], 0.07 / total[1]))
        bar = figure.colorbar(shown, cax=scale, orientation="horizontal", ticks=[limits[0], sum(limits) / 2, limits[1]])
        bar.outline.set_visible(False)
        scale.tick_params(length=0, pad=4, labelsize=8.5)
        scale.set_xticklabels([f"{v:.4g}" for v in (limits[0], sum(limits) / 2, limits[1])])
        first, _, last = scale.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
        figure.text(left / total[0], 0.1 / total[1], unit, fontsize=8.5, color=FAINT)
    if title:
        figure.text(gap / total[0], 1 - 0.25 / total[1], title, fontsize=12, va="center")
    return figure
