"""Rows that survive: an SQLite file in a sweep's folder, one transaction a row.

    FOLDER/rows.sqlite    the rows; PRAGMA user_version is the version of this layout
    FOLDER/images/        KEY.h5 of the rows that have images, written whole and before the row
    FOLDER/lock.sqlite    empty; whoever computes holds its exclusive lock, which the system takes back when the process dies

A row is there or not, whatever is killed or pulled out: SQLite's rollback journal sees to that, every commit is flushed to the disk. The
key of a cell is the primary key, so that no cell has two rows. One process computes into a folder; a second one is turned away, and
readers are always welcome.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scoreinv.files.atomic import replacing
from scoreinv.study.computing import Row
from scoreinv.study.sweep import Cell
from scoreinv.study.truth import name_of

SCHEMA = 1
ROWS, LOCK, IMAGES = "rows.sqlite", "lock.sqlite", "images"
_TABLE = """
CREATE TABLE rows (
    key TEXT PRIMARY KEY NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    cell TEXT NOT NULL CHECK (json_valid(cell)),
    result TEXT NOT NULL CHECK (json_valid(result))
)
"""


class Store:
    """The rows of a folder, open for adding; use `opened`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self._connection = folder, connection

    def statuses(self) -> dict[str, str]:
        """For the key of every row, whether it is "done" or "failed"."""
        with _explained(self.folder):
            return dict(self._connection.execute("SELECT key, status FROM rows"))

    def add(self, row: Row) -> dict[str, Any]:
        """Write a row, images first, and give it as `read` does; one of the same cell that is there is replaced.

        Raises:
            OSError: it cannot be written, for want of room for instance; the rows that were there still are.
        """
        key, result = row.cell.key, dict(row.result)
        with _explained(self.folder):
            result["images"] = f"{IMAGES}/{key}.h5" if row.images else None
            if row.images:
                _write_images(self.folder / result["images"], row)
            values = (key, row.status, _json(row.cell.plain()), _json(result))
            with self._connection:
                self._connection.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", values)
        return flat(key, row.status, row.cell.plain(), result)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """The store of a folder, which is made where there is none, for one process at a time.

    Raises:
        ValueError: another process computes into it, or it is of another version or no store.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / LOCK, timeout=0)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise OSError(f"{folder}: cannot be locked: {error}") from error
            raise ValueError(
                f"{folder}: another process is computing into it: wait until it is done, or give another --out"
            ) from error
        for left in (folder / IMAGES).glob(".*.h5"):  # of a process that was killed
            left.unlink()
        with contextlib.closing(sqlite3.connect(folder / ROWS)) as connection, _explained(folder):
            if _version(connection, folder) == 0:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(_TABLE)
                    connection.execute(f"PRAGMA user_version = {SCHEMA}")
            yield Store(folder, connection)


def statuses(folder: Path) -> dict[str, str]:
    """For the key of every row of a folder, whether it is "done" or "failed"; none where there is no store.

    Raises:
        ValueError: it is of another version or no store.
    """
    with _reading(folder) as connection:
        return {} if connection is None else dict(connection.execute("SELECT key, status FROM rows"))


def read(folder: str | Path) -> list[dict[str, Any]]:
    """All rows of a sweep's folder, in the order in which they came, as plain values; also while it is being computed.

    Every row has all of these columns:

        key, status             SHA-256 of the cell; "done" or "failed"
        problem, label          words for tables: image set, operator and noise; method with its settings
        image                   words for one image: "P002, slice 12"
        operator, method        registered names
        truth                   words for the image set: "val at 128 x 128"
        prior, prior_sha256     name or path of the prior and checksum of its weights; None for methods without one
        weights_sha256          checksum of a learned baseline's weights; None for other methods, and in rows of older versions
        seed
        noise.relative, noise.photons
        samples                 draws that the method gave
        psnr, ssim              range 1 on the window of -1000 to 1000 HU [dB]; Gaussian 11 x 11 of standard deviation 1.5
        psnr_range, ssim_range  of attenuation, not clipped, range max - min of the truth, uniform 7 x 7: the convention of LoDoPaB-CT
        psnr_full, ssim_full    the same with the range of all its images, 1 on mu / mu_max; only for images of LoDoPaB-CT
        lpips                   `metrics.lpips` on the window of -1000 to 1000 HU, where the sweep asks for it
        rmse_hu                 of the whole image [HU]; rmse_hu_lung, rmse_hu_soft, rmse_hu_bone where the truth is within
                                -950..-500, -150..150, above 200 HU
        chi2, residual          misfit to the data over its noise (None for noise-free data); relative residual
        calibration             `metrics.calibration_ratio` of the tissue, 1 for exact draws
        coverage_90             `metrics.coverage_of_normal` of the tissue at 90 %
        seconds, cpu_seconds    of the method alone: on the clock; of the processor, all threads together
        evaluations             of the prior's network; None for learned baselines, whose own networks are not counted
        gradients               vector-Jacobian products of the network, which evaluations do not count; None in rows of older versions
        peak_memory_mib         largest memory of the process while the method ran, see `study.machine.peak_mib`
        error_type, error       of a failed row
        images                  file of its images, relative to the folder
        device, finished, commit, versions.NAME, machine.NAME

    and those that its own cell has: image.NAME, operator.NAME, simulate.NAME, method.NAME, one for each argument. Figures that do not
    exist are None. Angles are in radians.

    Raises:
        FileNotFoundError: the folder has no rows.
        ValueError: they are of another version.
    """
    with _reading(Path(folder)) as connection:
        if connection is None:
            raise FileNotFoundError(f"{folder}: holds no {ROWS}; `scoreinv bench SWEEP.toml --out {folder}` makes it")
        found = connection.execute("SELECT key, status, cell, result FROM rows ORDER BY rowid").fetchall()
    return [flat(key, status, json.loads(cell), json.loads(result)) for key, status, cell, result in found]


FIGURES = (
    "samples", "psnr", "ssim", "psnr_range", "ssim_range", "psnr_full", "ssim_full", "lpips", "rmse_hu", "rmse_hu_lung", "rmse_hu_soft", "rmse_hu_bone", "chi2",
    "residual", "calibration", "coverage_90", "seconds", "cpu_seconds", "evaluations", "gradients", "peak_memory_mib", "error_type", "error", "images", "device",
    "finished", "commit",
)  # fmt: skip
"""Columns of every row that come from its result."""


def flat(key: str, status: str, cell: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A row as `read` gives it."""
    prior, labels = cell["prior"] or {}, cell["labels"]
    row = {
        "key": key, "status": status, "label": labels.get("method", ""), "image": name_of(cell["image"]),
        "problem": ", ".join(labels[k] for k in ("truth", "operator", "noise") if labels.get(k)),
        "operator": cell["operator"]["name"], "method": cell["method"]["name"],
        "truth": labels.get("truth", ""), "prior": prior.get("name"), "prior_sha256": prior.get("sha256"), "weights_sha256": cell.get("weights"),
        "seed": cell["seed"],
    }  # fmt: skip
    for part in ("image", "operator", "simulate", "noise", "method"):
        row |= {f"{part}.{k}": v for k, v in cell[part].items() if k != "name"}
    row |= {name: result.get(name) for name in FIGURES}
    for part in ("versions", "machine"):
        row |= {f"{part}.{k}": v for k, v in result.get(part, {}).items()}
    return row


