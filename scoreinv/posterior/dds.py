"""DDS: diffusion steps with CG data consistency on the denoised estimate.

The posterior denoiser is P ∘ D with the proximal map P of `scoreinv.posterior.proximal` (Chung, Lee, Ye 2024,
arXiv:2303.05754, algorithm 1, in the coordinate x = x₀ + σ n). `DDS` puts it into any step: ancestral (DDIM) steps then
take ε̂ from the corrected estimate, Heun's and DPM-Solver++'s follow the probability flow.

`DDSPublished` is the step of the published code, which differs in three ways: ε̂ = (x − D) / σ of the uncorrected estimate,
a share η of fresh noise that does not know how long the step is (eq. (1) of `scoreinv.posterior.stepwise`), and for noisy
data one γ at all levels,

    D' = CG from D on (I + γ AᵀA / ‖A‖²) D' = D + γ Aᵀy / ‖A‖²

(there without ‖A‖², the operators being scaled by hand; noise-free data: on AᵀA D' = Aᵀy, as in `DDS`). γ knows nothing of
the noise (where it is uneven, data weigh as in eq. (5) of `scoreinv.misfit`), and directions with singular values far below ‖A‖, which is most of them in CT, hardly follow noisy data: prefer
`DDS` there. Of images N(0, I), with singular values 2, ½ and 0, σ_y = 0.2 and 20 levels from σ = 20, the variance is 0.60,
0.58 and 0.69 of the posterior's for `DDS`, 0.01, 1.6 and 0.63 for `DDSPublished`, whose mean is off by 0.9 of its standard
deviation where s = ½.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.guidance import Guided
from scoreinv.posterior.proximal import proximal_denoiser
from scoreinv.posterior.stepwise import Stepwise, proximal_map, renoised
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Problem
from scoreinv.sampling.steps import Step
from scoreinv.solvers import noise_weights


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


@dataclass(frozen=True, eq=False)
class DDSPublished(Stepwise):
    """The step of the published code, see the module's head.

    Attributes:
        eta: η, in [0, 1].
        gamma: γ; looked at for noisy data only.
        iterations: CG steps an evaluation.
    """

    sigma_max: float = 3.0
    eta: float = 0.85
    gamma: float = 1.0
    iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.eta <= 1 and self.gamma > 0 and self.iterations >= 1):
            raise ValueError(
                f"DDSPublished: expected 0 <= eta <= 1, gamma > 0 and iterations >= 1, "
                f"got {self.eta}, {self.gamma} and {self.iterations}"
            )

    def step(self, problem: Problem) -> Step:
        A, std, norm_squared = (
            problem.A,
            torch.as_tensor(problem.noise_std).to(problem.y),
            problem.A.norm_squared() or 1.0,
        )

        def step(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]) -> Tensor:
            clean = denoise(x, sigma)
            erring = std if std.ndim == 0 else torch.where(std > 0, (std**2 + norm_squared * sigma**2).sqrt(), 0)
            weighed = Problem(A, problem.y, erring)
            _, tau = noise_weights(weighed)
            trusted = torch.where(tau > 0, tau * math.sqrt(self.gamma / norm_squared), 1)
            fitted = proximal_map(weighed, iterations=self.iterations)(clean, trusted)
            return renoised(fitted, (x - clean) / sigma, sigma_next, self.eta, rngs)

        return step
