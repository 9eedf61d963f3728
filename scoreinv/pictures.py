"""Pictures that can go straight into a talk: one look, units on everything, nothing that is not needed.

Matplotlib is imported when a picture is drawn, with the Agg canvas, so that no display is needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoreinv import metrics
from scoreinv.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#1b1f24", "#6b7480"
SERIES = ("#0b4f8a", "#2b83ba", "#2a9d8f", "#8ab17d", "#e9a23b", "#d1495b")
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
SCALE_BARS_MM = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
DPI = 200
FORMATS = ("png", "pdf", "svg", "jpg", "jpeg")
"""Of figures."""


def reconstruction_picture(
    path: str | os.PathLike[str],
    *,
    mean_hu: Tensor,
    std_hu: Tensor | None = None,
    half_width_hu: Tensor | None = None,
    fbp_hu: Tensor | None = None,
    truth_hu: Tensor | None = None,
    support: Tensor | None = None,
    title: str = "",
    pixel_mm: float | None = None,
    window: tuple[float, float] = (-1000.0, 1000.0),
) -> None:
    """A picture with the reconstruction, its uncertainty, FBP and, where known, truth and error.

    Gray panels share one window. PSNR and SSIM beside their names are those of `scoreinv.metrics` on -1000 to 1000 HU,
    whatever is displayed. Uncertainty and error share one scale.

    Args:
        path: where to write it.
        mean_hu, std_hu, fbp_hu, truth_hu: (H, W) [HU].
        half_width_hu: (H, W) [HU], mean ± this is a calibrated interval; shown in place of std_hu.
        support: (H, W), share of each neighbourhood that the data determine, 0 to 1 (`scoreinv.trust.support_map`).
        title: a line above.
        pixel_mm: side of a pixel, for the scale bar [mm].
        window: ends of the gray scale [HU].

    Raises:
        ValueError: images differ in shape, or the window is empty.
    """
    images = {
        "reconstruction": mean_hu, "fbp": fbp_hu, "truth": truth_hu, "support": support,
        "uncertainty": std_hu, "half width": half_width_hu,
    }  # fmt: skip
    pictures = {name: _two_dimensional(name, image) for name, image in images.items() if image is not None}
    if len({p.shape for p in pictures.values()}) > 1:
        shapes = ", ".join(f"{k} {v.shape}" for k, v in pictures.items())
        raise ValueError(f"reconstruction_picture: images differ in shape: {shapes}")
    if not window[0] < window[1]:
        raise ValueError(f"reconstruction_picture: the window must be (low, high), got {window}")
    write_figure(path, lambda: _reconstruction_figure(pictures, title, pixel_mm, window))


DENOISING = ("Denoising PSNR", "dB at noise level σ (1 = 1000 HU); dotted: training slices", "σ")
RECONSTRUCTION = ("Reconstruction PSNR", "dB with noise r times the mean of the data; dotted: training slices", "r")
"""Heading, explanation and letter of the levels of a training plot."""


def training_plot(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], words: tuple[str, str, str] = DENOISING
) -> None:
    """A PNG of a training run: loss, and PSNR at each noise level, against hours; validation in full, training dotted.

    Args:
        path: where to write it.
        rows: of the training log: `hours`, `loss`, `psnr_<level>` and `train_psnr_<level>`, numbers or text.
        words: about the PSNR: heading, explanation, letter of a level.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("training_plot: the log has no rows yet; it gets one at every validation")
    write_figure(path, lambda: _training_figure(rows, words))


def write_png_gray(
    path: str | os.PathLike[str], image: Tensor, window: tuple[float, float] = (-1000.0, 1000.0)
) -> None:
    """An 8-bit gray PNG, one pixel a pixel: the window's ends are 0 and 255. `files.images.read_image` reads it back.

    Args:
        path: where to write it.
        image: (H, W) in the window's unit.
        window: ends of the gray scale.
    """
    from PIL import Image

    gray = metrics.window(torch.from_numpy(_two_dimensional("image", image)), *window)
    pixels = (255 * gray).round().to(torch.uint8).numpy()
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def picture_format(path: str | os.PathLike[str]) -> str:
    """The kind of picture that a name stands for, png where it has no suffix.

    Raises:
        ValueError: it is none of `FORMATS`.
    """
    kind = Path(path).suffix[1:].lower() or "png"
    if kind not in FORMATS:
        raise ValueError(f"{path}: pictures are written as {', '.join(FORMATS)}, not {kind}: give another suffix")
    return kind


