"""From a network's own coordinates to D(x, σ) = E[x₀ | x = x₀ + σ n]: the mathematics of all adapters, once.

A network sees x_t = s x₀ + σ_t ε. With σ = σ_t / s that is x_t = s x for our x = x₀ + σ ε, and what it predicts gives

    epsilon   o = ε                   D = x − σ o
    score     o = ∇ log p_t(x_t)      D = x + s σ² o
    v         o = s ε − σ_t x₀        D = (x − σ o / s) / (1 + σ²)                (Salimans, Ho 2022, arXiv:2202.00512)
    sample    o = x₀                  D = o

so that `Coordinates` are, for each level σ, the scale s and the label by which the network knows the level.

Levels outside the range on which a network was trained:

    below σ_min   D(x, σ) = x + (σ / σ_min) (D(x, σ_min) − x): the predicted noise shrinks with σ, and D → x as σ → 0
    above σ_max   D(x, σ) = D(x σ_max / σ, σ_max): the noise is scaled to σ_max. The image in it is then too faint, which
                  is an approximation; but an error of the network stays what it is at σ_max, where it would grow with σ.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import torch
from torch import Tensor, nn

Output = Literal["epsilon", "v", "sample", "score"]

_TINY = 1e-300
"""Keeps 0 / 0 out where the smallest level is 0."""


def adapted(mean: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, levels: tuple[float, float]) -> Tensor:
    """A prior's call, done by something foreign that works on (batch, C, H, W) within a range of levels.

    Single-channel images have no channel axis here and one there: x (batch, H, W) becomes (batch, 1, H, W),
    x (batch, C, H, W) stays. The result has the dtype of x.

    Args:
        mean: (x, sigma) -> E[x₀ | x], with x (batch, C, H, W) and sigma (batch,) in float64, within the levels.
        x: (batch, H, W) or (batch, C, H, W).
        sigma: a scalar or (batch,).
        levels: σ_min and σ_max of the training, in the unit of x.

    Raises:
        ValueError: x is no batch of images, or the result has another shape.
    """
    if x.ndim not in (3, 4):
        raise ValueError(f"expected images (batch, H, W) or (batch, C, H, W), got {tuple(x.shape)}")
    sigma = torch.as_tensor(sigma).to(x.device, torch.float64).expand(x.shape[0])
    level = sigma.clamp(*levels)
    z = x[:, None] if x.ndim == 3 else x
    result = mean(z * column(level / torch.maximum(sigma, level).clamp(min=_TINY), z), level).to(z.dtype)
    if result.shape != z.shape:
        raise ValueError(f"images {tuple(z.shape)} came back from the network as {tuple(result.shape)}")
    faded = torch.lerp(z, result, column((sigma / level.clamp(min=_TINY)).clamp(max=1), z))
    return torch.where(column(sigma < level, z).bool(), faded, result).reshape(x.shape)


class Coordinates(Protocol):
    """x_t = s x₀ + s σ ε, as functions of σ (batch,) in float64."""

    @property
    def levels(self) -> tuple[float, float]:
        """The smallest and the largest σ."""
        ...

    def at(self, sigma: Tensor) -> Place:
        """Where a level within these lies."""
        ...


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


@dataclass(frozen=True, eq=False)
class Parametrised:
    """A network in any coordinates.

    Attributes:
        network: (x_t, label) -> its prediction, shaped like x_t; channels beyond those (a learned variance) and, in a
            tuple, everything after the first, are left aside. Modules should be in evaluation mode.
        coordinates: what x_t and label are.
        output: what it predicts.
    """

    network: Callable[[Tensor, Tensor], Any]
    coordinates: Coordinates
    output: Output

    def __post_init__(self) -> None:
        if self.output not in get_args(Output):
            raise ValueError(f"Parametrised: output is one of {', '.join(get_args(Output))}, got {self.output!r}")

    @property
    def levels(self) -> tuple[float, float]:
        """The smallest and the largest σ that the network knows."""
        return self.coordinates.levels

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return adapted(self._mean, x, sigma, self.levels)

    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        place = self.coordinates.at(sigma)
        sigma, s, label = column(place.sigma, x), column(place.scale, x), place.label
        x_t = fitted(s * x, self.network)
        if label.is_floating_point():
            label = label.to(torch.promote_types(x_t.dtype, torch.float32))
        output = self.network(x_t, label)
        output = cast("Tensor", output[0] if isinstance(output, tuple) else output).to(x.dtype)
        if output.shape[1] == 2 * x.shape[1]:
            output = output.chunk(2, dim=1)[0]
        if self.output == "epsilon":
            return x - sigma * output
        if self.output == "score":
            return x + s * sigma**2 * output
        if self.output == "v":
            return (x - sigma * output / s) / (1 + sigma**2)
        return output


@dataclass(frozen=True)
class VE:
    """Variance exploding: s = 1, labelled by σ itself (Song et al. 2021, arXiv:2011.13456, eq. 9)."""

    sigma_min: float
    sigma_max: float

    @property
    def levels(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def at(self, sigma: Tensor) -> Place:
        return Place(sigma, torch.ones_like(sigma), sigma)


@dataclass(frozen=True)
class VP:
    """Variance preserving in continuous time: s = e^(−B/2), σ_t² = 1 − s², B = β_min t + (β_max − β_min) t² / 2.

    (Song et al. 2021, arXiv:2011.13456, eq. 29 and 33.)

    Attributes:
        beta_min, beta_max: β at t = 0 and t = 1.
        t_min: the smallest time of the training.
        label_per_time: the label of t = 1; labels are proportional to t.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    label_per_time: float = 999.0

    @property
    def levels(self) -> tuple[float, float]:
        lowest, highest = (self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2 for t in (self.t_min, 1.0))
        return self._sigma(lowest), self._sigma(highest)

    def at(self, sigma: Tensor) -> Place:
        B = self._integral(sigma)
        t = 2 * B / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B).sqrt())
        return Place(sigma, (-B / 2).exp(), t * self.label_per_time)

    def _sigma(self, integral: float) -> float:
        return math.sqrt(math.expm1(integral))

    def _integral(self, sigma: Tensor) -> Tensor:
        return (sigma**2).log1p()


