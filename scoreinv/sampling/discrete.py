"""Processes in discrete time: the chain of DDPM and the list of levels of NCSN, on our coordinate x = x₀ + σ n.

    DDPM     x_i = √ᾱ_i x₀ + √(1 − ᾱ_i) ε,   ᾱ_i = Π (1 − β_j),   σ_i = √((1 − ᾱ_i) / ᾱ_i),   s = √ᾱ_i
    NCSN     x_i = x₀ + σ_i ε

A chain between any two of its steps is x_i given x_j ~ N(√(ᾱ_i / ᾱ_j) x_j, (1 − ᾱ_i / ᾱ_j) I), that of `processes.VP`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoreinv.sampling.processes import Place


def linear_betas(n: int) -> Tensor:
    """From 1e-4 to 0.02 at 1000 steps, larger for fewer (Ho et al. 2020, arXiv:2006.11239, sec. 4), (n,) in float64."""
    return torch.linspace(0.1 / n, 20.0 / n, n, dtype=torch.float64)


def cosine_betas(n: int) -> Tensor:
    """β_i = min(1 − f_{i+1} / f_i, 0.999), f = cos² (Nichol, Dhariwal 2021, arXiv:2102.09672, eq. 17), (n,) in float64."""
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    f = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


@dataclass(frozen=True, eq=False)
class DiscreteVP:
    """Variance preserving in discrete time, labelled by i (Ho et al. 2020, arXiv:2006.11239).

    Theirs is `DiscreteVP.of(linear_betas(1000))`, improved DDPM's `DiscreteVP.of(cosine_betas(4000))`.

    Attributes:
        alphas_cumprod: ᾱ, (N,), decreasing; a last ᾱ of 0 has no finite level and is left out.
        labels: "interpolated" gives every level its own label, linear in ln σ between whole numbers, which networks that
            embed the time by sines take; "nearest" takes the nearest of the levels for the one asked for.
    """

    alphas_cumprod: Tensor
    labels: Literal["interpolated", "nearest"] = "interpolated"

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if a.ndim != 1 or len(a) < 2 or not (a.diff() < 0).all() or not a[0] < 1 or not a[-1] >= 0:
            raise ValueError("DiscreteVP: alphas_cumprod must decrease within (0, 1)")
        if self.labels not in ("interpolated", "nearest"):
            raise ValueError(f"DiscreteVP: labels are 'interpolated' or 'nearest', got {self.labels!r}")

    @classmethod
    def of(cls, betas: Tensor) -> DiscreteVP:
        """The chain with these β, (N,)."""
        return cls((1 - betas).cumprod(0))

    @property
    def levels(self) -> tuple[float, float]:
        return float(self._ln_sigmas[0].exp()), float(self._ln_sigmas[-1].exp())

    @property
    def sigmas(self) -> Tensor:
        """σ of every step, increasing, in float64."""
        return self._ln_sigmas.exp()

    def at(self, sigma: Tensor) -> Place:
        table = self._ln_sigmas.to(sigma.device)
        label = _position(sigma.log(), table)
        if self.labels == "nearest":
            label = label.round().long()
            sigma = table[label].exp()
        return Place(sigma, (1 + sigma**2).rsqrt(), label)

    def middle(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The level half way in time between two (between steps, linear in ln σ)."""
        table = self._ln_sigmas.to(sigma.device)
        place = (_position(sigma.double().log(), table) + _position(sigma_next.double().log(), table)) / 2
        low = place.floor().clamp(max=len(table) - 2).long()
        return torch.lerp(table[low], table[low + 1], place - low).exp().to(sigma)

    @functools.cached_property
    def _ln_sigmas(self) -> Tensor:
        a = self.alphas_cumprod.double()
        return torch.logit(1 - a[a > 0]) / 2


@dataclass(frozen=True, eq=False)
class DiscreteVE:
    """Variance exploding at the levels of a list, labelled by their places in it (Song, Ermon 2019, arXiv:1907.05600).

    The nearest of the levels is taken for the one asked for.

    Attributes:
        sigmas: (N,), decreasing.
    """

    sigmas: Tensor

    def __post_init__(self) -> None:
        if self.sigmas.ndim != 1 or len(self.sigmas) < 2 or not (self.sigmas.diff() < 0).all() or self.sigmas[-1] <= 0:
            raise ValueError("DiscreteVE: sigmas must be positive and decrease")

    @property
    def levels(self) -> tuple[float, float]:
        return float(self.sigmas[-1]), float(self.sigmas[0])

    def at(self, sigma: Tensor) -> Place:
        table = self.sigmas.to(sigma)
        label = len(table) - 1 - _position(sigma.log(), table.flip(0).log()).round().long()
        return Place(table[label], torch.ones_like(sigma), label)


def _position(value: Tensor, table: Tensor) -> Tensor:
    """Where values lie in an increasing table, linear between its entries: the inverse of reading it off."""
    above = torch.searchsorted(table, value.contiguous()).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    return (above - 1 + (value - low) / (high - low)).clamp(0, len(table) - 1)
