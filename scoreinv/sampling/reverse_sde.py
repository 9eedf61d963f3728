"""Steps of the reverse SDE of any process, dx_t = (f x_t − g² ∇ ln p_t) dt + g dw backwards in time, on x = x_t / s.

The predictors of Song et al. 2021 (arXiv:2011.13456), from the level σ at time t to σ' at t' < t, h = t − t', are

    Euler–Maruyama      x_t' = x_t − h (f x_t − g² S / s) + g √h z
    reverse diffusion   x_t' = (2 − a) x_t + G² S / s + G z,   a, G of the forward step from t' to t (eq. 46)

and the ancestral one is `steps.Ancestral` for VE (eq. 47) and VP (Ho et al. 2020) alike. With r = s / s' = a and
G = s √(σ² − σ'²) the second becomes

    x' = r (2 − r) x + r (σ² − σ'²) S + r √(σ² − σ'²) z                                                          (1)

so that it needs the scale s at a level and nothing else. For VE r = 1, and (1) is `steps.reverse_diffusion`. The paper
takes β_i = β(t) h for VP and plain Euler steps for sub-VP; here a and G are exact for all, as in a chain by definition.

Both are of order 1 in distribution and keep noise in a step to 0: leave that out (`levels[:-1]`) and finish with D, as
`steps.finished` does. They know a process, so that x must be in its unit: with a `Rescaled` prior, walk with its `denoiser`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser
from scoreinv.sampling.processes import Coordinates, Process
from scoreinv.streams import normal


@dataclass(frozen=True)
class EulerMaruyama:
    """An Euler–Maruyama step of the reverse SDE.

    Raises ValueError when called for levels that the process does not have.

    Attributes:
        process: VE, VP, SubVP, ...
    """

    process: Process

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        t, t_next = self.process.time(sigma), self.process.time(sigma_next)
        s, s_next = self.process.scale(t).to(x), self.process.scale(t_next).to(x)
        h, g = (t - t_next).to(x), self.process.diffusion(t).to(x)
        score = (denoise(x, sigma) - x) / (s * sigma**2)
        drift = self.process.drift(s * x, t) - g**2 * score
        return (s * x - h * drift + g * h.sqrt() * normal(rngs, x)) / s_next


@dataclass(frozen=True)
class ReverseDiffusion:
    """The reverse-diffusion predictor (1).

    Attributes:
        coordinates: a process, or a chain in discrete time.
    """

    coordinates: Coordinates

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        s, s_next = (self.coordinates.at(level.double().reshape(1)).scale for level in (sigma, sigma_next))
        r = (s / s_next).to(x).reshape(())
        variance = sigma**2 - sigma_next**2
        score = (denoise(x, sigma) - x) / sigma**2
        return r * ((2 - r) * x + variance * score + variance.sqrt() * normal(rngs, x))