@dataclass(frozen=True)
class SubVP(VP):
    """The same s with σ_t = 1 − s², so σ = 2 sinh(B / 2) (Song et al. 2021, arXiv:2011.13456, eq. 29)."""

    def _sigma(self, integral: float) -> float:
        return 2 * math.sinh(integral / 2)

    def _integral(self, sigma: Tensor) -> Tensor:
        return 2 * (sigma / 2).asinh()


@dataclass(frozen=True, eq=False)
class DiscreteVP:
    """Variance preserving in discrete time: s = √ᾱ_i, σ_t = √(1 − ᾱ_i), labelled by i (Ho et al. 2020, arXiv:2006.11239).

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

    @property
    def levels(self) -> tuple[float, float]:
        return float(self._ln_sigmas[0].exp()), float(self._ln_sigmas[-1].exp())

    def at(self, sigma: Tensor) -> Place:
        table = self._ln_sigmas.to(sigma.device)
        label = _position(sigma.log(), table)
        if self.labels == "nearest":
            label = label.round().long()
            sigma = table[label].exp()
        return Place(sigma, (1 + sigma**2).rsqrt(), label)

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


def column(values: Tensor, x: Tensor) -> Tensor:
    """Values (batch,), one for each member of x, as (batch, 1, ..., 1) in the dtype of x."""
    return values.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def fitted(x: Tensor, network: Any) -> Tensor:
    """x in the dtype of a module's parameters; as it is for what is no module or has none."""
    while isinstance(network, functools.partial):
        network = network.func
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    return x.to(next((p.dtype for p in parameters if p.is_floating_point()), x.dtype))


def on_images(prior: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
    """One of our priors on images of a library in which single-channel images have a channel axis, (batch, 1, H, W)."""
    single = x.ndim == 4 and x.shape[1] == 1
    return prior(x[:, 0] if single else x, sigma).reshape(x.shape)


def _position(value: Tensor, table: Tensor) -> Tensor:
    """Where values lie in an increasing table, linear between its entries: the inverse of reading it off."""
    above = torch.searchsorted(table, value.contiguous()).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    return (above - 1 + (value - low) / (high - low)).clamp(0, len(table) - 1)
