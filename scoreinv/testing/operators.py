"""The laws that every part must keep, public so that operators written elsewhere can be held to them too."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from typing import Any

import torch
from torch import Generator, Tensor

from scoreinv.linop import Adjoint, Composition, LinearOperator

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest relative mismatch allowed by default."""


def check_operator(
    A: LinearOperator, *, rng: Generator | None = None, tol: dict[torch.dtype, float] | None = None
) -> None:
    """Check the laws of a linear operator on random data on the CPU.

    Shapes, dtype and linearity; arguments are left as they are; the adjoint is the transpose; gradients of first and second order, forward mode and
    vmap agree with it; a batch gives what its members give; a copy made by pickle, and one made from the repr, are
    equal and compute the same. An operator whose repr is not an expression (it starts with "<") is spared the last.

    Args:
        A: the operator.
        rng: source of the data; seeded with 0 by default.
        tol: relative mismatch allowed for each dtype to check; `TOLERANCE` by default.

    Raises:
        AssertionError: a law is broken; says which, and by how much.
    """
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    require(min(len(A.in_shape), len(A.out_shape)) > 0, f"{_name(A)}: images and data need at least one dimension")
    for dtype, bound in (TOLERANCE if tol is None else tol).items():
        x, y = (normal(rng, (3, *shape), dtype) for shape in (A.in_shape, A.out_shape))
        _check_values(A, x, y, bound)
        _check_adjoint(A, x, y, bound)
        _check_derivatives(A, x[0], y[0], bound)
    _check_copies(A, normal(rng, A.in_shape, torch.float32))


def _check_values(A: LinearOperator, x: Tensor, y: Tensor, bound: float) -> None:
    for B, v in ((A, x), (A.H, y)):
        what = f"{_name(B)} in {v.dtype}"
        given = v.clone()
        try:
            out = B(v)
            B(v[0])
            with contextlib.suppress(RuntimeError):  # which FFTs of torch raise of an empty batch; no problem is empty
                B(v[:0])
        except RuntimeError as error:
            raise AssertionError(
                f"{what}: fails ({error}); an operator must follow the dtype of its argument"
            ) from error
        except ValueError as error:
            raise AssertionError(
                f"{what}: another shape or type than it says, in a batch, without or with an empty one ({error})"
            ) from error
        require(torch.equal(v, given), f"{what}: changes its argument in place")
        require(out.dtype == v.dtype, f"{what}: the result has dtype {out.dtype}")
        require(bool(out.isfinite().all()), f"{what}: the result is not finite")
        _close(f"{what}: two batch dimensions", B(v[None]), out[None], bound)
        _close(f"{what}: a batch and its members", out, torch.stack([B(member) for member in v]), bound)
        _close(f"{what}: linearity", B(2 * v[0] - 3 * v[1]), 2 * out[0] - 3 * out[1], bound)


def _check_adjoint(A: LinearOperator, x: Tensor, y: Tensor, bound: float) -> None:
    """|⟨A x, y⟩ - ⟨x, Aᵀ y⟩| <= bound ‖A x‖ ‖y‖ for every pair."""
    Ax, Aty = A(x).double(), A.H(y).double()
    for i in range(x.shape[0]):
        left, right = float((Ax[i] * y[i].double()).sum()), float((x[i].double() * Aty[i]).sum())
        scale = max(float(Ax[i].norm() * y[i].double().norm()), float(x[i].double().norm() * Aty[i].norm()), 1e-300)
        mismatch = abs(left - right) / scale
        message = (
            f"{_name(A)} in {x.dtype}: the adjoint is not the transpose: <A x, y> = {left:.9g}, <x, A'y> = {right:.9g}"
        )
        require(mismatch <= bound, f"{message}, mismatch {mismatch:.2e} > {bound:.0e}")


def _check_derivatives(A: LinearOperator, x: Tensor, y: Tensor, bound: float) -> None:
    what = f"{_name(A)} in {x.dtype}"
    point = x.clone().requires_grad_()
    loss = (A(point) * y).sum()
    (gradient,) = torch.autograd.grad(loss, point)
    _close(f"{what}: gradient and adjoint", gradient, A.H(y), bound)
    (gradient,) = torch.autograd.grad((A(point) ** 2).sum() / 2, point, create_graph=True)
    (second,) = torch.autograd.grad((gradient * x).sum(), point)
    _close(f"{what}: second derivative and A'A", second, A.H(A(x)), bound)
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # torch's own, at its first use of forward mode
            warnings.simplefilter("ignore", category)
        forward: tuple[Tensor, ...] = torch.func.jvp(lambda v: A(v), (x,), (2 * x,))
    value, tangent = forward
    _close(f"{what}: value in forward mode", value, A(x), bound)
    _close(f"{what}: tangent in forward mode", tangent, A(2 * x), bound)
    stack = torch.stack([x, -x], dim=-1)
    _close(f"{what}: vmap", torch.func.vmap(lambda v: A(v), in_dims=-1)(stack), torch.stack([A(x), -A(x)]), bound)


def _check_copies(A: LinearOperator, x: Tensor) -> None:
    pickled = pickle.loads(pickle.dumps(A))  # noqa: S301 (our own bytes)
    require(type(pickled) is type(A), f"{_name(A)}: pickling makes a {type(pickled).__name__}")
    require(pickled == A and hash(pickled) == hash(A), f"{_name(A)}: a pickled copy differs in equality or hash")
    require(torch.equal(pickled(x), A(x)), f"{_name(A)}: a pickled copy computes something else")
    if "<" in repr(A):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the constructor has to say was said when A was made
        again = eval(repr(A), _classes(A))  # noqa: S307 (our own repr)
    require(again == A and hash(again) == hash(A), f"{_name(A)}: eval(repr(A)) is not equal to A: {again!r}")
    require(torch.equal(again(x), A(x)), f"{_name(A)}: eval(repr(A)) computes something else")


def _classes(A: LinearOperator) -> dict[str, Any]:
    """The names that the repr of an operator may use."""
    if isinstance(A, Composition):
        return _classes(A.outer) | _classes(A.inner)
    if isinstance(A, Adjoint):
        return _classes(A.of)
    classes: dict[str, Any] = {type(A).__name__: type(A)}
    for part in vars(A).values():
        if isinstance(part, LinearOperator):
            classes |= _classes(part)
    return classes


def normal(rng: Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


def _close(law: str, got: Tensor, wanted: Tensor, bound: float) -> None:
    require(got.shape == wanted.shape, f"{law}: shapes {tuple(got.shape)} and {tuple(wanted.shape)}")
    error = float((got - wanted).double().norm()) / max(float(wanted.double().norm()), 1e-300)
    require(error <= bound, f"{law}: they differ by {error:.2e} (relative), more than {bound:.0e}")


def require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _name(A: LinearOperator) -> str:
    return f"{type(A.of).__name__}.H" if isinstance(A, Adjoint) else type(A).__name__
