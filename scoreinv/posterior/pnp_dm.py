"""PnP-DM: split Gibbs sampling, the data in one half and the prior in the other.

    p_ρ(x, u) ∝ p(x) exp(−‖x − u‖² / 2ρ²) exp(−½ ‖Σ_y^{−½} (A u − y)‖²)                                           (1)

    for ρ in a falling sequence:
        u ~ p_ρ(u | x): a Gaussian, drawn exactly (`gaussian_draws`)                                                (2)
        x ~ p_ρ(x | u) ∝ p(x) N(u; x, ρ² I): denoising, by the reverse SDE from u at the level σ = ρ down to 0      (3)

(Wu, Sun, Chen, Zhang, Yue, Bouman, "Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors", 2024,
arXiv:2405.18782, algorithm 1.) ρ falls as there, ρ_k = max(ρ_min, ρ_max · decay^k). Each draw is the end of a chain of
its own; the paper keeps the last iterates of one chain, which are correlated.

What it samples. Held at one ρ, x follows the marginal of (1), the posterior of the same prior under more noise,

    p_ρ(x) ∝ p(x) N(y; A x, Σ_y + ρ² A Aᵀ),                                                                        (4)

which is the exact posterior as ρ → 0: with ρ_min well below σ_y / ‖A‖ it is nearly that. A sweep forgets the share
ρ² / (s² + ρ²) of a direction of prior variance s² that the data do not see: it takes s² / ρ² sweeps, or, as here, larger ρ
before. (3) is of order 1 in its steps; for a Gaussian prior its mean is exact, its variance 0.7 to 1.2 of the exact one with
10 steps for s >= ρ / 10 (1.00 for s >> ρ, 1.12 for s = ρ), and less below (0.31 for s = ρ / 20), where the law is narrower
than the last level.

On the Gaussian of tests/test_pnp_dm.py (variances 0.5 to 1.5, 3 of 6 directions measured with noise 0.5) with the default
settings: variance over exact variance 1.03, mean off by 0.06 exact standard deviations; on four modes of which the data leave two
open, each gets its weight, and its variance within 10 %. Noise-free data are met up to about ρ_min ‖A‖, as (3) comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.chains import check_settings, run
from scoreinv.posterior.gaussian_draws import gaussian_draw
from scoreinv.priors.denoiser import Counted, Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.levels import geometric
from scoreinv.sampling.loop import last, sample
from scoreinv.sampling.steps import finished, reverse_diffusion

LAST = 0.1
"""Last positive level of the reverse SDE over ρ; the variance that is left there, about a hundredth of ρ² or all of a smaller s², is lost."""


@dataclass(frozen=True, eq=False)
class PnPDM:
    """Split Gibbs sampling with a diffusion prior: see the module's head.

    Attributes:
        prior: the denoiser D; its `scale` is the size of its own unit in the unit of the images.
        samples: draws, a chain each.
        n_sweeps: alternations of (2) and (3).
        prior_steps: evaluations of (3).
        rho_max: first ρ, in the prior's own unit; well above its spread it makes chains forget where they start.
        rho_min: last one.
        decay: ρ of a sweep over that of the sweep before, until rho_min is reached.
        iterations: CG steps at most of (2).
    """

    prior: Denoiser
    samples: int = 1
    n_sweeps: int = 60
    prior_steps: int = 10
    rho_max: float = 10.0
    rho_min: float = 0.02
    decay: float = 0.88
    iterations: int = 50

    def __post_init__(self) -> None:
        counts = {k: getattr(self, k) for k in ("samples", "n_sweeps", "prior_steps", "iterations")}
        check_settings(self, levels=(self.rho_min, self.rho_max), of="rho", **counts)
        if not 0 < self.decay <= 1:
            raise ValueError(f"PnPDM: decay must lie in (0, 1], got {self.decay}")

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw: (samples, *batch, *A.in_shape) in y's dtype."""
        return run(self.walk, problem, rng, samples=self.samples, name="PnPDM", n=self.n_sweeps)

    @torch.no_grad()
    def walk(self, problem: Problem, rngs: Sequence[Generator]) -> Iterator[Tensor]:
        """x after every sweep."""
        x = problem.y.new_zeros(len(rngs), *problem.A.in_shape)
        for k in range(self.n_sweeps):
            rho = max(self.rho_min, self.rho_max * self.decay**k) * scale_of(self.prior)
            u = gaussian_draw(problem, x, rho, rngs, iterations=self.iterations)
            levels = geometric(self.prior_steps, LAST * rho, rho).to(u)
            x = last(sample(Counted(self.prior), u, levels, step=finished(reverse_diffusion), rngs=rngs))
            yield x
