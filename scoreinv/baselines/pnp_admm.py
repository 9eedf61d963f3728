"""Plug-and-play ADMM: alternating directions with a denoiser in place of the proximal map of a regulariser.

    x ← argmin ½ ‖W^½ (A x − y)‖² + ½ ρ ‖x − (z − u)‖²,    ρ = (τ / r)²,    r = trust · σ                          (1)
    z ← D(x + u, σ)
    u ← u + x − z                                                                                                  (2)

with W = (τ / σ_y)², τ = min σ_y as in `posterior.proximal`, and (1) solved by a few CG steps from z − u; for noise-free data
ρ = 0. (Venkatakrishnan, Bouman, Wohlberg 2013, doi:10.1109/GlobalSIP.2013.6737048; σ falling: Chan, Wang, Elgendy 2017,
arXiv:1605.01710, algorithm 1.) u is the multiplier over ρ, so it is scaled by (σ'/σ)² when σ falls to σ'.

The default method `proximal` is plug-and-play half-quadratic splitting: (1) and D without u, with momentum. The difference is
exact for a Gaussian prior, whose D at any σ is the proximal map of σ² times its −ln p: ADMM with trust = 1 and σ kept fixed
comes to rest at the posterior mean whatever σ is, splitting without u only for σ -> 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser, posed, scale_of
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.solvers import cg, cgls, like, noise_weights


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
        if min(self.n_levels, self.iterations) < 1:
            raise ValueError(
                f"PnPADMM: n_levels and iterations must be at least 1, got {self.n_levels} and {self.iterations}"
            )
        if not 0 < self.sigma_min <= self.sigma_max or not self.trust > 0:
            raise ValueError(
                f"PnPADMM: expected 0 < sigma_min <= sigma_max and trust > 0, got {self.sigma_min}, {self.sigma_max} and {self.trust}"
            )

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct: (1, *batch, *A.in_shape); rng is not used."""
        image = problem.y.new_zeros(())
        for image in track(self.images(problem.flat()), "image", self.n_levels):  # noqa: B007 (the last one counts)
            pass
        return image.reshape(1, *problem.batch_shape, *problem.A.in_shape)

    @torch.no_grad()
    def images(self, problem: Problem) -> Iterator[Tensor]:
        """x after every iteration, for a problem of one batch dimension."""
        A = problem.A
        weights, tau = noise_weights(problem)

        def weighted(y: Tensor) -> Tensor:
            return y if weights is None else weights * y

        data = A.H(weighted(problem.y))
        z = cgls(A, problem.y, max_iterations=self.iterations, weights=weights)
        u = torch.zeros_like(z)
        ratio = (self.sigma_min / self.sigma_max) ** (1 / max(self.n_levels - 1, 1))
        for k in range(self.n_levels):
            sigma = torch.as_tensor(self.sigma_max * ratio**k * scale_of(self.prior)).to(z)
            rho = like((tau / (self.trust * sigma)) ** 2, z)
            x = cg(lambda v, rho=rho: A.H(weighted(A(v))) + rho * v, data + rho * (z - u), z - u, max_iterations=self.iterations)  # type: ignore[misc]  # fmt: skip
            yield x
            z = posed(self.prior, k)(x + u, sigma)
            u = (u + x - z) * ratio**2
