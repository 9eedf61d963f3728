"""RED-diff: an image fitted to the data by Adam, with the denoising residual as its regulariser.

    for σ in levels, falling:
        ℓ = ‖W^½ (A μ − y)‖² / 2‖A‖² + λ w(σ) ⟨sg[ε̂(μ + σ z, σ) − z], μ⟩,   w(σ) = σ                               (1)
        μ ← Adam step on ℓ

with ε̂ = (x − D) / σ the noise that the prior sees in x = μ + σ z and sg[] held constant. Since ε̂ − z = (μ − D(x, σ)) / σ, the
gradient needs no backward pass through the prior:

    ∇ℓ = AᵀW (A μ − y) / ‖A‖² + λ (μ − D(μ + σ z, σ))                                                               (2)

(Mardani, Song, Kautz, Vahdat, "A Variational Perspective on Solving Inverse Problems with Diffusion Models", 2024,
arXiv:2305.04391, algorithm 1, whose weight σ / α is σ in this coordinate.) Here the data term is divided by ‖A‖²,
so that one λ and one learning rate serve all operators. Where the noise is uneven W = (τ² + v) / (σ_y² + v), v = σ² ‖A‖², τ = min σ_y,
which is eq. (5) of `scoreinv.misfit`; of photon counts that of their exact likelihood. μ starts at a few CGLS steps, where the
operator is linear, else at its `around`.

A point estimate: the variational family has no width, draws differ by the noise of the descent only. With a Gaussian prior
N(m, Σ) and one level σ, ∇ℓ is zero on average over z at

    (AᵀWA / ‖A‖² + λ σ² (Σ + σ² I)⁻¹) (μ − m) = AᵀW (y − A m) / ‖A‖²                                                  (3)

which with λ = (τ² + v) / (‖A‖² σ²) is the posterior mean of the prior N(m, Σ + σ² I) and the noise Σ_y + v I (where the noise is even, with
λ = τ² / (‖A‖² σ²) that of the noise Σ_y itself). As σ falls the pull of the prior falls like σ²:
the end of the run fits the data, and where they are noisy also their noise. On the Gaussian of tests/test_red_diff.py (variances
0.5 to 1.5, 3 of 6 directions measured with noise 0.5) with the default settings: variance over exact variance 0.12, residual
0.02 σ_y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.linop import Nonlinear
from scoreinv.misfit import misfit
from scoreinv.posterior.chains import check_settings, run
from scoreinv.priors.denoiser import Denoiser, checked, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.solvers import cgls, noise_weights
from scoreinv.streams import normal


@dataclass(frozen=True, eq=False)
class REDDiff:
    """Adam on data misfit and denoising residual: see the module's head.

    Attributes:
        prior: the denoiser D; its `scale` is the size of its own unit in the unit of the images.
        samples: runs with noise of their own.
        n_levels: noise levels, an evaluation and an Adam step each.
        sigma_max: first noise level, in the prior's own unit.
        sigma_min: last one.
        weight: λ.
        learning_rate: of Adam, in the prior's own unit: about how far a pixel can move in a step.
        start_iterations: CGLS steps for the start.
    """

    prior: Denoiser
    samples: int = 1
    n_levels: int = 200
    sigma_max: float = 20.0
    sigma_min: float = 0.01
    weight: float = 0.25
    learning_rate: float = 0.1
    start_iterations: int = 10

    def __post_init__(self) -> None:
        counts = {k: getattr(self, k) for k in ("samples", "n_levels", "start_iterations")}
        check_settings(self, levels=(self.sigma_min, self.sigma_max), **counts)
        if not self.weight >= 0 or not self.learning_rate > 0:
            raise ValueError(
                f"REDDiff: expected weight >= 0 and learning_rate > 0, got {self.weight} and {self.learning_rate}"
            )

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Estimate: (samples, *batch, *A.in_shape) in y's dtype."""
        return run(self.walk, problem, rng, samples=self.samples, name="REDDiff", n=self.n_levels)

    @torch.no_grad()
    def walk(self, problem: Problem, rngs: Sequence[Generator]) -> Iterator[Tensor]:
        """μ after every level."""
        A, y, scale = problem.A, problem.y, scale_of(self.prior)
        fit, norm_squared = misfit(problem), A.norm_squared() or 1.0
        weights, _ = noise_weights(problem)
        if isinstance(A, Nonlinear):
            mu = y.new_zeros(len(y), *A.in_shape) + (0 if A.around is None else A.around.to(y))
        else:
            mu = cgls(problem.linear, y, max_iterations=self.start_iterations, weights=weights)
        adam = torch.optim.Adam([mu], lr=self.learning_rate * scale, betas=(0.9, 0.99), eps=1e-8 * scale)
        for sigma in (karras(self.n_levels, self.sigma_min, self.sigma_max)[:-1] * scale).to(y):
            measured, back = A.linearised(mu)
            data = back(fit.balanced(measured, sigma**2 * norm_squared)) / norm_squared
            clean = checked(self.prior(mu + sigma * normal(rngs, mu), sigma), mu)
            mu.grad = data + self.weight * (mu - clean)
            adam.step()
            yield mu.clone()
