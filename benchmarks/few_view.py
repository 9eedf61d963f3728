"""How much better than FISTA-TV is a score prior at few views, patient by patient?

One middle slice of every validation patient (256 x 256), parallel beam, views spread evenly over 180 degrees, 363 detector
cells as wide as a pixel, data simulated with the operator that reconstructs ("linear" weights; noise-free data with that are an
inverse crime, as in the published tables), noise-free and with Gaussian noise relative to the mean of the data. PSNR (range 1.0)
and SSIM (Gaussian 11 x 11, sigma 1.5) on the window of -1000 to 1000 HU, of the mean of a method's samples. The rows of
`proximal` with earlier priors are of half-quadratic splitting (the default then, without multipliers), with the settings of their
time.

    SCOREINV_DATA=/data python benchmarks/few_view.py --out benchmarks/results

Rows are appended to few_view.csv as they come and are not computed again, priors are told apart by the checksum of their
weights; few_view.md is made from them. The Song samplers have 100 noise levels here (published: 1000) and constants found for
that number on two of the patients (benchmarks/results/song_tuning.csv; `song_exact` is a little better still with snr 0.5 on these two,
but fails on others: 19 dB).
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from pathlib import Path

import torch
from _data import slices

from scoreinv import configure, metrics
from scoreinv.files.scan import Scan
from scoreinv.operators import ParallelBeamCT, equispaced_angles
from scoreinv.priors.shipped import identity
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
    "song_faithful": {"n_levels": 100, "snr": 0.246, "lam": 1.0},
    "song_exact": {"n_levels": 100, "snr": 0.246, "lam": 0.7},
    DEFAULT: {},
}
FIELDS = ("patient", "relative_noise", "method", "weights", "psnr", "ssim", "chi2", "evaluations", "seconds")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--views", type=int, default=23)
    p.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.005])
    p.add_argument("--methods", nargs="+", default=list(METHODS))
    p.add_argument("--patients", type=int, help="the first so many only")
    p.add_argument("--prior", help="a shipped prior's name or a .safetensors file (the default prior)")
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "few_view.csv"
    done = list(csv.DictReader(path.open())) if path.is_file() else []
    seen = {(r["patient"], float(r["relative_noise"]), r["method"], r["weights"]) for r in done}
    checksum = identity(a.prior)["sha256"][:12]
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for method in a.methods:
            weights = checksum if configure.needs_prior(method) else ""
            for patient, pixel_mm, hu in slices(Path(os.environ["SCOREINV_DATA"]) / "ct" / "val.h5")[: a.patients]:
                A = ParallelBeamCT((256, 256), equispaced_angles(a.views), 363, pixel_mm, pixel_mm)
                for noise in a.noise:
                    if (patient, noise, method, weights) in seen:
                        continue
                    rng = torch.Generator().manual_seed(0)
                    scan = Scan(simulate(A, mu_from_hu(hu), rng, relative_noise=noise))
                    started = time.perf_counter()
                    result = reconstruct(scan, method, settings=METHODS[method], prior=a.prior if weights else None)
                    seconds = time.perf_counter() - started
                    psnr, ssim = scores(hu_from_mu(result.mean), hu)
                    evaluations = result.settings["network_evaluations_per_image"]
                    chi2 = float(metrics.chi_squared(scan.problem, result.mean))
                    row = (
                        patient,
                        noise,
                        method,
                        weights,
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
        for method, weights in methods(rows):
            mine = [r for r in at if (r["method"], r["weights"]) == (method, weights)]
            if mine:
                mean = {
                    k: statistics.fmean(float(r[k]) for r in mine) for k in ("psnr", "ssim", "evaluations", "seconds")
                }
                lines.append(
                    f"| {label(method, weights)} | {mean['psnr']:.2f} | {mean['ssim']:.3f} | {mean['evaluations']:g} | {len(mine)} | {mean['seconds']:.1f} |"
                )
        lines += ["", *gains(at), ""]
    return "\n".join(lines)


def methods(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Methods with the weights of their prior, in the order of METHODS, priors as they came."""
    found = dict.fromkeys((r["method"], r["weights"]) for r in rows)
    return sorted(found, key=lambda m: list(METHODS).index(m[0]))


def label(method: str, weights: str) -> str:
    return f"{method} (prior {weights})" if weights else method


def gains(rows: list[dict[str, str]]) -> list[str]:
    """What the default gains over the reference for each patient, with every prior that there is."""
    by: dict[tuple[str, str], dict[str, float]] = {}
    for r in rows:
        by.setdefault((r["method"], r["weights"]), {})[r["patient"]] = float(r["psnr"])
    rival = by.get((REFERENCE, ""), {})
    columns = [m for m in by if m[0] == DEFAULT]
    patients = sorted(p for p in rival if all(p in by[m] for m in columns))
    if not patients or not columns:
        return []
    lines = []
    for m in columns:
        gain = [by[m][p] - rival[p] for p in patients]
        lines.append(
            f"{label(*m)} minus {REFERENCE}: mean {statistics.fmean(gain):+.2f} dB, least {min(gain):+.2f} dB, "
            f"patients {len(gain)}"
        )
        lines.append("")
    lines.append("| patient | " + " | ".join([REFERENCE, *(label(*m) for m in columns)]) + " |")
    lines.append("| --- " * (len(columns) + 2) + "|")
    for p in patients:
        cells = [f"{by[m][p]:.2f} ({by[m][p] - rival[p]:+.2f})" for m in columns]
        lines.append(f"| {p} | {rival[p]:.2f} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
