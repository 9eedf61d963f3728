"""Denoisers of azula (github.com/probabilists/azula): posteriors with a mean, in x_t = α_t x₀ + σ_t ε, t from 0 to 1."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoreinv.priors.adapters.optional import optional
from scoreinv.priors.adapters.parametrisation import adapted, column, fitted, on_images
from scoreinv.priors.denoiser import Denoiser


@dataclass(frozen=True, eq=False)
class AzulaPrior:
    """An `azula.denoise.Denoiser` as a prior; the time of a level is found by bisection of its schedule.

    Attributes:
        network: the denoiser; called as network(x_t, t).mean.
    """

    network: Any

    @functools.cached_property
    def levels(self) -> tuple[float, float]:
        """σ_t / α_t at t = 0 and t = 1."""
        lowest, highest = self._level(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return lowest, highest

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return adapted(self._mean, x, sigma, self.levels)

    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        x = fitted(x, self.network)
        low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
        for _ in range(53):  # to the last bit
            middle = (low + high) / 2
            above = self._level(middle) > sigma
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        t = ((low + high) / 2).to(x.dtype)
        mean: Tensor = self.network(column(self.network.schedule(t)[0], x) * x, t).mean
        return mean

    def _level(self, t: Tensor) -> Tensor:
        alpha, sigma = self.network.schedule(t)
        level: Tensor = sigma / alpha
        return level


def as_azula(prior: Denoiser, schedule: Any = None) -> Any:
    """A prior as an `azula.denoise.Denoiser`: single-channel images are (batch, 1, H, W) there, (batch, H, W) here.

    Args:
        prior: D(x, σ).
        schedule: one of azula.noise; by default `VESchedule()`, σ from 0.001 to 1000.

    Raises:
        ImportError: azula is not installed.
    """
    denoise = optional("azula.denoise")
    base: Any = denoise.Denoiser

    class ScoreinvDenoiser(base):  # type: ignore[misc]
        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            alpha, sigma = (v.expand(x_t.shape[0]) for v in self.schedule(t))
            return denoise.DiracPosterior(on_images(prior, x_t / column(alpha, x_t), sigma / alpha))

    denoiser = ScoreinvDenoiser()
    denoiser.schedule = optional("azula.noise").VESchedule() if schedule is None else schedule
    return denoiser
