"""Which network denoises validation slices best after the same time of training, at about the same cost of an evaluation?

Every candidate is trained for as many steps as fit into the same number of minutes of processor time (the cosine schedule ends with them) with the
project's own training code, from the same seed, on 4 crops of 128 x 128 a step unless its name says otherwise. The time of a step is the
median of the first 25, in processor time, so that what else the machine does is not held against a candidate. What is compared is the denoising
PSNR of the averaged weights (range 2 on u = HU / 1000 in [-1, 1]) on the middle slices of validation patients. The candidates have
the size of ct-256-fast, so that a few minutes are a thousand steps and more: in the first few hundred every network learns the
mean alone, and a comparison that ends there says nothing. A candidate that diverges has no row. The committed
rows were made beside other work, which stretches processor time by up to a third: `plain` and `learned weighting` cost the same a
step and differ by 250 steps. Only "no attention", "wide at the top" (for its extra cost) and the losers by more than 1 dB at about
as many steps say something; seconds an evaluation are to be measured again on an idle machine.

    SCOREINV_DATA=/data python benchmarks/architecture_search.py --minutes 2 --out benchmarks/results

Rows are appended to architecture_search.csv as they come and are not computed again; architecture_search.md is made from them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from scoreinv.files.images import read_image_set
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.priors.run import validation_slices
from scoreinv.priors.training import TrainConfig, Trainer
from scoreinv.priors.validation import VALIDATION_SIGMAS, denoising_psnr

BASE: dict[str, Any] = {"widths": (32, 64, 96, 128), "block": "plain"}
CANDIDATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "wide at the top": ({"widths": (48, 64, 80, 128)}, {}),
    "residual (group normalisation)": ({"block": "residual"}, {}),
    "gated (depthwise), 2 blocks, learning rate 1e-4": ({"block": "gated", "blocks": 2}, {"lr": 1e-4}),
    "narrow and deep": ({"widths": (32, 48, 64, 128), "blocks": 2}, {}),
    "unshuffle 4": ({"widths": (64, 96, 128), "unshuffle": 4, "blocks": 2, "attention": (2,)}, {}),
    "unshuffle 1": ({"widths": (16, 32, 64, 96, 128), "unshuffle": 1, "attention": (4,)}, {}),
    "no attention": ({"attention": ()}, {}),
    "64 x 64 crops": ({}, {"crop": 64, "batch_size": 16}),
    "whole images": ({}, {"crop": 256, "batch_size": 1}),
    "learning rate 1e-3": ({}, {"lr": 1e-3}),
    "learning rate 2.5e-4": ({}, {"lr": 2.5e-4}),
    "learned weighting": ({}, {"weighting": "learned"}),
}
"""Name -> network settings that differ from BASE, training settings that differ from the defaults. Gated blocks, which have no
normalisation, diverge in bfloat16: at 5e-4 after 34 steps, at 1e-4 after 40."""
FIELDS = ("candidate", "parameters", "gflop", "seconds_256", "steps", *(f"psnr_{s:g}" for s in VALIDATION_SIGMAS))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--minutes", type=float, default=2.0, help="of processor time, for each candidate (%(default)s)")
    p.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES), metavar="NAME")
    p.add_argument("--bfloat16", action="store_true", help="train in bfloat16")
    a = p.parse_args()
    folder = Path(os.environ["SCOREINV_DATA"]) / "ct"
    data, held_out = read_image_set([folder / "train.h5"]), read_image_set([folder / "val.h5"])
    path = a.out / "architecture_search.csv"
    seen = {row["candidate"] for row in csv.DictReader(path.open())} if path.is_file() else set()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not seen:
            writer.writeheader()
        for name in a.only:
            if name in seen:
                continue
            network, training = CANDIDATES[name]
            config = UNetConfig(**{**BASE, **network})
            settings = {"batch_size": 4, "warmup": 200, "ema": (0.99,), "bfloat16": a.bfloat16, **training}
            try:
                trainer = trained(Trainer(config, TrainConfig(**settings), data), a.minutes)
            except FloatingPointError as error:
                print(f"{name}: {error}")
                continue
            average = trainer.averages[0].to(memory_format=torch.channels_last).eval()
            psnr = denoising_psnr(average, validation_slices(held_out, config.multiple))
            figures = (name, sum(t.numel() for t in average.parameters()), *cost(average), trainer.step, *psnr)
            writer.writerow(
                {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in zip(FIELDS, figures, strict=True)}
            )
            file.flush()
            print(figures)
    (a.out / "architecture_search.md").write_text(table(list(csv.DictReader(path.open())), a.minutes))


def trained(trainer: Trainer, minutes: float) -> Trainer:
    """After as many steps as fit into so many minutes of processor time at the usual pace of the first steps."""
    taken = []
    for _ in range(25):
        before = time.process_time()
        trainer.advance()
        taken.append(time.process_time() - before)
    trainer.config = dataclasses.replace(trainer.config, steps=round(60 * minutes / statistics.median(taken)))
    while trainer.step < trainer.config.steps:
        trainer.advance()
    return trainer


@torch.no_grad()
def cost(network: EDMDenoiser) -> tuple[float, float]:
    """GFLOP and seconds (fastest of 7, float32) of an evaluation at 256 x 256."""
    x, sigma = torch.randn(1, 1, 256, 256), torch.ones(1)
    with FlopCounterMode(display=False) as counter:
        network(x, sigma)
    taken = []
    for _ in range(7):
        started = time.perf_counter()
        network(x, sigma)
        taken.append(time.perf_counter() - started)
    return counter.get_total_flops() / 1e9, min(taken)


def table(rows: list[dict[str, str]], minutes: float) -> str:
    """The Markdown report, best mean PSNR first."""
    sigmas = [f"psnr_{s:g}" for s in VALIDATION_SIGMAS]

    def mean(row: dict[str, str]) -> float:
        return statistics.fmean(float(row[s]) for s in sigmas)

    lines = [
        f"# Architecture search: {minutes:g} minutes of training each",
        "",
        __doc__.split("\n\n")[1].replace("\n", " "),
        f"torch {torch.__version__}, {torch.get_num_threads()} threads. PSNR [dB] at each noise level (in u), best mean first.",
        "",
        "| candidate | million weights | GFLOP | s an evaluation | steps | mean | "
        + " | ".join(s.removeprefix("psnr_") for s in sigmas)
        + " |",
        "| --- " * (6 + len(sigmas)) + "|",
    ]
    for row in sorted(rows, key=mean, reverse=True):
        figures = " | ".join(f"{float(row[s]):.2f}" for s in sigmas)
        lines.append(
            f"| {row['candidate']} | {int(row['parameters']) / 1e6:.1f} | {float(row['gflop']):.1f} | {float(row['seconds_256']):.3f} "
            f"| {row['steps']} | {mean(row):.2f} | {figures} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
