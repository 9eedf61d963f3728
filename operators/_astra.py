"""ASTRA as the source of the weights: a geometry's sparse matrix, and ASTRA's own projectors run on torch memory.

ASTRA is given lengths in units of one pixel, so that every pixel has side 1, and its results are multiplied by the side
in mm. A projector is made for the call and deleted after it. Its kernels "line", "linear" and "strip" run on the CPU
and are matched: back-projection is the exact transpose. Its kernel "cuda" runs on the GPU; there the two directions
interpolate in different places, and back-projection is not the exact transpose. Both read and write the memory of torch
tensors (DLPack), without a copy; images on one GPU stay there.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from scoreinv.operators.ct import CTOperator


def has_cuda() -> bool:
    """Whether ASTRA was built with CUDA and sees a device."""
    import astra

    return bool(astra.use_cuda())


def system_matrix(A: CTOperator) -> csr_matrix:
    """The matrix of an operator as ASTRA computes it: (n_views * n_detectors, n_pixels), float32, in mm."""
    import astra
    from scipy.sparse import csr_matrix

    with _projector(A, A.astra_kernel) as projector:
        handle = astra.projector.matrix(projector)
        try:
            matrix = astra.matrix.get(handle)
        finally:
            astra.matrix.delete(handle)
    data = (matrix.data * A.pixel_mm).astype(np.float32)
    scaled = csr_matrix((data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)), shape=matrix.shape)
    scaled.sort_indices()
    return scaled


def project(A: CTOperator, x: Tensor, *, adjoint: bool, kernel: str) -> Tensor:
    """A x or Aᵀ x by ASTRA's projectors, one image after another; on the CPU as many at once as torch has threads.

    Args:
        A: the operator.
        x: (batch, *A.in_shape), or (batch, *A.out_shape) for the adjoint.
        adjoint: which of the two.
        kernel: "cuda" for tensors on a GPU, else `A.astra_kernel`.

    Returns:
        The result in the dtype of x; ASTRA computes in float32.
    """
    from astra import experimental

    source = x.to(torch.float32).contiguous()
    result = source.new_zeros(x.shape[0], *(A.in_shape if adjoint else A.out_shape))

    with _projector(A, kernel) as projector:

        def one(i: int) -> None:
            if adjoint:
                experimental.direct_BP2D(projector, result[i], source[i])
            else:
                experimental.direct_FP2D(projector, source[i], result[i])

        if x.is_cuda:
            with torch.cuda.device(x.device):
                torch.cuda.current_stream().synchronize()  # ASTRA runs on streams of its own
                for i in range(x.shape[0]):
                    one(i)
        else:
            with ThreadPoolExecutor(max_workers=max(1, min(x.shape[0], torch.get_num_threads()))) as pool:
                list(pool.map(one, range(x.shape[0])))
    return result.mul_(A.pixel_mm).to(x.dtype)


@contextmanager
def _projector(A: CTOperator, kernel: str) -> Iterator[Any]:
    """The id of an ASTRA projector for the geometry, deleted at the end."""
    import astra

    projector = astra.create_projector(kernel, A.astra_geometry(), astra.create_vol_geom(*A.image_shape))
    try:
        yield projector
    finally:
        astra.projector.delete(projector)
