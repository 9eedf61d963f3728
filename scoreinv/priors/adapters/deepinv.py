"""Denoisers of deepinv (deepinv.github.io): the same coordinate, called as denoiser(x, sigma) on (batch, C, H, W)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoreinv.priors.adapters.optional import optional
from scoreinv.priors.adapters.parametrisation import adapted, fitted, on_images
from scoreinv.priors.denoiser import Denoiser


@dataclass(frozen=True, eq=False)
class DeepinvPrior:
    """A `deepinv.models.Denoiser` as a prior; most of theirs work on images in [0, 1].

    Attributes:
        network: the denoiser.
        levels: σ on which it was trained, for instance (0, 50 / 255) for DRUNet; by default it is asked for any.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    levels: tuple[float, float] = (0.0, math.inf)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return adapted(self._mean, x, sigma, self.levels)

    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        x = fitted(x, self.network)
        return self.network(x, sigma.to(x.dtype))


def as_deepinv(prior: Denoiser) -> Any:
    """A prior as a `deepinv.models.Denoiser`: single-channel images are (batch, 1, H, W) there, (batch, H, W) here.

    Raises:
        ImportError: deepinv is not installed.
    """
    base: Any = optional("deepinv.models").Denoiser

    class ScoreinvDenoiser(base):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
            level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).flatten()
            return on_images(prior, x, level.expand(x.shape[0]))

    return ScoreinvDenoiser()
