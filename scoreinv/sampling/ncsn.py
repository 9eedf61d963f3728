"""The five techniques of NCSNv2, which find the settings of annealed Langevin dynamics (Song, Ermon 2020, arXiv:2006.09011).

D here is the number of pixels, γ the ratio of two neighbouring levels, e = ε / σ_L² the step size, T the steps a level.

    1   σ_1 = the largest distance between two training images
    2   γ such that the shells ‖x‖ = N(√D σ, σ² / 2) of neighbouring levels overlap by half:
        Φ(√(2D) (γ − 1) + 3 γ) − Φ(√(2D) (γ − 1) − 3 γ) ≈ 0.5                                                          (1)
    3   one network s(x) without a label for all levels, S(x, σ) = s(x) / σ
    4   T as the budget allows, and e such that a level leaves the variance that it should, relative to its own,
        (1 − e)^(2T) (γ² − q) + q ≈ 1,   q = 2 e / (1 − (1 − e)²)                                                      (2)
    5   an exponential moving average of the weights (`ema` of `priors.training.TrainConfig`; the paper's is 0.999)

At the paper's settings for CIFAR-10 (D = 3072, σ from 50 to 0.01 in 232 levels, ε = 6.2e-6, T = 5), (1) is 0.567 and (2)
is 1.055.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor
from torch.special import ndtr

from scoreinv.priors.adapters.parametrisation import Parametrised
from scoreinv.sampling.langevin import AnnealedLangevin
from scoreinv.sampling.levels import geometric
from scoreinv.sampling.processes import VE


def largest_distance(images: Tensor) -> float:
    """Technique 1: the largest Euclidean distance between two of the images (n, *image_shape), n of at least 2."""
    if len(images) < 2:
        raise ValueError(f"largest_distance: expected at least 2 images, got {len(images)}")
    flat = images.double().flatten(1)
    return max(
        float(torch.cdist(part, flat, compute_mode="donot_use_mm_for_euclid_dist").max())
        for part in torch.split(flat, 256)
    )


def overlap(ratio: float, n_pixels: int) -> float:
    """Technique 2: eq. (1) for a ratio of neighbouring levels, at least 1."""
    along = math.sqrt(2 * n_pixels) * (ratio - 1)
    above, below = ndtr(torch.tensor([along + 3 * ratio, along - 3 * ratio], dtype=torch.float64)).tolist()
    return float(above - below)


def n_levels(n_pixels: int, sigma_min: float, sigma_max: float, wanted: float = 0.5) -> int:
    """Technique 2: how many levels in equal ratios make neighbours overlap by as much as is wanted, or more.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max, or the overlap is not within (0, 1).
    """
    if not (0 < sigma_min < sigma_max and 0 < wanted < 1):
        raise ValueError(
            f"n_levels: expected 0 < sigma_min < sigma_max and an overlap in (0, 1), got {sigma_min}, {sigma_max} and {wanted}"
        )
    end = 1 + 6.0 / math.sqrt(2 * n_pixels)
    while overlap(end, n_pixels) > wanted:  # few pixels: shells are as wide as they are far
        end = 1 + 2 * (end - 1)
        if end > 1e6:
            return 2
    ratio = brentq(lambda ratio: overlap(ratio, n_pixels) - wanted, 1.0, end)
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(ratio))


def unconditional(
    network: Callable[[Tensor], Tensor], sigma_min: float = 0.01, sigma_max: float = 50.0
) -> Parametrised:
    """Technique 3: the prior of a network s(x) that is not told the level.

    Args:
        network: (batch, C, H, W) -> the same.
        sigma_min, sigma_max: the levels of its training.
    """
    return Parametrised(_Unlabelled(network), VE(sigma_min, sigma_max), "epsilon")


class _Unlabelled(torch.nn.Module):
    """−s as a network of ε with a label; a module, so that the dtype of s's weights is seen."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return -self.network(x)


def variance_ratio(step_size: float, ratio: float, n_steps: int) -> float:
    """Technique 4: eq. (2), the variance after n_steps at a level relative to the level's, for data in one point."""
    q = 2 * step_size / (1 - (1 - step_size) ** 2)
    return float((1 - step_size) ** (2 * n_steps) * (ratio**2 - q) + q)


def best_step_size(ratio: float, n_steps: int) -> float:
    """Technique 4: the step size in (0, 1) that makes eq. (2) nearest to 1."""
    grid = torch.linspace(0, 1, 1002, dtype=torch.float64)[1:-1].tolist()

    def miss(e: float) -> float:
        return abs(variance_ratio(e, ratio, n_steps) - 1)

    best = min(grid, key=miss)
    found = minimize_scalar(
        miss, bounds=(max(best - 1e-3, 1e-9), best + 1e-3), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x)


def settings(n_pixels: int, sigma_min: float, sigma_max: float, n_steps: int = 5) -> tuple[Tensor, AnnealedLangevin]:
    """Levels and step by techniques 2 and 4, for images of n_pixels (channels counted): what `sampling.loop.sample` takes."""
    levels = geometric(n_levels(n_pixels, sigma_min, sigma_max), sigma_min, sigma_max)
    return levels, AnnealedLangevin(best_step_size(float(levels[0] / levels[1]), n_steps), n_steps)
