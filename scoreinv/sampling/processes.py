"""Forward processes: how an image becomes noise in each paper's coordinate, and where its times lie on ours.

    SDE            dx_t = f x_t dt + g dw,  time t from 0 (image) to 1 (noise)                                (1)
    kernel         x_t given x₀ ~ N(s x₀, σ_t² I),   ds/dt = f s,   dσ_t²/dt = 2 f σ_t² + g²                  (2)
    from t to t'   x_t' given x_t ~ N(a x_t, (σ_t'² − a² σ_t²) I),   a = s' / s                               (3)
    ours           x = x_t / s = x₀ + σ n,   σ = σ_t / s,   the score of x_t is S / s

                      s            σ_t           f             g²                           σ
    VE                1            σ             0             2 σ² ln(σ_max / σ_min)       σ_min (σ_max / σ_min)^t
    VP                e^(−B/2)     √(1 − s²)     −β / 2        β                            √(e^B − 1)
    sub-VP            e^(−B/2)     1 − s²        −β / 2        β (1 − s⁴)                   2 sinh(B / 2)
    flow matching     1 − t        t             −1 / (1 − t)  2 t / (1 − t)                t / (1 − t)

with β = β_min + (β_max − β_min) t and B its integral. (Song et al. 2021, arXiv:2011.13456, eqs. 9, 11, 28, 29, 33; flow
matching: Lipman et al. 2023, arXiv:2210.02747, whose time is τ = 1 − t. It is no SDE; f and g are those of the one with the
same kernels.) All are the same on our coordinate but for the time that belongs to a level, so that one prior, one step and
one loop serve all of them. Chains in discrete time: `scoreinv.sampling.discrete`.

Images are in the unit in which the process is defined, where VP and flow matching expect a standard deviation of about 1.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_SLACK = 1e-5
"""How far a time may lie outside by rounding: levels come in float32."""


class Place(NamedTuple):
    """A level in a network's coordinates, everything (batch,).

    Attributes:
        sigma: the level that is meant: the one asked for, or the nearest that the network knows.
        scale: s.
        label: what the network takes beside x_t.
    """

    sigma: Tensor
    scale: Tensor
    label: Tensor


class Coordinates(Protocol):
    """x_t = s x₀ + s σ ε, as functions of σ (batch,) in float64."""

    @property
    def levels(self) -> tuple[float, float]:
        """The smallest and the largest σ."""
        ...

    def at(self, sigma: Tensor) -> Place:
        """Where a level within these lies."""
        ...


class Process(abc.ABC):
    """An SDE (1) and its kernels; times and levels are scalars or (batch,), results the same in float64."""

    t_min: float
    t_max: float = 1.0

    @abc.abstractmethod
    def scale(self, t: Tensor) -> Tensor:
        """s, how much of the image is left."""

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σ, the level on our coordinate."""

    @abc.abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """f."""

    @abc.abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """g."""

    @abc.abstractmethod
    def at(self, sigma: Tensor) -> Place:
        """Where a level within `levels` lies for a network."""

    @abc.abstractmethod
    def _time(self, sigma: Tensor) -> Tensor:
        """t, also outside [0, 1]."""

    @property
    def levels(self) -> tuple[float, float]:
        """The smallest and the largest σ of the training, at t_min and t_max."""
        return float(self.sigma(_double(self.t_min))), float(self.sigma(_double(self.t_max)))

    @property
    def prior_std(self) -> float:
        """Standard deviation of N(0, · I), where the reverse process starts at t = 1."""
        return 1.0

    def std(self, t: Tensor) -> Tensor:
        """σ_t."""
        return self.scale(t) * self.sigma(t)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f x_t, shaped like x_t (batch, *image_shape)."""
        return self.rate(t).to(x).reshape(-1, *[1] * (x.ndim - 1)) * x

    def kernel(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        """a and the standard deviation of x_t' given x_t, eq. (3), for t <= t'."""
        a = self.scale(t_next) / self.scale(t)
        return a, (self.std(t_next) ** 2 - (a * self.std(t)) ** 2).clamp(min=0).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """The time of a level.

        Raises:
            ValueError: the process never has that level.
        """
        return self._inside(self._time(_double(sigma)), f"the noise level {sigma}")

    def middle(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The level half way in time between two."""
        return self.sigma((self.time(sigma) + self.time(sigma_next)) / 2).to(torch.as_tensor(sigma))

    def _inside(self, t: Tensor, what: str) -> Tensor:
        t = _double(t)
        if not ((t >= -_SLACK) & (t <= 1 + _SLACK)).all():
            first, last = (float(self.sigma(_double(end))) for end in (0.0, 1.0))
            raise ValueError(
                f"{type(self).__name__}: expected times from 0 to 1, which are levels from {first:g} to {last:g}, got {what}; "
                "leave a step to level 0 out (levels[:-1]) or finish it by D (steps.finished)"
            )
        return t.clamp(0, 1)

    def _t(self, t: Tensor) -> Tensor:
        """A time in float64, or ValueError where there is none such."""
        return self._inside(t, f"the time {t}")


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding, labelled by σ itself (Song et al. 2021, eq. 9). σ_t includes the σ_min of t = 0."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"VE: expected 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def levels(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(self._t(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self._t(t) * self._ln_ratio).exp()

    def rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(self._t(t))

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._ln_ratio)

    def at(self, sigma: Tensor) -> Place:
        return Place(sigma, torch.ones_like(sigma), sigma)

    def _time(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log() / self._ln_ratio

    @property
    def _ln_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class VP(Process):
    """Variance preserving in continuous time (Song et al. 2021, eqs. 11 and 33).

    Attributes:
        beta_min, beta_max: β at t = 0 and t = 1.
        t_min: the smallest time of the training.
        label_per_time: the label of t = 1; labels are proportional to t.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    label_per_time: float = 999.0

    def beta(self, t: Tensor) -> Tensor:
        """β."""
        return self.beta_min + (self.beta_max - self.beta_min) * self._t(t)

    def integral(self, t: Tensor) -> Tensor:
        """B, the integral of β from 0 to t."""
        t = self._t(t)
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def scale(self, t: Tensor) -> Tensor:
        return (-self.integral(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return self.integral(t).expm1().sqrt()

    def rate(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def at(self, sigma: Tensor) -> Place:
        return Place(sigma, (-self._integral_at(sigma) / 2).exp(), self._time(sigma) * self.label_per_time)

    def _time(self, sigma: Tensor) -> Tensor:
        B = self._integral_at(sigma)
        return 2 * B / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B).sqrt())

    def _integral_at(self, sigma: Tensor) -> Tensor:
        """B at a level: the inverse of `sigma`, but for the time."""
        return (sigma**2).log1p()


@dataclass(frozen=True)
class SubVP(VP):
    """The same s with a smaller variance (Song et al. 2021, eqs. 28 and 29)."""

    def sigma(self, t: Tensor) -> Tensor:
        return 2 * (self.integral(t) / 2).sinh()

    def diffusion(self, t: Tensor) -> Tensor:
        return (-self.beta(t) * (-2 * self.integral(t)).expm1()).sqrt()

    def _integral_at(self, sigma: Tensor) -> Tensor:
        return 2 * (sigma / 2).asinh()


@dataclass(frozen=True)
class FlowMatching(Process):
    """The straight path x_t = (1 − t) x₀ + t ε, labelled by τ (Lipman et al. 2023; Liu et al. 2022, arXiv:2209.03003).

    Attributes:
        t_min, t_max: the smallest and the largest time that are asked for; at t = 1 no image is left, and σ is infinite.
        label_per_time: the label of τ = 1; labels are proportional to τ.
    """

    t_min: float = 1e-3
    t_max: float = 0.999
    label_per_time: float = 1.0

    def scale(self, t: Tensor) -> Tensor:
        return 1 - self._t(t)

    def sigma(self, t: Tensor) -> Tensor:
        t = self._t(t)
        return t / (1 - t)

    def rate(self, t: Tensor) -> Tensor:
        return -1 / (1 - self._t(t))

    def diffusion(self, t: Tensor) -> Tensor:
        return (2 * self.sigma(t)).sqrt()

    def at(self, sigma: Tensor) -> Place:
        tau = 1 / (1 + sigma)
        return Place(sigma, tau, tau * self.label_per_time)

    def _time(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)


def _double(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value).double()
