"""Which settings should `--fast`, `--best` and `--calibrated` stand for?

Middle slices of validation patients, 23 parallel views over 180 degrees, noise-free and with Gaussian noise of 0.5 % of the mean of
the data. At 128 x 128 the images are averaged over 2 x 2 pixels, for a quarter of the cost.

    SCOREINV_DATA=/data python benchmarks/presets.py --out benchmarks/results --side 128

Groups of candidates:

    presets      the default, and what the options stand for today (scoreinv/presets.py)
    evaluations  the image of `proximal` alone, against the number of network evaluations
    trust        `proximal` with more or less trust in the network, 8 draws
    calibrated   methods that draw, 8 draws

PSNR (range 1.0) on the window of -1000 to 1000 HU is that of the mean of M draws. On the tissue, pixels whose true value is above
-500 HU, three figures say how good draws are; draws from the posterior have 1, 90 % and the least, whatever M is: `ratio` is
sqrt(1 + 1/M) rms(std of the draws) / rms(error of their mean); `coverage` is the share of |error| <= t sqrt(1 + 1/M) std, with the
two-sided 90 % quantile t of Student's law with M - 1 degrees of freedom; CRPS is the fair one. chi^2 of a draw is about 1, too; for
noise-free data it stands for |A x - y| / |y|. `proximal` moves its draws so that their mean is its image, which has no error of a mean of M:
its ratio is too large by sqrt(1 + 1/M), and its CRPS, of draws that lie nearer to their mean than its own would, too small for small M, so
that only those of as many draws compare.

Rows are appended to presets.csv as they come and are not computed again; priors are told apart by the checksum of their weights.
presets.md is made from those rows that belong to today's candidates and defaults; the number of patients stands beside each.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _data import Slice, slices
from torch import Tensor

from scoreinv import metrics
from scoreinv.arguments import plain
from scoreinv.configure import default_settings, operator_for_image
from scoreinv.files.scan import Scan
from scoreinv.presets import PRESETS
from scoreinv.priors.shipped import identity
from scoreinv.problem import simulate
from scoreinv.reconstruction import reconstruct
from scoreinv.units import hu_from_mu, mu_from_hu

VIEWS, TISSUE_HU, LEVEL = 23, -500.0, 0.9
FIELDS = (
    "group", "name", "method", "settings", "weights", "side", "relative_noise", "patient",
    "psnr", "ratio", "coverage", "crps", "chi2", "chi2_draw", "evaluations", "seconds",
)  # fmt: skip
KEY = ("name", "method", "settings", "weights", "side", "relative_noise", "patient")
MEASURED = ("psnr", "ratio", "coverage", "crps", "chi2", "chi2_draw", "evaluations", "seconds")

HEADS = (
    "candidate", "method", "prior", "patients", "PSNR [dB]", "ratio", "coverage", "CRPS [HU]", "chi^2", "chi^2 of a draw",
    "evaluations", "s",
)  # fmt: skip
EXPLAINED = " ".join(__doc__.split("\n\n")[5].split())


class Candidate(NamedTuple):
    """A method and its settings, with the prior that it takes where none is named."""

    name: str
    method: str
    settings: Mapping[str, Any]
    prior: str | None = None

    @property
    def resolved(self) -> str:
        """All settings, defaults included, as they stand in the rows: those of other defaults are other rows."""
        return json.dumps(default_settings(self.method) | plain(self.settings))


def image(levels: int, relaxation: float = 1.9) -> Candidate:
    """The image of `proximal` alone."""
    settings = {"samples": 1, "n_levels": levels, "relaxation": relaxation}
    return Candidate(f"{levels} levels, relaxation {relaxation:g}", "proximal", settings)


def trusting(trust: float) -> Candidate:
    return Candidate(f"trust {trust:g}", "proximal", {"samples": 8, "trust": trust})


def drawing(levels: int, first: float) -> Candidate:
    """Draws of `proximal` around the same image."""
    settings = {"samples": 8, "draw_levels": levels, "draw_sigma": first}
    return Candidate(f"proximal, draws of {levels} levels from {first:g}", "proximal", settings)


GROUPS: dict[str, list[Candidate]] = {
    "presets": [
        Candidate("default", "proximal", {}),
        *(Candidate(name, p.method, p.settings, p.prior_name()) for name, p in PRESETS.items()),
    ],
    "evaluations": [
        *(image(n) for n in (5, 10, 15, 20, 30, 50)),
        image(20, 1.0),
    ],
    "trust": [trusting(t) for t in (1.0, 1.5, 2.0, 3.0)],
    "calibrated": [
        *(drawing(levels, first) for levels, first in ((8, 0.6), (10, 10.0), (20, 10.0))),
        Candidate(
            "DAPS", "daps",
            {"samples": 8, "n_levels": 30, "ode_steps": 1, "prior_std": 0.1, "sigma_max": 0.5, "iterations": 20},
        ),
    ],
}  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    p.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.005])
    p.add_argument("--patients", type=int, default=4, help="the first so many only")
    p.add_argument("--side", type=int, default=256, choices=[128, 256])
    p.add_argument("--prior", help="a shipped prior's name or a .safetensors file (the default prior)")
    p.add_argument("--names", nargs="+", help="these candidates alone")
    a = p.parse_args()
    path = a.out / "presets.csv"
    rows = list(csv.DictReader(path.open())) if path.is_file() else []
    seen = {tuple(r[k] for k in KEY) for r in rows}
    weights = {
        prior: identity(a.prior or prior)["sha256"][:12] for prior in {c.prior for g in GROUPS.values() for c in g}
    }
    images = slices(Path(os.environ["SCOREINV_DATA"]) / "ct" / "val.h5")[: a.patients]
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for group in a.groups:
            for c in GROUPS[group]:
                for s, noise in ((s, noise) for s in images for noise in a.noise):
                    key = (
                        c.name,
                        c.method,
                        c.resolved,
                        weights[c.prior],
                        str(a.side),
                        str(noise),
                        s.patient,
                    )
                    if key in seen or (a.names and c.name not in a.names):
                        continue
                    row = {"group": group} | dict(zip(KEY, key, strict=True)) | measure(c, s, noise, a)
                    writer.writerow(row)
                    file.flush()
                    rows.append({k: str(v) for k, v in row.items()})
                    print(group, *(row[k] for k in ("name", "relative_noise", "patient", *MEASURED)), flush=True)
    (a.out / "presets.md").write_text("\n".join(report(rows)))


def measure(c: Candidate, s: Slice, noise: float, a: argparse.Namespace) -> dict[str, str]:
    """One reconstruction and its figures."""
    k = len(s.hu) // a.side
    hu, pixel_mm = s.hu.unfold(0, k, k).unfold(1, k, k).mean((-1, -2)), k * s.pixel_mm
    A = operator_for_image("parallel_beam_ct", (a.side, a.side), pixel_mm, {"n_views": VIEWS})
    scan = Scan(simulate(A, mu_from_hu(hu), torch.Generator().manual_seed(0), relative_noise=noise))
    r = reconstruct(scan, c.method, settings=dict(c.settings), prior=a.prior or c.prior, calibrations=())
    draws = hu_from_mu(r.samples)
    found = {
        "psnr": f"{float(metrics.psnr(metrics.window(draws.mean(0)), metrics.window(hu), 1.0)):.3f}",
        "chi2": f"{float(metrics.chi_squared(scan.problem, r.mean)):.4g}",
        "chi2_draw": f"{float(metrics.chi_squared(scan.problem, r.samples).mean()):.4g}",
        "evaluations": f"{r.settings['network_evaluations_per_image']:g}",
        "seconds": f"{r.settings['seconds']:.1f}",
    }
    return found | (spread(draws, hu) if len(draws) > 1 else {"ratio": "", "coverage": "", "crps": ""})


def spread(draws: Tensor, truth: Tensor) -> dict[str, str]:
    """Are draws (M, H, W) as far from each other as from the truth (H, W)? [HU]"""
    tissue = truth > TISSUE_HU
    return {
        "ratio": f"{float(metrics.calibration_ratio(draws, truth, tissue)):.3f}",
        "coverage": f"{float(metrics.coverage_of_normal(draws, truth, tissue, LEVEL)):.3f}",
        "crps": f"{float(metrics.crps(draws, truth)[tissue].mean()):.3f}",
    }


def report(rows: list[dict[str, str]]) -> Iterator[str]:
    """A table for each group, size and noise level: means over patients, of today's candidates with every prior that there is."""
    yield from ("# Presets", "", " ".join(__doc__.split("\n\n")[1].split()), "", EXPLAINED, "")
    priors = list(dict.fromkeys(r["weights"] for r in rows))
    for group, side, noise in itertools.product(GROUPS, ("128", "256"), sorted({r["relative_noise"] for r in rows})):
        lines = []
        for c, prior in itertools.product(GROUPS[group], priors):
            key = (c.name, c.method, c.resolved, prior, side, noise)
            same = [r for r in rows if tuple(r[k] for k in KEY[:-1]) == key]
            if same:
                cells = [c.name, c.method, prior, str(len(same)), *(mean(same, k) for k in MEASURED)]
                lines.append(f"| {' | '.join(cells)} |")
        if lines:
            yield from (f"## {group}, {side} x {side}, noise {100 * float(noise):g} %", "", f"| {' | '.join(HEADS)} |")
            yield from ("| --- " * len(HEADS) + "|", *lines, "")


def mean(rows: list[dict[str, str]], field: str) -> str:
    values = [float(r[field]) for r in rows if r[field]]
    return f"{statistics.fmean(values):.4g}" if values else ""


if __name__ == "__main__":
    main()
