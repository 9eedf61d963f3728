"""Scans of a volume, slice by slice: what a slice needs is read, the rest of the file is not.

A volume is a scan file whose data have one slice axis in front, in HDF5 or as the same names in a Zarr group, or a DXchange file, whose
slices are its detector rows. What is read of a slice is put into an HDF5 file in memory and goes through `scan.scan_in`, so that a slice is
checked like any scan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from scoreinv.files import hdf5
from scoreinv.files.dxchange import n_rows, read_dxchange
from scoreinv.files.scan import FORMAT, Scan, read_operator, scan_in
from scoreinv.problem import Problem

ATTRIBUTES = ("format", "version", "operator", "photons", "mu_water_per_mm", "info")
"""Of a scan file; copied for each slice."""


class Slices(Protocol):
    """A volume's scans, each of them alone; a plain value that can be sent to another process."""

    @property
    def path(self) -> Path:
        """Where they are."""
        ...

    @property
    def z_mm(self) -> tuple[float, ...] | None:
        """Height of each slice in the scanner's own coordinate [mm], where known."""
        ...

    def __len__(self) -> int: ...

    def read(self, k: int) -> Scan:
        """Slice k from 0, whose problem has no batch dimension.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: see `read_scan` and `read_dxchange`; or chunks of a Zarr array are missing or damaged.
        """
        ...


def open_slices(path: str | os.PathLike[str], **dxchange: Any) -> Slices:
    """The slices of a scan file of scoreinv, HDF5 or Zarr, or of a DXchange file, told apart by what is inside.

    Args:
        path: of the file, or of the folder of a Zarr group.
        **dxchange: fields of `DXchangeSlices`; those that are not None are refused for a scan file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of neither kind, or has no slice axis.
    """
    path = Path(path).absolute()
    given = {name: value for name, value in dxchange.items() if value is not None}
    found: Slices
    if is_zarr(path):
        found = ScanSlices(path)
    else:
        with hdf5.reading(path) as file:
            is_dxchange = hdf5.text(file, "format") is None and "exchange" in file
        found = _with_axis(DXchangeSlices(path, **given)) if is_dxchange else ScanSlices(path)
    if isinstance(found, ScanSlices) and given:
        raise ValueError(f"{path}: is no DXchange file; {', '.join(given)} can only be given for one")
    len(found)
    return found


@dataclass(frozen=True)
class ScanSlices:
    """Those of a scan file whose `y` or `counts` are (slices, *shape of one measurement).

    Attributes:
        path: of the HDF5 file, or of the folder of a Zarr group.
    """

    path: Path

    @property
    def z_mm(self) -> tuple[float, ...] | None:
        """See `Slices`."""
        with _group(self.path) as group:
            found, n = hdf5.heights(group.attrs, self.path), _data(group, self.path).shape[0]
        if found is not None and len(found) != n:
            raise ValueError(f"{self.path}: the attribute z_mm has {len(found)} heights, there are {n} slices")
        return found

    def __len__(self) -> int:
        with _group(self.path) as group, _in_memory(str(self.path)) as part:
            _copy_head(group, part)
            hdf5.check_format(part, FORMAT)
            shape, single = _data(group, self.path).shape, read_operator(part).out_shape
        if len(shape) != len(single) + 1:
            expected = ", ".join(map(str, single))
            raise ValueError(
                f"{self.path}: the data of a volume are (slices, {expected}), these are {tuple(shape)}; "
                f"{'leave --slices out for a single slice' if tuple(shape) == single else 'write one slice axis'}"
            )
        return int(shape[0])

    def read(self, k: int) -> Scan:
        """See `Slices`."""
        with _group(self.path) as group, _in_memory(f"{self.path}, slice {k}") as part:
            _copy_head(group, part)
            data, noise, z_mm = (
                _data(group, self.path),
                _array(group, "noise_std"),
                hdf5.heights(group.attrs, self.path),
            )
            if z_mm is not None:
                part.attrs["z_mm"] = z_mm[k : k + 1]
            part[data.name.strip("/")] = _values(data, part.filename, k)
            if noise is not None:
                part["noise_std"] = self._of_slice(noise, data, k)
            return scan_in(part)

    def _of_slice(self, noise: Any, data: Any, k: int) -> np.ndarray:
        """The noise of slice k; it broadcasts to the data."""
        where = f"{self.path}, slice {k}"
        if noise.ndim < data.ndim:
            return _values(noise, where)
        if noise.ndim > data.ndim or noise.shape[0] not in (1, data.shape[0]):
            raise ValueError(
                f"{self.path}: noise_std {tuple(noise.shape)} does not broadcast to the data {tuple(data.shape)}"
            )
        return _values(noise, where, k % noise.shape[0])