def write_figure(path: str | os.PathLike[str], figure: Any) -> None:
    """Draw with the style of this module and no pyplot state, then write the picture whole or not at all, in the format of its name.

    Raises:
        ValueError: pictures are not written in this format.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kind = picture_format(path)
    settings: Any = {**matplotlib.rcParamsDefault, **_available(STYLE)}  # whatever the user's own matplotlibrc says
    with matplotlib.rc_context(settings):
        drawn = figure()
        FigureCanvasAgg(drawn)
        with replacing(Path(path)) as temporary:
            drawn.savefig(temporary, format=kind, dpi=DPI)


def _available(style: dict[str, Any]) -> dict[str, Any]:
    """The style with those fonts alone that are installed, so that matplotlib does not warn about the others."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return style | {
        "font.sans-serif": [name for name in style["font.sans-serif"] if name in installed] or ["DejaVu Sans"]
    }


def _two_dimensional(name: str, image: Tensor) -> np.ndarray:
    picture = np.asarray(image.detach().cpu().numpy(), dtype=np.float32)
    if picture.ndim != 2:
        raise ValueError(f"{name}: expected one image (H, W), got {picture.shape}")
    return picture


def _reconstruction_figure(
    pictures: dict[str, np.ndarray], title: str, pixel_mm: float | None, window: tuple[float, float]
) -> Figure:
    from matplotlib.figure import Figure

    panels = _panels(pictures, window)
    height, width = pictures["reconstruction"].shape
    panel_w = 2.9
    panel_h = panel_w * min(height / width, 1.6)
    gap, side, top, bottom = 0.18, 0.25, 0.78 if title else 0.45, 0.52
    total_w = 2 * side + len(panels) * panel_w + (len(panels) - 1) * gap
    total_h = top + panel_h + bottom
    figure = Figure(figsize=(total_w, total_h))
    for k, (heading, picture, colours, limits, caption) in enumerate(panels):
        left = side + k * (panel_w + gap)
        axes = figure.add_axes((left / total_w, bottom / total_h, panel_w / total_w, panel_h / total_h))
        shown = axes.imshow(
            picture,
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
            interpolation="nearest" if width < 200 else "antialiased",
        )
        axes.set_axis_off()
        figure.text(left / total_w, (bottom + panel_h + 0.09) / total_h, heading, fontsize=11, fontweight="bold")
        if caption:
            figure.text(
                (left + panel_w) / total_w,
                (bottom + panel_h + 0.09) / total_h,
                caption,
                fontsize=8.5,
                color=FAINT,
                ha="right",
            )
        if colours != "gray" or k == 0:
            bar = figure.add_axes((left / total_w, (bottom - 0.17) / total_h, panel_w / total_w, 0.07 / total_h))
            _colour_bar(figure, bar, shown, limits, "" if heading == "Support" else " HU")
        if k == 0 and pixel_mm is not None:
            _scale_bar(axes, width, height, pixel_mm)
    if title:
        figure.text(side / total_w, 1 - 0.27 / total_h, title, fontsize=13, va="center")
    return figure


Panel = tuple[str, np.ndarray, str, tuple[float, float], str]
"""Heading, image, colour map, its limits [HU], caption."""


def _panels(pictures: dict[str, np.ndarray], window: tuple[float, float]) -> list[Panel]:
    """Gray panels first, side by side, then uncertainty and error on one scale, so that they can be compared."""
    mean, truth = pictures["reconstruction"], pictures.get("truth")
    spread, meaning = pictures.get("uncertainty"), "1 standard deviation"
    if "half width" in pictures:
        spread, meaning = pictures["half width"], "± calibrated interval"
    panels: list[Panel] = []
    if "fbp" in pictures:
        panels.append(("FBP", pictures["fbp"], "gray", window, _score(pictures["fbp"], truth)))
    panels.append(("Reconstruction", mean, "gray", window, _score(mean, truth)))
    error = None if truth is None else mean - truth
    limit = max(_round_up(float(np.percentile(np.abs(p), 99.5))) for p in (spread, error, np.zeros(1)) if p is not None)
    if truth is not None:
        panels.append(("Truth", truth, "gray", window, ""))
    if spread is not None:
        panels.append(("Uncertainty", spread, "inferno", (0.0, limit), meaning))
    if error is not None:
        panels.append(("Error", error, "RdBu_r", (-limit, limit), f"RMSE {float(np.sqrt(np.mean(error**2))):.0f} HU"))
    if "support" in pictures:
        panels.append(("Support", pictures["support"], "viridis", (0.0, 1.0), "share known from the data"))
    return panels


