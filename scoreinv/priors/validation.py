"""How well a prior denoises images that it has not seen, and the log of a training run."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoreinv.files.atomic import replacing

VALIDATION_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (1, 1, H, W), sigma (1,), pixel_mm (1,)) -> D."""


@dataclass(frozen=True, eq=False)
class Slice:
    """An image to check a network with.

    Attributes:
        u: (H, W) in HU / 1000, sides that the network takes.
        pixel_mm: side of a pixel [mm], NaN where unknown.
    """

    u: Tensor
    pixel_mm: float = math.nan


@torch.no_grad()
def denoising_psnr(
    network: Network, images: Sequence[Slice], sigmas: Sequence[float] = VALIDATION_SIGMAS
) -> list[float]:
    """PSNR of D(x₀ + σ n, σ) for each σ, mean over images; u clipped to [-1, 1], range 2; the same noise at every call.

    Args:
        network: the denoiser.
        images: clean slices.
        sigmas: noise levels in u.
    """
    out = []
    for sigma in sigmas:
        rng = torch.Generator().manual_seed(round(1e4 * sigma))
        total = 0.0
        for image in images:
            x0 = image.u
            noisy = x0 + sigma * torch.randn(x0.shape, generator=rng).to(x0)
            level, side = (torch.full((1,), v).to(x0) for v in (sigma, image.pixel_mm))
            estimate = network(noisy[None, None], level, side)[0, 0]
            mse = ((estimate.clamp(-1, 1) - x0.clamp(-1, 1)) ** 2).mean().item()
            total += 10 * math.log10(4 / max(mse, 1e-12))
        out.append(total / len(images))
    return out


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a training log, as text; none where there is no log yet."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_log(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the rows, whole or not at all; the columns are those of all rows together."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
