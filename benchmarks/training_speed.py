"""How fast does the network train, and how much of the machine's convolutions does that use?

Crops of 128 x 128 pixels, 8 a step, whole steps (images drawn, forward, backward, clipping, AdamW, averages) by the project's own
trainer on images of noise. The peak is the best of a few 3 x 3 convolutions of 64 to 256 channels in the same run, in the same
number format; a step counts three times the operations of an evaluation. Least and median times of the steps after the first
five; a machine shared with others disturbs the least times least.

    python benchmarks/training_speed.py --out benchmarks/results/training_speed.md
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from scoreinv.priors.crops import ImageSet
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.priors.training import TrainConfig, Trainer

PLAIN = UNetConfig()
RUNS: dict[str, tuple[UNetConfig, TrainConfig]] = {
    "group normalisation, float32": (dataclasses.replace(PLAIN, block="residual"), TrainConfig()),
    "group normalisation, bfloat16": (dataclasses.replace(PLAIN, block="residual"), TrainConfig(bfloat16=True)),
    "float32": (PLAIN, TrainConfig()),
    "bfloat16": (PLAIN, TrainConfig(bfloat16=True)),
    "bfloat16, torch.compile": (PLAIN, TrainConfig(bfloat16=True, compile=True)),
    "bfloat16, 16 crops a step": (PLAIN, TrainConfig(bfloat16=True, batch_size=16)),
    "bfloat16, recompute": (PLAIN, TrainConfig(bfloat16=True, recompute=True)),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, metavar="FILE.md")
    p.add_argument("--steps", type=int, default=15, help="timed steps (%(default)s)")
    p.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="NAME")
    a = p.parse_args()
    peaks = {bf16: peak(torch.bfloat16 if bf16 else torch.float32) for bf16 in (False, True)}
    lines = [
        "# Speed of training",
        "",
        __doc__.split("\n\n")[1].replace("\n", " "),
        "",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads. Peak of convolutions: {peaks[False]:.0f} GFLOP/s in float32, "
        f"{peaks[True]:.0f} in bfloat16.",
        "",
        "| run | GFLOP an image | images per second, best | median | share of the peak, best |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in a.only:
        network, config = RUNS[name]
        gflop, best, median = throughput(network, config, a.steps)
        lines.append(
            f"| {name} | {3 * gflop:.1f} | {best:.1f} | {median:.1f} | {3 * gflop * best / peaks[config.bfloat16]:.0%} |"
        )
        print(lines[-1], flush=True)
    if a.out:
        a.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def throughput(network: UNetConfig, config: TrainConfig, steps: int) -> tuple[float, float, float]:
    """GFLOP of an evaluation of one crop; images per second at the best and at the median step."""
    rng = np.random.default_rng(0)
    data = ImageSet([rng.normal(0, 300, (256, 256)).astype(np.int16) for _ in range(8)], list("abcdefgh"))
    trainer = Trainer(network, config, data)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        EDMDenoiser(network)(torch.zeros(1, 1, config.crop, config.crop), torch.ones(1))
    rates = []
    for k in range(steps + 5):
        trainer.advance()
        if k >= 5:
            rates.append(trainer.images_per_second)
    return counter.get_total_flops() / 1e9, max(rates), statistics.median(rates)


@torch.no_grad()
def peak(dtype: torch.dtype) -> float:
    """Best GFLOP/s of single convolutions."""
    best = 0.0
    for channels, side in ((64, 128), (128, 64), (192, 32), (256, 32)):
        x = torch.randn(8, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        seconds = fastest(lambda x=x, w=w: F.conv2d(x, w, padding=1))  # type: ignore[misc]
        best = max(best, 2 * 8 * channels**2 * 9 * side**2 / seconds / 1e9)
    return best


def fastest(call: Callable[[], object]) -> float:
    """Least seconds of 12 calls after two."""
    taken = []
    for _ in range(14):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return min(taken[2:])


if __name__ == "__main__":
    main()
