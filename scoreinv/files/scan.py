"""Scan files: one HDF5 file that holds an inverse problem (docs/file-formats.md has the layout).

An operator is stored as its registered name and its constructor arguments. Nothing in a file is imported or executed.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from scoreinv.files import hdf5
from scoreinv.files.atomic import replacing
from scoreinv.files.describe import describe, restore
from scoreinv.files.versions import package_version
from scoreinv.linop import LinearOperator
from scoreinv.problem import Counts, Problem, from_counts
from scoreinv.units import MU_WATER_PER_MM

FORMAT = "scoreinv-scan-1"


@dataclass(frozen=True, eq=False)
class Scan:
    """A problem with what a scanner knows beside it.

    Attributes:
        problem: operator, data, noise, truth where known [1/mm].
        mu_water_per_mm: attenuation of water that Hounsfield units refer to [1/mm].
        info: provenance, such as `seed` and `created_by`; JSON values.
        photons: photons a measurement without an object, where known; `problem.counts` has those that arrived.
        noise_known: False where the noise has yet to be estimated from the data; `problem.noise_std` is then 0.
        z_mm: height of each slice in the scanner's own coordinate [mm], where known.
    """

    problem: Problem
    mu_water_per_mm: float = MU_WATER_PER_MM
    info: dict[str, Any] = field(default_factory=dict)
    photons: float | None = None
    noise_known: bool = True
    z_mm: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        n = math.prod(self.problem.batch_shape)
        if self.z_mm is not None and len(self.z_mm) != n:
            raise ValueError(f"Scan: z_mm has {len(self.z_mm)} heights, the problem has {n} slices")
        if not self.mu_water_per_mm > 0:
            raise ValueError(f"Scan: mu_water_per_mm must be positive, got {self.mu_water_per_mm}")
        if self.photons is not None and not self.photons > 0:
            raise ValueError(f"Scan: photons must be positive, got {self.photons}")
        counts = self.problem.counts
        if counts is not None and self.photons not in (None, counts.photons):
            raise ValueError(
                f"Scan: photons is {self.photons}, the problem's counts have {counts.photons}: leave it out"
            )


def write_scan(path: str | os.PathLike[str], scan: Scan) -> None:
    """Write a scan file, whole or not at all.

    Raises:
        OSError: the folder does not exist or cannot be written.
        ValueError: the operator has no registered name, or the data are not finite.
        TypeError: an argument of the operator is of a kind that no file can hold.
    """
    problem = scan.problem
    y = _numpy(problem.y)
    _check_finite(str(path), "y", y)
    description, arrays = describe(problem.A)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = package_version()
        file.attrs["operator"] = json.dumps(description, allow_nan=False)
        file.attrs["mu_water_per_mm"] = scan.mu_water_per_mm
        file.attrs["info"] = json.dumps(scan.info, allow_nan=False)
        photons = scan.photons if problem.counts is None else problem.counts.photons
        if photons is not None:
            file.attrs["photons"] = photons
        if scan.z_mm is not None:
            file.attrs["z_mm"] = np.array(scan.z_mm, dtype=np.float64)
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        if problem.counts is None:
            file.create_dataset("y", data=y.astype(np.float32), compression="gzip")
        else:
            file.create_dataset("counts", data=_numpy(problem.counts.arrived), compression="gzip")
        if scan.noise_known and problem.counts is None:
            std = problem.noise_std
            file.create_dataset("noise_std", data=_numpy(std) if isinstance(std, Tensor) else float(std))
        if problem.truth is not None:
            file.create_dataset("truth", data=_numpy(problem.truth).astype(np.float32), compression="gzip")


def read_scan(path: str | os.PathLike[str]) -> Scan:
    """Read a scan file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another format, or its parts do not fit together; says which and how to mend
            it.
    """
    with hdf5.reading(path) as file:
        return scan_in(file)


def scan_in(file: h5py.File) -> Scan:
    """The scan in an open file.

    Raises:
        ValueError: see `read_scan`.
    """
    hdf5.check_format(file, FORMAT)
    operator = read_operator(file)
    photons = hdf5.number(file, "photons")
    y, std, noise_known, counts = _data(file, photons)
    _check_shape(file.filename, y, operator)
    truth = hdf5.numbers(file, "truth")
    if truth is not None:
        _check_truth(file.filename, truth, y, operator)
    if std.ndim > 0:
        _check_broadcast(file.filename, std, y)
    return Scan(
        Problem(operator, _tensor(y), _noise(std), None if truth is None else _tensor(truth), counts),
        hdf5.number(file, "mu_water_per_mm") or MU_WATER_PER_MM,
        hdf5.json_object(file, "info") or {},
        photons,
        noise_known,
        _heights(file, y, operator),
    )


def read_operator(file: h5py.File) -> LinearOperator:
    """The operator that the attribute `operator` describes.

    Raises:
        ValueError: it is missing or does not describe a registered operator.
    """
    description = hdf5.json_object(file, "operator")
    if description is None:
        raise ValueError(
            f"{file.filename}: has no attribute operator; "
            f'expected JSON {{"name": "parallel_beam_ct", "arguments": {{...}}}}'
        )
    return restore(file, description)


def _data(file: h5py.File, photons: float | None) -> tuple[np.ndarray, np.ndarray, bool, Counts | None]:
    """Line integrals, their standard deviation and whether it is known, from `y` or from `counts`, and these.

    Where the file states the noise of counts itself, it is not that of photons alone, and they are not passed on.
    """
    path = file.filename
    y, counts, std = (hdf5.numbers(file, name) for name in ("y", "counts", "noise_std"))
    if y is not None and counts is not None:
        raise ValueError(f"{path}: has both y and counts; keep one of them")
    if std is not None:
        _check_finite(path, "noise_std", std)
        if (std < 0).any():
            raise ValueError(f"{path}: noise_std must not be negative, its minimum is {std.min():g}")
    if counts is not None:
        y, first_order, arrived = _from_counts(path, counts, photons)
        return (y, first_order, True, arrived) if std is None else (y, std, True, None)
    if y is None:
        raise ValueError(f"{path}: has neither a dataset y (line integrals) nor a dataset counts (photons)")
    _check_finite(path, "y", y)
    if std is None and photons is not None:
        with np.errstate(over="ignore"):  # an infinite one is reported in the next line
            std = np.sqrt(np.exp(y.astype(np.float64)) / photons)
        _check_finite(path, "exp(y) / photons", std)
    return y, np.zeros(()) if std is None else std, std is not None, None


def _from_counts(path: str, counts: np.ndarray, photons: float | None) -> tuple[np.ndarray, np.ndarray, Counts]:
    if photons is None:
        raise ValueError(f"{path}: counts need the attribute photons, the number that arrives without an object")
    _check_finite(path, "counts", counts)
    negative = counts < 0
    if negative.any():
        raise ValueError(
            f"{path}: {negative.sum()} photon counts are negative, the first {_first(negative)}; "
            f"was a dark field subtracted twice?"
        )
    y, std = from_counts(torch.from_numpy(counts.astype(np.float64)), photons)
    return y.numpy(), std.numpy(), Counts(_tensor(counts), photons)


def _check_finite(path: str, name: str, values: np.ndarray) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{path}: {name} holds {bad.sum()} values that are NaN or infinite, the first {_first(bad)}; "
            f"leave them out or mend them first"
        )


def _first(where: np.ndarray) -> str:
    return f"at index {tuple(int(i) for i in np.argwhere(where)[0])}"


def _check_shape(path: str, y: np.ndarray, operator: LinearOperator) -> None:
    """Compare y with what the operator gives, dimension by dimension from the last."""
    expected, got = operator.out_shape, y.shape
    name = type(operator).__name__
    if 0 in got:
        raise ValueError(f"{path}: y is empty, its shape is {got}; expected (*slices, {_join(expected)})")
    if len(got) < len(expected):
        raise ValueError(f"{path}: y has {len(got)} dimensions {got}, {name} gives {len(expected)}: {expected}")
    words = (
        ("views", "detectors")
        if len(expected) == 2 and _sees_angles(operator)
        else tuple(f"entries in dimension {k}" for k in range(len(expected)))
    )
    for word, n, m in zip(words, expected, got[len(got) - len(expected) :], strict=True):
        if n != m:
            why = {"views": f"{n} angles", "detectors": f"n_detectors = {n}"}.get(word, str(n))
            raise ValueError(
                f"{path}: y has {m} {word}, the operator {name} has {why}; "
                f"y {got} should be (*slices, {_join(expected)})"
            )


def _sees_angles(operator: Any) -> bool:
    return any(hasattr(part, "angles") for part in (operator, getattr(operator, "inner", None)))


def _join(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _check_truth(path: str, truth: np.ndarray, y: np.ndarray, operator: LinearOperator) -> None:
    _check_finite(path, "truth", truth)
    expected = y.shape[: y.ndim - len(operator.out_shape)] + operator.in_shape
    if truth.shape != expected:
        raise ValueError(f"{path}: truth has the shape {truth.shape}, the operator and y ask for {expected}")


def _heights(file: h5py.File, y: np.ndarray, operator: LinearOperator) -> tuple[float, ...] | None:
    found, n = hdf5.heights(file.attrs, file.filename), math.prod(y.shape[: y.ndim - len(operator.out_shape)])
    if found is not None and len(found) != n:
        raise ValueError(f"{file.filename}: the attribute z_mm has {len(found)} heights, y has {n} slices")
    return found


def _check_broadcast(path: str, std: np.ndarray, y: np.ndarray) -> None:
    try:
        fits = np.broadcast_shapes(std.shape, y.shape) == y.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{path}: noise_std {std.shape} does not broadcast to y {y.shape}; give one number or one a measurement"
        )


def _noise(std: np.ndarray) -> float | Tensor:
    return float(std) if std.ndim == 0 else _tensor(std)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())
