"""TDS, the twisted diffusion sampler: sequential Monte Carlo with guidance as its proposal, for any linear operator.

Wu, Trippe, Naesseth, Blei, Cunningham 2023, arXiv:2306.17775, algorithm 1, on the chain of `scoreinv.posterior.particles`.
The twist is what the data would be likely to be, seen from a particle with noise of level σ,

    p̃(y | x) = N(y; A D(x, σ), Σ_y + r² A Aᵀ),    r² = σ² s² / (σ² + s²)                                          (1)

as in PiGDM, with s the standard deviation of the images; it tends to p(y | x₀) as σ → 0. A particle moves by the
twisted proposal, and is weighed by what the proposal did not know:

    q(x' | x) = N(mean of p(x' | x) + (σ² − σ'²) ∇ₓ ln p̃(y | x), v)                                               (2)
    w ← w p(x' | x) p̃(y | x') / (p̃(y | x) q(x' | x)),    at the end p(y | x₀) in the place of p̃(y | x')              (3)

Systematic resampling where the effective number of particles falls below a share of them. Any positive function of x may
stand for p̃: the limit of many particles is the same. So conjugate gradients for (Σ_y + r² A Aᵀ)⁻¹ (y − A D) may stop early;
and ln det, which no particle changes, is left out. What the paper does differently: its p(x' | x) has the variance σ² − σ'².

p(y | x₀) of photon counts is exact; p̃ has their first-order noise.

Measured on the Gaussian example of tests/test_smc.py (6 pixels, 3 data, 50 levels): root-mean-square error of one run's mean
with 8, 64, 512 particles 0.47, 0.19, 0.10 of the posterior's deviation, variance ratio 1.03 and ln p(y) 0.05 too small with
512; on the four modes of `priors.references` 0.51, 0.20, 0.06, ratios 1.05 and 1.00. On 25 modes in 8 pixels (256 particles,
100 levels) with data_std = 11, that of the images, ln p(y) is exact to 0.02; with data_std = 1, that of one mode, particles
start in the wrong modes and it is 6.7 too small.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.linop import LinearOperator
from scoreinv.misfit import log_likelihood
from scoreinv.posterior.guidance import with_gradient
from scoreinv.posterior.particles import Cloud, ParticleFilter, transition, variance_given
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.solvers import cg, inner, like, noise_weights
from scoreinv.streams import normal


@dataclass(frozen=True, eq=False)
class TDS(ParticleFilter):
    """The twisted diffusion sampler; see the module's head. Noise-free data have no likelihood to weigh particles with.

    Attributes:
        iterations: CG steps for the twist.
        chunk_pixels: pixels of all the particles whose gradients are taken at once: the memory limit for networks.
    """

    iterations: int = 20
    chunk_pixels: int = 8 * 256 * 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.iterations, self.chunk_pixels) < 1:
            raise ValueError(
                f"TDS: expected iterations and chunk_pixels >= 1, got {self.iterations} and {self.chunk_pixels}"
            )

    def _filter(self, problem: Problem, sigmas: Tensor, rngs: Sequence[Generator], cloud: Cloud) -> Tensor:
        if (noise_weights(problem)[1] == 0).any():
            raise ValueError(
                "TDS: noise_std = 0 leaves no likelihood to weigh particles with; give a small positive one, "
                "or take MCGDiff, which conditions on noise-free data exactly"
            )
        problem = problem.repeated(cloud.n)
        x = sigmas[0] * normal(rngs, problem.y.new_zeros(len(rngs), *problem.A.in_shape))
        debt: Tensor | float = 0.0  # ln of what a particle's weight still has to be multiplied by
        for sigma, sigma_next in track(itertools.pairwise(sigmas), "TDS", self.n_levels):
            clean, twist, gradient = self._twisted(problem, x, sigma)
            cloud.reweigh(twist + debt)
            if sigma_next == 0:
                break
            x, clean, twist, gradient = cloud.resample(x, clean, twist, gradient)
            mean, variance = transition(x, clean, sigma, sigma_next, self._data_std)
            noise, shift = variance.sqrt() * normal(rngs, x), (sigma**2 - sigma_next**2) * gradient
            x = mean + shift + noise
            debt = (inner(noise, noise) - inner(noise + shift, noise + shift)) / (2 * variance) - twist
        cloud.reweigh(log_likelihood(problem, clean) - twist)
        return clean

    def _twisted(self, problem: Problem, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D, ln p̃(y | x) without its constant (batch,), and its gradient; chunk by chunk."""
        weights, tau = noise_weights(problem)
        root = problem.A.of_seen(torch.ones_like(problem.y) if weights is None else weights.sqrt())
        parts, chunk = [], max(1, self.chunk_pixels // x[0].numel())
        for start in range(0, len(x), chunk):
            few = slice(start, start + chunk)
            parts.append(self._twisted_few(problem.linear, x[few], sigma, problem.y[few], root[few], tau[few]))
        clean, twist, gradient = (torch.cat(part) for part in zip(*parts, strict=True))
        return clean, twist, gradient

    def _twisted_few(
        self, A: LinearOperator, x: Tensor, sigma: Tensor, y: Tensor, root: Tensor, tau: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same, with Σ_y = τ² / root²: the system is solved for data divided by their noise."""
        clean, transposed = with_gradient(self.prior, x, sigma)
        r2, ridge, residual = variance_given(sigma, self._data_std), like(tau**2, y), root * (y - A(clean))
        u = cg(lambda u: ridge * u + r2 * root * A(A.H(root * u)), residual, max_iterations=self.iterations)
        return clean, -inner(residual, u) / 2, transposed(A.H(root * u))
