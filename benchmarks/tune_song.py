"""Which step size and which pull to the data suit the Song samplers at 100 noise levels?

The published constants (snr 0.246, lam 0.841) belong to 1000 levels and another prior. Here both samplers run on the middle slices
of two validation patients, 23 parallel views, noise-free, over a grid; PSNR (range 1.0) on the window of -1000 to 1000 HU.

    SCOREINV_DATA=/data python benchmarks/tune_song.py --out benchmarks/results

Rows are appended to song_tuning.csv as they come and are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
from pathlib import Path

import torch
from _data import slices

from scoreinv.files.scan import Scan
from scoreinv.operators import ParallelBeamCT, equispaced_angles
from scoreinv.priors.shipped import identity
from scoreinv.problem import simulate
from scoreinv.reconstruction import reconstruct
from scoreinv.report import scores
from scoreinv.units import hu_from_mu, mu_from_hu

PATIENTS = ("LIDC-IDRI-0001", "TCGA-60-2715")
LEVELS = 100
FIELDS = ("method", "weights", "snr", "lam", "patient", "psnr")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--methods", nargs="+", default=["song_exact", "song_faithful"])
    p.add_argument("--snr", type=float, nargs="+", default=[0.05, 0.1, 0.16, 0.246, 0.35, 0.5])
    p.add_argument("--lam", type=float, nargs="+", default=[0.4, 0.7, 0.841, 1.0])
    a = p.parse_args()
    path = a.out / "song_tuning.csv"
    rows = list(csv.DictReader(path.open())) if path.is_file() else []
    seen = {(r["method"], r["weights"], float(r["snr"]), float(r["lam"]), r["patient"]) for r in rows}
    images = [s for s in slices(Path(os.environ["SCOREINV_DATA"]) / "ct" / "val.h5") if s.patient in PATIENTS]
    weights = identity()["sha256"][:12]
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for method, snr, lam, s in itertools.product(a.methods, a.snr, a.lam, images):
            if (method, weights, snr, lam, s.patient) in seen:
                continue
            A = ParallelBeamCT((256, 256), equispaced_angles(23), 363, s.pixel_mm, s.pixel_mm)
            scan = Scan(simulate(A, mu_from_hu(s.hu), torch.Generator().manual_seed(0)))
            result = reconstruct(scan, method, settings={"n_levels": LEVELS, "snr": snr, "lam": lam})
            psnr, _ = scores(hu_from_mu(result.mean), s.hu)
            row = (method, weights, snr, lam, s.patient, f"{psnr:.3f}")
            writer.writerow(dict(zip(FIELDS, row, strict=True)))
            file.flush()
            print(*row, flush=True)


if __name__ == "__main__":
    main()
