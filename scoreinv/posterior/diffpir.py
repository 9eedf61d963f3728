"""DiffPIR: half-quadratic splitting inside the diffusion, a proximal step on the data and a constant share of fresh noise.

    D' = argmin_z ‖A z − y‖² / σ_y² + (λ / σ²) ‖z − D‖²                                                           (1)
    ε' = (x − D') / σ,     x' = D' + σ' (√(1 − ζ) ε' + √ζ z)                                                      (2)

(Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool 2023, arXiv:2305.08995, algorithm 1, eqs. 13 and 14, in the coordinate x =
x₀ + σ n.) (1) is the proximal map of `scoreinv.posterior.proximal` with trust = 1 / √λ, so λ has no unit: λ = 1 takes D to
be off by σ, more by less. (The published deblurring code has λ = 7 with σ_y measured on a [0, 1] scale and σ on a [-1, 1]
scale: 7 / 4 in one unit.) For noise-free data it is the projection by early-stopped CG; that code takes σ_y = 0.001 there.
It also leaves (1) out at the last level and ends at D; here the end is D'.

With ζ = 0 and λ = 1 this is `DDS` with Euler steps. The share ζ = η² of fresh noise is constant (see
`scoreinv.posterior.stepwise`), so what is not measured varies too little. Of images N(0, I), with singular values 2, ½ and
0, σ_y = 0.2 and 20 levels, the variance is 1.19, 0.96 and 0.76 of the posterior's (λ = 7: 4.3, 2.2 and 0.76, and the mean
is off by 0.4 of its standard deviation where s = ½; λ = 1.75: by 0.01).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from scoreinv.posterior.stepwise import Stepwise, proximal_map, renoised
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Problem
from scoreinv.sampling.steps import Step


@dataclass(frozen=True, eq=False)
class DiffPIR(Stepwise):
    """Proximal steps and a constant share of fresh noise; see the module's head.

    Attributes:
        lam: λ.
        zeta: ζ, in [0, 1].
        iterations: CG steps an evaluation.
    """

    n_levels: int = 100
    lam: float = 1.75
    zeta: float = 0.3
    iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.zeta <= 1 and self.lam > 0 and self.iterations >= 1):
            raise ValueError(
                f"DiffPIR: expected 0 <= zeta <= 1, lam > 0 and iterations >= 1, "
                f"got {self.zeta}, {self.lam} and {self.iterations}"
            )

    def step(self, problem: Problem) -> Step:
        proximal = proximal_map(problem, trust=self.lam**-0.5, iterations=self.iterations)

        def step(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]) -> Tensor:
            clean = proximal(denoise(x, sigma), sigma)
            return renoised(clean, (x - clean) / sigma, sigma_next, self.zeta**0.5, rngs)

        return step