def flat_cell(cell: Cell) -> dict[str, Any]:
    """The columns of a cell that has no row yet."""
    return flat(cell.key, "", cell.plain(), {})


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """A connection for reading; None where there is no store."""
    path = folder / ROWS
    if not path.is_file():
        yield None
        return
    with contextlib.closing(sqlite3.connect(path)) as connection, _explained(folder):
        yield connection if _version(connection, folder) else None


def _version(connection: sqlite3.Connection, folder: Path) -> int:
    """That of the layout, 0 for an empty file.

    Raises:
        ValueError: not ours.
    """
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{folder / ROWS}: is no store of rows: {error}") from error
    if version != SCHEMA and (version or tables):
        raise ValueError(
            f"{folder / ROWS}: has version {version} of the layout, this scoreinv reads and writes version {SCHEMA}: take the "
            "scoreinv that made it, or give another --out"
        )
    return int(version)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Errors of SQLite and HDF5 as an OSError in one sentence."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if any(w in str(error) for w in ("disk is full", "No space left")):
            words = (
                f"{folder}: no space left on the disk; all finished rows are safe: make room and run the command again"
            )
            raise OSError(errno.ENOSPC, words) from error
        if isinstance(error, OSError):
            raise
        raise OSError(errno.EIO, f"{folder / ROWS}: {error}") from error


def _write_images(path: Path, row: Row) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"], file.attrs["cell"] = "scoreinv-sweep-images-1", _json(row.cell.plain())
        for name, image in row.images.items():
            file.create_dataset(name, data=np.asarray(image, np.float32), compression="gzip", compression_opts=4)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
