"""What a prior has learnt, at a glance: images that it made up, and below each the training image most like it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from scoreinv.pictures import FAINT, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def contact_sheet(
    path: str | os.PathLike[str],
    samples: Sequence[Tensor],
    nearest: Sequence[Tensor] = (),
    captions: Sequence[str] = (),
    *,
    title: str = "",
    window: tuple[float, float] = (-1000.0, 1000.0),
) -> None:
    """A PNG with the samples in two rows, and where given the nearest training image below each.

    Args:
        path: where to write it.
        samples: (H, W) images [HU].
        nearest: one image [HU] for each sample, of any size, or none.
        captions: one line below each pair, or none.
        title: a line above.
        window: ends of the gray scale [HU].

    Raises:
        ValueError: no samples, or numbers that differ.
    """
    if not len(samples):
        raise ValueError("contact_sheet: there are no samples to show")
    for name, things in (("nearest images", nearest), ("captions", captions)):
        if len(things) not in (0, len(samples)):
            raise ValueError(f"contact_sheet: {len(samples)} samples, but {len(things)} {name}")
    pairs = [[_array(s)] + ([_array(nearest[k])] if len(nearest) else []) for k, s in enumerate(samples)]
    write_figure(path, lambda: _figure(pairs, captions, title, window))


def _array(image: Tensor) -> np.ndarray:
    return np.asarray(image.detach().cpu().numpy(), dtype=np.float32)


def _figure(pairs: list[list[np.ndarray]], captions: Sequence[str], title: str, window: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    columns = min(4, len(pairs))
    rows, height = -(-len(pairs) // columns), len(pairs[0])
    size, gap, top, caption = 2.4, 0.08, 0.55 if title else 0.1, 0.3
    total = (columns * (size + gap) + gap, top + rows * (height * (size + gap) + caption))
    figure = Figure(figsize=total)
    for k, pair in enumerate(pairs):
        left = gap + (k % columns) * (size + gap)
        above = top + (k // columns) * (height * (size + gap) + caption)
        for j, image in enumerate(pair):
            bottom = total[1] - above - (j + 1) * size - j * gap
            axes = figure.add_axes((left / total[0], bottom / total[1], size / total[0], size / total[1]))
            axes.imshow(image, cmap="gray", vmin=window[0], vmax=window[1])
            axes.set_axis_off()
            if j:
                axes.text(
                    0.02, 0.97, "nearest in training", transform=axes.transAxes, color="#ffd166", fontsize=7, va="top"
                )
        if captions:
            figure.text(
                (left + size / 2) / total[0],
                (bottom - 0.16) / total[1],
                captions[k],
                ha="center",
                fontsize=8,
                color=FAINT,
            )
    if title:
        figure.text(gap / total[0], 1 - 0.28 / total[1], title, fontsize=12, va="center")
    return figure
