"""Operators: the base classes of everything that turns an image into data.

A linear operator A maps (*batch, *in_shape) to (*batch, *out_shape). A subclass gives `in_shape`, `out_shape`, `_forward` and
`_adjoint` (the exact transpose of `_forward`); this module adds shape checks, autograd to any order, forward mode and vmap
(the derivative of a linear map is the map itself, its transpose is the adjoint), `A.H`, `A @ B` and ‖A‖².

Any other map f that torch can differentiate is a `Nonlinear`, for the methods that need no more than the gradient of the misfit,

    ∇ₓ m(f(x)) = 2 Jᵀ g,    J = ∂f/∂x at x,  g the slope of m at f(x)                                                    (1)

Both answer `linearised(x)`: the data of x and v -> Jᵀ v there. For a linear operator J is A wherever x is.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Operator(abc.ABC):
    """A map between images and data, linear or not."""

    @property
    @abc.abstractmethod
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one image, without batch dimensions."""

    @property
    @abc.abstractmethod
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one measurement, without batch dimensions."""

    @abc.abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The data of images (*batch, *in_shape): (*batch, *out_shape)."""

    @property
    @abc.abstractmethod
    def H(self) -> LinearOperator:  # noqa: N802 (the field's notation)
        """The adjoint operator, of a linear one."""

    @abc.abstractmethod
    def linearised(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The data of x, and v -> Jᵀ v with J the derivative there; no gradient flows through either."""

    @abc.abstractmethod
    def norm_squared(self) -> float:
        """‖J‖², the largest eigenvalue of Jᵀ J."""

    @property
    def seen(self) -> Tensor | None:
        """Which data say something, bool (*out_shape): the others are no measurements, whatever they hold, and do not count in χ². None where all
        do."""
        return None

    def of_seen(self, values: Tensor) -> Tensor:
        """Values (*batch, *out_shape) of data, 0 for those that the operator does not see."""
        return values if self.seen is None else values * self.seen.to(values)

    @property
    def n_data(self) -> int:
        """Number of data that say something."""
        return math.prod(self.out_shape) if self.seen is None else int(self.seen.sum())


@dataclass(frozen=True, eq=False)
class Nonlinear(Operator):
    """A map that torch can differentiate, as the operator of a problem; see the module's head. DPS, PaDIS, RED-diff and SITCOM take it.

    Attributes:
        f: (batch, *image_shape) -> (batch, *data_shape), member by member.
        image_shape: of one image.
        data_shape: of one measurement.
        around: an image (*image_shape) like those that are looked for, where ‖J‖² is measured, which sets how long steps are; 0 without one.

    Raises:
        ValueError: f does not give data of that shape that torch can follow, or J is 0 around there.
    """

    f: Callable[[Tensor], Tensor]
    image_shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    around: Tensor | None = None

    @property
    def in_shape(self) -> tuple[int, ...]:
        return tuple(self.image_shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return tuple(self.data_shape)

    def __post_init__(self) -> None:
        if self.around is not None and tuple(self.around.shape) != tuple(self.in_shape):
            raise ValueError(
                f"Nonlinear: around should have the shape {self.in_shape}, it has {tuple(self.around.shape)}"
            )
        if not self.norm_squared() > 0:
            raise ValueError(
                "Nonlinear: the derivative of f is 0 or not finite at `around` (0 without one); give an image where it is not"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """f(x); batch dimensions of any number.

        Raises:
            TypeError: x is not a floating-point tensor.
            ValueError: x does not end with `in_shape`, or f gave something else than real data (batch, *out_shape).
        """
        batch = _batch_of("Nonlinear", x, self.in_shape)
        flat = x.reshape(-1, *self.in_shape)
        data, expected = self.f(flat), (len(flat), *self.out_shape)
        if not isinstance(data, Tensor) or not data.is_floating_point() or tuple(data.shape) != expected:
            got = f"{data.dtype} {tuple(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
            raise ValueError(
                f"Nonlinear: expected real data {expected} of f, got {got}; of complex data give real and imaginary parts as two data"
            )
        return data.reshape(*batch, *self.out_shape)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """There is none: raises ValueError."""
        raise ValueError(
            "this method needs a linear operator with its adjoint, and the problem's is Nonlinear; dps, padis, red_diff and sitcom take any "
            "map that torch can differentiate"
        )

    def linearised(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        check_gradients_allowed()
        with torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            data = self(point)
        if not data.requires_grad:
            raise ValueError(
                "Nonlinear: torch cannot follow f from x to what it returns (NumPy, no_grad or detach in it?)"
            )

        def transposed(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(data, point, v, retain_graph=True)
            return product

        return data.detach(), transposed

    def norm_squared(self) -> float:
        """‖J‖² at `around`, by power iteration in float32 on the CPU; remembered."""
        return _nonlinear_norm_squared(self)


def check_gradients_allowed() -> None:
    """Raises ValueError within torch.inference_mode()."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "this method needs gradients, which torch.inference_mode() forbids: call it outside (methods record none for their caller) or "
            "within torch.no_grad()"
        )


