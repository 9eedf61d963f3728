"""The yardsticks of verification, on draws whose distance from the posterior is known."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from scoreinv.verification import measures

L, J, D = 40, 600, 3


def posterior() -> tuple[Tensor, Tensor]:
    """Means (J, d) and covariances (J, d, d) of J posteriors."""
    rng = torch.Generator().manual_seed(1)
    mean = torch.randn(J, D, generator=rng, dtype=torch.float64)
    root = torch.randn(D, D, generator=rng, dtype=torch.float64)
    return mean, (root @ root.T + torch.eye(D)).expand(J, D, D)


def draw(n: int, mean: Tensor, covariance: Tensor, rng: Generator, width: float = 1.0, shift: float = 0.0) -> Tensor:
    """(n, J, d) normal draws, wider or shifted by so many standard deviations."""
    root = torch.linalg.cholesky(covariance)
    z = torch.randn(n, *mean.shape, generator=rng, dtype=torch.float64)
    return mean + (root @ (width * z + shift)[..., None])[..., 0]


@pytest.fixture
def truth(rng: Generator) -> Tensor:
    return draw(1, *posterior(), rng)[0]


def test_exact_draws_pass_everything(truth: Tensor, rng: Generator) -> None:
    mean, covariance = posterior()
    draws = draw(L, mean, covariance, rng)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(float(measures.mean_error(draws, mean, trace).mean())) < 0.005
    assert float(measures.variance_ratio(draws, covariance).mean()) == pytest.approx(1, abs=0.03)
    assert measures.rank_uniformity(draws, truth, torch.eye(D, dtype=torch.float64)) > 0.001


def test_mean_error_is_the_shift(rng: Generator) -> None:
    mean, covariance = posterior()
    covariance = torch.eye(D, dtype=torch.float64).expand(J, D, D)
    error = measures.mean_error(draw(L, mean, covariance, rng, shift=0.5), mean, torch.full((J,), float(D)))
    assert float(error.mean()) == pytest.approx(0.25, rel=0.05)


def test_variance_ratio_in_parts_of_the_space(rng: Generator) -> None:
    """Twice the standard deviation along the first axis only."""
    mean = torch.zeros(J, D, dtype=torch.float64)
    identity = torch.eye(D, dtype=torch.float64)
    draws = draw(L, mean, identity.expand(J, D, D), rng) * torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    covariance = identity.expand(J, D, D)
    ratio = [measures.variance_ratio(draws, covariance, b).mean() for b in (None, identity[:, :1], identity[:, 1:])]
    assert [float(r) for r in ratio] == pytest.approx([2.0, 4.0, 1.0], rel=0.05)
    assert measures.variance_ratio(draws, covariance, identity[:, :0]).isnan().all()


@pytest.mark.parametrize(("width", "shift"), [(0.5, 0.0), (2.0, 0.0), (1.0, 1.0)])
def test_wrong_draws_are_seen_in_the_ranks(truth: Tensor, rng: Generator, width: float, shift: float) -> None:
    """Normal draws of another width or place do not have the truth at uniform ranks."""
    draws = draw(L, *posterior(), rng, width, shift)
    assert measures.rank_uniformity(draws, truth, torch.eye(D, dtype=torch.float64)) < 1e-6


def test_sliced_wasserstein(rng: Generator) -> None:
    """Of a set and its shifted copy it is the shift along a direction, |s| / √d in the mean square; 0 for equal sets."""
    x = torch.randn(500, 4, generator=rng, dtype=torch.float64)
    shift = torch.tensor([3.0, 0, 0, 0], dtype=torch.float64)
    assert measures.sliced_wasserstein(x, x[torch.randperm(500, generator=rng)], rng) == 0
    assert measures.sliced_wasserstein(x, x + shift, rng, 4000) == pytest.approx(3 / 2, rel=0.05)
    with pytest.raises(ValueError, match="one shape"):
        measures.sliced_wasserstein(x, x[:10], rng)
