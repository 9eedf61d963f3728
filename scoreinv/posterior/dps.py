"""DPS: steps against the gradient of the misfit of the denoised estimate.

    x' = (the prior's step from x) − ζ_i ∇ₓ ‖y − A D(x, σ)‖                                                         (1)

(Chung, Kim, McCann, Klasky, Ye 2023, arXiv:2209.14687, algorithm 1, whose ζ' ∇‖·‖² / ‖·‖ is 2 ζ' ∇‖·‖.) As a posterior denoiser,
eq. (1) of `scoreinv.posterior.guidance` with V = 0 and a norm in place of its square:

    D_y = D − c_σ Jᵀ Aᵀ r / ‖r‖,     r = A D − y,     c_σ = ζ σ √n / ‖A‖                                               (2)

With uneven noise the slope of `misfit` eq. (5), v = σ² ‖A‖², stands for r, and its length for ‖r‖; of photon counts that of their exact
likelihood. With n pixels, ζ = 1 moves D by at most the length σ √n of the noise in x. Ancestral steps (η = 1) with (2) are (1) with
ζ_i = (1 − σ'² / σ²) c_σ: the step follows the noise level, where the paper's is a constant, so that it means the same for every
operator, unit, size of image and number of levels. In the paper's schedule (1000 levels, β from 1e-4 to 0.02; colour images of 256 x
256 pixels, ‖A‖ = 1) ζ_i = 1 is ζ from 0.3 to 0.8 in the half of the levels with σ < 3.4. The size of the noise is not looked at.

The defaults were compared on exact Gaussian posteriors, correlated 24 x 24 images, 50 levels, by the error of the mean of 16 draws
in posterior standard deviations (12 views at 0.5 % noise; at 5 %; half of all pixels known), and on a CT slice of 128 x 128 pixels, 23
views, 0.5 % noise, with the shipped network, by PSNR:

    ζ                      0.2        0.5        1          2          5          10
    12 views                          2.0        1.3        0.93       0.77       0.74
    12 views, 5 %                     1.3        0.78       0.43       0.30       0.30
    pixels                 3.5        1.1        0.29       0.29       0.34       0.47
    network, 30 levels     16.8 dB    20.8       20.5       17.4       13.5       10.2
    network, 100 levels    18.4       23.8       26.7       27.3
    network, 200 levels               24.2       27.7       29.6       29.2

Steps that are too long circle the data at a distance proportional to σ: nothing diverges. A network needs short ones, so many levels.
Bounding c_σ / ‖r‖ by 1, 2, 4, 8 / ‖A‖², as for plain gradient descent, was worse at 100 levels (16.7, 19.0, 21.2, 23.9 dB for ζ = 1).

What it draws. No posterior: well-measured directions lie on their noisy data, what CT sees badly is far from its data. On the Gaussian
example of tests/test_guided_gradients.py, 50 levels, the variance in the range of Aᵀ is 18, 2.3, 0.09 and 0.44 times the exact one for
ζ = 0.5, 1, 2 and 5, in the null space 1.25, 1.07, 0.92 and 0.84 times; the mean is off by 0.55, 0.23, 0.08 and 0.04 standard deviations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.misfit import misfit
from scoreinv.posterior.guidance import Guided, with_gradient
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Problem
from scoreinv.solvers import inner, like


@dataclass(frozen=True, eq=False)
class DPS(Guided):
    """Diffusion posterior sampling; see the module's head.

    Attributes:
        n_levels: noise levels; below 100 a network is thrown off.
        zeta: ζ, the longest step in units of the noise in x.
    """

    n_levels: int = 200
    zeta: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.zeta >= 0:
            raise ValueError(f"DPS: expected zeta >= 0, got {self.zeta}")

    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        A, fit = problem.A, misfit(problem)
        norm_squared = A.norm_squared() or 1.0
        length = self.zeta * math.sqrt(math.prod(A.in_shape) / norm_squared)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            clean, transposed = with_gradient(prior, x, sigma)
            level = torch.as_tensor(sigma).to(x)
            data, back = A.linearised(clean)
            r = fit.balanced(data, norm_squared * level**2)
            norm = inner(r, r).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
            return clean - length * like(level, x) * transposed(back(r / like(norm, r)))

        return denoise
