"""Networks of DDPM, improved DDPM and ADM (github.com/openai/guided-diffusion): ε in 1000 discrete times."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from scoreinv.priors.adapters.parametrisation import DiscreteVP, Parametrised


def adm_prior(
    network: Callable[[Tensor, Tensor], Tensor], schedule: Literal["linear", "cosine"] = "linear", n_steps: int = 1000
) -> Parametrised:
    """A prior from a network called as network(x_t, t) with t in [0, n_steps - 1].

    A learned variance, the second half of 2C channels, is not used. Class labels: `functools.partial(network, y=labels)`.
    The published networks work on images in [-1, 1] (Dhariwal, Nichol 2021, arXiv:2105.05233).

    Args:
        network: x_t (batch, C, H, W), t (batch,) -> ε, (batch, C, H, W) or (batch, 2C, H, W).
        schedule: β linear in time, or ᾱ a squared cosine.
        n_steps: number of times in the training.

    Raises:
        ValueError: no such schedule.
    """
    betas = {"linear": linear_betas, "cosine": cosine_betas}.get(schedule)
    if betas is None:
        raise ValueError(f"adm_prior: schedule is 'linear' or 'cosine', got {schedule!r}")
    return Parametrised(network, DiscreteVP((1 - betas(n_steps)).cumprod(0)), "epsilon")


def linear_betas(n: int) -> Tensor:
    """From 1e-4 to 0.02 at 1000 steps, larger for fewer (Ho et al. 2020, arXiv:2006.11239, sec. 4), (n,) in float64."""
    return torch.linspace(0.1 / n, 20.0 / n, n, dtype=torch.float64)


def cosine_betas(n: int) -> Tensor:
    """β_i = min(1 − f_{i+1} / f_i, 0.999), f = cos² (Nichol, Dhariwal 2021, arXiv:2102.09672, eq. 17), (n,) in float64."""
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    f = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)
