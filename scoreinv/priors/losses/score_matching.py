"""Score matching on clean images: how far a model S(x) is from ∇ ln p(x), from draws of p alone.

With J = ∂S/∂x and random v whose E[v vᵀ] = I, for one image x,

    implicit                  tr J + ½ ‖S‖²                                                                         (1)
    sliced                    vᵀ J v + ½ (vᵀ S)²                                                                    (2)
    sliced, variance-reduced  vᵀ J v + ½ ‖S‖²                                                                       (3)

The expectation of (1) over p is ½ E‖S − ∇ ln p‖² − ½ E‖∇ ln p‖² (Hyvärinen 2005, JMLR 6, 695-709, theorem 1, by
partial integration: p falls off at infinity, S is smooth); that of (2) and (3) over v is (1) (Song, Garg, Shi, Ermon
2019, arXiv:1905.07088, sec. 3). An energy E(x), p ∝ exp(−E), has the score S = −∇E: with `score_of_energy` every loss
here and in `denoising` trains it.

Losses are sums over pixels, one number a member; a negative one is nothing unusual. They can be differentiated to the
parameters of S; `rngs` holds one stream for each member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from scoreinv.priors.divergence import Field, Projection, projections, rademacher, with_diagonal, with_estimate


def implicit(score: Field, x: Tensor) -> Tensor:
    """Eq. (1) with the exact trace, which costs a backward pass a pixel: for small images.

    Args:
        score: S.
        x: (batch, *image_shape).

    Returns:
        (batch,).

    Raises:
        ValueError: S(x) is not shaped like x, or has no gradient; so in all losses of this module.
    """
    s, diagonal = with_diagonal(score, x)
    return _sum(diagonal) + _sum(s**2) / 2


def sliced(score: Field, x: Tensor, rngs: Sequence[Generator], *, draw: Projection = rademacher, n: int = 1) -> Tensor:
    """Eq. (2), the mean of n projections.

    Args:
        score: S.
        x: (batch, *image_shape).
        rngs: one stream a member.
        draw: the law of the projections, `rademacher` or `gaussian` of `priors.divergence`.
        n: projections a member.

    Returns:
        (batch,).
    """
    v = projections(draw, n, rngs, x)
    s, products = with_estimate(score, x, v)
    along = (v * s).flatten(2).sum(2)
    return (products.flatten(2).sum(2) + along**2 / 2).mean(0)


def sliced_variance_reduced(
    score: Field, x: Tensor, rngs: Sequence[Generator], *, draw: Projection = rademacher, n: int = 1
) -> Tensor:
    """Eq. (3), the mean of n projections: (2) with E_v (vᵀ S)² = ‖S‖² put in. Arguments as for `sliced`."""
    s, products = with_estimate(score, x, projections(draw, n, rngs, x))
    return products.flatten(2).sum(2).mean(0) + _sum(s**2) / 2


def score_of_energy(energy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """S(x, ...) = −∇ₓ E(x, ...), for any loss on scores.

    Args:
        energy: (x (batch, *image_shape), whatever else, such as σ) -> (batch,), twice differentiable in x; a member's
            energy depends on that member alone.
    """

    def score(x: Tensor, *others: Tensor) -> Tensor:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            point = x if x.requires_grad else x.detach().requires_grad_()
            values = energy(point, *others)
            if values.shape != x.shape[:1]:
                raise ValueError(
                    f"score_of_energy: {len(x)} members have as many energies, got the shape {tuple(values.shape)}"
                )
            (gradient,) = torch.autograd.grad(values.sum(), point, create_graph=keep)
        return -gradient

    return score


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)
