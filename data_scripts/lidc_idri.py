"""LIDC-IDRI: chest CT of 1010 patients, as training sets in Hounsfield units.

    python data_scripts/lidc_idri.py --out data --patients 20 --slices 30 --bin 2
    scoreinv train data/lidc_idri/train/*.h5 --validation data/lidc_idri/val/*.h5 --out runs/mine

The data: S. G. Armato III et al., The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI),
The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0; 125 GB in all. Of every patient the CT series
with the most images is downloaded, checked against the server's MD5 sums, converted and deleted again. One patient is
one file, under train, val or test by a hash of the name (80, 10 and 10 %); what is there is not asked for again.

LoDoPaB-CT is made of these patients under other names: a prior trained here has seen the truth of LoDoPaB's tests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import _tcia

COLLECTION = "LIDC-IDRI"
DOI = "https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX"


def main(argv: Sequence[str] | None = None) -> int:
    """Download, check, convert; returns the exit code, 2 for bad input."""
    a = _tcia.images_parser(__doc__).parse_args(argv)
    return _tcia.main("lidc_idri", COLLECTION, DOI, lambda series: True, a)


if __name__ == "__main__":
    sys.exit(main())
