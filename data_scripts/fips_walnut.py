"""Walnut of the Finnish Inverse Problems Society: a measured fan-beam scan of 1200 views, as a scan file.

    python data_scripts/fips_walnut.py --out data --views 120 --size 512
    scoreinv reconstruct data/fips_walnut_120views_512px.h5 --method fista_tv --out walnut.h5

The data: K. Hämäläinen, L. Harhanen, A. Kallonen, A. Kujanpää, E. Niemi and S. Siltanen, Tomographic X-ray data of a walnut,
arXiv:1502.04064, https://zenodo.org/records/1254206 (doi:10.5281/zenodo.1254206). FullSizeSinograms.mat holds
`sinogram1200`, (2296 cells, 1200 views) intensities, the central row of a cone beam, views in steps of 0.3 degrees.

Intensities are divided by that of air, the mean over 100 cells at either edge of each view. Source to axis 110 mm, source
to detector 300 mm, cells of 0.05 mm, as others reconstruct it (odl/contrib/datasets/ct/fips.py among them). Their values of the
axis differ, and the file says neither where it is nor in which order cells run, so both are found from the data:
a ray and its reverse measure the same line, y(θ, u) = y(θ + π - 2 atan(u / D), -u) with u counted from the axis. The image
may be mirrored, as the sense of rotation is not told; HU are nominal, the noise is unknown.

Other data of the society are left out: for the lotus root no two sources agree on the width of a cell.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from _convert import full_turn, spread
from _download import count, fetch, parser, run, zenodo
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter1d, map_coordinates

from scoreinv.files.scan import Scan, write_scan
from scoreinv.problem import Problem

RECORD, FILE = 1254206, "FullSizeSinograms.mat"
SOURCE_ORIGIN_MM, SOURCE_DETECTOR_MM, CELL_MM = 110.0, 300.0, 0.05
EDGE = 100
"""Cells at either edge of the detector that see only air."""


def convert(
    mat: Path,
    *,
    views: int | None = None,
    size: int = 1024,
    cell_mm: float = CELL_MM,
    edge: int = EDGE,
) -> Scan:
    """A scan from FullSizeSinograms.mat.

    Args:
        mat: the file.
        views: number of views to keep, spread evenly; all by default. The axis is found from all.
        size: pixels along each side of the image, the disc that every view sees whole.
        cell_mm: width of a cell [mm].
        edge: cells at either edge that see only air.

    Raises:
        OSError: there is no such file.
        ValueError: the file is of another kind, or so many views are not there.
    """
    y = _line_integrals(mat, edge)
    n_views, n = y.shape
    if views is not None and views > n_views:
        raise ValueError(f"--views: there are {n_views} views, got {views}")
    offset_mm, reversed_cells = find_axis(y, SOURCE_DETECTOR_MM, cell_mm)
    kept = spread(n_views, views)
    taken = y[kept, ::-1] if reversed_cells else y[kept]
    operator = full_turn(
        kept, n_views, n, cell_mm=cell_mm, offset_mm=offset_mm, source_origin_mm=SOURCE_ORIGIN_MM,
        source_detector_mm=SOURCE_DETECTOR_MM, size=size,
    )  # fmt: skip
    info = {
        "created_by": "data_scripts/fips_walnut.py", "source": f"{mat.name} of doi:10.5281/zenodo.{RECORD}",
        "axis": "found from the data", "cells_reversed": reversed_cells,
    }  # fmt: skip
    data = torch.from_numpy(np.ascontiguousarray(taken, dtype=np.float32))
    return Scan(Problem(operator, data), info=info, noise_known=False)


def _line_integrals(mat: Path, edge: int) -> np.ndarray:
    """-ln of intensities relative to air, (views, cells) float64."""
    if not mat.is_file():
        raise FileNotFoundError(f"{mat}: no such file")
    try:
        found = loadmat(mat, appendmat=False, variable_names=["sinogram1200"])["sinogram1200"]
        intensity = np.asarray(found, dtype=np.float64).T
    except Exception as error:  # scipy's reader has no exception of its own for damaged files
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{mat.name}: expected a MATLAB 5 file with sinogram1200 ({why})") from error
    if intensity.ndim != 2 or intensity.shape[1] <= 2 * edge or not (intensity > 0).all():
        raise ValueError(
            f"{mat.name}: expected positive intensities of more than {2 * edge} cells, got {intensity.T.shape}"
        )
    air = np.concatenate([intensity[:, :edge], intensity[:, -edge:]], axis=1).mean(axis=1, keepdims=True)
    return np.asarray(-np.log(intensity / air))


def find_axis(y: np.ndarray, source_detector_mm: float, cell_mm: float) -> tuple[float, bool]:
    """Where the rotation axis of a full fan-beam scan falls on a flat detector, and whether its cells run the other way.

    Args:
        y: (views, cells) line integrals over a whole turn, evenly spaced.
        source_detector_mm: distance of the source from the detector [mm].
        cell_mm: width of a cell [mm].

    Returns:
        The operator's detector_offset_mm [mm] for the order of cells that fits better, and whether that is the reverse
        of the one given.
    """
    # Interpolation averages white noise, most halfway between cells, and would draw the axis there.
    smooth = gaussian_filter1d(y, 2.0, axis=1)
    # Coarsely first: the mismatch has many minima for fine structures, few for the outline.
    found = []
    for reverse in (False, True):
        z = smooth[:, ::-1] if reverse else smooth
        centre, reach = 0.0, y.shape[1] / 20
        while reach > 0.02:
            tried = centre + reach * np.linspace(-1, 1, 21)
            errors = [_mismatch(z, source_detector_mm, cell_mm, t) for t in tried]
            centre, reach = float(tried[int(np.argmin(errors))]), reach / 8
        found.append((min(errors), centre * cell_mm, reverse))
    _, offset_mm, reverse = min(found)
    return offset_mm, reverse


def _mismatch(y: np.ndarray, source_detector_mm: float, cell_mm: float, offset: float, most: int = 60) -> float:
    """Mean square of y(θ, u) - y(θ + π - 2 γ, -u) over a grid of rays, for an offset of the detector in cells."""
    n_views, n = y.shape
    k = spread(n_views, most)[:, None]
    d = np.arange(0, n, max(1, n // 256))[None]
    u = d - (n - 1) / 2 + offset
    gamma = np.arctan(u * cell_mm / source_detector_mm)
    views = (k + n_views * (0.5 - gamma / math.pi)) % n_views
    cells = np.broadcast_to((n - 1) / 2 - offset - u, views.shape)
    inside = ((cells >= 0) & (cells <= n - 1))[0]
    turn = np.concatenate([y, y[:1]])  # so that what lies between the last view and the first is interpolated
    other = map_coordinates(turn, [views[:, inside], cells[:, inside]], order=1)
    return float(np.mean((y[k, d[:, inside]] - other) ** 2))


def main(argv: Sequence[str] | None = None) -> int:
    """Download, check, convert; returns the exit code, 2 for bad input."""
    p = parser(__doc__)
    p.add_argument("--views", type=count, metavar="N", help="keep N views, spread evenly (all 1200)")
    p.add_argument("--size", type=count, default=1024, metavar="N", help="image of N x N pixels (%(default)s)")
    a = p.parse_args(argv)
    return run("fips_walnut", lambda: _work(a))


def _work(a: argparse.Namespace) -> list[Path]:
    path: Path = a.out / f"fips_walnut{'' if a.views is None else f'_{a.views}views'}_{a.size}px.h5"
    if not path.is_file():
        record = zenodo(RECORD, a.out)
        remote = record.choose([FILE], a.limit)[FILE]
        mat = fetch(remote.url, a.out / FILE, remote.checksum, remote.size)
        scan = convert(mat, views=a.views, size=a.size)
        scan.info["licence"] = record.licence
        write_scan(path, scan)
    return [path]


if __name__ == "__main__":
    sys.exit(main())
