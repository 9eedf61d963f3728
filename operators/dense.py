"""A dense matrix as an operator: small examples, and anything that is known entry by entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.linop import LinearOperator

_LONGEST_REPR = 64


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(LinearOperator):
    """x -> M x: images flattened row by row, (*batch, *image_shape) -> (*batch, *data_shape).

    Attributes:
        matrix: M (data, pixels), a tensor, array or nested list; kept in float64 on the CPU, used in the dtype of x.
        image_shape: of x; (pixels,) by default.
        data_shape: of M x; (data,) by default.

    Raises:
        ValueError: M is no real, finite matrix, or a shape has another number of entries than it.
    """

    matrix: Tensor
    image_shape: Sequence[int] | None = None
    data_shape: Sequence[int] | None = None

    def __post_init__(self) -> None:
        matrix = torch.as_tensor(self.matrix).cpu()
        if matrix.ndim != 2 or matrix.numel() == 0 or matrix.is_complex():
            raise ValueError(f"Matrix: expected a real matrix (data, pixels), got {matrix.dtype} {tuple(matrix.shape)}")
        if not torch.isfinite(matrix).all():
            raise ValueError("Matrix: an entry is not finite")
        object.__setattr__(
            self, "matrix", matrix.double() + 0.0
        )  # a copy; -0.0 and 0.0 are one number, but not one hash
        for name, n in (("data_shape", len(matrix)), ("image_shape", matrix.shape[1])):
            given = getattr(self, name)
            shape = (n,) if given is None else tuple(int(k) for k in given)
            if math.prod(shape) != n:
                raise ValueError(f"Matrix: {name} {shape} has {math.prod(shape)} entries, the matrix asks for {n}")
            object.__setattr__(self, name, shape)

    @property
    def in_shape(self) -> tuple[int, ...]:
        return tuple(self.image_shape or ())

    @property
    def out_shape(self) -> tuple[int, ...]:
        return tuple(self.data_shape or ())

    def _forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.in_shape)]
        return (x.reshape(*batch, self.matrix.shape[1]) @ self.matrix.T.to(x)).reshape(*batch, *self.out_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        batch = y.shape[: y.ndim - len(self.out_shape)]
        return (y.reshape(*batch, self.matrix.shape[0]) @ self.matrix.to(y)).reshape(*batch, *self.in_shape)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Matrix)
            and (self.in_shape, self.out_shape) == (other.in_shape, other.out_shape)
            and torch.equal(self.matrix, other.matrix)
        )

    def __hash__(self) -> int:
        return hash((self.in_shape, self.out_shape, self.matrix.numpy().tobytes()))

    def __repr__(self) -> str:
        """An expression that makes the operator anew; for a large matrix a short description."""
        if self.matrix.numel() > _LONGEST_REPR:
            return f"<Matrix {self.in_shape} -> {self.out_shape}>"
        rows = self.matrix.tolist()
        if (self.in_shape, self.out_shape) == ((self.matrix.shape[1],), (len(rows),)):
            return f"Matrix({rows})"
        return f"Matrix({rows}, {self.in_shape}, {self.out_shape})"
