"""Reconstructed volumes: slices that come one by one into an HDF5 file or a Zarr group (docs/file-formats.md has the layout).

What has been written stays, whenever the process is killed. A slice's images are on the disk before its flag in `done` is set, and
nothing else of the file changes:

    HDF5    every chunk has its place from the beginning, uncompressed, so that a slice is bytes written into place and neither the index of
            the chunks nor any other structure is touched; room that no slice has filled yet is a hole in the file
    Zarr    a chunk is a file of its own, written beside and renamed

One process writes at a time; the system takes its lock back when it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scoreinv.files import hdf5
from scoreinv.files.atomic import replacing
from scoreinv.files.slices import decoding, import_zarr, is_zarr, open_zarr
from scoreinv.files.versions import package_version, versions

FORMAT = "scoreinv-volume-1"
FIGURES = ("chi2", "noise_std", "noise_raised", "chi2_draw", "standing", "calibrated")
"""One number a slice; NaN where there is none."""
STANDINGS = {
    0.0: "consistent with the data",
    -1.0: "over-fitted, or judged by too large a noise",
    1.0: "inconsistent with the data",
}
"""What `trust.standing` says, in words."""


class VolumeFile:
    """An open volume; use `opened`.

    Attributes:
        path: of the file or folder.
        group: the HDF5 file or Zarr group.
    """

    def __init__(self, path: Path, group: Any) -> None:
        self.path, self.group = path, group

    def __len__(self) -> int:
        return int(self.group["done"].shape[0])

    @property
    def done(self) -> np.ndarray:
        """(slices,) bool: which slices are there."""
        return np.asarray(self.group["done"][:]).astype(bool)

    @property
    def names(self) -> list[str]:
        """Of the images: `mean`, and what else there is."""
        return [name for name in ("mean", "std", "half_width", "measured") if name in self.group]

    @property
    def settings(self) -> dict[str, Any]:
        """Method and arguments of all slices."""
        return dict(json.loads(self.group.attrs["settings"]))

    @property
    def request(self) -> dict[str, Any]:
        """What a reconstruction must have asked for to go on with this volume: scan, method, settings, prior, seed."""
        return dict(json.loads(self.group.attrs["request"]))

    def image(self, name: str, k: int) -> np.ndarray:
        """One image of slice k, (H, W) [1/mm].

        Raises:
            ValueError: there is no such image, or it is damaged.
        """
        if name not in self.names:
            raise ValueError(f"{self.path}: has no {name}, it has {', '.join(self.names)}")
        if not 0 <= k < len(self) or not self.group["done"][k]:
            raise ValueError(f"{self.path}: slice {k} is not there; `done` says which are")
        with decoding(f"{self.path}, slice {k}", name):
            return np.asarray(self.group[name][k])

    def figures(self, name: str) -> np.ndarray:
        """One of `FIGURES` of every slice, (slices,); NaN where a slice is not there, and in files that do not hold it."""
        return np.asarray(self.group[name][:]) if name in self.group else np.full(len(self), math.nan)

    def add(self, k: int, images: Mapping[str, np.ndarray], figures: Mapping[str, float]) -> None:
        """Write slice k; it is there when this returns.

        Args:
            k: from 0.
            images: for all of `names`, (H, W) [1/mm].
            figures: for all of `FIGURES`.
        """
        for name in self.names:
            self.group[name][k] = images[name]
        for name in FIGURES:
            self.group[name][k] = figures[name]
        self._flush()
        self.group["done"][k] = 1
        self._flush()

    def _flush(self) -> None:
        """To the disk; files of a Zarr group are written when a call returns."""
        if isinstance(self.group, h5py.File):
            self.group.flush()
            os.fsync(self.group.id.get_vfd_handle())


def create_volume(
    path: Path,
    shape: tuple[int, ...],
    names: Sequence[str],
    *,
    request: Mapping[str, Any],
    settings: Mapping[str, Any],
    attributes: Mapping[str, float | Sequence[float] | None],
) -> None:
    """An empty volume, there or not.

    Args:
        path: of a file, or of a Zarr group's folder (.zarr).
        shape: (slices, *shape of an image).
        names: of the images.
        request, settings: see `VolumeFile`.
        attributes: `pixel_mm`, `mu_water_per_mm` and `z_mm`, where known.

    Raises:
        OSError: it cannot be written.
        ValueError: zarr is not installed.
    """
    plain = {"format": FORMAT, "version": package_version(), "versions": json.dumps(versions())}
    plain |= {"request": json.dumps(request), "settings": json.dumps(settings)}
    attrs = plain | {name: value for name, value in attributes.items() if value is not None}
    if is_zarr(path):
        _create_zarr(path, shape, names, attrs)
    else:
        _create_hdf5(path, shape, names, attrs)


@contextlib.contextmanager
def opened(path: Path, *, write: bool = False) -> Iterator[VolumeFile]:
    """A volume that is there.

    Raises:
        FileNotFoundError: there is none.
        OSError: another process is writing it.
        ValueError: it is damaged or of another format.
    """
    with _zarr(path, write) if is_zarr(path) else _hdf5(path, write) as group:
        found = group.attrs.get("format")
        if found != FORMAT:
            raise ValueError(f"{path}: expected a volume, format {FORMAT!r}, found {found!r}: give another --out")
        yield VolumeFile(path, group)


@contextlib.contextmanager
def _hdf5(path: Path, write: bool) -> Iterator[h5py.File]:
    if not write:
        with hdf5.reading(path) as file:
            yield file
        return
    if not h5py.is_hdf5(hdf5.existing_file(path)):
        raise ValueError(f"{path}: is no HDF5 file: give another --out")
    try:
        file = h5py.File(path, "r+")
    except BlockingIOError as error:
        raise _busy(path) from error
    with file:
        yield file


@contextlib.contextmanager
def _zarr(path: Path, write: bool) -> Iterator[Any]:
    group = open_zarr(path, "r+" if write else "r")
    with _locked(path) if write else contextlib.nullcontext():
        if write:
            for left in path.rglob("*.partial"):  # of a process that was killed
                left.unlink()
        yield group


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The only process that writes into a folder, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(folder) from error
        yield
    finally:
        os.close(handle)


def _busy(path: Path) -> ValueError:
    return ValueError(f"{path}: another process is writing it: wait until it is done, or give another --out")


def _create_hdf5(path: Path, shape: tuple[int, ...], names: Sequence[str], attrs: Mapping[str, Any]) -> None:
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(attrs)
        for name in names:
            in_place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            in_place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            in_place.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            file.create_dataset(name, shape, np.float32, chunks=(1, *shape[1:]), dcpl=in_place)
        for name in FIGURES:
            file[name] = np.full(shape[0], math.nan)
        file["done"] = np.zeros(shape[0], np.uint8)


def _create_zarr(path: Path, shape: tuple[int, ...], names: Sequence[str], attrs: Mapping[str, Any]) -> None:
    zarr = import_zarr()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        group = zarr.open_group(temporary, mode="w", attributes=dict(attrs))
        for name in names:
            group.create_array(name, shape=shape, dtype="float32", chunks=(1, *shape[1:]), fill_value=math.nan)
        for name in FIGURES:
            group.create_array(name, shape=shape[:1], dtype="float64", chunks=shape[:1], fill_value=math.nan)
        group.create_array("done", shape=shape[:1], dtype="uint8", chunks=shape[:1], fill_value=0)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def summary(volume: VolumeFile) -> str:
    """One line: how many slices are there, method, fit to the data."""
    done, s = volume.done, volume.settings
    shape = " x ".join(map(str, volume.group["mean"].shape[1:]))
    chi2 = volume.figures("chi2")[done]
    figure = "chi^2" if (volume.figures("noise_std")[done] > 0).any() else "relative residual"
    fit = f", {figure} {np.nanmean(chi2):.3g}" if np.isfinite(chi2).any() else ""
    return f"volume, {done.sum()} of {len(volume)} slices of {shape}, {s['method']}, {', '.join(volume.names)}{fit}"


def judgement(volume: VolumeFile) -> str:
    """Lines for people who must decide whether to believe a volume: how many slices had their noise raised, how the draws of how many fit
    their data, and how many have calibrated intervals."""
    done, lines = volume.done, []
    if raised := int((volume.figures("noise_raised")[done] > 1).sum()):
        lines.append(
            f"noise: estimated from the data, then raised for {_slices(raised)} to what the image leaves of them"
        )
    if "std" in volume.names:
        found = volume.figures("standing")[done]
        parts = [(words, np.flatnonzero(done)[found == number]) for number, words in STANDINGS.items()]
        parts.append(("without verdict", np.flatnonzero(done)[np.isnan(found)]))
        words = [
            f"{_slices(len(k))} {what}{'' if what == STANDINGS[0.0] else f' (the first is {k[0]})'}"
            for what, k in parts
            if len(k)
        ]
        lines += [f"draws: {', '.join(words)}"] if words else []
        calibrated = volume.figures("calibrated")[done]
        if not np.isnan(calibrated).all():
            lines.append(
                f"intervals: calibrated for {_slices(int((calibrated == 1).sum()))}, uncalibrated (Student's) for {(calibrated == 0).sum()}"
            )
    return "\n".join(lines)


def _slices(n: int) -> str:
    return f"{n} slice{'' if n == 1 else 's'}"
