"""Isotropic total variation and its proximal map, by the dual problem.

    TV(x) = Σ √((x_{i+1,j} − x_{i,j})² + (x_{i,j+1} − x_{i,j})²),   differences across the border are zero
    prox  = argmin_{x in C} ½‖x − b‖² + λ TV(x) = P_C(b − λ ∇ᵀp),   p the dual optimum, |p_{i,j}| <= 1

(Beck & Teboulle 2009, IEEE Trans. Image Process. 18:2419, doi:10.1109/TIP.2009.2028250, algorithm FGP.) Any
dual-feasible p gives a point x_p and a certificate for it: ½‖x_p − prox‖² <= gap = λ (TV(x_p) − ⟨p, ∇x_p⟩).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gradient(x: Tensor) -> Tensor:
    """Forward differences along both image dimensions, zero at the far border: (*batch, H, W) -> (*batch, 2, H, W)."""
    g = x.new_zeros(*x.shape[:-2], 2, *x.shape[-2:])
    torch.sub(x[..., 1:, :], x[..., :-1, :], out=g[..., 0, :-1, :])
    torch.sub(x[..., :, 1:], x[..., :, :-1], out=g[..., 1, :, :-1])
    return g


def gradient_adjoint(p: Tensor) -> Tensor:
    """The transpose of `gradient` (minus the divergence): (*batch, 2, H, W) -> (*batch, H, W)."""
    down, right = p[..., 0, :-1, :], p[..., 1, :, :-1]
    x = p.new_zeros(*p.shape[:-3], *p.shape[-2:])
    x[..., 1:, :] += down
    x[..., :-1, :] -= down
    x[..., :, 1:] += right
    x[..., :, :-1] -= right
    return x


def total_variation(x: Tensor) -> Tensor:
    """TV of every image: (*batch, H, W) -> (*batch,)."""
    return _lengths(gradient(x)).flatten(-3).sum(-1)


def duality_gap(x: Tensor, p: Tensor, weight: Tensor) -> Tensor:
    """λ (TV(x) − ⟨p, ∇x⟩), for x = P_C(b − λ ∇ᵀp): a bound of ½‖x − prox‖².

    Args:
        x: (*batch, H, W).
        p: (*batch, 2, H, W), |p| <= 1.
        weight: λ, (*batch,).
    """
    g = gradient(x)
    return weight * (_lengths(g) - (p * g).sum(-3, keepdim=True)).flatten(-3).sum(-1)


@torch.no_grad()
def prox_tv(
    b: Tensor, weight: Tensor, *, iterations: int, nonnegative: bool = False, p: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Approximate prox of λ TV, for x >= 0 if wanted, by so many steps of FGP.

    Args:
        b: (batch, H, W).
        weight: λ of each member, (batch,), in b's unit.
        iterations: dual steps.
        nonnegative: the constraint x >= 0.
        p: dual start (batch, 2, H, W), as returned for a similar b; zero without one.

    Returns:
        the image (batch, H, W) and its dual, for `duality_gap` and the next warm start.
    """
    p = b.new_zeros(b.shape[0], 2, *b.shape[1:]) if p is None else p
    lam = weight.reshape(-1, 1, 1)
    step = torch.where(lam > 0, 1 / (8 * lam), 0.0).unsqueeze(1)  # ‖∇‖² <= 8
    r, t = p, 1.0
    for _ in range(iterations):
        new = r + step * gradient(_primal(b, lam, r, nonnegative))
        new = new / _lengths(new).clamp(min=1)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        r = torch.lerp(p, new, 1 + (t - 1) / t_next)
        p, t = new, t_next
    return _primal(b, lam, p, nonnegative), p


def _primal(b: Tensor, lam: Tensor, p: Tensor, nonnegative: bool) -> Tensor:
    """P_C(b − λ ∇ᵀp)."""
    x = torch.addcmul(b, lam, gradient_adjoint(p), value=-1)
    return x.clamp_(min=0) if nonnegative else x


def _lengths(p: Tensor) -> Tensor:
    """|p| at every pixel: (*batch, 2, H, W) -> (*batch, 1, H, W)."""
    return p.square().sum(-3, keepdim=True).sqrt_()
