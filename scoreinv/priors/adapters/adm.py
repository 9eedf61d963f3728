"""Networks of DDPM, improved DDPM and ADM (github.com/openai/guided-diffusion): ε in 1000 discrete times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from scoreinv.priors.adapters.parametrisation import Parametrised
from scoreinv.sampling.discrete import DiscreteVP, cosine_betas, linear_betas


def adm_prior(
    network: Callable[[Tensor, Tensor], Tensor], schedule: Literal["linear", "cosine"] = "linear", n_steps: int = 1000
) -> Parametrised:
    """A prior from a network called as network(x_t, t) with t in [0, n_steps - 1].

    A learned variance, the second half of 2C channels, is for `with_variance` only. Class labels:
    `functools.partial(network, y=labels)`. The published networks work on images in [-1, 1] (Dhariwal, Nichol 2021,
    arXiv:2105.05233).

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
    return Parametrised(network, DiscreteVP.of(betas(n_steps)), "epsilon")
