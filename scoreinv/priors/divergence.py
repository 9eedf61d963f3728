"""The divergence of a vector field f on images, tr J with J = ∂f/∂x: exact, or estimated from random projections.

With random v whose E[v vᵀ] = I,

    tr J   = E[vᵀ J v]           (Hutchinson 1989, doi:10.1080/03610918908812806)                                   (1)
    diag J = E[v ⊙ Jᵀ v]         (Bekas, Kokiopoulou, Saad 2007, doi:10.1016/j.apnum.2007.01.003)                    (2)

whose sum over the pixels is (1). With H = (J + Jᵀ) / 2 the variance of vᵀ J v is 2 ‖H‖² for Gaussian v and
2 ‖H − diag H‖² for random signs (Rademacher), which are exact for diagonal J. A projection costs a backward pass; the exact
diagonal costs as many as an image has pixels.

Where gradients are enabled the results can be differentiated with respect to whatever f depends on (not with respect to
x), as a training loss needs it; under `torch.no_grad()` they carry no graph. f treats the members of a batch one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from scoreinv.streams import normal

Field = Callable[[Tensor], Tensor]
"""x (batch, *image_shape) -> f(x), of the same shape."""

Projection = Callable[[Sequence[Generator], Tensor], Tensor]
"""(one stream a member, x) -> random v shaped like x with E[v vᵀ] = I."""

gaussian: Projection = normal


def rademacher(rngs: Sequence[Generator], like: Tensor) -> Tensor:
    """Random signs shaped like a batch; member k's come from stream k."""
    if len(rngs) != like.shape[0]:
        raise ValueError(f"rademacher: {like.shape[0]} members need as many streams, got {len(rngs)}")
    return torch.stack([2 * torch.randint(2, like.shape[1:], generator=g) - 1 for g in rngs]).to(like)


def projections(draw: Projection, n: int, rngs: Sequence[Generator], like: Tensor) -> Tensor:
    """n independent projections a member, (n, *like.shape)."""
    if n < 1:
        raise ValueError(f"projections: expected one or more a member, got {n}")
    return torch.stack([draw(rngs, like) for _ in range(n)])


def with_diagonal(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x), and the exact diag J, both shaped like x (batch, *image_shape).

    Raises:
        ValueError: f(x) is not shaped like x, or has no gradient.
    """
    pixels = x[0].numel()
    units = torch.eye(pixels, dtype=x.dtype, device=x.device).reshape(pixels, 1, *x.shape[1:])
    value, products = _with_products(field, x, units.expand(pixels, *x.shape))
    return value, (units * products).sum(0)


def with_estimate(field: Field, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) shaped like x, and v ⊙ Jᵀ v shaped like v: n estimates of diag J, eq. (2).

    Args:
        field: f.
        x: (batch, *image_shape).
        v: projections, (n, batch, *image_shape).

    Raises:
        ValueError: f(x) is not shaped like x, or has no gradient.
    """
    value, products = _with_products(field, x, v)
    return value, v * products


def _with_products(field: Field, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """f(x), and Jᵀ v of every v (n, *x.shape), by reverse mode."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = field(point)
        if value.shape != x.shape:
            raise ValueError(f"divergence: expected a field shaped like x {tuple(x.shape)}, got {tuple(value.shape)}")
        if not value.requires_grad:
            raise ValueError(
                "divergence: the field has no gradient with respect to x; it must not compute under torch.no_grad(), "
                "detach its input or leave torch"
            )
        products = [
            torch.autograd.grad(
                value, point, w, retain_graph=True, create_graph=keep, allow_unused=True, materialize_grads=True
            )[0]
            for w in v
        ]
    return value if keep else value.detach(), torch.stack(products)
