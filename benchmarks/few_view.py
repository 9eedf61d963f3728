"""How much better than FISTA-TV is a score prior at few views, patient by patient?

One middle slice of every validation patient (256 x 256), parallel beam, views spread evenly over 180 degrees, 363 detector
cells as wide as a pixel, data simulated with the operator that reconstructs ("linear" weights; noise-free data with that are an
inverse crime, as in the published tables), noise-free and with Gaussian noise relative to the mean of the data. PSNR (range 1.0)
and SSIM (Gaussian 11 x 11, sigma 1.5) on the window of -1000 to 1000 HU, of the mean of a method's samples.

    SCOREINV_DATA=/data python benchmarks/few_view.py --out benchmarks/results

Rows are appended to few_view.csv as they come and are not computed again; few_view.md is made from them.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from scoreinv import metrics
from scoreinv.files.scan import Scan
from scoreinv.operators import ParallelBeamCT, equispaced_angles
from scoreinv.problem import simulate
from scoreinv.reconstruction import reconstruct
from scoreinv.report import scores
from scoreinv.units import hu_from_mu, mu_from_hu

REFERENCE, DEFAULT = "fista_tv", "proximal"
METHODS: dict[str, dict[str, object]] = {
    "fbp": {},
    "sirt": {},
    "cgls": {},
    "fista_wavelet": {},
    REFERENCE: {},
    "song_faithful": {},
    "song_exact": {},
    DEFAULT: {},
}
FIELDS = ("patient", "relative_noise", "method", "psnr", "ssim", "chi2", "evaluations", "seconds")


def slices(path: Path) -> list[tuple[str, float, torch.Tensor]]:
    """(patient, pixel [mm], HU) of the middle slice of every patient."""
    with h5py.File(path) as file:
        names = [name.decode() for name in file["patient"][:]]
        chosen = [[i for i, n in enumerate(names) if n == patient] for patient in sorted(set(names))]
        middle = [index[len(index) // 2] for index in chosen]
        return [
            (names[i], float(file["pixel_mm"][i]), torch.from_numpy(file["hu"][i].astype(np.float32))) for i in middle
        ]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--views", type=int, default=23)
    p.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.005])
    p.add_argument("--methods", nargs="+", default=list(METHODS))
    p.add_argument("--patients", type=int, help="the first so many only")
    p.add_argument(
        "--song-levels", type=int, default=100, help="noise levels of the two Song samplers (published: 1000)"
    )
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "few_view.csv"
    done = list(csv.DictReader(path.open())) if path.is_file() else []
    seen = {(r["patient"], float(r["relative_noise"]), r["method"]) for r in done}
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        for method in a.methods:
            settings = {"n_levels": a.song_levels} if method.startswith("song") else METHODS[method]
            for patient, pixel_mm, hu in slices(Path(os.environ["SCOREINV_DATA"]) / "ct" / "val.h5")[: a.patients]:
                A = ParallelBeamCT((256, 256), equispaced_angles(a.views), 363, pixel_mm, pixel_mm)
                for noise in a.noise:
                    if (patient, noise, method) in seen:
                        continue
                    rng = torch.Generator().manual_seed(0)
                    scan = Scan(simulate(A, mu_from_hu(hu), rng, relative_noise=noise))
                    started = time.perf_counter()
                    result = reconstruct(scan, method, settings=settings)
                    seconds = time.perf_counter() - started
                    psnr, ssim = scores(hu_from_mu(result.mean), hu)
                    evaluations = result.settings["network_evaluations_per_image"]
                    chi2 = float(metrics.chi_squared(scan.problem, result.mean))
                    row = (
                        patient,
                        noise,
                        method,
                        f"{psnr:.3f}",
                        f"{ssim:.4f}",
                        f"{chi2:.4g}",
                        evaluations,
                        f"{seconds:.1f}",
                    )
                    writer.writerow(dict(zip(FIELDS, row, strict=True)))
                    file.flush()
                    print(*row)
    (a.out / "few_view.md").write_text(table(list(csv.DictReader(path.open())), a))
    print((a.out / "few_view.md").read_text())


def table(rows: list[dict[str, str]], a: argparse.Namespace) -> str:
    """The Markdown report: one table a noise level, then the default against the reference, patient by patient."""
    lines = [
        f"# {a.views} parallel views, 256 x 256, validation patients",
        "",
        __doc__.split("\n\n")[1].replace("\n", " "),
        "",
    ]
    for noise in a.noise:
        at = [r for r in rows if float(r["relative_noise"]) == noise]
        lines += [f"## Noise {100 * noise:g} % of the mean of the data", ""]
        lines += [
            "| method | PSNR [dB] | SSIM | evaluations | patients | s an image |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for method in METHODS:
            mine = [r for r in at if r["method"] == method]
            if mine:
                mean = {
                    k: statistics.fmean(float(r[k]) for r in mine) for k in ("psnr", "ssim", "evaluations", "seconds")
                }
                lines.append(
                    f"| {method} | {mean['psnr']:.2f} | {mean['ssim']:.3f} | {mean['evaluations']:g} | {len(mine)} | {mean['seconds']:.1f} |"
                )
        lines += ["", *gains(at), ""]
    return "\n".join(lines)


def gains(rows: list[dict[str, str]]) -> list[str]:
    """What the default gains over the reference for each patient."""
    by = {(r["patient"], r["method"]): float(r["psnr"]) for r in rows}
    patients = sorted({p for p, m in by if (p, DEFAULT) in by and (p, REFERENCE) in by})
    if not patients:
        return []
    gain = [by[p, DEFAULT] - by[p, REFERENCE] for p in patients]
    lines = [
        f"{DEFAULT} minus {REFERENCE}: mean {statistics.fmean(gain):+.2f} dB, least {min(gain):+.2f} dB, patients {len(gain)}",
        "",
    ]
    lines += [f"| patient | {REFERENCE} | {DEFAULT} | gain |", "| --- | --- | --- | --- |"]
    return lines + [
        f"| {p} | {by[p, REFERENCE]:.2f} | {by[p, DEFAULT]:.2f} | {g:+.2f} |"
        for p, g in zip(patients, gain, strict=True)
    ]


if __name__ == "__main__":
    main()
