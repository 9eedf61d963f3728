"""From a network's own coordinates to D(x, σ) = E[x₀ | x = x₀ + σ n]: the mathematics of all adapters, once.

A network sees x_t = s x₀ + σ_t ε. With σ = σ_t / s that is x_t = s x for our x = x₀ + σ ε, and what it predicts gives

    epsilon   o = ε                   D = x − σ o
    score     o = ∇ log p_t(x_t)      D = x + s σ² o
    v         o = s ε − σ_t x₀        D = (x − σ o / s) / (1 + σ²)                (Salimans, Ho 2022, arXiv:2202.00512)
    sample    o = x₀                  D = o
    velocity  o = x₀ − ε              D = (x + σ o) / (1 + σ)                    (Lipman et al. 2023, arXiv:2210.02747)

so that `Coordinates` are, for each level σ, the scale s and the label by which the network knows the level: those of the
processes in `scoreinv.sampling.processes` and of the chains in `scoreinv.sampling.discrete`.

Levels outside the range on which a network was trained:

    below σ_min   D(x, σ) = x + (σ / σ_min) (D(x, σ_min) − x): the predicted noise shrinks with σ, and D → x as σ → 0
    above σ_max   D(x, σ) = D(x σ_max / σ, σ_max): the noise is scaled to σ_max. The image in it is then too faint, which
                  is an approximation; but an error of the network stays what it is at σ_max, where it would grow with σ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from scoreinv.sampling.processes import Coordinates

Output = Literal["epsilon", "v", "sample", "score", "velocity"]

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


def denoised(kind: Output, output: Tensor, x: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    """D from what a network predicts; all shaped to broadcast with x = x_t / s."""
    if kind == "epsilon":
        return x - sigma * output
    if kind == "score":
        return x + scale * sigma**2 * output
    if kind == "v":
        return (x - sigma * output / scale) / (1 + sigma**2)
    if kind == "velocity":
        return (x + sigma * output) / (1 + sigma)
    return output


def predicted(kind: Output, clean: Tensor, x: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    """What a network would predict whose D is clean: the inverse of `denoised`, for sigma > 0."""
    eps = (x - clean) / sigma
    if kind == "epsilon":
        return eps
    if kind == "score":
        return -eps / (scale * sigma)
    if kind == "v":
        return scale * (eps - sigma * clean)
    if kind == "velocity":
        return clean - eps
    return clean


@dataclass(frozen=True, eq=False)
class Parametrised:
    """A network in any coordinates.

    Attributes:
        network: (x_t, label) -> its prediction, shaped like x_t; channels beyond those (a learned variance) and, in a
            tuple, everything after the first, are left aside by a call. Modules should be in evaluation mode.
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

    def with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D and the learned variance of a network with twice as many channels, from one evaluation.

        Returns:
            D, and v in [0, 1], both shaped like x: the variance of a step is large^v small^(1 − v) (Nichol, Dhariwal 2021,
            arXiv:2102.09672, eq. 15).

        Raises:
            ValueError: the network predicts no variance.
        """
        rest: list[Tensor] = []

        def mean(z: Tensor, level: Tensor) -> Tensor:
            clean, more = self._evaluated(z, level)
            rest.extend(() if more is None else (more,))
            return clean

        clean = adapted(mean, x, sigma, self.levels)
        if not rest:
            raise ValueError("Parametrised: the network predicts no variance (no second half of 2C channels)")
        return clean, ((rest[0] + 1) / 2).reshape(x.shape)

    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._evaluated(x, sigma)[0]

    def _evaluated(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
        """D, and the second half of the channels where there are twice as many."""
        place = self.coordinates.at(sigma)
        sigma, s, label = column(place.sigma, x), column(place.scale, x), place.label
        x_t = fitted(s * x, self.network)
        if label.is_floating_point():
            label = label.to(torch.promote_types(x_t.dtype, torch.float32))
        output = self.network(x_t, label)
        output = cast("Tensor", output[0] if isinstance(output, tuple) else output).to(x.dtype)
        rest = None
        if output.shape[1] == 2 * x.shape[1]:
            output, rest = output.chunk(2, dim=1)
        return denoised(self.output, output, x, sigma, s), rest


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
