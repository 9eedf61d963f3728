"""Linear operators: the one base class of everything that turns an image into data.

An operator A maps (*batch, *in_shape) to (*batch, *out_shape). A subclass gives `in_shape`, `out_shape`, `_forward` and
`_adjoint` (the exact transpose of `_forward`); this module adds shape checks, autograd to any order, forward mode and vmap
(the derivative of a linear map is the map itself, its transpose is the adjoint), `A.H`, `A @ B` and ‖A‖².
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class LinearOperator(abc.ABC):
    """A linear map between images and data; subclasses are frozen dataclasses whose fields are their configuration."""

    @property
    @abc.abstractmethod
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one image, without batch dimensions."""

    @property
    @abc.abstractmethod
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one measurement, without batch dimensions."""

    @abc.abstractmethod
    def _forward(self, x: Tensor) -> Tensor:
        """A x, with x (*batch, *in_shape); need not be differentiable."""

    @abc.abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, with y (*batch, *out_shape): the exact transpose of `_forward`."""

    def __call__(self, x: Tensor) -> Tensor:
        """A x.

        Args:
            x: (*batch, *in_shape), floating point; device and dtype of the result follow it.

        Raises:
            TypeError: x is not a floating-point tensor.
            ValueError: x does not end with `in_shape`.
        """
        name = type(self).__name__
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: expected a floating-point torch.Tensor, got {got}")
        n = len(self.in_shape)
        if tuple(x.shape[x.ndim - n :]) != tuple(self.in_shape) or x.ndim < n:
            raise ValueError(
                f"{name}: expected a shape (*batch, {', '.join(map(str, self.in_shape))}), got {tuple(x.shape)}"
            )
        return _Apply.apply(x, self, self.H)  # type: ignore[no-untyped-call, no-any-return]

    @property
    def H(self) -> LinearOperator:  # noqa: N802 (the field's notation)
        """The adjoint operator."""
        return Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """The composition x -> self(other(x))."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return Composition(self, other)

    @property
    def seen(self) -> Tensor | None:
        """Which data say something, bool (*out_shape): the others are no measurements, whatever they hold, and do not count in χ². None where all
        do."""
        return None

    @property
    def n_data(self) -> int:
        """Number of data that say something."""
        return math.prod(self.out_shape) if self.seen is None else int(self.seen.sum())

    def norm_squared(self) -> float:
        """‖A‖², the largest eigenvalue of Aᵀ A, by power iteration in float32 on the CPU; remembered.

        Raises:
            TypeError: the operator cannot be hashed.
        """
        if not isinstance(self, Hashable):
            raise TypeError(
                f"{type(self).__name__}: an operator must be hashable, so that its norm is found once: make it a frozen dataclass"
            )
        return _norm_squared(self)


class _Apply(torch.autograd.Function):
    """Applies a linear map; backward applies its adjoint, jvp the map itself, vmap makes one more batch dimension."""

    @staticmethod
    def forward(x: Tensor, op: LinearOperator, adjoint: LinearOperator) -> Tensor:
        return op._forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op, ctx.adjoint = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Apply.apply(grad, ctx.adjoint, ctx.op), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Apply.apply(tangent, ctx.op, ctx.adjoint)  # type: ignore[no-untyped-call, no-any-return]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, op: LinearOperator, adjoint: LinearOperator
    ) -> tuple[Tensor, int]:
        return _Apply.apply(x.movedim(in_dims[0], 0), op, adjoint), 0  # type: ignore[no-untyped-call]


class Adjoint(LinearOperator):
    """Aᵀ as an operator of its own."""

    def __init__(self, of: LinearOperator) -> None:
        self.of = of

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.of.out_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.of.in_shape

    def _forward(self, x: Tensor) -> Tensor:
        return self.of._adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.of._forward(y)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        return self.of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adjoint) and self.of == other.of

    def __hash__(self) -> int:
        return hash(("adjoint", self.of))

    def __repr__(self) -> str:
        return f"{self.of!r}.H"


class Composition(LinearOperator):
    """x -> outer(inner(x)), written `outer @ inner`."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if outer.in_shape != inner.out_shape:
            raise ValueError(
                f"{type(outer).__name__} @ {type(inner).__name__}: the left one takes {outer.in_shape}, "
                f"the right one gives {inner.out_shape}"
            )
        self.outer, self.inner = outer, inner

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.inner.in_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.outer.out_shape

    @property
    def pixel_mm(self) -> float | None:
        """Side of the images' pixels [mm], where the inner operator knows it."""
        return getattr(self.inner, "pixel_mm", None)

    @property
    def covered(self) -> Callable[[], float] | None:
        """What tells the share of a turn within which the views lie, where the inner operator has it."""
        return getattr(self.inner, "covered", None)

    @property
    def seen(self) -> Tensor | None:
        """As the outer operator has it."""
        return self.outer.seen

    def _forward(self, x: Tensor) -> Tensor:
        return self.outer._forward(self.inner._forward(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.inner._adjoint(self.outer._adjoint(y))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composition) and (self.outer, self.inner) == (other.outer, other.inner)

    def __hash__(self) -> int:
        return hash(("composition", self.outer, self.inner))

    def __repr__(self) -> str:
        return f"{self.outer!r} @ {self.inner!r}"


@functools.lru_cache(maxsize=64)
def _norm_squared(op: LinearOperator, max_iterations: int = 100, tolerance: float = 1e-4) -> float:
    """Power iteration on Aᵀ A from a fixed start; stops when the Rayleigh quotient moves less than the tolerance."""
    v = torch.randn(op.in_shape, generator=torch.Generator().manual_seed(0))
    estimate = 0.0
    with torch.no_grad():
        for _ in range(max_iterations):
            v = v / v.norm()
            w = op.H(op(v))
            previous, estimate = estimate, float((v * w).sum())
            if abs(estimate - previous) <= tolerance * abs(estimate):
                break
            v = w
    return estimate