def check_hashable(A: Operator) -> None:
    """Raises TypeError for an operator of which nothing can be remembered."""
    if not isinstance(A, Hashable):
        raise TypeError(
            f"{type(A).__name__}: an operator must be hashable, so that what is found once is remembered: make it a frozen dataclass"
        )


class LinearOperator(Operator):
    """A linear map between images and data; subclasses are frozen dataclasses whose fields are their configuration."""

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
            ValueError: x does not end with `in_shape`, or the map gave something else than real data (*batch, *out_shape).
        """
        expected = (*_batch_of(type(self).__name__, x, self.in_shape), *self.out_shape)
        data: Tensor = _Apply.apply(x, self, self.H)  # type: ignore[no-untyped-call]
        if tuple(data.shape) != expected:
            raise ValueError(
                f"{type(self).__name__}: its map should give {expected} of {tuple(x.shape)}, it gave {tuple(data.shape)}"
            )
        if not data.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: expected real data of its map, got {data.dtype}; give real and imaginary parts as two data"
            )
        return data

    @property
    def H(self) -> LinearOperator:  # noqa: N802 (the field's notation)
        """The adjoint operator."""
        return Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """The composition x -> self(other(x))."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return Composition(self, other)

    def linearised(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self(x), self.H

    def norm_squared(self) -> float:
        """‖A‖², the largest eigenvalue of Aᵀ A, by power iteration in float32 on the CPU; remembered.

        Raises:
            TypeError: the operator cannot be hashed.
        """
        check_hashable(self)
        return _norm_squared(self)


def _batch_of(name: str, x: Tensor, in_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The batch dimensions of x, once it is what an operator takes."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected a floating-point torch.Tensor, got {got}")
    n = len(in_shape)
    if tuple(x.shape[x.ndim - n :]) != tuple(in_shape) or x.ndim < n:
        raise ValueError(f"{name}: expected a shape (*batch, {', '.join(map(str, in_shape))}), got {tuple(x.shape)}")
    return tuple(x.shape[: x.ndim - n])


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
def _nonlinear_norm_squared(op: Nonlinear) -> float:
    point = torch.zeros(op.in_shape) if op.around is None else op.around.detach().float().cpu()
    _, transposed = op.linearised(point)
    return _largest_eigenvalue(op.in_shape, lambda v: transposed(torch.autograd.functional.jvp(op, point, v)[1]))  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=64)
def _norm_squared(op: LinearOperator) -> float:
    return _largest_eigenvalue(op.in_shape, lambda v: op.H(op(v)))


def _largest_eigenvalue(
    shape: tuple[int, ...], apply: Callable[[Tensor], Tensor], max_iterations: int = 100, tolerance: float = 1e-4
) -> float:
    """Power iteration on AᵀA from a fixed start; stops when the Rayleigh quotient moves less than the tolerance."""
    v = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    estimate = 0.0
    with torch.no_grad():
        for _ in range(max_iterations):
            v = v / v.norm()
            w = apply(v)
            previous, estimate = estimate, float((v * w).sum())
            if abs(estimate - previous) <= tolerance * abs(estimate):
                break
            v = w
    return estimate
