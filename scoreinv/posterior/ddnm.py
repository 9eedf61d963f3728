"""DDNM and DDNM+: the part of the denoised estimate that the data determine is replaced by them.

DDNM, for noise-free data: ancestral (DDIM) steps with

    D' = D + A⁺ (y − A D)                                                                                        (1)

A⁺ by CGLS from D, with weights where the noise is not uniform (stopped early it regularises; to the end, few-view CT
amplifies whatever noise there is). With the same iterations this is DDS for noise-free data. (Wang, Yu, Zhang 2023,
arXiv:2212.00490, eq. 13 and algorithm 1; eta = 1 is their algorithm, and their code takes steps of eq. (1) of
`scoreinv.posterior.stepwise` with share 0.85.)

DDNM+, for noisy data. The ancestral step x' = a D' + (1 − a) x + c z (a = 1 − √(σ'² − c²) / σ) would carry the data's noise
n into x' as a A⁺ n. Instead

    D' = D + Σ A⁺ (y − A D)  and fresh noise of covariance  c² I − a² Σ A⁺ Σ_y A⁺ᵀ Σᵀ                            (2)

so that x' has the noise that the step meant it to have, one step looked at alone (their eqs. 17-19; A⁺ the pseudo-inverse
weighted by W = (τ / σ_y)², τ = min σ_y). With t = c / (a τ) and s a singular value of W^½ A, the data's noise stays below c
where Σ = λ(s) <= s t:

    svd      λ = min(1, s t), as published (in their appendix): a dense SVD, for small images
    ridge    Σ A⁺ = α (AᵀWA + ρ I)⁻¹ AᵀW,  α = min(1, 2 ‖A‖ t),  ρ = (α / 2t)²

The ridge is ours. Its λ = α s² / (s² + ρ) is at most s t, with equality at s = √ρ, and the covariance of (2) is the square
of c (I − 2 (AᵀWA + ρ I)⁻¹ AᵀWA): one CG solve does both. Where all singular values are one s = ‖A‖ it equals the SVD's as
soon as s t <= 1/2, before that λ is between 4/5 of the SVD's and all of it; where they differ, the small ones have λ ~ s²
instead of s.

Once the step adds no noise, at the last level, noisy data are not looked at any more: draws end at D. Noise-free data have
λ = 1 throughout, and DDNM+ draws what DDNM draws.

DDNM is exact for noise-free data and images N(m, I), as levels are added (error in 1 / levels: variance 0.69, 0.83, 0.91 of
the posterior's with 20, 40, 80), because the true D_y is (1) there. Noisy data it meets exactly, noise and all: its draws
do not differ in what is measured. Nor do those of DDNM+ much: the noise of y is taken for the noise of x, and only denoised
at the end. Of images N(0, I), with singular values 2, ½ and 0, σ_y = 0.2 and 20 levels, the variance is 0.05, 0.03 and 0.69
of the posterior's (ridge: 0.10, 0.10 and 0.69), and the mean is off by 0.24 (ridge: 0.20; DDNM: 0.32) of its standard
deviation where s = ½.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.guidance import Guided
from scoreinv.posterior.stepwise import Stepwise
from scoreinv.posterior.svd import spectrum
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Problem
from scoreinv.sampling.steps import Step
from scoreinv.solvers import cg, cgls, like, noise_weights
from scoreinv.streams import normal


@dataclass(frozen=True, eq=False)
class DDNM(Guided):
    """The data's part of the estimate replaced, eq. (1) of the module's head; takes data for noise-free.

    Attributes:
        iterations: CGLS steps an evaluation.
    """

    iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"DDNM: expected iterations >= 1, got {self.iterations}")

    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        weights, _ = noise_weights(problem)
        A, y = problem.linear, problem.y
        return lambda x, sigma: cgls(A, y, prior(x, sigma), max_iterations=self.iterations, weights=weights)


Filter = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(D, z, a, c, t) -> a Σ A⁺ (y − A D) + (fresh noise made from z of the covariance of eq. (2)); t is (batch,)."""


def _svd_filter(problem: Problem, iterations: int) -> Filter:
    found = spectrum(problem)
    measured, shape = found.values > 0, problem.A.in_shape

    def apply(clean: Tensor, z: Tensor, a: Tensor, c: Tensor, t: Tensor) -> Tensor:
        snr = torch.where(measured, found.values * t[:, None], 0)
        correction = snr.clamp(max=1) * (found.data - found.coordinates(clean))
        left = torch.where(snr > 1, (1 - snr**-2).clamp(min=0).sqrt(), 0)  # of the noise, beside the data's
        change = a * correction + c * torch.where(measured, left - 1, 0) * found.coordinates(z)
        return c * z + found.image(change, shape)

    return apply


def _ridge_filter(problem: Problem, iterations: int) -> Filter:
    A, y, norm = problem.A, problem.y, math.sqrt(problem.A.norm_squared())
    weights, _ = noise_weights(problem)

    def back(residual: Tensor) -> Tensor:
        return A.H(residual if weights is None else weights * residual)

    def apply(clean: Tensor, z: Tensor, a: Tensor, c: Tensor, t: Tensor) -> Tensor:
        alpha = like((2 * norm * t).clamp(max=1), y)
        rho = like((0.5 / t).clamp(max=norm) ** 2, z)
        b = back(a * alpha * (y - A(clean)) - 2 * c * A(z))
        return c * z + cg(lambda v: back(A(v)) + rho * v, b, max_iterations=iterations)

    return apply


FILTERS = {"ridge": _ridge_filter, "svd": _svd_filter}


@dataclass(frozen=True, eq=False)
class DDNMPlus(Stepwise):
    """The data's part of the estimate replaced as far as the noise allows, eq. (2) of the module's head.

    Attributes:
        eta: share of fresh noise of ancestral steps, in (0, 1]; 1 is the published one. The less there is, the less of noisy data
            gets in.
        filter: "ridge" for any size, or "svd".
        iterations: CG steps an evaluation, of the ridge.
    """

    eta: float = 1.0
    filter: str = "ridge"
    iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter not in FILTERS:
            raise ValueError(f"DDNMPlus: no filter is named {self.filter!r}; known: {', '.join(FILTERS)}")
        if not 0 < self.eta <= 1 or self.iterations < 1:
            raise ValueError(
                f"DDNMPlus: expected 0 < eta <= 1 (data enter with the noise) and iterations >= 1, "
                f"got {self.eta} and {self.iterations}"
            )

    def step(self, problem: Problem) -> Step:
        corrected = FILTERS[self.filter](problem, self.iterations)
        _, tau = noise_weights(problem)

        def step(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]) -> Tensor:
            clean = denoise(x, sigma)
            c = self.eta * sigma_next * (1 - (sigma_next / sigma) ** 2).clamp(min=0).sqrt()
            a = 1 - (sigma_next**2 - c**2).clamp(min=0).sqrt() / sigma
            t = torch.where(tau > 0, c / (a * torch.where(tau > 0, tau, 1)), math.inf)
            return a * clean + (1 - a) * x + corrected(clean, normal(rngs, x), a, c, t)

        return step
