"""Raw projections in the DXchange layout of synchrotrons (De Carlo et al. 2014, doi:10.1107/S160057751401604X).

The correction and the noise are those of `transmission`. The files seldom say where the rotation axis is, so it can be
found from the data.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from scoreinv import plugins
from scoreinv.files import hdf5
from scoreinv.files.axis import find_axis
from scoreinv.files.scan import Scan, read_scan
from scoreinv.files.transmission import line_integrals
from scoreinv.problem import Problem
from scoreinv.units import MU_WATER_PER_MM

PIXEL_SIZE = "measurement/instrument/detector/pixel_size_x"
LENGTHS_MM = {
    "m": 1e3,
    "mm": 1.0,
    "cm": 10.0,
    "um": 1e-3,
    "µm": 1e-3,
    "μm": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "nm": 1e-6,
}


def read_any_scan(path: str | os.PathLike[str], **dxchange: Any) -> Scan:
    """Read a scan of either kind, told apart by what is inside.

    Args:
        path: a scan file of scoreinv or a DXchange file.
        **dxchange: keyword arguments of `read_dxchange`; those that are not None are refused for a scan file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of neither kind or damaged.
    """
    with hdf5.reading(path) as file:
        is_dxchange = hdf5.text(file, "format") is None and "exchange" in file
    if is_dxchange:
        return read_dxchange(path, **dxchange)
    given = [name for name, value in dxchange.items() if value is not None]
    if given:
        raise ValueError(f"{path}: is no DXchange file; {', '.join(given)} can only be given for one")
    return read_scan(path)


def read_dxchange(
    path: str | os.PathLike[str],
    *,
    row: int | Sequence[int] | None = None,
    views: slice | Sequence[int] | None = None,
    binning: int | None = None,
    detector_mm: float | None = None,
    pixel_mm: float | None = None,
    image_size: int | None = None,
    centre: float | None = None,
    mu_water_per_mm: float | None = None,
) -> Scan:
    """Read raw parallel-beam projections, correct them and take the logarithm.

    The image may be mirrored: that depends on the sense of rotation, which the format does not say.

    Args:
        path: the file.
        row: detector row, or several, which become a batch; the middle one by default.
        views: which views to keep; the rotation axis is found from all of them.
        binning: neighbouring bins to add up before the logarithm (default 1).
        detector_mm: width of a detector bin before binning [mm]; by default what the file says.
        pixel_mm: side of an image pixel [mm]; by default the width of a bin after binning.
        image_size: pixels along each side of the image; by default the disc about the axis that every view sees whole.
        centre: detector column of the rotation axis before binning, counted from 0; found from the data by default.
        mu_water_per_mm: attenuation of water at the energy of the beam [1/mm] (default 0.0193, at 70 keV).

    Returns:
        A scan with ParallelBeamCT. With two white fields or more the noise is estimated, otherwise it is unknown.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something is missing in the file or does not fit; says what to pass.
    """
    path = Path(path)
    binning = 1 if binning is None else binning
    with hdf5.reading(path) as file:
        data = _projections(file)
        rows = _rows(path, row, data.shape[1])
        theta = _angles(file, data.shape[0])
        raw, white, dark = (
            _bin(_take(file, name, rows), binning, path) for name in ("data", "data_white", "data_dark")
        )
        detector_mm = _detector_mm(file) if detector_mm is None else detector_mm
        sample = _sample_name(file)
    for name, length in (("detector_mm", detector_mm), ("pixel_mm", 1.0 if pixel_mm is None else pixel_mm)):
        if not 0 < length < math.inf:
            raise ValueError(f"{path}: {name} must be positive, got {length}")
    y, std = line_integrals(str(path), raw, white, dark)
    column = (
        (centre - (binning - 1) / 2) / binning if centre is not None else find_axis(y.mean(axis=1), theta, str(path))
    )
    n, width = y.shape[-1], binning * detector_mm
    if not 0 <= column <= n - 1:
        raise ValueError(
            f"{path}: the rotation axis at column {centre} is off the detector, which has {n * binning} columns"
        )
    keep = np.arange(len(theta))[views if isinstance(views, slice) else slice(None) if views is None else list(views)]
    if len(keep) == 0:
        raise ValueError(f"{path}: no view is left of the {len(theta)} in the file; check views")
    pixel_mm = width if pixel_mm is None else pixel_mm
    covered = 2 * (min(column, n - 1 - column) + 0.5) * width
    side = max(1, math.floor(covered / pixel_mm + 1e-6)) if image_size is None else image_size
    operator = plugins.get("operators", "parallel_beam_ct")(
        (side, side), tuple(theta[keep].tolist()), n, pixel_mm, width, detector_offset_mm=((n - 1) / 2 - column) * width
    )
    info = {
        "created_by": "read_dxchange",
        "source": path.name,
        "sample": sample,
        "rows": rows.tolist(),
        "binning": binning,
        "axis_column": float(column * binning + (binning - 1) / 2),
        "axis": "found from the data" if centre is None else "given",
        "noise": "unknown" if std is None else "estimated from the white and dark fields",
    }
    one = isinstance(row, int) or row is None
    noise = 0.0 if std is None else _tensor(std[keep], one)
    return Scan(
        Problem(operator, _tensor(y[keep], one), noise), mu_water_per_mm or MU_WATER_PER_MM, info, None, std is not None
    )


def n_rows(path: str | os.PathLike[str]) -> int:
    """How many detector rows a DXchange file has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no projections.
    """
    with hdf5.reading(path) as file:
        return int(_projections(file).shape[1])


def about(path: str | os.PathLike[str]) -> str:
    """What a DXchange file holds, in one line; the projections are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no projections or angles.
    """
    with hdf5.reading(path) as file:
        views, rows, bins = _projections(file).shape
        theta = np.degrees(_angles(file, views))
        fields = [name for name in ("data_white", "data_dark") if f"exchange/{name}" in file]
        width = (
            f"{_detector_mm(file):g} mm wide"
            if PIXEL_SIZE in file
            else "of unknown width, to be given as --detector-mm"
        )
    return (
        f"{path}: DXchange, {views} views from {theta.min():.4g} to {theta.max():.4g} degrees, {rows} detector rows of {bins} bins {width}, "
        f"with {' and '.join(fields) or 'neither white nor dark fields'}"
    )


def _projections(file: h5py.File) -> h5py.Dataset:
    data = hdf5.dataset(file, "exchange/data")
    if data is None or data.ndim != 3 or 0 in data.shape:
        what = "is missing" if data is None else f"has the shape {data.shape}"
        raise ValueError(f"{file.filename}: expected exchange/data (views, rows, bins), it {what}")
    axes = data.attrs.get("axes", "theta:y:x")
    axes = axes.decode() if isinstance(axes, bytes) else str(axes)
    if not axes.startswith("theta"):
        raise ValueError(
            f"{file.filename}: exchange/data has the axes {axes!r}, expected 'theta:y:x' (views, rows, bins)"
        )
    return data


def _take(file: h5py.File, name: str, rows: np.ndarray) -> np.ndarray:
    """Some rows of one of the stacks, (frames, rows, bins) float64."""
    stack = hdf5.dataset(file, f"exchange/{name}")
    shape = file["exchange/data"].shape[1:]
    if stack is None:
        if name == "data_dark":
            return np.zeros((0, len(rows), shape[1]))
        raise ValueError(
            f"{file.filename}: has no exchange/{name}; without a white field, store line integrals in a "
            f"scan file instead"
        )
    if stack.ndim != 3 or stack.shape[1:] != shape:
        raise ValueError(
            f"{file.filename}: exchange/{name} has the shape {stack.shape}, expected (frames, {shape[0]}, {shape[1]})"
        )
    return np.stack([stack[:, r] for r in rows], axis=1).astype(np.float64)


def _bin(stack: np.ndarray, binning: int, path: Path) -> np.ndarray:
    n = stack.shape[-1] // binning if binning >= 1 else 0
    if n == 0:
        raise ValueError(
            f"{path}: binning must be between 1 and the {stack.shape[-1]} bins of the detector, got {binning}"
        )
    return np.asarray(stack[..., : n * binning].reshape(*stack.shape[:-1], n, binning).sum(axis=-1))


def _rows(path: Path, row: int | Sequence[int] | None, n: int) -> np.ndarray:
    rows = np.atleast_1d(np.asarray(n // 2 if row is None else row, dtype=int))
    bad = [int(r) for r in rows if not -n <= r < n]
    if bad or len(rows) == 0:
        raise ValueError(
            f"{path}: has {n} detector rows, there is no row {bad[0] if bad else 'to read'}; rows count from 0"
        )
    return rows % n


def _angles(file: h5py.File, n_views: int) -> np.ndarray:
    """exchange/theta in radians, (views,) float64."""
    theta = hdf5.numbers(file, "exchange/theta")
    if theta is None:
        raise ValueError(
            f"{file.filename}: has no exchange/theta; add the angle of each of the {n_views} views in degrees"
        )
    if theta.shape != (n_views,):
        raise ValueError(
            f"{file.filename}: exchange/theta has the shape {theta.shape}, exchange/data has {n_views} views"
        )
    if not np.isfinite(theta).all():
        raise ValueError(f"{file.filename}: exchange/theta holds NaN or infinite angles")
    units = _units(file["exchange/theta"]) or "degrees"
    if units.startswith("deg"):
        return np.deg2rad(theta.astype(np.float64))
    if units.startswith("rad"):
        return theta.astype(np.float64)
    raise ValueError(f"{file.filename}: exchange/theta has the units {units!r}, expected degrees or radians")


def _units(stored: h5py.Dataset) -> str | None:
    units = stored.attrs.get("units")
    return (
        units.decode("utf-8", "replace").strip()
        if isinstance(units, bytes)
        else None
        if units is None
        else str(units).strip()
    )


def _detector_mm(file: h5py.File) -> float:
    stored = hdf5.numbers(file, PIXEL_SIZE)
    if stored is None:
        raise ValueError(
            f"{file.filename}: does not say how wide a detector bin is (no {PIXEL_SIZE}); pass detector_mm"
        )
    units = _units(file[PIXEL_SIZE])
    if units is None or units.lower() not in LENGTHS_MM:
        raise ValueError(
            f"{file.filename}: {PIXEL_SIZE} has the units {units!r}, expected one of {', '.join(LENGTHS_MM)}; "
            f"pass detector_mm"
        )
    return float(stored.reshape(-1)[0]) * LENGTHS_MM[units.lower()]


def _sample_name(file: h5py.File) -> str | None:
    stored = hdf5.dataset(file, "measurement/sample/name")
    value = None if stored is None else np.asarray(stored[()]).reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)


def _tensor(stack: np.ndarray, one: bool) -> torch.Tensor:
    """(views, rows, bins) -> (rows, views, bins), without rows if only one was asked for."""
    moved = np.ascontiguousarray(np.moveaxis(stack, 1, 0), dtype=np.float32)
    return torch.from_numpy(moved[0] if one else moved)
