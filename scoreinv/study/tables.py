"""The Markdown table of a sweep: a table for each problem, a line for each method, means over images and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

COLUMNS = {
    "psnr": ("PSNR [dB]", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "rmse_hu": ("RMSE [HU]", "{:.1f}"),
    "chi2": ("χ²", "{:.3g}"),
    "calibration": ("calibration", "{:.2f}"),
    "coverage_90": ("coverage of 90 %", "{:.0%}"),
    "evaluations": ("evaluations", "{:g}"),
    "seconds": ("s an image", "{:.2g}"),
}
FURTHER = {
    "psnr_range": ("PSNR, range of the truth [dB]", "{:.2f}", "psnr_full"),
    "ssim_range": ("SSIM, range of the truth", "{:.3f}", "psnr_full"),
    "psnr_full": ("PSNR, full range [dB]", "{:.2f}", "psnr_full"),
    "ssim_full": ("SSIM, full range", "{:.3f}", "psnr_full"),
    "lpips": ("LPIPS", "{:.3f}", "lpips"),
    "gradients": ("gradients", "{:g}", "gradients"),
}
"""Columns of the problems where the figure named last is there, and not 0."""

Row = Mapping[str, Any]


def further(present: Collection[str]) -> dict[str, tuple[str, str]]:
    """Those of `FURTHER` that a table has besides `COLUMNS`.

    Args:
        present: figures that some row has, and not 0.
    """
    return {k: (words, form) for k, (words, form, needed) in FURTHER.items() if needed in present}


PROBLEM = (
    "truth", "image.part", "image.phantom", "image.size", "image.width_mm", "image.shape", "operator", "noise", "simulate",
)  # fmt: skip
METHOD = ("method", "prior_sha256", "weights_sha256")
"""Columns and parts in which the rows of a problem, of a method agree."""


def table(rows: Sequence[Row], title: str = "") -> str:
    """The text; figures that no row of a line has are "-".

    Args:
        rows: as `study.read` gives them.
        title: above it.
    """
    lines = [f"# {title}", ""] if title else []
    rows, outdated = current(rows)
    lines += [outdated_words(outdated), ""] if outdated else []
    for problem in groups(rows, PROBLEM):
        columns = COLUMNS | further({k for row in problem for k in FURTHER if row.get(k)})
        n_images = len({row["image"] for row in problem})
        lines += [f"## {problem[-1]['problem']}", ""]
        lines += [f"Means over {n_images} image{'s' * (n_images != 1)}; a row is an image with a seed.", ""]
        lines += [f"| method | rows | {' | '.join(words for words, _ in columns.values())} |"]
        lines += ["| --- " * (len(columns) + 2) + "|"]
        lines += [_line(method, columns) for method in groups(problem, METHOD)]
        lines += [""]
    return "\n".join(lines)


def current(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Rows without those of earlier versions of an image (another checksum under the name of a patient and slice, in one problem), and how
    many these are."""
    latest: dict[tuple[int, str], Any] = {}
    of: list[tuple[tuple[int, str], Any]] = []
    place = {id(row): k for k, own in enumerate(groups(rows, PROBLEM)) for row in own}
    for row in rows:
        key, version = (place[id(row)], str(row["image"])), (row.get("image.sha256"), row.get("image.fine"))
        latest[key] = version
        of.append((key, version))
    kept = [row for row, (key, version) in zip(rows, of, strict=True) if latest[key] == version]
    return kept, len(rows) - len(kept)


def outdated_words(n: int) -> str:
    """That rows were left out."""
    return f"{n} row{'s' * (n != 1)} of images that have changed since {'are' if n != 1 else 'is'} left out."


def groups(rows: Sequence[Row], parts: Sequence[str]) -> list[list[Row]]:
    """Rows that agree in these columns and in all arguments of these parts, in the order in which they came."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        own = sorted((k, repr(v)) for k, v in row.items() if k in parts or k.partition(".")[0] in parts)
        found.setdefault(repr(own), []).append(row)
    return list(found.values())


def _line(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> str:
    done = [row for row in rows if row["status"] == "done"]
    prior = f" (prior {rows[-1]['prior']}, {rows[-1]['prior_sha256'][:8]})" if rows[-1]["prior"] else ""
    failed = f", {len(rows) - len(done)} failed" if len(done) < len(rows) else ""
    cells = [rows[-1]["label"] + prior, f"{len(done)}{failed}"]
    for key, (_, form) in columns.items():
        values = [row[key] for row in done if row[key] is not None]
        cells.append(form.format(statistics.fmean(values)) if values else "-")
    return f"| {' | '.join(cells)} |"
