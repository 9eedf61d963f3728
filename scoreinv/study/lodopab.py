"""LoDoPaB-CT in a sweep: its own observations and its own figures (Leuschner, Schmidt, Otero Baguer and Maass, Scientific Data 8, 109
(2021), doi:10.1038/s41597-021-00893-z; scoreinv.files.lodopab has geometry and units).

Nothing is simulated: y is what the authors stored, made with 4096 photons from images scaled up to 1000 x 1000. n of N views are those of
number ⌊k N / n⌋, k = 0 ... n − 1; each keeps the angle that it was made at, so their steps may differ by one of the stored steps.
Views run here in the order of growing angles, which is the reverse of the stored one.

The figures of LoDoPaB-CT's tables are those without a window, on μ / μ_max: with the range max − min of each truth (`psnr_range`,
`ssim_range`), and with the range 1 of all images (`psnr_full`, `ssim_full`).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from scoreinv.arguments import ArgumentError
from scoreinv.files.lodopab import (
    FIELD_MM,
    MU_MAX_PER_MM,
    MU_WATER_PER_MM,
    PHOTONS,
    SLICES_A_FILE,
    lodopab_images,
    lodopab_observations,
    lodopab_patients,
    read_lodopab,
    view_angle,
)
from scoreinv.linop import LinearOperator
from scoreinv.problem import Problem
from scoreinv.study.truth import Record, checksum, chosen_patients, located, slice_numbers
from scoreinv.units import hu_from_mu

FULL_RANGE_HU = 1000 * MU_MAX_PER_MM / MU_WATER_PER_MM
"""The range 1 of μ / μ_max [HU]."""


@dataclass(frozen=True)
class LoDoPaB:
    """Slices of LoDoPaB-CT, whose data are stored with them.

    Attributes:
        lodopab: folder of the files, as data_scripts/lodopab.py leaves it; may start with $SCOREINV_DATA.
        part: of the data set.
        patients: their names ("lodopab-31"), or how many of them in the order of the files; None for all.
        slices: "middle", "all", or their numbers within each patient.
    """

    lodopab: str
    part: Literal["train", "validation", "test"] = "test"
    patients: int | tuple[str, ...] | None = None
    slices: Literal["middle", "all"] | tuple[int, ...] = "middle"

    @property
    def label(self) -> str:
        """As tables call it."""
        return f"LoDoPaB-CT {self.part}"

    def records(self) -> list[dict[str, Any]]:
        """One for each image, patient by patient.

        Raises:
            ArgumentError: a file is missing, or there is no such patient or slice.
            ValueError, OSError: a file cannot be read.
        """
        folder = located(self.lodopab)
        ids = folder / f"patient_ids_rand_{self.part}.csv"
        if not ids.is_file():
            raise ArgumentError(self._missing(ids, "N"), "lodopab")
        of_slice = lodopab_patients(ids)
        order = list(dict.fromkeys(of_slice))
        records = []
        for patient in chosen_patients(ids.name, self.patients, order):
            own = [i for i, name in enumerate(of_slice) if name == patient]
            for k in slice_numbers(ids.name, self.slices, patient, len(own)):
                for path in _files(folder, self.part, own[k]):
                    if not path.is_file():
                        raise ArgumentError(self._missing(path, str(order.index(patient) + 1)), "lodopab")
                records.append(_record(self, folder, patient, k, own[k]))
        return records

    def _missing(self, path: Path, n: str) -> str:
        return (
            f"{path}: no such file: `python data_scripts/lodopab.py --out FOLDER --part {self.part} --patients {n}` gets LoDoPaB-CT into "
            "FOLDER/lodopab"
        )


def _record(truth: LoDoPaB, folder: Path, patient: str, k: int, i: int) -> dict[str, Any]:
    observation, image = _stored(folder, truth.part, i)
    return {
        "source": truth.lodopab, "part": truth.part, "patient": patient, "slice": k, "index": i, "shape": list(image.shape),
        "pixel_mm": FIELD_MM / image.shape[0], "mu_water_per_mm": MU_WATER_PER_MM, "full_range_hu": FULL_RANGE_HU,
        "views": observation.shape[0], "detectors": observation.shape[1],
        "sha256": checksum(image), "observation": checksum(observation),
    }  # fmt: skip


def _files(folder: Path, part: str, i: int) -> tuple[Path, Path]:
    """Of the observation and of the image of slice i of a part."""
    number = i // SLICES_A_FILE
    return folder / f"observation_{part}_{number:03d}.hdf5", folder / f"ground_truth_{part}_{number:03d}.hdf5"


def _stored(folder: Path, part: str, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Observation (views, detectors) and image (H, W) of slice i of a part."""
    observation, truth = _files(folder, part, i)
    index = i % SLICES_A_FILE
    return lodopab_observations(observation, index=index), lodopab_images(truth, index=index)


