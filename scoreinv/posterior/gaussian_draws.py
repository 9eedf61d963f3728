"""Exact draws from a Gaussian likelihood times a Gaussian: the step of split samplers that knows the data.

    u ~ exp(−½ ‖Σ_y^{−½} (A u − y)‖² − ‖u − c‖² / 2r²),      precision P = AᵀΣ_y⁻¹A + I / r²                       (1)

Perturb what is known by its own noise and optimise:

    v = c + r z₁,   η = y + Σ_y^½ z₂,   u = v + δ,   (AᵀWA + (τ/r)² I) δ = AᵀW (η − A v)                          (2)

with W = τ² Σ_y⁻¹, τ = min σ_y. P u = AᵀΣ_y⁻¹ η + v / r² has mean P E[u] and covariance AᵀΣ_y⁻¹A + I / r² = P, so u has
covariance P⁻¹. In this form nothing is divided by the noise: for noise-free data (τ = 0, W = I) δ = A⁺ (y − A v) and u is
N(c, r² I) conditioned on A u = y. (Orieux, Féron, Giovannelli 2012, doi:10.1109/LSP.2012.2189104; Papandreou, Yuille 2010.)

(2) is solved by conjugate gradients, so a draw is exact up to their tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from scoreinv.problem import Problem
from scoreinv.solvers import cg, like, noise_weights
from scoreinv.streams import normal


def gaussian_draw(
    problem: Problem,
    centre: Tensor,
    spread: Tensor | float,
    rngs: Sequence[Generator],
    *,
    iterations: int | Tensor = 50,
    tolerance: float = 1e-4,
) -> Tensor:
    """One draw of (1) for each member, by (2).

    Args:
        problem: A, y (batch, *A.out_shape) and σ_y, 0 where noise-free; one batch dimension.
        centre: c, (batch, *A.in_shape).
        spread: r > 0, a scalar or (batch,).
        rngs: one generator for each member.
        iterations: CG steps at most, one number or (batch,); fewer than the data have independent directions regularise like a smaller r.
        tolerance: relative residual at which they stop.

    Returns:
        (batch, *A.in_shape), without gradients.

    Raises:
        ValueError: a spread is not positive, or some data of a member are noise-free and others are not.
    """
    r = torch.as_tensor(spread).to(centre).expand(len(centre))
    if not (r > 0).all():
        raise ValueError(
            f"gaussian_draw: expected a positive spread, got {r.tolist()}; spread 0 leaves the centre alone"
        )
    weights, tau = noise_weights(problem)
    A, ridge = problem.A, like((tau / r) ** 2, centre)

    def back_projected(data: Tensor) -> Tensor:
        return A.H(data if weights is None else weights * data)

    v = centre + like(r, centre) * normal(rngs, centre)
    eta = problem.y + torch.as_tensor(problem.noise_std).to(problem.y) * normal(rngs, problem.y)
    return v + cg(
        lambda delta: back_projected(A(delta)) + ridge * delta,
        back_projected(eta - A(v)),
        max_iterations=iterations,
        tolerance=tolerance,
    )
