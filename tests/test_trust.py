"""What a reconstruction says about itself, against dense algebra and exact posteriors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from scoreinv import metrics, trust
from scoreinv.operators.dense import Matrix
from scoreinv.operators.masking import Masking
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem


@pytest.fixture
def problem(rng: Generator) -> Problem:
    """Eight data of a 4 x 5 image, two of them with another noise."""
    A = Matrix(torch.randn(8, 20, generator=rng, dtype=torch.float64), (4, 5))
    std = torch.tensor([0.1] * 6 + [0.3, 1.0], dtype=torch.float64)
    return Problem(A, torch.randn(8, generator=rng, dtype=torch.float64), std)


def test_draws_from_the_posterior_have_a_misfit_of_one() -> None:
    """The law on which the verdict rests: over many problems the χ² of exact draws averages to 1, that of their mean does not."""
    rng, n = torch.Generator().manual_seed(0), 300
    prior = GaussianPrior(torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64))
    A = Matrix(torch.randn(10, 6, generator=rng, dtype=torch.float64))
    draws, means = [], []
    for x in prior.draw(n, rng):
        problem = Problem(A, A(x) + 0.5 * torch.randn(10, generator=rng, dtype=torch.float64), 0.5)
        posterior = prior.posterior(problem)
        draws.append(metrics.chi_squared(problem, posterior.draw(1, rng))[0])
        means.append(metrics.chi_squared(problem, posterior.mean))
    assert float(torch.stack(draws).mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 10 / n))
    assert float(torch.stack(means).mean()) < 0.8


@pytest.mark.parametrize(
    ("chi2", "n", "word"),
    [(1.0, 8000, "consistent"), (1.1, 8000, "consistent"), (0.6, 8000, "over-fitted"), (1.5, 8000, "inconsistent"),
     (1.5, 50, "consistent"), (0.6, 50, "consistent"), (math.nan, 50, "no verdict"), (math.inf, 50, "no verdict")],
)  # fmt: skip
def test_verdict(chi2: float, n: int, word: str) -> None:
    """Few data leave more room than many."""
    assert trust.verdict(chi2, n).startswith(word)


def test_measured_part_against_dense_algebra(problem: Problem, rng: Generator) -> None:
    x = torch.randn(3, 4, 5, generator=rng, dtype=torch.float64)
    M, W = problem.A.matrix, torch.diag(torch.as_tensor(problem.noise_std) ** -2)  # type: ignore[attr-defined]
    information = M.T @ W @ M
    expected = torch.linalg.solve(information + torch.eye(20) / 0.7**2, information @ x.reshape(3, 20).T).T
    repeated = Problem(problem.A, problem.y.expand(3, 8), problem.noise_std)
    part = trust.measured_part(repeated, x, spread=0.7)
    torch.testing.assert_close(part, expected.reshape(3, 4, 5), rtol=1e-6, atol=1e-8)


def test_measured_part_of_noise_free_data_is_the_projection(problem: Problem, rng: Generator) -> None:
    x = torch.randn(4, 5, generator=rng, dtype=torch.float64)
    M = problem.A.matrix  # type: ignore[attr-defined]
    expected = (torch.linalg.pinv(M) @ M @ x.flatten()).reshape(4, 5)
    part = trust.measured_part(Problem(problem.A, problem.y, 0.0), x, spread=1.0)
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-7)


def test_support_is_the_share_of_the_structure(rng: Generator) -> None:
    """Not of the mean: an image of which nothing is measured has none, however bright it is."""
    x = 5 + torch.rand(32, 32, generator=rng)
    for share, expected in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        torch.testing.assert_close(trust.support_map(share * x, x), torch.full_like(x, expected), atol=1e-5, rtol=0)


def test_support_is_one_where_data_are_and_zero_where_none_are(rng: Generator) -> None:
    """The left half of an image is measured pixel by pixel, the right half not at all."""
    mask = torch.zeros(32, 32)
    mask[:, :16] = 1
    A = Masking(mask)
    x = torch.randn(32, 32, generator=rng)
    share = trust.support_map(trust.measured_part(Problem(A, A(x), 0.01), x, spread=1.0), x)
    assert share.shape == x.shape
    assert float(share[:, :11].min()) > 0.99 and float(share[:, 21:].max()) < 0.1