@dataclass(frozen=True)
class DXchangeSlices:
    """Those of a DXchange file: its detector rows. For the arguments see `read_dxchange`.

    Attributes:
        path: of the file.
        centre: column of the rotation axis; `open_slices` finds it from the middle row where it is not given.
        detector_mm: width of a detector bin [mm].
        binning: neighbouring bins to add up.
        every: take every N-th view.
    """

    path: Path
    centre: float | None = None
    detector_mm: float | None = None
    binning: int | None = None
    every: int | None = None

    @property
    def z_mm(self) -> None:
        """Not known."""
        return None

    def __len__(self) -> int:
        return n_rows(self.path)

    def read(self, k: int) -> Scan:
        """See `Slices`."""
        views = None if self.every is None else slice(None, None, self.every)
        return read_dxchange(
            self.path, row=k, views=views, binning=self.binning, detector_mm=self.detector_mm, centre=self.centre
        )


def _with_axis(rows: DXchangeSlices) -> DXchangeSlices:
    """The same with the rotation axis, which is that of the middle row for all."""
    if rows.centre is not None:
        return rows
    return dataclasses.replace(rows, centre=rows.read(len(rows) // 2).info["axis_column"])


def stacked(scans: Sequence[Scan]) -> Scan:
    """One scan of several slices of a volume, a single one unchanged; without truth, heights and provenance.

    Raises:
        ValueError: they are of several kinds, see `kind`.
    """
    first = scans[0]
    if any(kind(s) != kind(first) for s in scans):
        raise ValueError("stacked: expected scans with one kind of noise")
    if len(scans) == 1:
        return first
    problems = [s.problem for s in scans]
    std, counts = first.problem.noise_std, first.problem.counts
    if isinstance(std, Tensor):
        shape = first.problem.y.shape
        std = torch.stack(
            [torch.as_tensor(p.noise_std).reshape((1,) * (len(shape) - std.ndim) + std.shape) for p in problems]
        )
    if counts is not None:
        arrived = torch.stack([p.counts.arrived for p in problems if p.counts is not None])
        counts = counts.mapped(lambda _: arrived)
    problem = Problem(first.problem.A, torch.stack([p.y for p in problems]), std, None, counts)
    return Scan(problem, first.mu_water_per_mm, {}, first.photons, first.noise_known)


def kind(scan: Scan) -> tuple[Any, ...]:
    """What must be equal of slices that are one batch: their noise is a number, the same one, or given alike."""
    std, counts = scan.problem.noise_std, scan.problem.counts
    noise = tuple(std.shape) if isinstance(std, Tensor) else float(std)
    return (scan.problem.y.shape, scan.noise_known, noise, counts and counts.photons)


def is_zarr(path: Path) -> bool:
    """Whether a path is that of a Zarr group, there or yet to be written."""
    return path.suffix == ".zarr" or (path / "zarr.json").is_file() or (path / ".zgroup").is_file()


def import_zarr() -> Any:
    """The package zarr.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("zarr")
    except ImportError as error:
        raise ValueError(f"Zarr needs the package zarr: pip install 'scoreinv[zarr]' ({error})") from error


def open_zarr(path: Path, mode: str) -> Any:
    """The Zarr group in a folder; mode is "r" or "r+".

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no Zarr group, or zarr is not installed.
    """
    zarr = import_zarr()
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    try:
        return zarr.open_group(path, mode=mode)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: is no Zarr group: {error}") from error


@contextlib.contextmanager
def _group(path: Path) -> Iterator[Any]:
    """An HDF5 file or a Zarr group, for reading."""
    if is_zarr(path):
        yield open_zarr(path, "r")
        return
    with hdf5.reading(path) as file:
        yield file


@contextlib.contextmanager
def _in_memory(name: str) -> Iterator[h5py.File]:
    """An empty HDF5 file that is on no disk; errors call it `name`."""
    with h5py.File(name, "w", driver="core", backing_store=False) as file:
        yield file


def _array(group: Any, name: str) -> Any:
    """An array of an HDF5 file or a Zarr group, None where there is none."""
    if isinstance(group, h5py.File):
        return hdf5.dataset(group, name)
    found = group.get(name)
    if found is not None and not hasattr(found, "dtype"):
        raise ValueError(f"{group.store.root}: {name} should be an array, it is a group")
    return found


def _data(group: Any, path: Path) -> Any:
    """`y` or `counts`."""
    found = [a for name in ("y", "counts") if (a := _array(group, name)) is not None]
    if len(found) != 1:
        has = "neither y (line integrals) nor counts (photons)" if not found else "both y and counts; keep one of them"
        raise ValueError(f"{path}: has {has}")
    if found[0].dtype.kind not in "biuf":
        raise ValueError(f"{path}: {found[0].name.strip('/')} should hold numbers, it holds {found[0].dtype}")
    return found[0]


def _values(array: Any, where: str, k: int | None = None) -> np.ndarray:
    """All of an array of an HDF5 file or a Zarr group, or its entry k; errors begin with `where`.

    All chunks of a Zarr array that are read must be stored: one that is lost reads as the fill value, which looks like vacuum. Zarr leaves
    out those that hold nothing but the fill value, unless it is told `write_empty_chunks`. They are refused as well, since nothing tells
    them from lost ones and a measurement is not like that. Inside a shard it cannot be seen what is stored; there, what is read must hold
    another value.

    Raises:
        ValueError: chunks of a Zarr array are missing or damaged.
    """
    part = () if k is None else k
    if isinstance(array, h5py.Dataset):
        return np.asarray(array[part])
    name = array.name.strip("/")
    with decoding(where, name):
        missing = _missing_chunks(array, k)
        values = np.asarray(array[part])
    fill = array.fill_value
    if missing:
        raise ValueError(
            f"{where}: the chunk {missing[0]} of {name} is missing: copy or write it again, with write_empty_chunks=True if all of it is "
            f"{fill}"
        )
    if array.shards and (values == fill).all():
        raise ValueError(
            f"{where}: {name} holds nothing but {fill}, as where its chunks are missing in a shard: write it again, without shards if that "
            "is what it should hold"
        )
    return values


@contextlib.contextmanager
def decoding(where: str, name: str) -> Iterator[None]:
    """Turn whatever Zarr's codecs raise, which have no exception in common, into a ValueError that names the array."""
    try:
        yield
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise ValueError(f"{where}: a chunk of {name} is damaged: copy or write it again ({why})") from error


def _missing_chunks(array: Any, k: int | None) -> list[str]:
    """Names of the chunks of a Zarr array, or of its entry k, that are not on the disk; of a shard that holds them its own name."""
    sizes = array.shards or array.chunks
    places = [range(-(-n // size)) for n, size in zip(array.shape, sizes, strict=True)]
    if k is not None:
        places[0] = range(k // sizes[0], k // sizes[0] + 1)
    names = [array.metadata.encode_chunk_key(place) for place in itertools.product(*places)]
    return [name for name in names if not (array.store.root / array.path / name).is_file()]


def _copy_head(group: Any, part: h5py.File) -> None:
    """What all slices share: attributes, and the arrays that the operator refers to."""
    for name in ATTRIBUTES:
        value = group.attrs.get(name)
        if value is not None:
            part.attrs[name] = json.dumps(value) if isinstance(value, dict | list) else value
    for name in _referred(hdf5.json_object(part, "operator") or {}):
        array = _array(group, name)
        if array is not None and array.dtype.kind in "biuf":
            part[name] = _values(array, part.filename)


def _referred(description: Any) -> Iterator[str]:
    """Names of the arrays in an operator's description."""
    if isinstance(description, dict):
        if isinstance(description.get("dataset"), str):
            yield description["dataset"]
        for value in description.values():
            yield from _referred(value)
    elif isinstance(description, list):
        for value in description:
            yield from _referred(value)
