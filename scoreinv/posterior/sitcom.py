"""SITCOM: at every level the input of the denoiser is moved until its output meets the data.

    x ~ N(0, σ_max²);  for σ, σ' in levels (σ' = 0 last):
        v ← x, then at most K Adam steps on  ‖W^½ (A D(v, σ) − y)‖² / ‖A‖² + λ ‖v − x‖² / (1 + σ²),                  (1)
            ended when ‖Σ_y^{−½} (A D(v, σ) − y)‖² <= d² m, the misfit that noise alone makes of m data                (2)
        x ← D(v, σ) + σ' z                                                                                          (3)

(Alkhouri et al., "SITCOM: Step-wise Triple-Consistent Diffusion Sampling for Inverse Problems", 2025, arXiv:2410.04479,
algorithm 1.) D(v, σ) stays an output of the denoiser, unlike an image that is moved itself. The steps of the paper are those of
x / √(1 + σ²): hence the factor under λ here, and a learning rate that grows like √(1 + σ²) (σ in the prior's own unit). The data
term is divided by ‖A‖², W = (τ / σ_y)², τ = min σ_y; of photon counts it is the exact one, m of `scoreinv.misfit`, also in (2). The
published program reports the best of all iterates as judged by the truth; this one ends by (2) or after K steps, and returns the
last D(v, σ).

An evaluation of (1) costs the prior and its gradient; at most K + 1 a level. With noise-free data (2) is never met.

An estimate near the data from a random start, not a draw of the posterior. On the Gaussian of tests/test_sitcom.py (variances 0.5
to 1.5, 3 of 6 directions measured with noise 0.5) with the default settings: variance over exact variance 0.48, mean off by 0.24
exact standard deviations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.misfit import misfit
from scoreinv.posterior.chains import check_settings, run
from scoreinv.posterior.guidance import with_gradient
from scoreinv.priors.denoiser import Denoiser, checked, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.solvers import like
from scoreinv.streams import normal


@dataclass(frozen=True, eq=False)
class SITCOM:
    """Optimisation over the denoiser's input, level by level: see the module's head.

    Attributes:
        prior: the denoiser D, differentiable; its `scale` is the size of its own unit in the unit of the images.
        samples: runs with noise of their own.
        n_levels: noise levels.
        iterations: K, Adam steps a level at most.
        sigma_max: first noise level, in the prior's own unit.
        sigma_min: last one.
        weight: λ.
        learning_rate: of Adam, in the prior's own unit at small σ.
        discrepancy: d.
    """

    prior: Denoiser
    samples: int = 1
    n_levels: int = 20
    iterations: int = 20
    sigma_max: float = 20.0
    sigma_min: float = 0.01
    weight: float = 0.0
    learning_rate: float = 0.02
    discrepancy: float = 1.0

    def __post_init__(self) -> None:
        counts = {k: getattr(self, k) for k in ("samples", "n_levels", "iterations")}
        check_settings(self, levels=(self.sigma_min, self.sigma_max), **counts)
        if not (self.weight >= 0 and self.learning_rate > 0 and self.discrepancy >= 0):
            raise ValueError(
                "SITCOM: expected weight >= 0, learning_rate > 0 and discrepancy >= 0, "
                f"got {self.weight}, {self.learning_rate} and {self.discrepancy}"
            )

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Estimate: (samples, *batch, *A.in_shape) in y's dtype."""
        return run(self.walk, problem, rng, samples=self.samples, name="SITCOM", n=self.n_levels)

    @torch.no_grad()
    def walk(self, problem: Problem, rngs: Sequence[Generator]) -> Iterator[Tensor]:
        """x after every level."""
        sigmas = (karras(self.n_levels, self.sigma_min, self.sigma_max) * scale_of(self.prior)).to(problem.y)
        x = sigmas[0] * normal(rngs, problem.y.new_zeros(len(rngs), *problem.A.in_shape))
        for sigma, sigma_next in itertools.pairwise(sigmas):
            x = self._consistent(problem, x, sigma) + sigma_next * normal(rngs, x)
            yield x

    def _consistent(self, problem: Problem, x: Tensor, sigma: Tensor) -> Tensor:
        """D(v, σ) with the v that (1) and (2) end at; a member that is done stays where it is while others go on."""
        A, fit, scale = problem.A, misfit(problem), scale_of(self.prior)
        norm_squared = A.norm_squared() or 1.0
        goal = (self.discrepancy * fit.tau) ** 2 * A.n_data
        widening = 1 + (sigma / scale) ** 2
        v, done = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        adam = torch.optim.Adam([v], lr=float(self.learning_rate * scale * widening.sqrt()), eps=1e-8 * scale)
        for _ in range(self.iterations):
            clean, transposed = with_gradient(self.prior, v, sigma)
            measured, back = A.linearised(clean)
            done |= fit.value(measured) <= goal
            if done.all():
                return clean
            data = transposed(back(fit.slope(measured))) / norm_squared
            v.grad = 2 * (data + self.weight * (v - x) / widening)
            stays = v.clone()
            adam.step()
            v.copy_(torch.where(like(done, v), stays, v))
        return checked(self.prior(v, sigma), v)
