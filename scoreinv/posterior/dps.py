"""DPS: steps against the gradient of the misfit of the denoised estimate.

    x' = (the prior's step from x) − ζ_i ∇ₓ ‖y − A D(x, σ)‖                                                         (1)

(Chung, Kim, McCann, Klasky, Ye 2023, arXiv:2209.14687, algorithm 1, whose ζ' ∇‖·‖² / ‖·‖ is 2 ζ' ∇‖·‖.) As a posterior denoiser,
eq. (1) of `scoreinv.posterior.guidance` with V = 0 and a norm in place of its square:

    D_y = D − c_σ Jᵀ Aᵀ r / ‖r‖,     r = A D − y,     c_σ = ζ σ √n / ‖A‖                                               (2)

With n pixels, ζ = 1 moves D by at most the length σ √n of the noise in x. Ancestral steps (η = 1) with (2) are (1) with
ζ_i = (1 − σ'² / σ²) c_σ: the step follows the noise level, where the paper's is a constant, so that it means the same for every
operator, unit, size of image and number of levels. In the paper's schedule (1000 levels, β from 1e-4 to 0.02) its ζ' = 1 is ζ from
0.3 to 0.75 for images of 256 x 256 pixels and ‖A‖ = 1. Uneven noise weighs the misfit, ‖W^½ r‖ with W = (min σ_y / σ_y)²; its size is
not looked at.

The default ζ = 2 was compared on exact Gaussian posteriors, correlated 24 x 24 images, 50 levels, by the error of the mean of 16
draws in posterior standard deviations (for 12 views at 0.5 % noise; 5 %; half of all pixels known):

    ζ              0.5        1          2          5          10         20          50
    12 views       2.0        1.3        0.93       0.77       0.74       1.1         3.2
    12 views, 5 %  1.3        0.78       0.43       0.30       0.30       0.78        2.7
    pixels         1.1        0.29       0.29       0.34       0.47

Larger steps circle the data at a distance proportional to σ, which is why nothing diverges; a network trusts far estimates less.

What it draws. No posterior: known pixels end within σ_y / 10 of their data (ζ = 1; variance ratio 0.12 where all pixels are known
with noise), while what CT sees badly is far from its data (chi² 54 at 12 views and 0.5 % noise). What the example of the tests measures stands in tests/test_guided_gradients.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.posterior.guidance import Guided, with_gradient
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Problem
from scoreinv.solvers import inner, like, noise_weights


@dataclass(frozen=True, eq=False)
class DPS(Guided):
    """Diffusion posterior sampling; see the module's head.

    Attributes:
        zeta: ζ, the longest step in units of the noise in x.
    """

    zeta: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.zeta >= 0:
            raise ValueError(f"DPS: expected zeta >= 0, got {self.zeta}")

    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        A = problem.A
        weights, _ = noise_weights(problem)
        root = 1.0 if weights is None else weights.sqrt()
        length = self.zeta * math.sqrt(math.prod(A.in_shape) / (A.norm_squared() or 1.0))

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            clean, transposed = with_gradient(prior, x, sigma)
            residual = root * (A(clean) - problem.y)
            step = length * like(torch.as_tensor(sigma).to(x), x)
            return clean - step * transposed(A.H(root * direction(residual)))

        return denoise


def direction(v: Tensor) -> Tensor:
    """v / ‖v‖ of each member, zero where v is."""
    return v / like(inner(v, v).sqrt().clamp(min=torch.finfo(v.dtype).tiny), v)
