"""RePaint: known pixels are replaced at every level, and every stretch of levels is gone down several times.

    unknown    an ancestral step from x at σ to σ'
    known      y + √(σ'² − σ_y²) z   (noise-free: y + σ' z); below σ_y the pixel is left to the ancestral step    (1)

Each stretch of `jump_length` steps is repeated: from its end at σ' back to its start at σ by adding noise, x + √(σ² − σ'²)
z, and down again. (Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool 2022, arXiv:2201.09865, algorithm 1 and eq. 8, in the
coordinate x = x₀ + σ n. The published schedule is 250 levels and stretches of 10, each 10 times, but for the one nearest to
σ_max.)

Noise in the data is ours. The noise of x at σ_y is then taken for that of y, so a known pixel goes through y there; on the
way back up from σ' < σ_y it must arrive there, along a Brownian bridge:

    x + w (y − x) + √(w (1 − w) (σ_y² − σ'²) + σ² − b²) z,   b = min(σ, σ_y),  w = (b² − σ'²) / (σ_y² − σ'²)        (2)

A step knows the known pixels only as noisy as x, and draws their noise anew: gone through once, the unknown ones follow the
known ones too little. Repeating mends that: for Gaussian priors draws tend to the posterior with more levels and more
repeats, of short stretches. On the example of tests/test_repaint.py (2 of 4 correlated pixels known, 20 levels, stretches
of 1) the mean of the unknown pixels is off by up to 0.91, 0.42 and 0.13 of its standard deviation with 1, 5 and 20
resamplings, and their variance 1.6, 1.0 and 0.75 of the posterior's: what is missing at the end is the ancestral step's own
error with 20 levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv import plugins
from scoreinv.posterior.stepwise import Stepwise
from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.sampling.steps import Ancestral, Step
from scoreinv.streams import normal


@dataclass(frozen=True, eq=False)
class RePaint(Stepwise):
    """Known pixels replaced, with resampling; see the module's head. For the operator Masking.

    Attributes:
        n_levels: noise levels; (n_levels - 1) resamplings + 1 evaluations of D.
        jump_length: steps of a stretch.
        resamplings: how often each stretch is gone down; 1 is plain replacement.
    """

    jump_length: int = 2
    resamplings: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.jump_length, self.resamplings) < 1:
            raise ValueError(
                f"RePaint: expected jump_length and resamplings of at least 1, "
                f"got {self.jump_length} and {self.resamplings}"
            )

    def levels(self) -> Tensor:
        """The ends of the stretches; the last one, to 0, is a single step."""
        ends = [*range(0, self.n_levels - 1, self.jump_length), self.n_levels - 1, self.n_levels]
        return self._all_levels()[ends]

    def step(self, problem: Problem) -> Step:
        between = (self._all_levels() * scale_of(self.prior)).to(problem.y)
        known = _known(problem)

        def down(denoise: Denoiser, x: Tensor, sigmas: Tensor, rngs: Sequence[Generator]) -> Tensor:
            for sigma, sigma_next in itertools.pairwise(sigmas):
                x = known.replaced(Ancestral()(denoise, x, sigma, sigma_next, rngs), sigma_next, rngs)
            return x

        def step(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]) -> Tensor:
            stretch = between[(between <= sigma) & (between >= sigma_next)]
            x = down(denoise, x, stretch, rngs)
            for _ in range(self.resamplings - 1 if sigma_next > 0 else 0):
                x = down(denoise, known.raised(x, sigma_next, sigma, rngs), stretch, rngs)
            return x

        return step

    def _all_levels(self) -> Tensor:
        return karras(self.n_levels, self.sigma_min, self.sigma_max)


@dataclass(frozen=True, eq=False)
class _Known:
    """The measured pixels; y and std (σ_y) broadcast to images."""

    mask: Tensor
    y: Tensor
    std: Tensor

    def replaced(self, x: Tensor, sigma: Tensor, rngs: Sequence[Generator]) -> Tensor:
        """Eq. (1)."""
        value = self.y + (sigma**2 - self.std**2).clamp(min=0).sqrt() * normal(rngs, x)
        return torch.where(self.mask & (self.std <= sigma), value, x)

    def raised(self, x: Tensor, low: Tensor, high: Tensor, rngs: Sequence[Generator]) -> Tensor:
        """x from a level to a higher one: by noise, pixels that have left their data by eq. (2)."""
        z, rise = normal(rngs, x), self.std**2 - low**2
        top = torch.minimum(self.std, high) ** 2
        bridged = self.mask & (rise > 0)
        w = torch.where(bridged, (top - low**2) / torch.where(bridged, rise, 1), 0)
        variance = torch.where(bridged, w * (1 - w) * rise + high**2 - top, high**2 - low**2)
        return x + w * (self.y - x) + variance.sqrt() * z


def _known(problem: Problem) -> _Known:
    A, y = problem.A, problem.y
    if not isinstance(A, plugins.get("operators", "masking")):
        raise ValueError(
            f"RePaint: replaces pixels, so its operator must be Masking, got {type(A).__name__}; "
            "DDNM does the like for any linear operator"
        )
    return _Known(A.mask.to(y.device), y, torch.as_tensor(problem.noise_std).to(y))
