"""Langevin dynamics at one noise level: towards the law p of x = x₀ + σ n, with S = ∇ ln p = (D − x) / σ².

    unadjusted         y = x + ε S(x) + √(2 ε) z                                                                       (1)
    Metropolis         y of (1) with probability min(1, p(y) q(x | y) / (p(x) q(y | x))), else x,
                       q(y | x) = N(y; x + ε S(x), 2 ε I)                                                             (2)
    annealed           (1) with ε = e σ², n times at every level of a falling sequence, D at the end                   (3)

Unadjusted steps go to a law that is wrong by O(ε): along a direction in which p, a Gaussian, has the variance λ, to
λ / (1 − ε / (2 λ)). Steps of (2) leave p as it is, whatever ε. (Roberts, Tweedie 1996, doi:10.2307/3318418, with h = 2 ε;
Song, Ermon 2019, arXiv:1907.05600, algorithm 1.) The rule that finds ε from norms is `steps.Langevin`.

All are steps as in `scoreinv.sampling.steps`, at the level sigma whatever sigma_next is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser
from scoreinv.streams import normal


@dataclass(frozen=True)
class UnadjustedLangevin:
    """Eq. (1).

    Attributes:
        step_size: ε, in the squared unit of the images; stable below twice the smallest variance of p.
        n_steps: number of steps, an evaluation each.
    """

    step_size: float
    n_steps: int = 1

    def __post_init__(self) -> None:
        _check(self)

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        for _ in range(self.n_steps):
            x = x + self.step_size * _score(denoise, x, sigma) + (2 * self.step_size) ** 0.5 * normal(rngs, x)
        return x


@dataclass(frozen=True)
class MetropolisLangevin:
    """Eq. (2), MALA: for priors with a density, those of `priors.exact`, `priors.fourier` and `priors.fourier_mixture`.

    The prior must have `log_density(x, sigma) -> (batch,)`; else a call raises ValueError.

    Attributes:
        step_size: ε, in the squared unit of the images; best where about 57 % of the proposals are accepted (Roberts,
            Rosenthal 1998, doi:10.1111/1467-9868.00123).
        n_steps: number of steps, an evaluation each and one at the start.
    """

    step_size: float
    n_steps: int = 1

    def __post_init__(self) -> None:
        _check(self)

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        log_density = _density(denoise)
        score, level = _score(denoise, x, sigma), log_density(x, sigma)
        for _ in range(self.n_steps):
            y = x + self.step_size * score + (2 * self.step_size) ** 0.5 * normal(rngs, x)
            score_y, level_y = _score(denoise, y, sigma), log_density(y, sigma)
            ratio = level_y - level + self._log_proposal(x, y, score_y) - self._log_proposal(y, x, score)
            accepted = _uniform(rngs, ratio).log() < ratio
            level = torch.where(accepted, level_y, level)
            column = accepted.reshape(-1, *[1] * (x.ndim - 1))
            x, score = torch.where(column, y, x), torch.where(column, score_y, score)
        return x

    def log_acceptance(self, denoise: Denoiser, x: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
        """ln of the probability that x moves to y once y is proposed, (batch,)."""
        log_density = _density(denoise)
        there = self._log_proposal(y, x, _score(denoise, x, sigma))
        back = self._log_proposal(x, y, _score(denoise, y, sigma))
        return (log_density(y, sigma) - log_density(x, sigma) + back - there).clamp(max=0)

    def _log_proposal(self, y: Tensor, x: Tensor, score: Tensor) -> Tensor:
        """ln q(y | x) but for a constant, (batch,) in float64."""
        off = (y - x - self.step_size * score).double().flatten(1)
        return -(off**2).sum(1) / (4 * self.step_size)


@dataclass(frozen=True)
class AnnealedLangevin:
    """Eq. (3): annealed Langevin dynamics, n_steps at every level, and D where a step goes to 0.

    The last denoising is NCSNv2's (Song, Ermon 2020, arXiv:2006.09011, algorithm 1); without it (levels that end with the
    last one twice) this is NCSN, whose α_i is twice our ε. Settings: `scoreinv.sampling.ncsn`.

    Draws vary too much: the noise of a level is not all taken out again at the next. Of Gaussian images, σ from 50 to
    0.02, the variance is 1.13 of the right one with 232 levels, T = 5 and e = 0.062, and 1.02 with 250 levels and e = 0.3.

    Attributes:
        step_size: e, the ε / σ_L² of the papers; below 2, or it diverges, and best below 1.
        n_steps: T.
    """

    step_size: float
    n_steps: int = 5

    def __post_init__(self) -> None:
        _check(self)
        if self.step_size >= 2:
            raise ValueError(f"AnnealedLangevin: step_size is in units of σ² and must be below 2, got {self.step_size}")

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        for _ in range(self.n_steps):
            x = torch.lerp(x, denoise(x, sigma), self.step_size) + (2 * self.step_size) ** 0.5 * sigma * normal(rngs, x)
        return denoise(x, sigma) if sigma_next == 0 else x


def _score(denoise: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    return (denoise(x, sigma) - x) / sigma**2


def _density(denoise: Denoiser) -> Callable[[Tensor, Tensor], Tensor]:
    """The prior's log_density, or ValueError."""
    found: Callable[[Tensor, Tensor], Tensor] | None = getattr(denoise, "log_density", None)
    if found is None:
        raise ValueError(
            f"MetropolisLangevin: {type(denoise).__name__} has no log_density(x, sigma), which the acceptance needs; take an "
            "exact prior (priors.exact), or UnadjustedLangevin with a small step_size"
        )
    return found


def _uniform(rngs: Sequence[Generator], like: Tensor) -> Tensor:
    """One number in [0, 1) from each stream, (batch,)."""
    return torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in rngs]).to(like)


def _check(step: UnadjustedLangevin | MetropolisLangevin | AnnealedLangevin) -> None:
    if not step.step_size > 0 or step.n_steps < 1:
        raise ValueError(
            f"{type(step).__name__}: expected step_size > 0 and n_steps >= 1, got {step.step_size} and {step.n_steps}"
        )
