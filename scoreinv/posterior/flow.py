"""Two methods for flow matching, on any prior of ours through a change of coordinates.

Flow matching moves along x_τ = (1 − τ) ε + τ x₀ from noise (τ = 0) to an image (τ = 1); x = x_τ / τ is our x₀ + σ n with

    σ = (1 − τ) / τ,     τ = 1 / (1 + σ)         in the prior's own unit                                          (1)

and the flow's estimate of x₀, x_τ + (1 − τ) v, is D. Their steps, with z ~ N(0, I), ε̂ = (x − D) / σ and D' an estimate
that heeds the data:

    FlowDPS    D' = τ D + (1 − τ) D_y,  D_y a few descent steps on ½ ‖W^½ (A D_y − y)‖² from D
               x'_τ' = τ' D' + (1 − τ') (√(1 − τ') ε̂ + √τ' z),   that is  x' = D' + σ' (√(1 − τ') ε̂ + √τ' z)    (2)
    Flower     D' a draw from, or the mean of, N(x₀; D, ν²) given y,  ν² = (1 − τ)² / (τ² + (1 − τ)²) = σ² / (1 + σ²)
               x'_τ' = τ' D' + (1 − τ') z,                       that is  x' = D' + σ' z                          (3)

Levels are equally spaced in u = 1 − τ (Flower), or 1 − τ = shift u / (1 + (shift − 1) u), that is σ = shift u / (1 − u)
(FlowDPS). Both start at τ = 0, where σ is infinite; here at sigma_max.

FlowDPS (Kim, Kim, Ye 2025, arXiv:2503.08136): (2), the weights τ and 1 − τ, shift 4 and 28 evaluations were read in a copy
of the published code, the paper was not read. There the descent is three gradient steps on ‖Aᵀ(A D − y)‖, through the
decoder of a latent space, with a step of 30; here CG steps, which need no step size. Noise of the data plays no part: what
they say has the weight 1 − τ.

Flower (Pourya, El Rawas, Unser 2026, arXiv:2509.26287): (3), ν, the grid of 100 steps and gamma (0 the mean, the default
there, 1 a draw) were read in the published code and its README, the paper was not read. The draw is `gaussian_draws`.

Flower with draws is exact for images N(m, I) in the prior's own unit, with any number of levels: ν² is then the variance of
x₀ given x. For other Gaussians it tends to the posterior as levels are added (variance of what is not measured 1.28, 1.18,
1.11 of the posterior's with 20, 40, 80 levels, in the correlated example of the tests). Of images N(0, I), with singular
values 2, ½ and 0, σ_y = 0.2 and 20 levels, the variance is 1, 1 and 1 of the posterior's for Flower with draws, 0.34, 0.42
and 0.44 with the mean, and 8.2, 0.59 and 0.66 for FlowDPS: its weight 1 − τ fades before the data are met, also noise-free
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.gaussian_draws import gaussian_draw
from scoreinv.posterior.stepwise import Stepwise, proximal_map, renoised
from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.steps import Step
from scoreinv.solvers import cgls, noise_weights
from scoreinv.streams import normal


def flow_levels(n: int, sigma_min: float, sigma_max: float, shift: float = 1.0) -> Tensor:
    """Levels equally spaced in u = σ / (σ + shift), then 0: (n + 1,) in float64."""
    first, last = sigma_max / (sigma_max + shift), sigma_min / (sigma_min + shift)
    u = torch.linspace(first, last, n, dtype=torch.float64)
    return torch.cat([shift * u / (1 - u), u.new_zeros(1)])


@dataclass(frozen=True, eq=False)
class FlowDPS(Stepwise):
    """Eq. (2) of the module's head.

    Attributes:
        shift: more of it puts more levels at large σ.
        iterations: CG steps an evaluation.
    """

    n_levels: int = 28
    shift: float = 4.0
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shift > 0 or self.iterations < 1:
            raise ValueError(f"FlowDPS: expected shift > 0 and iterations >= 1, got {self.shift} and {self.iterations}")

    def levels(self) -> Tensor:
        return flow_levels(self.n_levels, self.sigma_min, self.sigma_max, self.shift)

    def step(self, problem: Problem) -> Step:
        weights, _ = noise_weights(problem)
        scale = scale_of(self.prior)

        def step(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]) -> Tensor:
            clean = denoise(x, sigma)
            fitted = cgls(problem.linear, problem.y, clean, max_iterations=self.iterations, weights=weights)
            corrected = clean + sigma / (scale + sigma) * (fitted - clean)
            share = (scale / (scale + sigma_next)).sqrt()
            return renoised(corrected, (x - clean) / sigma, sigma_next, share, rngs)

        return step


def _mean(problem: Problem, clean: Tensor, nu: Tensor, rngs: Sequence[Generator], *, iterations: int) -> Tensor:
    return proximal_map(problem, iterations=iterations)(clean, nu)


REFINEMENTS: dict[str, Callable[..., Tensor]] = {"draw": gaussian_draw, "mean": _mean}


@dataclass(frozen=True, eq=False)
class Flower(Stepwise):
    """Eq. (3) of the module's head.

    Attributes:
        refinement: D' as a "draw" (the paper's gamma = 1) or the "mean" (gamma = 0).
        iterations: CG steps an evaluation.
    """

    n_levels: int = 100
    refinement: str = "draw"
    iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refinement not in REFINEMENTS or self.iterations < 1:
            raise ValueError(
                f"Flower: expected iterations >= 1 and a refinement among {', '.join(REFINEMENTS)}, "
                f"got {self.iterations} and {self.refinement!r}"
            )

    def levels(self) -> Tensor:
        return flow_levels(self.n_levels, self.sigma_min, self.sigma_max)

    def step(self, problem: Problem) -> Step:
        scale, refine = scale_of(self.prior), REFINEMENTS[self.refinement]

        def step(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]) -> Tensor:
            nu = scale * sigma / (scale**2 + sigma**2).sqrt()
            destination = refine(problem, denoise(x, sigma), nu, rngs, iterations=self.iterations)
            return destination + sigma_next * normal(rngs, x)

        return step
