"""PiGDM: guidance by the pseudo-inverse, as if x₀ given x were D plus white noise.

Eq. (2) of `scoreinv.posterior.guidance` with V = r² I, the covariance for white images of standard deviation s_d:

    r² = σ² s_d² / (σ² + s_d²)
    D_y = D + w G,     G = Jᵀ Aᵀ (Σ_y + r² A Aᵀ)⁻¹ (y − A D)                                                         (1)
    "tweedie"   w = min(σ² (r² / σ²)^damping, β r² / s)                                                             (2)
    "whole"     w = β r² / s                                                                                        (3)

s is the share of a change of D_y that the step from σ to σ' takes: 1 − σ'² / σ² of an ancestral step (η = 1), 1 − σ' / σ of Euler's.
For noise-free data r² G = Jᵀ A⁺ (y − A D), the whole pull; the inverse is by conjugate gradients in the data. (Song, Vahdat,
Mardani, Kautz 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR, algorithm 1.)

The weight. σ² is Tweedie's, the one with which (1) is a posterior mean, but steps that follow it alone diverge: directions of prior
variance λ ≫ s_d² are moved by up to s λ / s_d² times what they lack. With J and A⁺ A between 0 and 1 no step of at most the whole
pull (β ≤ 1) overshoots, hence the bound in (2), which falls away as levels are added. The paper's algorithm is (3) with β = 1: it adds the
whole pull after each step, whatever the step. Damping 1 is its other reading, r² in place of σ²: the share s of the whole pull.

Exact laws of the draws (affine maps of Gaussians, 50 ancestral levels): error of the mean in posterior standard deviations, and
variance over the exact one in the range of Aᵀ and in the null space. Images of unit standard deviation, of Matérn's family, 16 x 16
pixels, half of them known (noise 0.1), and 6 views at 0.5 % noise; and the example of tests/test_guided_gradients.py:

    w, s_d                    half the pixels       6 views               example
    damping 1, 0.5            0.58   1.27   1.51    0.22   0.91   0.89    0.44   1.40   1.15
    σ² without bound, 0.5     0.36   2.22   4.52    diverges              0.13   0.95   0.93
    (2), 0.5                  0.26   0.92   0.94    0.15   0.86   0.86    0.15   0.99   0.99
    (2), 0.1                  0.19   0.63   0.98    0.14   0.86   0.86    0.22   0.75   1.02
    (3), 0.1                  0.21   0.27   0.98    0.14   0.75   0.86    0.22   0.35   1.02
    (3), 0.5                  0.23   0.19   0.78    0.15   0.55   0.84    0.13   0.20   0.94
    (2), 0.5, 200 levels      0.25   1.04   1.02    0.15   0.98   0.97    0.07   1.08   1.05
    (3), 0.5, 200 levels      0.29   0.06   0.74    0.31   0.32   0.90    0.09   0.06   0.90

More levels take the variance of (3) to 0 where the data are: it is a good estimate, not a draw. So (2) is the default.

s_d. r² stands for the mean square error of D, which is less than that of white images: on two CT slices of 128 x 128 pixels the
network ct-256-fast was off by 0.026, 0.041, 0.061, 0.11, 0.14 and 0.22 at σ = 0.05, 0.1, 0.2, 0.5, 1 and 3, which is
s_d = 0.03, 0.045, 0.064, 0.11, 0.14 and 0.22, while the images' own is 0.4 to 0.5. Hence 0.1.

On the same slices (23 views, 0.5 % noise, one draw each) the defaults gave 29.7 and 31.3 dB with χ² 2.8 and 1.9; damping 1 with
s_d = 0.5 28.2 and 29.8 dB with 5.2 and 3.4; whole pulls 30.0 and 31.7 dB with 0.9 and 0.8. azula's, whole pulls at 64 equal steps in
the time of a variance-preserving process from σ = 1000, gave 28.8 and 30.5 dB with 10.7 and 5.3: levels matter as much as the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoreinv.posterior.guidance import Guided, with_gradient
from scoreinv.posterior.mmps import pull_by_gradients
from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.solvers import like

WEIGHTS = ("tweedie", "whole")


@dataclass(frozen=True, eq=False)
class PiGDM(Guided):
    """Guidance by the pseudo-inverse; see the module's head.

    Attributes:
        data_std: s_d in the prior's own unit: how much images vary where the noise hides them, which is less than their standard
            deviation. The paper has 1.
        weight: "tweedie" or "whole", eqs. (2) and (3).
        damping: power of r² / σ² in Tweedie's weight, in [0, 1].
        longest: β, the part of the whole pull that a step takes at most ("tweedie") or always ("whole"); infinite for no bound.
        iterations: CG steps at most, each an application of A and Aᵀ.
        tolerance: relative residual at which they stop.
    """

    UNBOUNDED: ClassVar = ("longest",)
    data_std: float = 0.1
    weight: str = "tweedie"
    damping: float = 0.0
    longest: float = 1.0
    iterations: int = 20
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.data_std > 0 and 0 <= self.damping <= 1):
            raise ValueError(
                f"PiGDM: expected data_std > 0 and damping in [0, 1], got {self.data_std} and {self.damping}"
            )
        if self.weight not in WEIGHTS:
            raise ValueError(f"PiGDM: no weight is named {self.weight!r}; known: {', '.join(WEIGHTS)}")
        if not self.longest > 0 or (self.weight == "whole" and self.longest == float("inf")):
            raise ValueError(f"PiGDM: expected longest > 0, and finite with weight 'whole', got {self.longest}")
        if self.iterations < 1 or self.tolerance < 0:
            raise ValueError(
                f"PiGDM: expected iterations >= 1 and tolerance >= 0, got {self.iterations} and {self.tolerance}"
            )

    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        pull = pull_by_gradients(problem, self.iterations, self.tolerance)
        unit = scale_of(self.prior)
        spread = (self.data_std * unit) ** 2

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            clean, transposed = with_gradient(prior, x, sigma)
            sigma = torch.as_tensor(sigma).to(x)
            variance = like(sigma**2, x)
            shrink = spread / (variance + spread)  # r² / σ²
            weight = self.longest * shrink / like(self.share(sigma / unit), x)
            if self.weight == "tweedie":
                weight = torch.minimum(weight, shrink**self.damping)
            return clean + variance * weight * transposed(pull(clean, lambda v: variance * shrink * v))

        return denoise

    def share(self, sigma: Tensor) -> Tensor:
        """s of eq. (3), the part of a change of D_y that the step from σ takes.

        Args:
            sigma: in the prior's own unit; what is no level has the share of the nearest one. (*batch)

        Returns:
            (*batch), above 0 and at most 1, which is the share of the step to 0.
        """
        levels = karras(self.n_levels, self.sigma_min, self.sigma_max)
        ratio = levels[1:] / levels[:-1]
        fresh = {"ancestral": self.eta, "predictor_corrector": 1.0}.get(self.step, 0.0)
        shares = 1 - ratio * (1 - fresh**2 * (1 - ratio**2)).sqrt()
        distance = (sigma.double()[..., None].log() - levels[:-1].to(sigma.device).log()).abs()
        return shares.to(sigma)[distance.argmin(-1)]
