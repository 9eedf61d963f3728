"""MCG: a gradient step along the manifold that the prior knows, and a projection onto the data.

    x' = (the prior's step from x) − α ∇ₓ ‖A⁺ (y − A D(x, σ))‖                                                      (1)
    x ← x' + λ Aᵀ (y − A x') / (AᵀA 1)                                                                              (2)

(Chung, Sim, Ryu, Ye 2022, arXiv:2206.00941; its text has the square of the norm and an exact projection, its
programs for CT the norm and one SIRT step, λ falling from 1 to 0.6.) A⁺ r lies in the range of Aᵀ, so the gradient is −Jᵀ q / ‖q‖
with q = A⁺ (y − A D), the change of D that meets the data. As a posterior denoiser with ζ as in `scoreinv.posterior.dps`,

    D_y = D + min(1, ζ σ √n / ‖q‖) Jᵀ q                                                                             (3)

Deviations: the step follows the noise level, and never goes beyond q. Noise enters as in `scoreinv.posterior.song`, with
W = (τ / σ_y)² and τ = min σ_y: q solves (AᵀWA + (τ / σ)²) q = AᵀW (y − A D) by conjugate gradients, and (2) becomes one diagonal step
for the same equations, AᵀW (y − A x') / (AᵀWA 1 + (τ / σ)²). That step is safe for A >= 0 only: for an operator with negative sums
‖A‖² takes the place of AᵀWA 1, and no step goes past the smallest misfit in its direction. As published, the data in (2) carry
no noise of level σ; perturbing them changed little on Gaussian examples (variance ratio 0.83 and 0.88).

One SIRT step a level is far from a projection: with 50 levels (2) alone left chi² 56 (16 x 16 pixels, 8 views, 0.5 % noise), with (3)
it is 0.6. Without (2), noise-free data and ζ large make it PiGDM with damping 1.

What it draws. Each (2) takes noise out of x that its level says is there, so draws gather at noisy data, the more the more levels: on the
Gaussian example of tests/test_guided_gradients.py the variance in the range of Aᵀ is 0.39 of the exact one with 50 ancestral levels
and 0.12 with 200, in the null space 1.08 and 1.21 times, the mean off by 0.35 and 0.32 posterior standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.chains import run
from scoreinv.posterior.guidance import STEPS, Guided, with_gradient
from scoreinv.priors.denoiser import Counted, Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import sample
from scoreinv.sampling.steps import Constraint
from scoreinv.solvers import cg, inner, like, noise_weights
from scoreinv.streams import normal


@dataclass(frozen=True, eq=False)
class MCG(Guided):
    """Manifold-constrained gradients with projections; see the module's head.

    Attributes:
        zeta: ζ, the longest step of the gradient in units of the noise in x.
        relaxation: λ at sigma_max; 0 leaves the projections out.
        last_relaxation: λ at the end.
        iterations: CG steps for A⁺.
    """

    zeta: float = 1.0
    relaxation: float = 1.0
    last_relaxation: float = 0.6
    iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.zeta >= 0 or not all(0 <= k < 2 for k in (self.relaxation, self.last_relaxation)):
            raise ValueError(
                f"MCG: expected zeta >= 0 and relaxations in [0, 2), "
                f"got {self.zeta}, {self.relaxation} and {self.last_relaxation}"
            )
        if self.iterations < 1:
            raise ValueError(f"MCG: expected iterations of at least 1, got {self.iterations}")

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw: (samples, *batch, *A.in_shape) in y's dtype."""
        return run(self.walk, problem, rng, samples=self.samples, name="MCG", n=self.n_levels + 1)

    @torch.no_grad()
    def walk(self, problem: Problem, rngs: Sequence[Generator]) -> Iterator[Tensor]:
        """x after every step, and after a last projection, for a problem with one batch dimension."""
        sigmas = (karras(self.n_levels, self.sigma_min, self.sigma_max) * scale_of(self.prior)).to(problem.y)
        x = sigmas[0] * normal(rngs, problem.y.new_zeros(len(rngs), *problem.A.in_shape))
        denoise, project = self.condition(Counted(self.prior), problem), self.projection(problem, sigmas)
        step = STEPS[self.step](self.eta)
        for iterate in sample(denoise, x, sigmas, step=step, rngs=rngs, constrain=project):
            x = iterate
            yield x
        yield project(x, sigmas[-1], rngs)

    def projection(self, problem: Problem, sigmas: Tensor) -> Constraint:
        """Eq. (2), λ falling from level to level."""
        A, y = problem.A, problem.y
        weights, tau = noise_weights(problem)
        w = 1.0 if weights is None else weights
        sums = A.H(w * A(y.new_ones(1, *A.in_shape))).expand(len(y), *A.in_shape)
        safe = (sums >= 0).flatten(1).all(1)
        diagonal = torch.where(like(safe, sums), sums, A.norm_squared())

        def project(x: Tensor, sigma: Tensor, rngs: Sequence[Generator]) -> Tensor:
            passed = float((sigmas > sigma).sum()) / (len(sigmas) - 1)
            share = self.relaxation + (self.last_relaxation - self.relaxation) * passed
            ridge = like(torch.where(tau > 0, (tau / sigma) ** 2, 0), x)  # infinite at the end: noisy data stay unmet
            g = A.H(w * (y - A(x)))
            d = torch.where(diagonal > 0, g / (diagonal + ridge), 0)
            return x + share * like(_to_the_minimum(g, d, A.H(w * A(d)) + ridge * d), x) * d

        return project

    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        A = problem.A
        weights, tau = noise_weights(problem)
        w = 1.0 if weights is None else weights

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            clean, transposed = with_gradient(prior, x, sigma)
            level = torch.as_tensor(sigma).to(x)
            ridge = like((tau / level) ** 2, x)
            misfit = A.H(w * (problem.y - A(clean)))
            q = cg(lambda u: A.H(w * A(u)) + ridge * u, misfit, max_iterations=self.iterations)
            length = inner(q, q).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
            share = (self.zeta * level * math.sqrt(math.prod(A.in_shape)) / length).clamp(max=1)
            return clean + like(share, x) * transposed(q)

        return denoise


def _to_the_minimum(g: Tensor, d: Tensor, image: Tensor) -> Tensor:
    """How far along d = diag⁻¹ g the misfit falls, at most 1: ⟨g, d⟩ / ⟨d, H d⟩ of each member, image = H d."""
    fall, bend = inner(g, d), inner(d, image)
    return torch.where(bend > fall, fall / torch.where(bend > fall, bend, 1), 1)