def _score(image: np.ndarray, truth: np.ndarray | None) -> str:
    if truth is None:
        return ""
    x, ref = (metrics.window(torch.from_numpy(a)) for a in (image, truth))
    psnr = f"{float(metrics.psnr(x, ref, 1.0)):.1f} dB"
    return psnr if min(image.shape) < 11 else f"{psnr}   SSIM {float(metrics.ssim(x, ref, 1.0)):.3f}"


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... at or above a value."""
    if not value > 1:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9)))


def _colour_bar(figure: Figure, axes: Axes, shown: Any, limits: tuple[float, float], unit: str) -> None:
    bar = figure.colorbar(shown, cax=axes, orientation="horizontal", ticks=[limits[0], sum(limits) / 2, limits[1]])
    bar.outline.set_visible(False)
    axes.tick_params(length=0, pad=4, labelsize=8.5)
    labels = [f"{v:g}".replace("-", "\N{MINUS SIGN}") for v in (limits[0], sum(limits) / 2, limits[1])]
    axes.set_xticklabels([labels[0], labels[1], f"{labels[2]}{unit}"])
    first, _, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def _scale_bar(axes: Axes, width: int, height: int, pixel_mm: float) -> None:
    """A bar of a round length, about a fifth of the image, in the lower right corner."""
    fitting = [mm for mm in SCALE_BARS_MM if mm <= 0.28 * width * pixel_mm]
    if not fitting:
        return
    length = fitting[-1]
    right, line = 0.95 * width - 0.5, 0.94 * height - 0.5
    left = right - length / pixel_mm
    text = f"{length / 10:g} cm" if length >= 10 else f"{length:g} mm"
    axes.plot([left, right], [line, line], color="white", linewidth=2.2, solid_capstyle="butt")
    axes.text((left + right) / 2, line - 0.018 * height, text, color="white", fontsize=8.5, ha="center", va="bottom")


def _training_figure(rows: Sequence[Mapping[str, Any]], words: tuple[str, str, str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9))
    loss, quality = figure.subplots(1, 2, width_ratios=(1, 1.25))
    figure.subplots_adjust(left=0.075, right=0.905, top=0.86, bottom=0.15, wspace=0.22)
    hours = [float(row["hours"]) for row in rows]
    loss.plot(hours, [float(row["loss"]) for row in rows], color=SERIES[0], linewidth=1.8)
    loss.set_yscale("log")
    _plain_log_ticks(loss)
    _heading(loss, "Training loss", "weighted, running mean")
    sigmas = sorted({float(key.removeprefix("psnr_")) for row in rows for key in row if key.startswith("psnr_")})
    ends: list[tuple[float, str, str]] = []
    for k, sigma in enumerate(sigmas):
        colour = SERIES[k % len(SERIES)]
        for key, style in ((f"train_psnr_{sigma:g}", ":"), (f"psnr_{sigma:g}", "-")):
            points = [(h, float(r[key])) for h, r in zip(hours, rows, strict=True) if r.get(key) not in (None, "")]
            if points:
                quality.plot(
                    *zip(*points, strict=True), color=colour, linewidth=1.8 if style == "-" else 1.0, linestyle=style
                )
        ends.append((points[-1][1], f"{words[2]} = {sigma:g}", colour))
    _heading(quality, *words[:2])
    _label_ends(quality, hours[-1], ends)
    for axes in (loss, quality):
        axes.set_xlabel("hours of training")
        axes.grid(axis="y", color="#e7eaee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlim(0, 1.001 * max(hours[-1], 1e-3))
        axes.tick_params(length=0)
    return figure


def _heading(axes: Axes, bold: str, plain: str) -> None:
    axes.text(0, 1.12, bold, transform=axes.transAxes, fontsize=11, fontweight="bold", va="center")
    axes.text(0, 1.045, plain, transform=axes.transAxes, fontsize=8.5, color=FAINT, va="center")


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _label_ends(axes: Axes, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Names at the ends of the curves, moved apart where they would touch."""
    low, high = axes.get_ylim()
    least, previous = 0.06 * (high - low), -math.inf
    for y, text, colour in sorted(ends):
        previous = max(y, previous + least)
        axes.annotate(
            text,
            (x, previous),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
