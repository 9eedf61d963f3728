"""Low Dose CT Image and Projection Data of the Mayo Clinic: the projections, as scan files of a few parallel views.

    python data_scripts/ldct_projections.py --out data --dose full --patients 1 --views 23
    scoreinv reconstruct data/ldct_projections_full/train/L004_23views_256px.h5 --out L004.h5

The data: C. McCollough et al., LDCT-and-Projection-data, The Cancer Imaging Archive, doi:10.7937/9NPB-2637; heads, chests and abdomens of
299 patients at full dose, most also at a simulated lower one. A patient's projections are several GB, and twice that while they are
converted. The server states the licence of each series. Heads, and whatever else needs an account there, answer 401 or 403 and stop the
script: name the exams to take with --exam (C chest, L abdomen, N head: the first letter of the patient's name).

The projections (DICOM-CT-PD, Chen et al., Medical Physics 42, 2015, doi:10.1118/1.4935406) are helical, on several rows of a curved
detector, with a focal spot that moves from view to view. `scoreinv rebin` makes parallel views of single slices of them, by interpolation
(scoreinv/rebinning.py says how, and with which errors): line integrals of a patient that were measured, not simulated, but not as a
scanner of parallel beams would have measured them. The noise of neighbouring cells is a little correlated. Each file has --slices slices, spread
evenly; the images of the same patient (`ldct.py`) are the scanner's own reconstructions of all views.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import _tcia
import numpy as np
from _convert import write_converted
from _download import count
from ldct import COLLECTION, DOI

from scoreinv.files.ct_pd import read_projections
from scoreinv.rebinning import heights, rebin

SHAPING = ("slices", "views", "size")
"""Options that shape a file."""


def convert(archive: Path, path: Path, s: _tcia.Series, a: argparse.Namespace, about: dict[str, str]) -> None:
    """A scan file of a patient."""
    with _tcia.unpacked(archive, s) as (folder, sums, published):
        low, high = heights(read_projections(folder))
        z = [float(f"{v:.1f}") for v in np.linspace(low, high, a.slices + 2)[1:-1]]
        scan = rebin(folder, z, n_views=a.views, size=a.size)
    together = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    info = scan.info | about | {
        "created_by": "data_scripts/ldct_projections.py", "source": DOI, "series": s["SeriesInstanceUID"], "patient": s["PatientID"],
        "sha256_of_md5s": together, "md5_published": published,
    }  # fmt: skip
    write_converted(path, dataclasses.replace(scan, info=info), _tcia.shaped_by(a, SHAPING))


def main(argv: Sequence[str] | None = None) -> int:
    """Download, check, rebin; returns the exit code, 2 for bad input."""
    p = _tcia.tcia_parser(__doc__)
    p.add_argument("--dose", choices=("full", "low"), default="full", help="(%(default)s)")
    p.add_argument("--exam", default="CL", metavar="LETTERS", help="of C, L and N, see above (%(default)s)")
    p.add_argument("--slices", type=count, default=1, metavar="N", help="slices a patient, spread evenly (%(default)s)")
    p.add_argument("--views", type=count, default=23, metavar="N", help="views, evenly over 180 degrees (%(default)s)")
    p.add_argument(
        "--size", type=count, default=256, metavar="N", help="pixels along each side of the image (%(default)s)"
    )
    a = p.parse_args(argv)

    def wanted(series: _tcia.Series) -> bool:
        described = str(series.get("SeriesDescription") or "").strip().lower()
        return described == f"{a.dose} dose projections" and str(series["PatientID"])[:1] in set(a.exam.upper())

    script, suffix = f"ldct_projections_{a.dose}", f"_{a.views}views_{a.size}px"
    return _tcia.main(script, COLLECTION, DOI, wanted, a, convert, suffix, SHAPING)


if __name__ == "__main__":
    sys.exit(main())
