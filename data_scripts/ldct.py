"""Low Dose CT Image and Projection Data of the Mayo Clinic: the images, as training sets in Hounsfield units.

    python data_scripts/ldct.py --out data --dose full --patients 5
    python data_scripts/ldct.py --out data --dose low --patients 5

The data: C. McCollough et al., LDCT-and-Projection-data, The Cancer Imaging Archive, doi:10.7937/9NPB-2637; heads, chests
and abdomens of 299 patients at full dose, most also at a simulated lower one. The server states the licence of each series.
Heads, and whatever else needs an account there, answer 401 or 403 and stop the script: name the exams to take with
--exam (C chest, L abdomen, N head: the first letter of the patient's name).

Projections of the same patients become scan files by `ldct_projections.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import _tcia

COLLECTION = "LDCT-and-Projection-data"
DOI = "https://doi.org/10.7937/9NPB-2637"


def main(argv: Sequence[str] | None = None) -> int:
    """Download, check, convert; returns the exit code, 2 for bad input."""
    p = _tcia.images_parser(__doc__)
    p.add_argument("--dose", choices=("full", "low"), default="full", help="(%(default)s)")
    p.add_argument("--exam", default="CL", metavar="LETTERS", help="of C, L and N, see above (%(default)s)")
    a = p.parse_args(argv)

    def wanted(series: _tcia.Series) -> bool:
        described = str(series.get("SeriesDescription") or "").strip().lower()
        return described == f"{a.dose} dose images" and str(series["PatientID"])[:1] in set(a.exam.upper())

    return _tcia.main(f"ldct_{a.dose}", COLLECTION, DOI, wanted, a)


if __name__ == "__main__":
    sys.exit(main())
