"""LoDoPaB-CT: simulated low-dose parallel-beam scans of chests, with their images.

    python data_scripts/lodopab.py --out data --part test --patients 2 --scan 0 --every 10
    scoreinv reconstruct data/lodopab/scan_test_0_every10.h5 --samples 1 --picture lung.png

The data: J. Leuschner, M. Schmidt and D. Otero Baguer, https://zenodo.org/records/3384092 (doi:10.5281/zenodo.3384092),
made of LIDC-IDRI; the split into train (35820 slices), validation (3522) and test (3553) is the authors', by patient.

Archives are downloaded whole and checked by MD5 (train 46 GB, validation 4.5 GB, test 4.6 GB); with --patients only the
files of 128 slices that hold them are taken out of the archives on the server, each checked by its CRC-32. They stay in
FOLDER/lodopab as they are: scoreinv.files.lodopab reads them. Beside them:

    images_PART_NNN.h5           training sets in Hounsfield units, with the authors' anonymous patients
    scan_PART_K_everyE.h5        scan files of single slices (--scan), with the truth
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _convert import write_images
from _download import Record, count, extract, fetch, parser, remote_zip, run, zenodo

from scoreinv.files.lodopab import (
    FIELD_MM,
    MU_AIR_PER_MM,
    MU_WATER_PER_MM,
    SLICES_A_FILE,
    lodopab_images,
    lodopab_patients,
    read_lodopab,
)
from scoreinv.files.scan import write_scan

RECORD = 3384092
PARTS = ("train", "validation", "test")
KINDS = ("ground_truth", "observation")


def hu(mu: np.ndarray) -> np.ndarray:
    """Hounsfield units as the authors had them: 0 at 20 per m, -1000 at 0.02 per m."""
    return 1000 * (mu - MU_WATER_PER_MM) / (MU_WATER_PER_MM - MU_AIR_PER_MM)


def download(record: Record, folder: Path, part: str, n_patients: int | None, limit_gb: float | None) -> list[int]:
    """Numbers of the files of a part that are there afterwards; `patients_PART.csv` with one patient a slice as well."""
    ids = f"patient_ids_rand_{part}.csv"
    for name, remote in record.choose([ids]).items():
        fetch(remote.url, folder / name, remote.checksum, remote.size)
    patients = _patients(folder, part)
    numbers = list(range(-(-len(patients) // SLICES_A_FILE)))
    if n_patients is not None:
        first = list(dict.fromkeys(patients))[:n_patients]
        numbers = sorted({i // SLICES_A_FILE for i, p in enumerate(patients) if p in set(first)})
    wanted = [f"{kind}_{part}_{n:03d}.hdf5" for kind in KINDS for n in numbers]
    if all((folder / name).is_file() for name in wanted):
        return numbers
    archives = [f"{kind}_{part}.zip" for kind in KINDS]
    share = len(numbers) / -(-len(patients) // SLICES_A_FILE)
    chosen = record.choose(archives, limit_gb, share)
    for kind, archive in zip(KINDS, archives, strict=True):
        names = [n for n in wanted if n.startswith(kind) and not (folder / n).is_file()]
        remote = chosen[archive]
        if names and n_patients is None:
            _unpack(fetch(remote.url, folder / archive, remote.checksum, remote.size), names, folder)
        elif names:
            with remote_zip(remote.url) as file:
                for name in names:
                    extract(file, name, folder / name)
    return numbers


def _unpack(archive: Path, names: list[str], folder: Path) -> None:
    """Take the files out of a checked archive and delete it."""
    with zipfile.ZipFile(archive) as file:
        for name in names:
            extract(file, name, folder / name)
    archive.unlink()


def _patients(folder: Path, part: str) -> list[str]:
    """The patient of every slice of a part."""
    return lodopab_patients(folder / f"patient_ids_rand_{part}.csv")


def convert(folder: Path, part: str, number: int, licence: str) -> Path:
    """Images of one file in Hounsfield units, unless they are there."""
    path = folder / f"images_{part}_{number:03d}.h5"
    if not path.is_file():
        mu = lodopab_images(folder / f"ground_truth_{part}_{number:03d}.hdf5")
        patients = _patients(folder, part)[number * SLICES_A_FILE :][: len(mu)]
        if len(patients) < len(mu):
            raise ValueError(f"{path.name}: {len(mu)} slices, but only {len(patients)} patients are listed for them")
        write_images(path, hu(mu), FIELD_MM / mu.shape[-1], patients, dataset="LoDoPaB-CT", licence=licence)
    return path


def scan(folder: Path, part: str, k: int, every: int) -> Path:
    """A scan file of slice k of the part, unless it is there.

    Raises:
        FileNotFoundError: the file that holds it has not been downloaded.
        ValueError: the part has no such slice.
    """
    n = len(_patients(folder, part))
    if not 0 <= k < n:
        raise ValueError(f"--scan: {part} has slices 0 to {n - 1}, got {k}")
    path = folder / f"scan_{part}_{k}_every{every}.h5"
    if not path.is_file():
        number, index = divmod(k, SLICES_A_FILE)
        observation, truth = (folder / f"{kind}_{part}_{number:03d}.hdf5" for kind in reversed(KINDS))
        write_scan(path, read_lodopab(observation, truth, index=index, every=every))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Download, check, convert; returns the exit code, 2 for bad input."""
    p = parser(__doc__)
    p.add_argument("--part", choices=PARTS, default="test", help="(%(default)s)")
    p.add_argument("--patients", type=count, metavar="N", help="only files that hold the first N patients (all)")
    p.add_argument("--scan", type=int, action="append", default=[], metavar="K", help="also a scan file of slice K")
    p.add_argument(
        "--every", type=count, default=1, metavar="E", help="keep every E-th of the 1000 views in scan files"
    )
    a = p.parse_args(argv)
    return run("lodopab", lambda: _work(a))


def _work(a: argparse.Namespace) -> list[Path]:
    folder: Path = a.out / "lodopab"
    record = zenodo(RECORD, folder)
    numbers = download(record, folder, a.part, a.patients, a.limit)
    images = [convert(folder, a.part, n, record.licence) for n in numbers]
    return images + [scan(folder, a.part, k, a.every) for k in a.scan]


if __name__ == "__main__":
    sys.exit(main())
