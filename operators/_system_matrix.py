"""Products with a sparse matrix and its transpose for a whole batch, held in blocks that suit the processor's cache.

A product of a sparse matrix with the batch as columns reads each weight once for all images. It is bound by the cache:
the columns belonging to 16384 pixels of 16 images are 1 MB and stay in it, those of a whole image do not. So the matrix
is cut into blocks of at most BLOCK rows and BLOCK columns, and the batch into groups of GROUP.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoreinv.operators import _astra

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from scoreinv.operators.ct import CTOperator

BLOCK = 16384
GROUP = 16
BYTES_PER_WEIGHT = 16
"""float32 and a 32-bit column index, for the matrix and for its transpose."""


@dataclass(frozen=True, eq=False)
class BlockedMatrix:
    """A sparse matrix cut into blocks: blocks[i][j] holds rows of part i and columns of part j.

    Attributes:
        blocks: torch CSR tensors.
        rows: the row range of each block row.
        columns: the column range of each block column.
    """

    blocks: tuple[tuple[Tensor, ...], ...]
    rows: tuple[slice, ...]
    columns: tuple[slice, ...]

    @classmethod
    def of(cls, matrix: csr_matrix) -> BlockedMatrix:
        """Cut up a scipy matrix."""
        rows, columns = (_parts(n) for n in matrix.shape)
        blocks = tuple(tuple(_to_torch(strip[:, c]) for c in columns) for strip in (matrix[r] for r in rows))
        return cls(blocks, rows, columns)

    def to(self, dtype: torch.dtype, device: torch.device) -> BlockedMatrix:
        """The same matrix with another dtype, on another device."""
        with _quiet():
            blocks = tuple(tuple(b.to(device=device, dtype=dtype) for b in row) for row in self.blocks)
        return BlockedMatrix(blocks, self.rows, self.columns)

    def __call__(self, x: Tensor) -> Tensor:
        """The product with every row of x: (batch, n_columns) -> (batch, n_rows)."""
        out = x.new_empty(x.shape[0], self.rows[-1].stop)
        for start in range(0, x.shape[0], GROUP):
            self._group(x[start : start + GROUP], out[start : start + GROUP])
        return out

    def _group(self, x: Tensor, out: Tensor) -> None:
        single = x.shape[0] == 1  # the product with a vector is twice as fast as that with a matrix of one column
        parts = [x[0, c].contiguous() if single else x[:, c].T.contiguous() for c in self.columns]
        for r, blocks in zip(self.rows, self.blocks, strict=True):
            total = blocks[0] @ parts[0]
            for block, part in zip(blocks[1:], parts[1:], strict=True):
                if single:
                    torch.addmv(total, block, part, out=total)
                else:
                    torch.addmm(total, block, part, out=total)
            out[:, r] = total if single else total.T


def product(A: CTOperator, x: Tensor, *, adjoint: bool) -> Tensor:
    """A x, (batch, n_pixels) -> (batch, n_rays), or Aᵀ x, by the operator's matrix, in the dtype of x."""
    with torch.autocast(x.device.type, enabled=False):  # there are no sparse products of 16 bits
        return _cached(A, x.dtype, x.device)[int(adjoint)](x.detach())


@functools.lru_cache(maxsize=4)
def _cached(A: CTOperator, dtype: torch.dtype, device: torch.device) -> tuple[BlockedMatrix, BlockedMatrix]:
    """The matrix and its transpose; other dtypes and devices are made from float32 on the CPU."""
    cpu = torch.device("cpu")
    if (dtype, device) != (torch.float32, cpu):
        forward, adjoint = _cached(A, torch.float32, cpu)
        return forward.to(dtype, device), adjoint.to(dtype, device)
    matrix = _astra.system_matrix(A)
    return BlockedMatrix.of(matrix), BlockedMatrix.of(matrix.T.tocsr())


def _parts(n: int) -> tuple[slice, ...]:
    return tuple(slice(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK))


def _to_torch(matrix: csr_matrix) -> Tensor:
    """32-bit indices: with 64-bit ones torch converts them at every product."""
    indptr, indices = (torch.from_numpy(i.astype("int32", copy=False)) for i in (matrix.indptr, matrix.indices))
    with _quiet():
        return torch.sparse_csr_tensor(
            indptr, indices, torch.from_numpy(matrix.data), matrix.shape, check_invariants=False
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """torch announces that its CSR support is in beta, once in every process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
