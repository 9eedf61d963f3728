"""DDS: diffusion steps with CG data consistency on the denoised estimate.

The posterior denoiser is P ∘ D with the proximal map P of `scoreinv.posterior.proximal`. With ancestral (DDIM) steps and a few CG
iterations that is DDS (Chung, Lee, Ye 2024, arXiv:2303.05754, algorithm 1, in the coordinate x = x₀ + σ n, with ε̂ from the
corrected estimate); Heun's and DPM-Solver++'s steps follow the probability flow.
"""

from __future__ import annotations

from dataclasses import dataclass

from scoreinv.posterior.guidance import Guided
from scoreinv.posterior.proximal import proximal_denoiser
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Problem


@dataclass(frozen=True, eq=False)
class DDS(Guided):
    """Diffusion steps with CG data consistency on the denoised estimate.

    Attributes:
        trust: r / σ, see `proximal_denoiser`.
        iterations: CG steps an evaluation.
    """

    sigma_max: float = 3.0
    trust: float = 1.0
    iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1 or not self.trust > 0:
            raise ValueError(f"DDS: expected iterations >= 1 and trust > 0, got {self.iterations} and {self.trust}")

    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        return proximal_denoiser(prior, problem, trust=self.trust, iterations=self.iterations)
