"""How far draws are from data: distances of two sets.

    sliced Wasserstein   SW² = mean over directions θ of W₂²(θᵀ X, θᵀ Y)                                              (1)
    Fréchet              ‖m − m'‖² + tr(C + C' − 2 (C C')^½), mean and covariance of features of two sets              (2)

(1): Bonneel, Rabin, Peyré, Pfister 2015, doi:10.1007/s10851-014-0506-3. (2): Heusel et al. 2017, arXiv:1706.08500, eq. 6; theirs, the
FID, takes the features of Inception, ours those of a small classifier, so that only numbers of this gallery compare.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 200) -> float:
    """SW of eq. (1) between as many points, (n, ..., d flattened) each, in their unit; always the same directions."""
    if a.shape != b.shape:
        raise ValueError(f"sliced_wasserstein: expected sets of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    flat_a, flat_b = a.double().flatten(1), b.double().flatten(1)
    theta = torch.randn(flat_a.shape[1], directions, generator=Generator().manual_seed(0), dtype=torch.float64)
    theta = theta / theta.norm(dim=0)
    gap = (flat_a @ theta).sort(0).values - (flat_b @ theta).sort(0).values
    return float(gap.square().mean().sqrt())


def frechet(a: Tensor, b: Tensor) -> float:
    """Eq. (2) of features (n, d) and (m, d)."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)
