"""Helsinki Tomography Challenge 2022: measured fan-beam scans of acrylic discs with holes, as scan files.

    python data_scripts/htc2022.py --out data --phantom ta --views 60 --size 256
    scoreinv reconstruct data/htc2022_ta_60views_256px.h5 --method fista_tv --picture ta.png

The data: A. Meaney, F. Silva de Moura, M. Juvonen, S. Siltanen, version 1.4.0, https://zenodo.org/records/8041800
(doi:10.5281/zenodo.8041800), licence CC BY 4.0. The archive of the teaching phantoms is downloaded into the folder, or
taken from there; its sinograms are corrected by dark and white fields, and logarithms are taken.

Geometry: the central slice of a cone beam on a flat detector, which is a fan beam; 721 views in steps of half a degree,
of which the last repeats the first and is left out. Angles and detector cells run as in scoreinv.operators.ct: the
authors' own reconstruction comes out with neither flip nor turn.

Hounsfield units are nominal: they refer to water at 70 keV, and at this tube's 45 kV acrylic attenuates 0.033 per mm,
1.7 times as much. It shows at about 700 HU.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _convert import is_converted, write_converted
from _download import fetch, parser, run, state_licence
from scipy.io import loadmat

from scoreinv.files.scan import Scan
from scoreinv.operators.ct import FanBeamCT
from scoreinv.problem import Problem

URL = "https://zenodo.org/records/8041800/files/htc2022_teaching_data.zip?download=1"
CHECKSUM = "md5:185a0ad518e4c6cd9c4153f6060ef327"
PHANTOMS = ("solid_disc", "ta", "tb", "tc", "td")
LICENCE = "CC BY 4.0, Meaney, Silva de Moura, Juvonen and Siltanen, doi:10.5281/zenodo.8041800"
FIELD_PIXELS = 512
"""Pixels along each side of the authors' reconstructions, each as wide as a detector cell seen at the axis."""


def member(phantom: str) -> str:
    """The file of a phantom inside the archive."""
    return f"htc2022_teaching_data/htc2022_{phantom}_full.mat"


def from_archive(archive: Path, phantom: str) -> io.BytesIO:
    """The MATLAB file of a phantom.

    Raises:
        ValueError: the archive does not hold it.
    """
    with zipfile.ZipFile(archive) as file:
        if member(phantom) not in file.namelist():
            raise ValueError(f"{archive}: holds no {member(phantom)}")
        return io.BytesIO(file.read(member(phantom)))


def convert(
    mat: Path | io.BytesIO,
    *,
    views: int | None = None,
    every: int = 1,
    arc_deg: float = 360.0,
    size: int = FIELD_PIXELS,
) -> Scan:
    """A scan from one of the challenge's MATLAB files.

    Args:
        mat: such a file.
        views: number of views to keep, spread evenly over the arc; all by default.
        every: take every so many views, instead of `views`.
        arc_deg: keep views from the first up to, but not at, this angle [degrees].
        size: pixels along each side of the image, which always covers the same 75.9 mm.

    Returns:
        The scan, with unknown noise.

    Raises:
        OSError: there is no such file.
        ValueError: the file is of another kind, or so many views are not there.
    """
    if isinstance(mat, Path):
        name, stream = mat.name, io.BytesIO(mat.read_bytes())
    else:
        name, stream = "the archive's file", mat
    data, parameters = _read(stream, name)
    angles = np.asarray(parameters["angles"], dtype=np.float64)
    sinogram = np.asarray(data, dtype=np.float32)
    if sinogram.ndim != 2 or angles.shape != sinogram.shape[:1]:
        raise ValueError(f"{name}: the sinogram has the shape {sinogram.shape}, expected ({angles.size} angles, cells)")
    kept = _choose(angles, views, every, arc_deg)
    if size < 1:
        raise ValueError(f"--size: expected at least 1 pixel, got {size}")
    source_origin_mm = float(parameters["distanceSourceOrigin"])
    operator = FanBeamCT(
        (size, size),
        np.deg2rad(angles[kept]),
        sinogram.shape[1],
        source_origin_mm,
        float(parameters["distanceSourceDetector"]) - source_origin_mm,
        float(parameters["effectivePixelSizePost"]) * FIELD_PIXELS / size,
        float(parameters["pixelSizePost"]),
    )
    info = {"created_by": "data_scripts/htc2022.py", "source": str(parameters["projectName"]), "licence": LICENCE}
    return Scan(Problem(operator, torch.from_numpy(sinogram[kept])), info=info, noise_known=False)


def _read(stream: io.BytesIO, name: str) -> tuple[Any, dict[str, Any]]:
    """Sinogram and parameters."""
    try:
        found = loadmat(stream, simplify_cells=True)["CtDataFull"]
        return found["sinogram"], found["parameters"]
    except Exception as error:  # scipy's reader has no exception of its own for damaged files
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: expected a MATLAB 5 file with the structure CtDataFull ({why})") from error


def _choose(angles: np.ndarray, views: int | None, every: int, arc_deg: float) -> np.ndarray:
    """Indices of the views to keep."""
    turned = angles - angles[0]
    inside = np.flatnonzero(turned < min(arc_deg, 360.0) - 1e-6)
    if len(inside) == 0:
        raise ValueError(f"--arc: expected more than 0 degrees, got {arc_deg:g}")
    for option, n in (("--views", views), ("--every", every)):
        if n is not None and not 1 <= n <= len(inside):
            raise ValueError(f"{option}: there are {len(inside)} views over {arc_deg:g} degrees, got {n}")
    return inside[::every] if views is None else inside[np.arange(views) * len(inside) // views]


def main(argv: Sequence[str] | None = None) -> int:
    """Download, check, convert; returns the exit code, 2 for bad input."""
    p = parser(__doc__)
    p.add_argument("--phantom", choices=PHANTOMS, default="ta", help="(%(default)s)")
    p.add_argument("--from", type=Path, dest="mat", metavar="FILE.mat", help="a MATLAB file, instead of the download")
    how_many = p.add_mutually_exclusive_group()
    how_many.add_argument("--views", type=int, metavar="N", help="keep N views, spread evenly (all)")
    how_many.add_argument("--every", type=int, default=1, metavar="K", help="keep every K-th view")
    p.add_argument("--arc", type=float, default=360.0, metavar="DEG", help="keep the first DEG degrees (%(default)g)")
    p.add_argument("--size", type=int, default=FIELD_PIXELS, metavar="N", help="image of N x N pixels (%(default)s)")
    a = p.parse_args(argv)
    return run("htc2022", lambda: _work(a))


def _work(a: argparse.Namespace) -> list[Path]:
    a.out.mkdir(parents=True, exist_ok=True)
    if a.mat is None:
        state_licence(a.out, "htc2022", LICENCE)
        archive = fetch(URL, a.out / "htc2022_teaching_data.zip", CHECKSUM, limit_gb=a.limit)
    mat = a.mat or from_archive(archive, a.phantom)
    scan = convert(mat, views=a.views, every=a.every, arc_deg=a.arc, size=a.size)
    source = a.mat.stem.removesuffix("_full") if a.mat else f"htc2022_{a.phantom}"
    arc = "" if a.arc >= 360 else f"_{a.arc:g}deg"
    path = a.out / f"{source}{arc}_{len(scan.problem.y)}views_{a.size}px.h5"
    options = {"views": a.views, "every": a.every, "arc": a.arc, "size": a.size}
    if a.mat or not is_converted(path, options):
        write_converted(path, scan, options)
    return [path]


if __name__ == "__main__":
    sys.exit(main())
