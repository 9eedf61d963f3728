"""Opening HDF5 files so that whatever is wrong with one is said in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; what HDF5 reports while the block runs comes out as a ValueError with the path.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: the path is a folder.
        PermissionError: the file may not be read.
        OSError: another program is writing the file.
        ValueError: the file is not HDF5, or it is cut short or damaged.
    """
    path = existing_file(path)
    if not h5py.is_hdf5(path):
        size = path.stat().st_size
        raise ValueError(
            f"{path}: not an HDF5 file ({size} bytes); a scan or a reconstruction is one, see docs/file-formats.md"
        )
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        # h5py reports a short file and a damaged chunk alike, in the words of the C library.
        if "unable to lock" in str(error):
            raise OSError(
                f"{path}: another program has this file open for writing; try again when it is done"
            ) from error
        what = "cut short" if "truncated" in str(error) else "damaged"
        raise ValueError(f"{path}: this HDF5 file is {what}: copy or write it again ({_first_line(error)})") from error


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path, once it is certain that a file that may be read lies there.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: it does not.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, expected a file")
    if not path.is_file():
        where = "" if path.parent.is_dir() else f" (the folder {path.parent} does not exist either)"
        raise FileNotFoundError(f"{path}: no such file{where}")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path}: may not be read; check its permissions")
    return path


def dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """The dataset with that name, None where there is none; links into other files are not followed.

    Raises:
        ValueError: the name is a group or a link into another file.
    """
    parts = name.strip("/").split("/")
    for k in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:k]), getlink=True)
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(
                f"{file.filename}: {name} is a link into another file, which is not followed; copy the data in"
            )
    found = file.get(name)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{file.filename}: {name} should be a dataset, it is a group")
    return found


def numbers(file: h5py.File, name: str) -> np.ndarray | None:
    """The values of a numeric or boolean dataset, None where there is none.

    Raises:
        ValueError: the dataset holds something else.
    """
    found = dataset(file, name)
    if found is None:
        return None
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{file.filename}: {name} should hold numbers, it holds {found.dtype}")
    return np.asarray(found[()])


def text(file: h5py.File, name: str) -> str | None:
    """An attribute of the file as text, None where there is none."""
    value = file.attrs.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)


def number(file: h5py.File, name: str) -> float | None:
    """An attribute of the file as a positive finite number, None where there is none.

    Raises:
        ValueError: it is something else.
    """
    value = file.attrs.get(name)
    if value is None:
        return None
    try:
        result = float(np.asarray(value).reshape(()))
    except (TypeError, ValueError):
        result = np.nan
    if not np.isfinite(result) or result <= 0:
        shown = repr(value) if isinstance(value, str) else result
        raise ValueError(f"{file.filename}: the attribute {name} should be a positive number, it is {shown}")
    return result


def heights(attributes: Mapping[str, Any], path: str | os.PathLike[str]) -> tuple[float, ...] | None:
    """The attribute `z_mm` of a file or a Zarr group, None where there is none.

    Raises:
        ValueError: it does not hold finite numbers.
    """
    value = attributes.get("z_mm")
    if value is None:
        return None
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.array(np.nan)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(
            f"{path}: the attribute z_mm should be the heights of the slices, finite numbers, it is {value!r}"
        )
    return tuple(found.tolist())


def json_object(file: h5py.File, name: str) -> dict[str, Any] | None:
    """An attribute of the file that holds a JSON object, None where there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    value = text(file, name)
    if value is None:
        return None
    try:
        result = json.loads(value)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file.filename}: the attribute {name} is not valid JSON: {_first_line(error)}") from error
    if not isinstance(result, dict):
        raise ValueError(f"{file.filename}: the attribute {name} should be a JSON object, it is {value[:60]!r}")
    return result


def check_format(file: h5py.File, expected: str) -> None:
    """Insist on the attribute `format`.

    Raises:
        ValueError: it is missing or says something else.
    """
    found = text(file, "format")
    if found is None:
        inside = ", ".join(sorted(file)[:6]) or "nothing"
        raise ValueError(
            f"{file.filename}: has no attribute format={expected!r}, so scoreinv did not write it; it holds {inside}. "
            f"docs/file-formats.md shows how to write one"
        )
    if found != expected:
        raise ValueError(f"{file.filename}: expected the format {expected!r}, found {found!r}")


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:120] if lines else type(error).__name__
