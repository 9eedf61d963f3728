"""What all guided samplers share: a posterior denoiser, made from the prior and the problem, inside an unconditional sampler.

    x ~ N(0, σ_max²);  for σ, σ' in levels:  x ← step(D_y, x, σ, σ');  the last step goes to σ' = 0

where D_y(x, σ) ≈ E[x₀ | x, y] is the method's `condition` on the prior D(x, σ) = E[x₀ | x]. When x₀ given x is Gaussian with
covariance V, and y = A x₀ + n with n ~ N(0, Σ_y),

    D_y = D + V Aᵀ (Σ_y + A V Aᵀ)⁻¹ (y − A D)                                                                    (1)
        = D + σ² ∇ₓ ln p(y | x),      ∇ₓ ln p(y | x) = Jᵀ Aᵀ (Σ_y + A V Aᵀ)⁻¹ (y − A D),   J = ∂D/∂x,  V = σ² J    (2)

(Tweedie's identities). Methods differ in the V that they take, in whether J stays in front, and in how they solve.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.linop import check_gradients_allowed
from scoreinv.posterior.chains import check_settings
from scoreinv.priors.denoiser import Counted, Denoiser, checked, name_of, scale_of
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import (
    Ancestral,
    Churn,
    DPMSolver2M,
    Langevin,
    PredictorCorrector,
    Step,
    euler,
    finished,
    heun,
    reverse_diffusion,
)
from scoreinv.streams import normal

Condition = Callable[[Denoiser, Problem], Denoiser]
"""(D, problem with one batch dimension) -> D_y."""

STEPS: dict[str, Callable[[float], Step]] = {
    "ancestral": Ancestral,
    "churn": lambda eta: Churn(),
    "dpm_solver_2m": lambda eta: DPMSolver2M(),
    "euler": lambda eta: euler,
    "heun": lambda eta: heun,
    "predictor_corrector": lambda eta: finished(PredictorCorrector(reverse_diffusion, Langevin(0.16, steady=True))),
}


@dataclass(frozen=True, eq=False)
class Guided(abc.ABC):
    """A sampler with a posterior denoiser; see the module's head.

    Attributes:
        prior: the denoiser D; its `scale` is the size of its own unit in the unit of the images.
        samples: draws.
        step: "ancestral" (DDIM with eta), "dpm_solver_2m", "euler", "heun", "churn" or "predictor_corrector".
        n_levels: noise levels, each an evaluation of D_y (two for heun, churn and predictor_corrector).
        sigma_max: first noise level, in the prior's own unit.
        sigma_min: last positive one.
        eta: share of fresh noise of ancestral steps, in [0, 1].
    """

    prior: Denoiser
    samples: int = 1
    step: str = "ancestral"
    n_levels: int = 50
    sigma_max: float = 20.0
    sigma_min: float = 0.01
    eta: float = 1.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_settings(self, levels=(self.sigma_min, self.sigma_max), samples=self.samples, n_levels=self.n_levels)
        if self.n_levels > 1 and self.sigma_min == self.sigma_max:
            raise ValueError(f"{name}: {self.n_levels} levels need sigma_min < sigma_max, both are {self.sigma_min}")
        if self.step not in STEPS:
            raise ValueError(f"{name}: no step is named {self.step!r}; known: {', '.join(STEPS)}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"{name}: eta must lie in [0, 1], got {self.eta}")

    @abc.abstractmethod
    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        """D_y of a problem with one batch dimension."""

    @torch.no_grad()
    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw: (samples, *batch, *A.in_shape) in y's dtype."""
        flat = problem.flat().repeated(self.samples)
        rngs = member_streams(rng, self.samples, len(flat.y) // self.samples)
        sigmas = (karras(self.n_levels, self.sigma_min, self.sigma_max) * scale_of(self.prior)).to(flat.y)
        x = sigmas[0] * normal(rngs, flat.y.new_zeros(len(rngs), *problem.A.in_shape))
        iterates = sample(
            self.condition(Counted(self.prior), flat), x, sigmas, step=STEPS[self.step](self.eta), rngs=rngs
        )
        x = last(track(iterates, type(self).__name__, self.n_levels))
        return x.reshape(self.samples, *problem.batch_shape, *problem.A.in_shape)


def with_gradient(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """D(x, σ), and v -> Jᵀ v with J = ∂D/∂x (one backward pass a call, member by member).

    The gradient is taken whether or not the caller records one; results carry none.

    Raises:
        ValueError: D is not differentiable by torch, or does not return images shaped like x, or gradients are forbidden.
    """
    check_gradients_allowed()
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        clean = checked(denoiser(point, sigma), x)
    if not clean.requires_grad:
        raise ValueError(
            f"this method needs the gradient of the prior, and torch cannot follow {name_of(denoiser)} from x to what it returns (NumPy, "
            "no_grad or detach in it?); proximal, dds, ddnm, diffpir, daps and pnp_dm do without"
        )

    def transposed(v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(clean, point, v, retain_graph=True)
        return product

    return clean.detach(), transposed
