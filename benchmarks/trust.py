"""How far should the default trust the data beyond their noise level?

`proximal` gives the network's estimate an error of trust · σ. A trust of 1 is exact for a Gaussian prior; a network is further off than its
noise level says, and what counts as truth here has noise of its own. Middle slices of validation patients, averaged over 2 x 2 pixels to
128 x 128, the quick prior ct-256-fast, the image alone in 20 evaluations. PSNR [dB] (range 1.0) on the window of -1000 to 1000 HU and,
in brackets, chi^2 of the data: means over patients.

    SCOREINV_DATA=/data python benchmarks/trust.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

import torch
from _data import slices
from _problems import PROBLEMS, Setting, reduced

from scoreinv import metrics
from scoreinv.posterior.proximal import Proximal
from scoreinv.priors.shipped import ct_prior, identity
from scoreinv.report import scores
from scoreinv.units import hu_from_mu

TRUSTS = (1.0, 1.5, 1.75, 2.0, 3.0)
SETTINGS = [
    PROBLEMS["few_view"],
    Setting("23 views, 2 % noise", 23, 180.0, relative_noise=0.02),
    Setting("60 views, 2 % noise", 60, 180.0, relative_noise=0.02),
    PROBLEMS["low_dose"],
    Setting("180 views, 0.5 % noise", 180, 180.0, relative_noise=0.005),
    Setting("180 views, 2 % noise", 180, 180.0, relative_noise=0.02),
]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--patients", type=int, default=4, help="the first so many (%(default)s)")
    p.add_argument("--prior", default="ct-256-fast", help="a shipped prior's name or a .safetensors file (%(default)s)")
    a = p.parse_args()
    images = [reduced(s, 128) for s in slices(Path(os.environ["SCOREINV_DATA"]) / "ct" / "val.h5")[: a.patients]]
    lines = [
        "# Trust of the default", "", " ".join(__doc__.split("\n\n")[1].split()), "",
        f"{len(images)} patients, prior {identity(a.prior)['sha256'][:12]}.", "",
        f"| | {' | '.join(f'{t:g}' for t in TRUSTS)} |", "| --- " * (len(TRUSTS) + 1) + "|",
    ]  # fmt: skip
    for setting in SETTINGS:
        cells = []
        for trust in TRUSTS:
            found = []
            for image in images:
                problem = setting.problem(image)
                prior = ct_prior(a.prior, pixel_mm=image.pixel_mm)
                x = Proximal(prior, samples=1, n_levels=20, trust=trust)(problem, torch.Generator())[0]
                found.append((scores(hu_from_mu(x), image.hu)[0], float(metrics.chi_squared(problem, x))))
            psnr, chi2 = (statistics.fmean(f) for f in zip(*found, strict=True))
            cells.append(f"{psnr:.2f} ({chi2:.2f})")
        lines.append(f"| {setting.title} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    (a.out / "trust.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
