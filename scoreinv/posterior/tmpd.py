"""TMPD: the prior's own covariance, made diagonal by its row sums.

Eq. (2) of `scoreinv.posterior.guidance` with the diagonal V that has the row sums of σ² J, one vector-Jacobian product:

    V = σ² diag(max(Jᵀ 1, least))
    D_y = D + σ² Jᵀ Aᵀ (Σ_y + A V Aᵀ)⁻¹ (y − A D)                                                                   (1)

(Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz 2024, arXiv:2310.06721, its diagonal approximation.)
The sums need not be positive, so they are held above a small share of σ²; the inverse is by conjugate gradients in the data.

What it draws. Exact for Gaussian images with independent pixels. For correlated ones V is right for constant images and too
large for detail, which pulls too little towards the data: on the Gaussian example of tests/test_guided_gradients.py, 50 ancestral
levels, the mean is off by 0.33 posterior standard deviations, the variance 1.29 times the exact one in the range of Aᵀ and 1.11 times
in the null space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.posterior.guidance import Guided, with_gradient
from scoreinv.posterior.mmps import pull_by_gradients
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Problem
from scoreinv.solvers import like


@dataclass(frozen=True, eq=False)
class TMPD(Guided):
    """Guidance with a diagonal covariance; see the module's head.

    Attributes:
        least: smallest variance of a pixel, as a share of σ².
        iterations: CG steps at most, each an application of A and Aᵀ.
        tolerance: relative residual at which they stop.
    """

    least: float = 0.01
    iterations: int = 20
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.least > 0 or self.iterations < 1 or self.tolerance < 0:
            raise ValueError(
                f"TMPD: expected least > 0, iterations >= 1 and tolerance >= 0, "
                f"got {self.least}, {self.iterations} and {self.tolerance}"
            )

    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        pull = pull_by_gradients(problem, self.iterations, self.tolerance)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            clean, transposed = with_gradient(prior, x, sigma)
            variance = like(torch.as_tensor(sigma).to(x) ** 2, x)
            diagonal = variance * transposed(torch.ones_like(x)).clamp(min=self.least)
            return clean + variance * transposed(pull(clean, lambda v: diagonal * v))

        return denoise
