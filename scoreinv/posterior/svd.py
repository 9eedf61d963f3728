"""The dense singular value decomposition of a small operator, for methods that work on one singular direction at a time.

    W^½ A = U diag(s) Vᵀ,     W = (τ / σ_y)²,  τ = min σ_y  (W = 1 where the noise is uniform)

In the coordinates x̄ = Vᵀ x the data say, one number at a time,

    ȳ = Uᵀ W^½ y / s = Vᵀ Aᵀ W y / s² = x̄₀ + (τ / s) n,     n ~ N(0, I)

V comes from the eigenvectors of the smaller one of W^½ A Aᵀ W^½ and Aᵀ W A, in float64. Directions with s < 1e-5 max s (for
data in float32: their rounding, (pixels or data) · 1.2e-7 max s, where that is more) count as not measured.

For 64 x 64 pixels and 30 views (2730 data) it takes 5 s of one core and 0.7 GB, and the result of an operator without
weights is remembered.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.linop import LinearOperator, check_hashable
from scoreinv.priors.exact import dense
from scoreinv.problem import Problem
from scoreinv.solvers import noise_weights

LARGEST = 64 * 64
"""Pixels."""
LARGEST_GIB = 1.0
"""Of the matrix of the operator."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The decompositions of all members of a problem; members with the same weights share one.

    Attributes:
        vectors: V of each distinct one, (pixels, k) with k = min(pixels, data); columns of directions not measured are 0.
        which: (batch,) the one of each member.
        values: s (batch, k); 0 where not measured.
        data: ȳ (batch, k); 0 where not measured.
    """

    vectors: tuple[Tensor, ...]
    which: Tensor
    values: Tensor
    data: Tensor

    def coordinates(self, x: Tensor) -> Tensor:
        """Vᵀ x: (batch, *image_shape) -> (batch, k)."""
        return self._times(list(self.vectors), x.flatten(1))

    def image(self, coordinates: Tensor, shape: tuple[int, ...]) -> Tensor:
        """V c: (batch, k) -> (batch, *shape)."""
        return self._times([V.T for V in self.vectors], coordinates).reshape(-1, *shape)

    def _times(self, matrices: list[Tensor], rows: Tensor) -> Tensor:
        out = rows.new_empty(len(rows), matrices[0].shape[1])
        for number, matrix in enumerate(matrices):
            members = self.which == number
            out[members] = rows[members] @ matrix.to(rows)
        return out


def spectrum(problem: Problem) -> Spectrum:
    """Decompose a problem with one batch dimension.

    Raises:
        ValueError: the images have more than `LARGEST` pixels, or the operator's matrix more than `LARGEST_GIB`.
    """
    A, y = problem.linear, problem.y
    _check_size(A)
    check_hashable(A)
    weights, _ = noise_weights(problem)
    cutoff = max(1e-5, max(math.prod(A.in_shape), math.prod(A.out_shape)) * torch.finfo(y.dtype).eps)
    if weights is None:
        parts, which = [_unweighted(A, cutoff)], torch.zeros(len(y), dtype=torch.long, device=y.device)
    else:
        rows, which = torch.unique(weights.double().flatten(1), dim=0, return_inverse=True)
        parts = [_decomposed(row.sqrt()[:, None] * dense(A).to(row), cutoff) for row in rows]
    vectors = tuple(V.to(y) for V, _ in parts)
    values = torch.stack([s for _, s in parts]).to(y)[which]
    back = A.H(y.double() if weights is None else (weights * y).double())
    found = Spectrum(tuple(V.to(y.device) for V, _ in parts), which, values, values).coordinates(back)
    data = torch.where(values > 0, found / values.double().clamp(min=1e-300) ** 2, 0).to(y)
    return Spectrum(vectors, which, values, data)


@functools.lru_cache(maxsize=2)
def _unweighted(A: LinearOperator, cutoff: float) -> tuple[Tensor, Tensor]:
    return _decomposed(dense(A), cutoff)


def _decomposed(matrix: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """V (pixels, k) and s (k,) of a matrix (data, pixels) in float64; both are 0 where s <= cutoff max s."""
    wide = matrix.shape[0] < matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    s = squares.clamp(min=0).sqrt()
    s = torch.where(s > cutoff * s.max(), s, 0)
    if wide:
        vectors = matrix.T @ vectors / torch.where(s > 0, s, math.inf)
    return torch.where(s > 0, vectors, 0), s


def _check_size(A: LinearOperator) -> None:
    pixels, data = math.prod(A.in_shape), math.prod(A.out_shape)
    gib = 8 * data * pixels / 2**30
    if pixels > LARGEST or gib > LARGEST_GIB:
        raise ValueError(
            f"the dense SVD of {type(A).__name__} is made for at most {LARGEST} pixels and {LARGEST_GIB:g} GiB, got {pixels} "
            f"pixels: its matrix ({data}, {pixels}) alone would take {gib:.2g} GiB; "
            "take a method that works by conjugate gradients, like dds or ddnm_plus with filter='ridge'"
        )
