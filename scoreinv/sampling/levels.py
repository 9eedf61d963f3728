"""Noise levels: decreasing sequences σ_0 = σ_max > ... > σ_{n-1} = σ_min > σ_n = 0 that a sampler walks down.

n is the number of steps; all but the last go from one positive level to the next, the last goes from σ_min to 0. Leave
it out with `levels[:-1]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoreinv.sampling.discrete import DiscreteVP
from scoreinv.sampling.processes import Process


def geometric(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Equal ratios: the variance-exploding schedule of Song et al. 2021 (arXiv:2011.13456, eq. 9), then 0.

    Args:
        n: number of positive levels.
        sigma_min: the last of them, in the unit of the images.
        sigma_max: the first.

    Returns:
        (n + 1,) in float64.
    """
    _check("geometric", n, sigma_min, sigma_max)
    fraction = torch.linspace(0, 1, n, dtype=torch.float64)
    return _with_zero(sigma_max * (sigma_min / sigma_max) ** fraction)


def karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Equal steps in σ^(1/ρ), Karras et al. 2022 (arXiv:2206.00364, eq. 5), then 0; ρ → ∞ gives `geometric`.

    Args:
        n: number of positive levels.
        sigma_min: the last of them, in the unit of the images.
        sigma_max: the first.
        rho: larger values put more levels near sigma_min.

    Returns:
        (n + 1,) in float64.
    """
    _check("karras", n, sigma_min, sigma_max)
    if rho <= 0:
        raise ValueError(f"karras: rho must be positive, got {rho}")
    fraction = torch.linspace(0, 1, n, dtype=torch.float64)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _with_zero((first + fraction * (last - first)) ** rho)


def in_time(n: int, process: Process) -> Tensor:
    """Levels of a process equally spaced in its time, from t_max to t_min (Song et al. 2021, arXiv:2011.13456), then 0.

    Returns:
        (n + 1,) in float64, in the unit of the process.
    """
    if n < 1:
        raise ValueError(f"in_time: expected at least one level, got n = {n}")
    return _with_zero(process.sigma(torch.linspace(process.t_max, process.t_min, n, dtype=torch.float64)))


def respaced(n: int, chain: DiscreteVP) -> Tensor:
    """Every (N / n)-th level of a chain of N steps, its smallest among them, then 0 (DDIM: Song, Meng, Ermon 2020).

    Returns:
        (n + 1,) in float64, in the unit of the chain.

    Raises:
        ValueError: the chain has fewer than n steps.
    """
    sigmas = chain.sigmas
    if not 1 <= n <= len(sigmas):
        raise ValueError(f"respaced: expected 1 to {len(sigmas)} of the chain's {len(sigmas)} steps, got n = {n}")
    return _with_zero(sigmas[: n * (len(sigmas) // n) : len(sigmas) // n].flip(0))


def _with_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


def _check(name: str, n: int, sigma_min: float, sigma_max: float) -> None:
    if n < 1:
        raise ValueError(f"{name}: expected at least one level, got n = {n}")
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"{name}: expected 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}")
