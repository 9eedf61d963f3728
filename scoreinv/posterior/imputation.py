"""Imputation and colourisation by replacement: what is known is put in at every level, as noisy as the rest.

    x ~ N(0, σ_max²), replaced at σ_max
    for σ, σ' in levels:    corrector at σ, replaced at σ;   predictor from σ to σ', replaced at σ'
    x ← D(x, σ_min), the known part replaced by the data themselves

(Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2021, arXiv:2011.13456, section 5 and appendix I.2 and I.3: the score of the unknown part
given the noisy known one stands for its score given y.) Known coordinates are those of an orthonormal basis: the pixels of a mask,
or for grey values the first of `operators.grayscale.ColourTransform`. For both A Aᵀ = s² I on the data, and replacing is

    x ← x + Aᵀ (y + √(s² σ² − σ_y²) z' − A x) / s²,     s z' = A z,  z ~ N(0, I)                                     (1)

which needs no basis; any other operator with orthogonal rows of one length will do. Noise in the data, σ_y, is ours: it is taken for part of
the noise of x, and below σ_y = s σ the data are left alone.

The known part at a level is noise drawn anew, which tells the unknown one too little of it: draws are too wide and their mean is off,
as from RePaint with one resampling (see `scoreinv.posterior.repaint` for the remedy). On the Gaussian colours of tests/test_editing.py, with
50 levels, the mean of what a gray image leaves open is off by 0.16, 0.13 and 0.07 of its standard deviation with snr 0, 0.16 and 0.3, and its
variance is 1.2 to 1.5 times the posterior's with all three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.linop import LinearOperator
from scoreinv.posterior.stepwise import Stepwise
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Problem
from scoreinv.sampling.levels import geometric
from scoreinv.sampling.steps import Langevin, Step, reverse_diffusion
from scoreinv.streams import normal

Replace = Callable[[Tensor, Tensor, Sequence[Generator]], Tensor]
"""(x, σ, rngs) -> x, eq. (1)."""


@dataclass(frozen=True, eq=False)
class Imputation(Stepwise):
    """Replacement of what is known, see the module's head. For masks, luminance, and what is orthogonal like them.

    Attributes:
        n_levels: noise levels in equal ratios, each two evaluations of D (one with snr = 0).
        snr: step size of the Langevin corrector; 0 leaves it out.
    """

    n_levels: int = 100
    snr: float = 0.16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.snr >= 0:
            raise ValueError(f"Imputation: expected snr >= 0, got {self.snr}")

    def levels(self) -> Tensor:
        return geometric(self.n_levels, self.sigma_min, self.sigma_max)

    def begin(self, problem: Problem, sigma: Tensor, rngs: Sequence[Generator]) -> tuple[Tensor, Step]:
        x, step = super().begin(problem, sigma, rngs)
        return replacement(problem)(x, sigma, rngs), step

    def step(self, problem: Problem) -> Step:
        replaced = replacement(problem)

        def step(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]) -> Tensor:
            if self.snr > 0:
                x = replaced(Langevin(self.snr)(denoise, x, sigma, sigma, rngs), sigma, rngs)
            if sigma_next == 0:
                return replaced(denoise(x, sigma), sigma_next, rngs)
            return replaced(reverse_diffusion(denoise, x, sigma, sigma_next, rngs), sigma_next, rngs)

        return step


def replacement(problem: Problem) -> Replace:
    """Eq. (1) for a problem with one batch dimension.

    Raises:
        ValueError: the operator's rows are not orthogonal or not of one length.
    """
    A, y = problem.linear, problem.y
    squared = _row_squared(A)
    std = torch.as_tensor(problem.noise_std).to(y)

    def replaced(x: Tensor, sigma: Tensor, rngs: Sequence[Generator]) -> Tensor:
        left = squared * sigma**2 - std**2  # of the noise of x, in the data's unit
        noise = (left / squared).clamp(min=0).sqrt() * A(normal(rngs, x))
        change = torch.where(left >= 0, y + noise - A(x), 0)
        return x + A.H(change) / squared

    return replaced


def _row_squared(A: LinearOperator) -> float:
    """s²; 1 for an operator that measures nothing."""
    probe = A(torch.randn(A.in_shape, generator=Generator().manual_seed(0), dtype=torch.float64))
    again = A(A.H(probe))
    squared = float((probe * again).sum() / (probe * probe).sum().clamp(min=1e-300)) or 1.0
    if not torch.allclose(again, squared * probe, rtol=1e-4, atol=1e-4 * squared * float(probe.abs().max())):
        raise ValueError(
            f"Imputation: replaces what is known, so the rows of its operator must be orthogonal and of one length, as those of "
            f"Masking and Grayscale; those of {type(A).__name__} are not; DDNM does the like for any linear operator"
        )
    return squared
