"""2DeteCT: measured fan-beam scans of slices of fruit, nuts and stones, as scan files.

    python data_scripts/two_detect.py --out data --slice 4001 --mode 2 --views 180 --size 256
    scoreinv reconstruct data/two_detect/slice04001_mode2_180views_256px.h5 --method fista_tv --picture nuts.png

The data: M. B. Kiss, S. B. Coban, K. J. Batenburg, T. van Leeuwen and F. Lucka, 2DeteCT, Scientific Data 10, 576 (2023),
doi:10.1038/s41597-023-02484-6; slices 1 to 5000 and 5521 to 6370 in six archives at Zenodo. Modes: 1 low dose, 2 clean,
3 beam hardening. Only the sinogram and its fields of the slices asked for are taken out of the archive on the server (15 MB
a scan), each checked by its CRC-32; an archive that lies in the folder is used instead.

Corrections and geometry are those of the authors' reconstructions (github.com/mbkiss/2DeteCTcodes,
Reconstructions_2DeteCT.py): pairs of detector pixels of 0.0748 mm are summed, the mean of the two flat fields taken, the
last of 3601 views, which repeats the first, left out; source to axis 431.02 mm, source to detector 529.00 mm. Where they
move the data by one cell (slices 1 to 2830 and 5521 to 5870), the operator has that detector offset instead, and nothing is
interpolated. The image is the disc that every view sees whole, 115 mm (the authors' is 116.5 mm wide). HU are nominal; the
noise is unknown, as two flat fields cannot tell it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from _convert import full_turn, spread
from _download import check_space, count, extract, parser, remote_zip, run, zenodo
from PIL import Image, UnidentifiedImageError

from scoreinv.files.scan import Scan, write_scan
from scoreinv.files.transmission import line_integrals
from scoreinv.problem import Problem

RECORDS = (
    (range(1, 1001), 8014758, "2DeteCT_slices1-1000.zip"),
    (range(1001, 2001), 8014766, "2DeteCT_slices1001-2000.zip"),
    (range(2001, 3001), 8014787, "2DeteCT_slices2001-3000.zip"),
    (range(3001, 4001), 8014829, "2DeteCT_slices3001-4000.zip"),
    (range(4001, 5001), 8014874, "2DeteCT_slices4001-5000.zip"),
    (range(5521, 6371), 8014907, "2DeteCT_slicesOOD.zip"),
)
FILES = ("sinogram.tif", "dark.tif", "flat1.tif", "flat2.tif")
SHIFTED = (range(1, 2831), range(5521, 5871))
PIXEL_MM = 0.0748
SOURCE_ORIGIN_MM, SOURCE_DETECTOR_MM = 431.019989, 529.000488
SCAN_BYTES = 15e6


def record_of(number: int) -> tuple[int, str]:
    """Zenodo's record and archive of a slice.

    Raises:
        ValueError: there is no such slice.
    """
    for numbers, record, archive in RECORDS:
        if number in numbers:
            return record, archive
    raise ValueError(f"--slice: there are slices 1 to 5000 and 5521 to 6370, got {number}")


@contextlib.contextmanager
def _archive(folder: Path, number: int) -> Iterator[zipfile.ZipFile]:
    """The archive that holds a slice: the one in the folder, or else the one on the server."""
    record, name = record_of(number)
    found = zenodo(record, folder)
    if (folder / name).is_file():
        try:
            with zipfile.ZipFile(folder / name) as archive:
                yield archive
        except zipfile.BadZipFile as error:
            raise ValueError(f"{folder / name}: {error}; delete it, or download it again") from error
    else:
        remote = next(iter(found.choose([name]).values()))
        with remote_zip(remote.url) as archive:
            yield archive


def download(folder: Path, number: int, mode: int) -> Path:
    """The folder with the four files of a scan; files that are there are not asked for again."""
    target = folder / f"slice{number:05d}" / f"mode{mode}"
    if all((target / name).is_file() for name in FILES):
        return target
    with _archive(folder, number) as archive:
        check_space(folder, int(SCAN_BYTES))
        inside = {"/".join(n.split("/")[-3:]): n for n in archive.namelist()}
        for name in FILES:
            member = f"slice{number:05d}/mode{mode}/{name}"
            extract(archive, inside.get(member, member), target / name)
    return target


def convert(folder: Path, number: int, *, views: int | None = None, size: int = 1024) -> Scan:
    """A scan from the four files of a slice and a mode.

    Args:
        folder: where sinogram.tif, dark.tif, flat1.tif and flat2.tif lie.
        number: of the slice, which says how the detector was mounted.
        views: number of views to keep, spread evenly; all 3600 by default.
        size: pixels along each side of the image.

    Returns:
        The scan, with unknown noise.

    Raises:
        ValueError: a file is missing, damaged or of another shape.

    Warns:
        UserWarning: some cells saw no light.
    """
    raw, dark, *white = (_cells(folder / name) for name in FILES)
    if any(field.shape != (1, raw.shape[1]) for field in (dark, *white)):
        raise ValueError(f"{folder}: expected fields of one row of {2 * raw.shape[1]} pixels, as wide as the sinogram")
    n_views, n = len(raw) - 1, raw.shape[1]
    if n_views < 1 or (views is not None and views > n_views):
        raise ValueError(f"{folder}: the sinogram has {n_views} views and the repeated one, {views} were asked for")
    kept = spread(n_views, views)
    y, _ = line_integrals(str(folder), raw[kept, None], np.stack(white), dark[None])
    cell_mm = 2 * PIXEL_MM
    # Data moved down by one cell: cell d + 1 lies where their geometry has cell d.
    offset_mm = -cell_mm if any(number in r for r in SHIFTED) else 0.0
    operator = full_turn(
        kept, n_views, n, cell_mm=cell_mm, offset_mm=offset_mm, source_origin_mm=SOURCE_ORIGIN_MM,
        source_detector_mm=SOURCE_DETECTOR_MM, size=size,
    )  # fmt: skip
    info = {"created_by": "data_scripts/two_detect.py", "source": f"2DeteCT slice {number}, {folder.name}"}
    return Scan(Problem(operator, torch.from_numpy(y[:, 0].astype(np.float32))), info=info, noise_known=False)


def _cells(path: Path) -> np.ndarray:
    """Counts of pairs of pixels, (rows, cells) float64."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture, dtype=np.float64)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as TIFF: {str(error)[:120]}") from error
    if pixels.ndim != 2 or pixels.shape[1] % 2:
        raise ValueError(f"{path}: expected rows of an even number of gray pixels, got the shape {pixels.shape}")
    return np.asarray(pixels[:, 0::2] + pixels[:, 1::2])


