"""The fast default: conjugate-gradient data consistency and the denoiser in turns, held together by multipliers.

The prior's estimate D(x, σ) is pulled to the data by the proximal map of the data term,

    P(D) = argmin_z  ½ ‖W^½ (A z − y)‖² + ½ ρ ‖z − D‖²,      (AᵀWA + ρ I) z = AᵀW y + ρ D,      ρ = (τ / r)²

with W = (τ / σ_y)², τ = min σ_y, r = trust · σ the error that D is given, solved by CG steps from D. For noise-free
data ρ = 0: the CG steps run on AᵀA z = Aᵀy, and stopping them early keeps what the data do not determine at D's values.
(Chung, Lee, Ye, "Decomposed Diffusion Sampler", 2024, arXiv:2303.05754, eqs. 15-18; Zhu et al., "DiffPIR", 2023,
arXiv:2305.08995, eq. 13.)

    image   x ← P(z − u),  x̂ = α x + (1 − α) z,  z ← D(x̂ + u, σ),  u ← (σ'/σ)² (u + x̂ − z),  σ falling from σ_max to σ_min:
            alternating directions with the score network as denoiser (Venkatakrishnan, Bouman, Wohlberg 2013,
            doi:10.1109/GlobalSIP.2013.6737048; σ falling: Chan, Wang, Elgendy 2017, arXiv:1605.01710, algorithm 1), over-relaxed by α
            (Eckstein, Bertsekas 1992; Boyd et al. 2011, section 3.4.3). u is the multiplier over ρ and so goes with σ². No noise is added;
            the network's evaluations go through its equivalent poses (`priors.denoiser.Posed`), whose errors average out. The
            image is P(z − u). For noisy data CG starts from z − u and the last pull, times (σ'/σ)² as u: where the data say little
            that is what the pull will be, and there CG is slow (2 dB within 60 degrees, 1 within 100, nothing at 23 views all round)
    draws   x = image + σ n, then ancestral steps of P_η(D(x, σ)), which is P of y + σ_y η with fresh noise η, to a low σ: the steps
            draw what the data leave open as the prior sees it, η what the noise of the data leaves open. The last is a draw of
            exp(−½ ‖(A z − y) / σ_y‖² − ‖z − D‖² / 2σ²) (`gaussian_draws`), so that χ² of a draw is about 1. They are then moved
            together so that their mean is the image, which is nearer to the truth than the mean of walks so short (by 3 dB at 23 views).
            σ starts above any error of the image, so that they forget that they started there

For a Gaussian prior D(·, σ) is the proximal map of −σ² ln p, so that with trust = 1 and σ held the image comes to rest at the posterior
mean, whatever σ and α are. Without u (half-quadratic splitting) it does so for σ → 0 only, and with the shipped prior 50 evaluations of it
are worse than 20 of this. The draws vary as the posterior does as levels become many.

On four patients at 128 x 128 with the quick prior, eight draws hold (mean ± 1.645 √(1 + 1/8) std) 87 % of the tissue within 60 degrees,
91 % within 100, 92 % at low dose and 85 % at 23 views; started from σ = 0.6 in eight levels, with cold CG, they held 47, 78, 84 and 85 %.
Decoupled annealing (`posterior.daps`) from the image varies by white noise that is the same everywhere: the rank correlation of its standard
deviation with the error is 0.25 to 0.28, of draws like these 0.30 to 0.39.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from scoreinv.posterior.chains import check_numbers
from scoreinv.posterior.gaussian_draws import gaussian_draw
from scoreinv.priors.denoiser import Denoiser, checked, posed, scale_of
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.sampling.levels import geometric, karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import Ancestral
from scoreinv.solvers import cg, cgls, like, noise_weights
from scoreinv.streams import normal

TOLERANCE = 3e-5
"""Of CG for noisy data: at 23 views it ends after half of the 50 steps, within an arc after most of them."""


def proximal_denoiser(prior: Denoiser, problem: Problem, *, trust: float = 1.0, iterations: int = 10) -> Denoiser:
    """The posterior denoiser P(D(x, σ)) of the module's head.

    Args:
        prior: D.
        problem: A, y (batch, *A.out_shape) and σ_y; one batch dimension.
        trust: r / σ: how far D's estimate may be off, in units of the noise level.
        iterations: CG steps.
    """
    proximal = proximal_map(problem, trust, iterations)
    return lambda x, sigma: proximal(prior(x, sigma), sigma)


def proximal_map(
    problem: Problem,
    trust: float,
    iterations: int | Tensor,
    *,
    tolerance: float | Tensor = 0.0,
    y: Tensor | None = None,
) -> Callable[..., Tensor]:
    """(D, σ, start=D) -> P(D), start being CG's; y takes the place of the problem's data."""
    A = problem.A
    weights, tau = noise_weights(problem)

    def weighted(y: Tensor) -> Tensor:
        return y if weights is None else weights * y

    data = A.H(weighted(problem.y if y is None else y))

    def proximal(estimate: Tensor, sigma: Tensor, start: Tensor | None = None) -> Tensor:
        rho = like((tau / (trust * torch.as_tensor(sigma).to(estimate))) ** 2, estimate)
        return cg(
            lambda z: A.H(weighted(A(z))) + rho * z, data + rho * estimate, estimate if start is None else start,
            max_iterations=iterations, tolerance=tolerance,
        )  # fmt: skip

    return proximal


def splitting(
    prior: Denoiser,
    problem: Problem,
    levels: Tensor,
    *,
    relaxation: float,
    trust: float,
    iterations: int | Tensor,
    tolerance: float | Tensor = 0.0,
) -> Iterator[Tensor]:
    """The image's iteration of the module's head, from the least squares of ten CG steps: P(z − u) after every evaluation of D.

    Args:
        prior: D.
        problem: of one batch dimension.
        levels: σ, in the unit of the images.
        relaxation: α.
        trust, iterations: of P, see `proximal_denoiser`.
        tolerance: of CG.
    """
    proximal = proximal_map(problem, trust, iterations, tolerance=tolerance)
    weights, tau = noise_weights(problem)
    x = z = cgls(problem.linear, problem.y, max_iterations=10, weights=weights)
    u = pull = torch.zeros_like(z)
    for k, (sigma, following) in enumerate(itertools.zip_longest(levels, levels[1:], fillvalue=levels[-1])):
        relaxed = relaxation * x + (1 - relaxation) * z
        z = checked(posed(prior, k)(relaxed + u, sigma), u)
        fall = (following / sigma) ** 2
        u = (u + relaxed - z) * fall
        x = proximal(z - u, following, z - u + pull * fall)
        pull = torch.where(like(tau, x) > 0, x - (z - u), 0)
        yield x


@dataclass(frozen=True, eq=False)
class Proximal:
    """CG data consistency on the denoised estimate: an image in about 30 network evaluations, and draws around it.

    The defaults of sigma_min and relaxation are what `scoreinv tune` found on two validation patients (23 views, 0.5 % noise, 20 levels;
    benchmarks/results/tuned_proximal.json), rounded; they hold on others and without noise (benchmarks/few_view.py). It found 0.6 for
    sigma_max; 1 is as good there and 0.3 dB better within an arc. The trust lies between what suits few views (2 or more) and noisy data of
    many (1.5): benchmarks/trust.py.

    Attributes:
        prior: the denoiser D; its `scale` is the size of its own unit in the unit of the images.
        samples: draws, whose mean is the image; 1 gives the image alone, without uncertainty.
        n_levels: evaluations for the image.
        sigma_max: first noise level, in the prior's own unit; None takes 1 where A sees every pixel, 3 where it does not.
        sigma_min: last noise level.
        relaxation: α.
        trust: r / σ, see `proximal_denoiser`; looked at for noisy data only. 1 is exact for a Gaussian prior (the image is then
            the posterior mean); the shipped network's estimate is further off than its noise level says.
        iterations: CG steps an evaluation; None takes 50 at most, and 10 for noise-free data, where nothing but stopping early keeps out what the
            operator gets wrong (0.4 dB better for data of a finer grid, 0.1 dB worse for data of the operator itself).
        draw_levels: evaluations for each draw.
        draw_sigma: noise level that a draw starts from, in the prior's own unit.
    """

    prior: Denoiser
    samples: int = 4
    n_levels: int = 30
    sigma_max: float | None = None
    sigma_min: float = 0.01
    relaxation: float = 1.9
    trust: float = 1.75
    iterations: int | None = None
    draw_levels: int = 10
    draw_sigma: float = 10.0

    def __post_init__(self) -> None:
        check_numbers(self)
        steps = 1 if self.iterations is None else self.iterations
        if min(self.samples, self.n_levels, self.draw_levels, steps) < 1:
            raise ValueError("Proximal: samples, n_levels, draw_levels and iterations must be at least 1")
        if not 0 < self.sigma_min < min(self.draw_sigma, self.draw_sigma if self.sigma_max is None else self.sigma_max):
            raise ValueError("Proximal: expected 0 < sigma_min < draw_sigma and sigma_min < sigma_max")
        if not 0 < self.relaxation < 2 or self.trust <= 0:
            raise ValueError(
                f"Proximal: expected 0 < relaxation < 2 and trust > 0, got {self.relaxation} and {self.trust}"
            )

    @torch.no_grad()
    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct: (samples, *batch, *A.in_shape)."""
        flat = problem.flat()
        image = self.image(flat)
        if self.samples == 1:
            return image.reshape(1, *problem.batch_shape, *problem.A.in_shape)
        rngs = member_streams(rng, self.samples, len(image))
        starts = image.repeat(self.samples, *(1,) * (image.ndim - 1))
        draws = last(track(self.draws(flat.repeated(self.samples), starts, rngs), "draws", self.draw_levels))
        draws = draws.reshape(self.samples, *image.shape)
        draws = draws + (image - draws.mean(0))
        return draws.reshape(self.samples, *problem.batch_shape, *problem.A.in_shape)

    def image(self, problem: Problem) -> Tensor:
        """The image alone, (batch, *A.in_shape), of a problem of one batch dimension; there is no randomness in it."""
        usual = 1.0 if sees_every_pixel(problem) else 3.0
        first = usual if self.sigma_max is None else self.sigma_max
        levels = (geometric(self.n_levels, self.sigma_min, first)[:-1] * scale_of(self.prior)).to(problem.y)
        steps = splitting(
            self.prior, problem, levels, relaxation=self.relaxation, trust=self.trust, **self._cg(problem)
        )
        return last(track(steps, "image", self.n_levels))

    def draws(self, problem: Problem, image: Tensor, rngs: list[Generator]) -> Iterator[Tensor]:
        """x on the way of ancestral steps from the image, before the draws are moved."""
        sigmas = (karras(self.draw_levels, self.sigma_min, self.draw_sigma) * scale_of(self.prior)).to(image)
        std, effort = torch.as_tensor(problem.noise_std).to(problem.y), self._cg(problem)
        turns = iter(range(self.draw_levels))

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            turn = next(turns)
            estimate = posed(self.prior, turn)(x, sigma)
            if turn == self.draw_levels - 1:
                return gaussian_draw(problem, estimate, sigma, rngs, iterations=effort["iterations"])
            noisy = problem.y + std * normal(rngs, problem.y)
            return proximal_map(problem, self.trust, y=noisy, **effort)(estimate, sigma)

        return sample(denoiser, image + sigmas[0] * normal(rngs, image), sigmas, step=Ancestral(), rngs=rngs)

    def _cg(self, problem: Problem) -> dict[str, Any]:
        """Steps of each member, and the tolerance that ends them."""
        if self.iterations is not None:
            return {"iterations": self.iterations}
        noisy = noise_weights(problem)[1] > 0
        return {"iterations": torch.where(noisy, 50, 10), "tolerance": torch.where(noisy, TOLERANCE, 0.0)}


def sees_every_pixel(problem: Problem) -> bool:
    """Whether all pixels leave a trace in the data: one that does not starts from nothing and needs more noise at first than one that is
    only blurred by streaks."""
    ones = torch.ones(problem.A.in_shape, dtype=problem.y.dtype, device=problem.y.device)
    return bool((problem.A.H(problem.A(ones)).abs() > 0).all())
