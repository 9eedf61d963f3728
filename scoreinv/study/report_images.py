"""Images of a sweep as text within a page.

An image is kept as 16-bit numbers (HU; standard deviations in tenths of HU): along each line the difference to the left neighbour, modulo
2¹⁶, first all low bytes, then all high ones, deflated (zlib) and written in base64. Images that are equal, such as the truth of all methods,
are kept once.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scoreinv.calibration import TISSUE_HU
from scoreinv.study.report_statistics import names, unit
from scoreinv.study.tables import METHOD, PROBLEM, groups

Row = Mapping[str, Any]
IMAGES_MIB = 16.0
"""A page's images are at most so much text."""
STEPS_HU = {"truth_hu": 1.0, "mean_hu": 1.0, "std_hu": 0.1}
"""What an image is rounded to [HU]."""


def images(rows: Sequence[Row], folder: Path, limit_mib: float = IMAGES_MIB) -> dict[str, Any]:
    """As many of a sweep's images as fit: of every problem the first image by all methods, then the second, and so on.

    Returns:
        `pool`, texts with their `shape` and `step`; `rows`, for each reconstruction the `problem` (its index in
        `report_statistics.problems`), `image`, `seed`, `label`, `psnr`, and where in the pool `truth_hu`, `mean_hu` and `std_hu` are;
        `available`, how many reconstructions there are.
    """
    called = names(rows)
    waiting = [
        (turn, index, row)
        for index, problem in enumerate(groups(rows, PROBLEM))
        for turn, own in enumerate(_by_image(problem))
        for row in own
    ]
    pool: list[dict[str, Any]] = []
    where: dict[str, int] = {}
    chosen, used, room = [], 0, limit_mib * 2**20
    for _, index, row in sorted(waiting, key=lambda w: w[:2]):
        if used > room:
            break
        entry = {k: row[k] for k in ("image", "seed", "psnr")} | {"problem": index, "label": called[row["key"]]}
        for name, packed in _stored(folder / row["images"]).items():
            checksum = hashlib.sha256(repr(packed).encode()).hexdigest()
            if checksum not in where:
                where[checksum] = len(pool)
                pool.append(packed)
                used += len(packed["text"])
            entry[name] = where[checksum]
        if used <= room and "mean_hu" in entry:
            chosen.append(entry)
    kept = {entry[name] for entry in chosen for name in STEPS_HU if name in entry}
    return {
        "pool": [image if k in kept else None for k, image in enumerate(pool)],
        "rows": sorted(chosen, key=lambda entry: entry["problem"]), "available": len(waiting),
    }  # fmt: skip


LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def add_coverage(problems: Sequence[dict[str, Any]], rows: Sequence[Row], folder: Path) -> None:
    """Give methods whose draws have images `coverage`: pairs of a claimed level and the share measured, the mean over patients.

    Args:
        problems: `report_statistics.problems(rows)`.
        rows, folder: of the sweep.
    """
    for problem, own in zip(problems, groups(rows, PROBLEM), strict=True):
        for method, line in zip(problem["methods"], groups(own, METHOD), strict=True):
            shares: dict[str, list[np.ndarray]] = {}
            for row in line:
                if row["status"] == "done" and row["images"] and (row["samples"] or 0) > 1:
                    found = _coverage(folder / row["images"], row["samples"])
                    if found is not None:
                        shares.setdefault(unit(row), []).append(found)
            if shares:
                mean = np.mean([np.mean(s, axis=0) for s in shares.values()], axis=0)
                method["coverage"] = [[level, float(share)] for level, share in zip(LEVELS, mean, strict=True)]


def _coverage(path: Path, n: int) -> np.ndarray | None:
    """For each of `LEVELS` what `metrics.coverage_of_normal` measures of n draws on the tissue, from their mean and deviation."""
    from scipy import stats

    if not path.is_file():
        return None
    with h5py.File(path) as file:
        if not {"mean_hu", "std_hu", "truth_hu"} <= set(file):
            return None
        mean, std, truth = (np.asarray(file[name], np.float64) for name in ("mean_hu", "std_hu", "truth_hu"))
    tissue = truth > TISSUE_HU
    if not tissue.any():
        return None
    error, width = np.abs(mean - truth)[tissue], np.sqrt(1 + 1 / n) * std[tissue]
    factors = stats.t.ppf((1 + np.array(LEVELS)) / 2, n - 1)
    return np.array([np.mean(error <= t * width) for t in factors])


def packed(image: np.ndarray, step: float) -> dict[str, Any]:
    """An image (H, W) as text; values beyond 16 bits become the outermost.

    Returns:
        `shape`, `step` and `text`, see the head of this module.
    """
    whole = np.clip(np.rint(np.nan_to_num(image) / step), -(2**15), 2**15 - 1).astype(np.int16).view(np.uint16)
    steps = np.diff(whole, axis=1, prepend=np.zeros((len(whole), 1), np.uint16))
    planes = (steps & 255).astype(np.uint8).tobytes() + (steps >> 8).astype(np.uint8).tobytes()
    return {"shape": list(image.shape), "step": step, "text": base64.b64encode(zlib.compress(planes, 9)).decode()}


def _by_image(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows with images, those of one true image and seed together."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["status"] == "done" and row["images"]:
            found.setdefault((row["seed"], row["image"]), []).append(row)
    return [found[key] for key in sorted(found, key=lambda key: int(key[0]))]


def _stored(path: Path) -> dict[str, dict[str, Any]]:
    """The packed images of a row; none where its file is missing."""
    if not path.is_file():
        return {}
    with h5py.File(path) as file:
        return {name: packed(np.asarray(file[name]), step) for name, step in STEPS_HU.items() if name in file}
