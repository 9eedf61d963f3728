"""PiGDM: guidance by the pseudo-inverse, as if x₀ given x were D plus white noise.

Eq. (2) of `scoreinv.posterior.guidance` with V = r² I, the covariance for white images of standard deviation s_d:

    r² = σ² s_d² / (σ² + s_d²)
    D_y = D + w Jᵀ Aᵀ (Σ_y + r² A Aᵀ)⁻¹ (y − A D),     w = σ² (r² / σ²)^damping                                      (1)

For noise-free data Aᵀ (r² A Aᵀ)⁻¹ = A⁺ / r²; the inverse is by conjugate gradients in the data. (Song, Vahdat, Mardani, Kautz
2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR, algorithm 1.)

The weight. Tweedie's w is σ² (damping 0). The paper takes r² instead (damping 1), so that noise-free
data give D_y = D + Jᵀ A⁺ (y − A D): in its algorithm this whole pull is added at each step, here the share 1 − σ'² / σ² of it that
an ancestral step takes. With w = σ² a direction of prior variance λ overshoots by λ / s_d² at large σ: correlated images, whose
smooth directions have λ ≫ s_d², are thrown far off and only caught at the end (24 x 24 pixels, 12 views, ancestral steps: variance
63 to 140 times the exact one; Heun's steps recover), and a network does not follow. Hence the default of 1.

What it draws. Exact for white Gaussian images with damping 0. On the Gaussian example of tests/test_guided_gradients.py, 50
ancestral levels, the mean is off by 0.45 posterior standard deviations (damping 0: 0.11), the variance 1.42 times the exact one in
the range of Aᵀ (0.97) and 1.15 times in the null space (0.93). On a CT slice of 128 x 128 pixels, 23 views, 0.5 % noise, the shipped
network gave 30.4 dB with damping 1, 31.1 with 0.5 and 11.5 with 0; s_d from 0.3 to 1 changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.posterior.guidance import Guided, with_gradient
from scoreinv.posterior.mmps import likelihood_pull
from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.solvers import cg, like


@dataclass(frozen=True, eq=False)
class PiGDM(Guided):
    """Guidance by the pseudo-inverse; see the module's head.

    Attributes:
        data_std: s_d in the prior's own unit. The paper's images have about 1; those of CT in u = HU / 1000 have 0.5, what the
            shipped network was built for (`UNetConfig.sigma_data`).
        damping: power of r² / σ² in the weight, in [0, 1].
        iterations: CG steps at most, each an application of A and Aᵀ.
        tolerance: relative residual at which they stop.
    """

    data_std: float = 0.5
    damping: float = 1.0
    iterations: int = 20
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.data_std > 0 and 0 <= self.damping <= 1):
            raise ValueError(
                f"PiGDM: expected data_std > 0 and damping in [0, 1], got {self.data_std} and {self.damping}"
            )
        if self.iterations < 1 or self.tolerance < 0:
            raise ValueError(
                f"PiGDM: expected iterations >= 1 and tolerance >= 0, got {self.iterations} and {self.tolerance}"
            )

    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        pull = likelihood_pull(problem, lambda M, b: cg(M, b, max_iterations=self.iterations, tolerance=self.tolerance))
        spread = (self.data_std * scale_of(self.prior)) ** 2

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            clean, transposed = with_gradient(prior, x, sigma)
            variance = like(torch.as_tensor(sigma).to(x) ** 2, x)
            shrink = spread / (variance + spread)  # r² / σ²
            return clean + variance * shrink**self.damping * transposed(pull(clean, lambda v: variance * shrink * v))

        return denoise