def main(argv: Sequence[str] | None = None) -> int:
    """Download, check, convert; returns the exit code, 2 for bad input."""
    p = parser(__doc__)
    p.add_argument(
        "--slice", type=count, action="append", metavar="K", help="number of a slice; may be repeated (4001)"
    )
    p.add_argument("--mode", type=int, choices=(1, 2, 3), default=2, help="(%(default)s)")
    p.add_argument("--views", type=count, metavar="N", help="keep N views, spread evenly (all 3600)")
    p.add_argument("--size", type=count, default=1024, metavar="N", help="image of N x N pixels (%(default)s)")
    a = p.parse_args(argv)
    return run("two_detect", lambda: _work(a))


def _work(a: argparse.Namespace) -> list[Path]:
    folder, numbers = a.out / "two_detect", a.slice or [4001]
    if a.limit is not None and len(numbers) * SCAN_BYTES / 1e9 > a.limit:
        raise ValueError(
            f"--limit: {len(numbers)} scans are {len(numbers) * SCAN_BYTES / 1e9:g} GB, more than {a.limit:g} GB"
        )
    paths = []
    for number in numbers:
        record = record_of(number)[0]
        views = "" if a.views is None else f"_{a.views}views"
        path = folder / f"slice{number:05d}_mode{a.mode}{views}_{a.size}px.h5"
        if not path.is_file():
            scan = convert(download(folder, number, a.mode), number, views=a.views, size=a.size)
            scan.info["licence"] = zenodo(record, folder).licence
            write_scan(path, scan)
        paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(main())
