"""Diffusion sampling with the proximal posterior denoiser in place of the prior's: P(D(x, σ)) of `proximal`, any step.

    x ~ N(0, σ_max²);  for σ, σ' in levels:  x ← step(P ∘ D, x, σ, σ');  the last step goes to σ' = 0

With ancestral (DDIM) steps and a few CG iterations it is DDS (Chung, Lee, Ye 2024, arXiv:2303.05754, algorithm 1, in the coordinate
x = x₀ + σ n, with ε̂ from the corrected estimate); Heun's and DPM-Solver++'s steps follow the probability flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.proximal import proximal_denoiser
from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import Ancestral, DPMSolver2M, Step, euler, heun
from scoreinv.streams import normal

STEPS: dict[str, Callable[[float], Step]] = {
    "ancestral": Ancestral,
    "dpm_solver_2m": lambda eta: DPMSolver2M(),
    "euler": lambda eta: euler,
    "heun": lambda eta: heun,
}


@dataclass(frozen=True, eq=False)
class DDS:
    """Diffusion steps with CG data consistency on the denoised estimate.

    Attributes:
        prior: the denoiser D; its `scale` is the size of its own unit in the unit of the images.
        samples: draws.
        step: "ancestral", "dpm_solver_2m", "euler" or "heun" (two evaluations a level).
        n_levels: noise levels.
        sigma_max: first noise level, in the prior's own unit.
        sigma_min: last positive one.
        eta: share of fresh noise of ancestral steps, in [0, 1].
        trust: r / σ, see `proximal_denoiser`.
        iterations: CG steps an evaluation.
    """

    prior: Denoiser
    samples: int = 1
    step: str = "ancestral"
    n_levels: int = 50
    sigma_max: float = 3.0
    sigma_min: float = 0.01
    eta: float = 1.0
    trust: float = 1.0
    iterations: int = 10

    def __post_init__(self) -> None:
        if self.step not in STEPS:
            raise ValueError(f"DDS: no step is named {self.step!r}; known: {', '.join(STEPS)}")
        if min(self.samples, self.n_levels, self.iterations) < 1 or not 0 < self.sigma_min < self.sigma_max:
            raise ValueError("DDS: samples, n_levels and iterations must be at least 1, and 0 < sigma_min < sigma_max")

    @torch.no_grad()
    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw: (samples, *batch, *A.in_shape)."""
        flat = problem.flat().repeated(self.samples)
        rngs = member_streams(rng, self.samples, len(flat.y) // self.samples)
        denoise = proximal_denoiser(self.prior, flat, trust=self.trust, iterations=self.iterations)
        sigmas = (karras(self.n_levels, self.sigma_min, self.sigma_max) * scale_of(self.prior)).to(flat.y)
        x = sigmas[0] * normal(rngs, flat.y.new_zeros(len(rngs), *problem.A.in_shape))
        x = last(track(sample(denoise, x, sigmas, step=STEPS[self.step](self.eta), rngs=rngs), "dds", self.n_levels))
        return x.reshape(self.samples, *problem.batch_shape, *problem.A.in_shape)
