"""LoDoPaB-CT: simulated low-dose parallel-beam scans of LIDC-IDRI patients (Leuschner, Schmidt, Otero Baguer and
Maass, Scientific Data 8, 109 (2021), doi:10.1038/s41597-021-00893-z).

Files: observation_PART_NNN.hdf5 and ground_truth_PART_NNN.hdf5 with one dataset `data`, (128, 1000, 513) and
(128, 362, 362), fewer in the last one. Ground truths are μ / μ_max with μ_max = 81.35858 per m, that of 3071 HU at
μ_water = 20 and μ_air = 0.02 per m; observations are -ln(N / 4096) / μ_max [m], N Poisson, a count of zero taken for 0.1.

Geometry (the authors' create_dataset.py, with ODL's defaults): 26 cm x 26 cm; θ_k = (k + 1/2) π / 1000; 513 cells over the
diagonal, 26 √2 cm; the ray (θ, u) is ξ cos θ + η sin θ = u with ξ along the first axis of the stored array and η along
the second. The stored array is the transposed DICOM slice, so ξ runs from the patient's right to the left and η from
anterior to posterior. Here images lie as radiologists see them, which is transposed back; with our y = -η the same
ray is ours at the angle -θ, and cells keep their order (scoreinv.operators.ct has the conventions).

The data were simulated from images scaled up to 1000 x 1000: the operator here fits them only to the accuracy of
362 x 362 pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

from scoreinv import plugins
from scoreinv.files import hdf5
from scoreinv.files.scan import Scan
from scoreinv.problem import Problem

MU_WATER_PER_MM, MU_AIR_PER_MM = 0.020, 0.00002
MU_MAX_PER_MM = MU_WATER_PER_MM + 3.071 * (MU_WATER_PER_MM - MU_AIR_PER_MM)
PHOTONS = 4096
FIELD_MM = 260.0
MM_PER_M = 1000.0
SLICES_A_FILE = 128
"""Fewer in the last file of a part."""


def read_lodopab(
    observation: str | os.PathLike[str],
    ground_truth: str | os.PathLike[str] | None = None,
    *,
    index: int | Sequence[int] | None = None,
    every: int = 1,
    views: Sequence[int] | None = None,
) -> Scan:
    """Scans of a file of observations, with the images they come from.

    Args:
        observation: observation_PART_NNN.hdf5.
        ground_truth: ground_truth_PART_NNN.hdf5 of the same part and number, which becomes the truth.
        index: one slice of the file, or several, which become a batch; all 128 by default (260 MB).
        every: keep every so many of the views.
        views: keep these, in this order, instead.

    Returns:
        A scan with ParallelBeamCT; line integrals without unit, truth in 1/mm, 4096 photons. The noise is the standard
        deviation of post-log Poisson data to first order, √(exp(y) / 4096).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file has another layout, the two do not belong together, or there is no such slice or view.

    Warns:
        MemoryWarning: the operator's matrix would be too large (all 1000 views): keep fewer views with `every` or `views`.
    """
    path = Path(observation)
    if ground_truth is not None and Path(ground_truth).name != path.name.replace("observation", "ground_truth"):
        raise ValueError(f"{ground_truth}: is not the ground truth of {path.name}: part and number must agree")
    stored = lodopab_observations(path, index=index)
    n_views, n_detectors = stored.shape[-2:]
    if not 1 <= every <= n_views:
        raise ValueError(f"{path}: every must be between 1 and the {n_views} views, got {every}")
    kept = list(range(0, n_views, every) if views is None else views)
    if not kept or not all(0 <= k < n_views for k in kept):
        raise ValueError(f"{path}: expected some of the views 0 to {n_views - 1}, got {kept}")
    y = torch.from_numpy(stored[..., kept, :] * np.float32(MU_MAX_PER_MM * MM_PER_M))
    truth = None if ground_truth is None else torch.from_numpy(lodopab_images(ground_truth, index=index))
    if truth is not None and truth.shape[:-2] != y.shape[:-2]:
        raise ValueError(f"{ground_truth}: holds {len(truth)} images, {path.name} {len(y)} observations")
    shape = (362, 362) if truth is None else tuple(truth.shape[-2:])
    angles = [view_angle(k, n_views) for k in kept]
    operator = plugins.get("operators", "parallel_beam_ct")(
        shape, angles, n_detectors, FIELD_MM / shape[0], FIELD_MM * math.sqrt(2) / n_detectors
    )
    info = {"created_by": "read_lodopab", "source": f"{path.name} of doi:10.5281/zenodo.3384092"}
    std = (y.exp() / PHOTONS).sqrt()
    return Scan(Problem(operator, y, std, truth), MU_WATER_PER_MM, info, PHOTONS)


def lodopab_images(ground_truth: str | os.PathLike[str], *, index: int | Sequence[int] | None = None) -> np.ndarray:
    """Attenuation (slices, 362, 362) float32 [1/mm], one image (362, 362) for one index; as radiologists see it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another layout, or there is no such slice.
    """
    stored = _read(Path(ground_truth), index, "(slices, W, H)")
    return np.ascontiguousarray(np.swapaxes(stored, -1, -2) * np.float32(MU_MAX_PER_MM))


def lodopab_observations(
    observation: str | os.PathLike[str], *, index: int | Sequence[int] | None = None
) -> np.ndarray:
    """What is stored, (slices, views, detectors) float32 [m], (views, detectors) for one index.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another layout, or there is no such slice.
    """
    return _read(Path(observation), index, "(slices, views, detectors)")


def view_angle(k: int, n_views: int) -> float:
    """θ of view k of n in the conventions of `scoreinv.operators.ct` [rad]; see the module's head."""
    return -(k + 0.5) * math.pi / n_views


def lodopab_patients(path: str | os.PathLike[str]) -> list[str]:
    """The patient of every slice of a part, such as "lodopab-31", from patient_ids_rand_PART.csv.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no whole number.
    """
    lines = hdf5.existing_file(path).read_text(encoding="utf-8").split()
    if not lines or not all(line.isdecimal() for line in lines):
        raise ValueError(f"{path}: expected one whole number a line, the patient of each slice")
    return [f"lodopab-{line}" for line in lines]


def _read(path: Path, index: int | Sequence[int] | None, layout: str) -> np.ndarray:
    with hdf5.reading(path) as file:
        data = _dataset(file, layout)
        n = len(data)
        if index is None:
            return np.asarray(data[()], dtype=np.float32)
        bad = [i for i in np.atleast_1d(index).tolist() if not 0 <= i < n]
        if bad or np.size(index) == 0:
            raise ValueError(f"{path}: holds slices 0 to {n - 1}, there is no slice {bad[0] if bad else 'to read'}")
        # h5py wants indices in ascending order; one read a slice keeps theirs.
        taken = np.stack([data[i] for i in np.atleast_1d(index).tolist()]).astype(np.float32)
    return np.asarray(taken[0] if isinstance(index, int) else taken)


def _dataset(file: h5py.File, layout: str) -> h5py.Dataset:
    data = hdf5.dataset(file, "data")
    if data is None or data.ndim != 3 or 0 in data.shape or data.dtype.kind != "f":
        what = "is missing" if data is None else f"is {data.dtype} {data.shape}"
        raise ValueError(f"{file.filename}: expected LoDoPaB's dataset data {layout} of floats, it {what}")
    return data
