"""What does a finished run look like as a shipped prior?

Takes weights, card and log of a training run into the package and completes the card: the laws of a denoiser measured on middle
slices of validation patients (`scoreinv.testing.check_denoiser`, pixel size unknown to the network), the cost of an evaluation at 256 x 256,
the table of the architecture search, and a contact sheet of samples (made by `scoreinv sample`, see `--samples`). The log of the
slices before the run's own, where the package holds one, stays in front of it.

    SCOREINV_DATA=/data python benchmarks/ship_prior.py runs/mine --name ct-256 --samples docs/ct-256-samples.png
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from _data import middle_slices
from architecture_search import cost

from scoreinv.pictures import training_plot
from scoreinv.priors.checkpoint import load_prior, write_cards
from scoreinv.priors.denoiser import NetworkPrior
from scoreinv.priors.network import EDMDenoiser
from scoreinv.priors.validation import read_log, write_log
from scoreinv.testing import check_denoiser

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "scoreinv" / "priors" / "weights"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of the run")
    p.add_argument("--name", required=True, help="of the prior in the package")
    p.add_argument("--samples", type=Path, help="contact sheet of samples, for the card")
    p.add_argument("--search", type=Path, default=ROOT / "benchmarks" / "results" / "architecture_search.csv")
    p.add_argument("--patients", type=int, default=6, help="for the laws of a denoiser (%(default)s)")
    a = p.parse_args()
    model, card = load_prior(a.run / "prior.safetensors")
    target = WEIGHTS / f"{a.name}.safetensors"
    rows = joined(read_log(target.with_suffix(".csv")), read_log(a.run / "log.csv"), card["history"])
    shutil.copyfile(a.run / "prior.safetensors", target)
    write_log(target.with_suffix(".csv"), rows)
    plot = ROOT / "docs" / f"{a.name}-training.png"
    training_plot(plot, rows)
    gflop, seconds = cost(model.to(memory_format=torch.channels_last))
    pictures = {"Training": plot}
    if a.samples:
        pictures["Samples, and the training slice nearest to each"] = a.samples
    card |= {
        "cost": f"{gflop:.1f} GFLOP and {seconds:.3f} s an evaluation of 256 x 256 pixels in float32, {torch.get_num_threads()} threads",
        "laws of a denoiser": laws(model, a.patients),
        "pictures": {k: os.path.relpath(v.resolve(), WEIGHTS) for k, v in pictures.items()},
    }
    if a.search.is_file():
        with a.search.open() as file:
            card["architecture search"] = list(csv.DictReader(file))
    write_cards(target, card)
    print(target.with_suffix(".md").read_text())


def joined(
    earlier: list[dict[str, str]], mine: list[dict[str, str]], history: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """The log of the slices before the run's own, then that of the run, counted on."""
    first = max(k for k, h in enumerate(history) if h["from_step"] == 0)
    steps = sum(h["to_step"] - h["from_step"] for h in history[:first])
    hours = sum(h["hours"] for h in history[:first])
    later = [{**r, "step": str(int(r["step"]) + steps), "hours": f"{float(r['hours']) + hours:.5g}"} for r in mine]
    return [row for row in earlier if int(row["step"]) <= steps] + later


def laws(model: EDMDenoiser, patients: int) -> list[dict[str, str]]:
    """A row a noise level, for the card."""
    images = torch.stack([s.hu for s in middle_slices(Path(os.environ["SCOREINV_DATA"]) / "ct" / "val.h5")[:patients]])
    report = check_denoiser(NetworkPrior(model), images / 1000)
    print(report)
    return [
        {**{k: f"{v:.3g}" for k, v in dataclasses.asdict(f).items()}, "calibration": f"{f.calibration:.3g}"}
        for f in report.figures
    ]


if __name__ == "__main__":
    main()