def is_stored(record: Record) -> bool:
    """Whether the data of an image are stored with it."""
    return "observation" in record


def geometry(record: Record, name: str, arguments: Mapping[str, Any], n_views: int) -> dict[str, Any]:
    """The arguments of the operator that made n of the stored views.

    Args:
        record: of an image.
        name: of the operator that is asked for.
        arguments: that are given for it.
        n_views: how many views.

    Raises:
        ArgumentError: another operator, an argument that the data do not leave open, or more views than there are.
    """
    if name != "parallel_beam_ct":
        raise ArgumentError(f"LoDoPaB-CT's data are of the operator 'parallel_beam_ct', got {name!r}", "name")
    for key in arguments:
        if key not in ("n_views", "weights"):
            raise ArgumentError(f"LoDoPaB-CT's data leave n_views and weights of the operator open, not {key}", key)
    stored = record["views"]
    if not 1 <= n_views <= stored:
        raise ArgumentError(f"LoDoPaB-CT's data have {stored} views, n_views = {n_views} were asked for", "n_views")
    views = [k * stored // n_views for k in reversed(range(n_views))]
    chosen = {"n_views": n_views, "n_detectors": record["detectors"], "detector_mm": FIELD_MM * math.sqrt(2) / record["detectors"]}  # fmt: skip
    if stored % n_views == 0:
        return {**arguments, **chosen, "start": view_angle(views[0], stored)}
    return {**arguments, **chosen, "angles": tuple(view_angle(k, stored) for k in views)}


def check_noise(photons: float | None) -> None:
    """See that the noise that a sweep states is that of the stored data.

    Raises:
        ArgumentError: it is not.
    """
    if photons != PHOTONS:
        raise ArgumentError(f"LoDoPaB-CT's data are stored, with the noise of {PHOTONS} photons: photons = {PHOTONS}", "photons")  # fmt: skip


def measured(record: Record, A: LinearOperator) -> tuple[Problem, Tensor]:
    """The stored data of the views of A, without the truth, and the truth (H, W) [HU].

    Raises:
        ValueError, OSError: a file cannot be read or has changed, or A is not the operator of the data.
    """
    folder, part, i, n = located(record["source"]), record["part"], record["index"], record["views"]
    observation, image = _stored(folder, part, i)
    for path, array, key in zip(_files(folder, part, i), (observation, image), ("observation", "sha256"), strict=True):
        if checksum(array) != record[key]:
            raise ValueError(f"{path}: slice {i % SLICES_A_FILE} is not what it was")
    angles = getattr(A, "angles", ())
    views = [round(-angle * n / math.pi - 0.5) % n for angle in angles]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the memory of an operator that is not used
        found = read_lodopab(*_files(folder, part, i), index=i % SLICES_A_FILE, views=views).problem
        operator: Any = found.A
        same = dataclasses.replace(operator, angles=angles, weights=getattr(A, "weights", None)) == A
    if not same or any(abs(a - b) > 1e-9 for a, b in zip(angles, operator.angles, strict=True)):
        raise ValueError(f"{folder}: LoDoPaB-CT's data were not made by {type(A).__name__} with these arguments")
    assert found.truth is not None
    return dataclasses.replace(found, A=A, truth=None), hu_from_mu(found.truth, MU_WATER_PER_MM)
