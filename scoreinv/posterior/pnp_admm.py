"""Plug-and-play ADMM as published: alternating directions with a denoiser in place of the proximal map of a regulariser.

    x ← argmin ½ ‖W^½ (A x − y)‖² + ½ ρ ‖x − (z − u)‖²,    ρ = (τ / r)²,    r = trust · σ                          (1)
    z ← D(x + u, σ)
    u ← u + x − z                                                                                                  (2)

with W = (τ / σ_y)², τ = min σ_y as in `posterior.proximal`, and (1) solved by a few CG steps started as there; for noise-free data
ρ = 0. (Venkatakrishnan, Bouman, Wohlberg 2013, doi:10.1109/GlobalSIP.2013.6737048; σ falling: Chan, Wang, Elgendy 2017,
arXiv:1605.01710, algorithm 1.) u is the multiplier over ρ, so it is scaled by (σ'/σ)² when σ falls to σ'.

The default method, `proximal`, is the same iteration, over-relaxed, from a higher noise level, and stopped at the noise of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.chains import check_numbers
from scoreinv.posterior.proximal import splitting
from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.sampling.loop import last


@dataclass(frozen=True, eq=False)
class PnPADMM:
    """ADMM with the prior's denoiser: one image, deterministic, no training of its own.

    Attributes:
        prior: the denoiser D; its `scale` is the size of its own unit in the unit of the images.
        n_levels: iterations, an evaluation of D each.
        sigma_max: first noise level, in the prior's own unit.
        sigma_min: last one; in between they fall geometrically.
        trust: r / σ; looked at for noisy data only.
        iterations: CG steps an iteration.
    """

    prior: Denoiser
    n_levels: int = 30
    sigma_max: float = 0.3
    sigma_min: float = 0.01
    trust: float = 3.0
    iterations: int = 10

    def __post_init__(self) -> None:
        check_numbers(self)
        if min(self.n_levels, self.iterations) < 1:
            raise ValueError(
                f"PnPADMM: n_levels and iterations must be at least 1, got {self.n_levels} and {self.iterations}"
            )
        if not 0 < self.sigma_min <= self.sigma_max or not self.trust > 0:
            raise ValueError(
                f"PnPADMM: expected 0 < sigma_min <= sigma_max and trust > 0, got {self.sigma_min}, {self.sigma_max} and {self.trust}"
            )

    @torch.no_grad()
    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct: (1, *batch, *A.in_shape); rng is not used."""
        flat = problem.flat()
        levels = self.sigma_max * (self.sigma_min / self.sigma_max) ** torch.linspace(
            0, 1, self.n_levels, dtype=torch.float64
        )
        levels = (levels * scale_of(self.prior)).to(flat.y)
        steps = splitting(self.prior, flat, levels, relaxation=1.0, trust=self.trust, iterations=self.iterations)
        image = last(track(steps, "image", self.n_levels))
        return image.reshape(1, *problem.batch_shape, *problem.A.in_shape)
