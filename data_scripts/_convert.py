"""What converted data sets have in common: the split by patient, and the file of images in Hounsfield units."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import h5py
import numpy as np

from scoreinv.files import hdf5
from scoreinv.files.atomic import replacing
from scoreinv.files.scan import Scan, write_scan
from scoreinv.operators.ct import FanBeamCT
from scoreinv.priors.crops import AIR_HU

SHARES = (("train", 0.8), ("val", 0.9), ("test", 1.0))
CONVERSION = "conversion"
"""Attribute of converted files: the options that shape one, JSON with sorted keys."""


def plain_name(name: object, source: object) -> str:
    """A name that a server or an archive gives, once it is certain that files can be named after it and stay in their folder.

    Args:
        name: what it gives.
        source: what errors begin with.

    Raises:
        ValueError: it is no text, not one part of a path on every system, or has control characters.
    """
    if not isinstance(name, str) or name in ("", "..") or PureWindowsPath(name).name != name or not name.isprintable():
        raise ValueError(f"{source}: expected a name that files can have, got {name!r}; has the data set changed?")
    return name


def is_converted(path: Path, options: Mapping[str, Any]) -> bool:
    """Whether a converted file is there. One that does not say how it was made is kept, with a line on stderr.

    Args:
        path: of the file.
        options: names and values of the options that shape it; None where one is not given.

    Raises:
        ValueError: it was made with other options, or is no HDF5 file.
    """
    if not path.is_file():
        return False
    with hdf5.reading(path) as file:
        made = hdf5.json_object(file, CONVERSION)
    if made is None:
        print(f"{path}: does not say with which options it was made; it is kept", file=sys.stderr)
        return True
    other = [name for name in sorted(made.keys() | options.keys()) if made.get(name) != options.get(name)]
    if other:
        raise ValueError(
            f"{path}: was made {_given(other, made)}, now asked for {_given(other, options)}: give another --out, or delete the file"
        )
    return True


def _given(names: Sequence[str], options: Mapping[str, Any]) -> str:
    """In words."""
    return " and ".join(f"without --{n}" if options.get(n) is None else f"with --{n} {options[n]}" for n in names)


def write_converted(path: Path, scan: Scan, options: Mapping[str, Any]) -> None:
    """Write a scan file with the options that shape it, whole or not at all; its folder is made if it does not exist.

    Raises:
        OSError, ValueError: as for `write_scan`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write_scan(temporary, scan)
        with h5py.File(temporary, "r+") as file:
            file.attrs[CONVERSION] = json.dumps(options, sort_keys=True)


def part_of(patient: str) -> str:
    """ "train" (80 %), "val" or "test": by SHA-256 of the name alone, so that it never depends on who else is there."""
    x = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    return next(part for part, below in SHARES if x < below)


def spread(n: int, most: int | None) -> np.ndarray:
    """Indices of at most so many of n things, spread evenly."""
    return np.arange(n) if most is None or most >= n else np.arange(most) * n // most


def seen_mm(
    n_cells: int, cell_mm: float, offset_mm: float, source_origin_mm: float, source_detector_mm: float
) -> float:
    """Diameter of the disc about the axis that every view of a fan beam with a flat detector sees whole [mm]."""
    reach = n_cells * cell_mm / 2 - abs(offset_mm)
    return 2 * source_origin_mm * math.sin(math.atan(reach / source_detector_mm))


def full_turn(
    kept: np.ndarray, n_views: int, n_cells: int, *, cell_mm: float, offset_mm: float, source_origin_mm: float,
    source_detector_mm: float, size: int,
) -> FanBeamCT:  # fmt: skip
    """The operator of a fan-beam scan with a flat detector over a full turn, on the disc that every view sees whole.

    Args:
        kept: numbers of the views that are kept, of n_views in equal steps.
        n_views: how many there were.
        n_cells: of the detector.
        cell_mm: width of a cell [mm].
        offset_mm: of the detector's centre, see `scoreinv.operators.ct` [mm].
        source_origin_mm: from the source to the rotation axis [mm].
        source_detector_mm: from the source to the detector [mm].
        size: pixels along each side of the image.
    """
    width_mm = seen_mm(n_cells, cell_mm, offset_mm, source_origin_mm, source_detector_mm)
    return FanBeamCT(
        (size, size), (2 * math.pi * kept / n_views).tolist(), n_cells, source_origin_mm, source_detector_mm - source_origin_mm,
        width_mm / size, cell_mm, detector_offset_mm=offset_mm,
    )  # fmt: skip


def block_mean(images: np.ndarray, n: int) -> np.ndarray:
    """Means of n x n pixels, (slices, H, W) -> (slices, H // n, W // n); what is left over at the end is dropped."""
    slices, height, width = len(images), images.shape[1] // n, images.shape[2] // n
    whole = images[:, : height * n, : width * n]
    return np.asarray(whole.reshape(slices, height, n, width, n).mean(axis=(2, 4), dtype=np.float32))


def magnitudes(volume: np.ndarray) -> np.ndarray:
    """Magnitudes of MRI, which have no unit, as if they were Hounsfield units: 0 becomes -1000, the 99.8 % quantile of the volume 1000, and
    what is above it too, so that priors of such images work in [-1, 1].

    Raises:
        ValueError: values are negative or not finite, or all 0.
    """
    values = np.asarray(volume, dtype=np.float32)
    if (
        not np.isfinite(values).all() or values.min() < -0.05 * values.max() or values.max() <= 0
    ):  # interpolation undershoots a little
        raise ValueError(f"expected magnitudes, finite and not negative, got {values.min():g} to {values.max():g}")
    top = float(np.quantile(values, 0.998)) or float(values.max())
    return np.asarray(2000 * np.clip(values / top, 0, 1) - 1000, dtype=np.float32)


def write_images(path: Path, hu: np.ndarray, pixel_mm: float, patients: Sequence[str], **about: Any) -> None:
    """Write the layout of training sets (docs/file-formats.md), whole or not at all.

    Args:
        path: where to; its folder is made if it does not exist.
        hu: (slices, H, W) [HU]; rounded to int16, below -1000 becomes -1000.
        pixel_mm: side of a pixel [mm].
        patients: one name a slice.
        **about: attributes with provenance; other than text and numbers as JSON.
    """
    stored = np.rint(np.clip(hu, AIR_HU, np.iinfo(np.int16).max)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("hu", data=stored, chunks=(1, *stored.shape[1:]), compression="gzip")
        file["patient"] = np.array(list(patients), dtype=h5py.string_dtype())
        file["pixel_mm"] = np.full(len(stored), pixel_mm)
        for name, value in about.items():
            file.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)
