"""How far a method's draws are from draws of the exact posterior.

Everything is for problems j = 1..J whose images x₀ were drawn from the prior and whose data from the images, with L draws of
the method each. Then, for a method that samples the posterior:

    mean error      ‖mean of the draws − μ_p‖² / tr Σ_p, less the 1 / L that L exact draws would have on average: 0
    variance ratio  tr Cov(draws) / tr Σ_p: 1; in the operator's range (row space) and in its null space alike
    coverage        the share of coordinates of x₀ inside the central interval of the draws (`metrics.coverage`): the
                    interval's level, within a standard error (`binomial_error`) that counts dependent coordinates for
                    what they are worth (`laws.effective_coordinates`)
    ranks           of x₀ among the draws, for scalar functions of it: uniform on 0..L (simulation-based calibration: Talts
                    et al. 2018, arXiv:1804.06788). The functions are components along `directions`, in the operator's range
                    and in its null space each, for along directions of the whole space the wider null space hides the range
    sliced W₂       2-Wasserstein distance along random directions, as a multiple of the distance between two sets of
                    exact draws: 1
"""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Generator, Tensor


def mean_error(draws: Tensor, mean: Tensor, covariance_trace: Tensor) -> Tensor:
    """Squared error of the draws' mean in units of the posterior's variance, without what L exact draws would have.

    Args:
        draws: (L, J, d).
        mean: (J, d), exact.
        covariance_trace: (J,), exact.

    Returns:
        (J,); may be slightly negative.
    """
    error: Tensor = ((draws.mean(0) - mean) ** 2).sum(-1) / covariance_trace
    return error - 1 / draws.shape[0]


def variance_ratio(draws: Tensor, covariance: Tensor, basis: Tensor | None = None) -> Tensor:
    """Total variance of the draws over the exact one, in the whole space or in the span of some directions.

    Args:
        draws: (L, J, d).
        covariance: (J, d, d), exact; (1, d, d) where it is the same for all.
        basis: (d, k), orthonormal columns; None for the whole space.

    Returns:
        (J,); nan where the directions are none.
    """
    if basis is not None and basis.shape[1] == 0:
        return torch.full((draws.shape[1],), math.nan, dtype=draws.dtype)
    seen = draws if basis is None else draws @ basis
    if basis is None:
        exact = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    else:
        exact = ((covariance @ basis) * basis).sum((-2, -1))
    ratio: Tensor = seen.var(0).sum(-1) / exact
    return ratio


def binomial_error(share: float, n: float) -> float:
    """Standard error of a share of n independent trials, which need not be a whole number; not 0 at a share of 0 or 1.

    √(p (1 − p) / (n + 4)) with p = (share n + 2) / (n + 4). (Agresti, Coull 1998, doi:10.1080/00031305.1998.10480550.)
    """
    p = (share * n + 2) / (n + 4)
    return math.sqrt(p * (1 - p) / (n + 4))


def directions(basis: Tensor, k: int, rng: Generator, covariance: Tensor | None = None) -> Tensor:
    """Random directions of a subspace: of length 1 and orthogonal, or such that components along them have variance 1 and no correlation.

    They follow from rng, the subspace and the covariance alone, not from the basis: neither its signs nor its rotation change them. All
    point to where the sum over pixels grows, so that an image that is too bright everywhere has high components along all.

    Args:
        basis: (d, m), orthonormal columns.
        k: at most so many.
        rng: source of the directions.
        covariance: (d, d), of what has components.

    Returns:
        (d, min(k, m)).
    """
    random = torch.randn(basis.shape[0], min(k, basis.shape[1]), generator=rng, dtype=torch.float64)
    q, r = torch.linalg.qr(basis.T @ random)
    q = q * r.diagonal().sign()
    if covariance is not None:
        values, vectors = torch.linalg.eigh(basis.T @ covariance @ basis)
        q = (vectors / values.sqrt()) @ (vectors.T @ q)
    out: Tensor = basis @ q
    return out * torch.where(out.sum(0) < 0, -1, 1)


def rank_uniformity(draws: Tensor, truth: Tensor, directions: Tensor) -> float:
    """p-value of the Kolmogorov-Smirnov test that the ranks of the truth among the draws are uniform.

    Ranks are of the images' components along the directions, ties broken evenly by adding the middle of the rank's cell; the
    smallest p-value of the directions is corrected for their number (Bonferroni), so that it is itself at most uniform.

    Args:
        draws: (L, J, d).
        truth: (J, d).
        directions: (d, k).
    """
    n, k = draws.shape[0], directions.shape[1]
    ranks = ((draws @ directions) < (truth @ directions)).sum(0)
    jitter = torch.rand(ranks.shape, generator=torch.Generator().manual_seed(0))
    uniform = ((ranks + jitter) / (n + 1)).double().numpy()
    smallest = min(float(stats.kstest(uniform[:, i], "uniform").pvalue) for i in range(k))
    return min(1.0, k * smallest)


def sliced_wasserstein(a: Tensor, b: Tensor, rng: Generator, directions: int = 256) -> float:
    """Root-mean-square 2-Wasserstein distance of the projections of two sets of equally many points on random directions.

    Args:
        a, b: (n, d).
        rng: source of the directions.
        directions: their number.
    """
    if a.shape != b.shape:
        raise ValueError(f"sliced_wasserstein: expected sets of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    theta = torch.randn(a.shape[1], directions, generator=rng, dtype=torch.float64).to(a)
    theta = theta / theta.norm(dim=0)
    gap = (a @ theta).sort(0).values - (b @ theta).sort(0).values
    return float(gap.square().mean().sqrt())
