"""The fast default: conjugate-gradient data consistency on the denoised estimate.

The prior's estimate D(x, σ) is pulled to the data by the proximal map of the data term,

    P(D) = argmin_z  ½ ‖W^½ (A z − y)‖² + ½ ρ ‖z − D‖²,      (AᵀWA + ρ I) z = AᵀW y + ρ D,      ρ = (τ / r)²

with W = (τ / σ_y)², τ = min σ_y, r = trust · σ the error that D is given, solved by a few CG steps from D. For noise-free
data ρ = 0: the CG steps run on AᵀA z = Aᵀy, and stopping them early keeps what the data do not determine at D's values.
(Chung, Lee, Ye, "Decomposed Diffusion Sampler", 2024, arXiv:2303.05754, eqs. 15-18; Zhu et al., "DiffPIR", 2023,
arXiv:2305.08995, eq. 13.)

Two uses of the one posterior denoiser P ∘ D:

    image   x ← P(D(x, σ)) + m (P(D(x, σ)) − previous),  σ falling from σ_max to σ_min: half-quadratic splitting with the
            score network as denoiser (Zhang et al., "DPIR", 2021, arXiv:2008.13751), momentum m; no noise is added
    draws   x = image + σ n, then x' = P(D(x, σ)) + σ' n (ancestral steps, fresh noise): each draw explores what data and
            image leave open
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv import streams
from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.sampling.levels import geometric
from scoreinv.solvers import cg


def proximal_denoiser(prior: Denoiser, problem: Problem, *, trust: float = 1.0, iterations: int = 10) -> Denoiser:
    """The posterior denoiser P(D(x, σ)) of the module's head.

    Args:
        prior: D.
        problem: A, y (batch, *A.out_shape) and σ_y; one batch dimension.
        trust: r / σ: how far D's estimate may be off, in units of the noise level.
        iterations: CG steps.
    """
    A, y = problem.A, problem.y
    std = torch.as_tensor(problem.noise_std, dtype=y.dtype, device=y.device)
    smallest = std.min()
    if smallest > 0:
        weights, variance = (smallest / std) ** 2, float(smallest**2)
    elif std.max() == 0:
        weights, variance = torch.ones_like(std), 0.0
    else:
        raise ValueError("noise_std must be positive everywhere or zero everywhere, got a mixture")
    data = A.H(weights * y)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        estimate = prior(x, sigma)
        rho = variance / (trust * torch.as_tensor(sigma).to(x)) ** 2
        rho = rho.reshape(-1, *(1,) * len(A.in_shape))
        return cg(lambda z: A.H(weights * A(z)) + rho * z, data + rho * estimate, estimate, max_iterations=iterations)

    return denoise
