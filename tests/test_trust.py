"""What a reconstruction says about itself, against dense algebra and exact posteriors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Generator

from scoreinv import metrics, trust
from scoreinv.operators.ct import ParallelBeamCT, equispaced_angles
from scoreinv.operators.dense import Matrix
from scoreinv.operators.masking import Masking
from scoreinv.priors.exact import GaussianPrior, dense
from scoreinv.problem import Counts, Problem, from_counts, simulate_counts


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


@pytest.mark.parametrize("n", [2, 4])
def test_the_misfit_of_a_draw_does_not_depend_on_how_many_there_are(n: int) -> None:
    """Eq. (2), of draws that were moved so that their mean is the posterior's, and of draws as they came."""
    rng, problems = torch.Generator().manual_seed(1), 400
    prior = GaussianPrior(torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64))
    A = Matrix(torch.randn(10, 6, generator=rng, dtype=torch.float64))
    moved, plain, raw = [], [], []
    for x in prior.draw(problems, rng):
        problem = Problem(A, A(x) + 0.5 * torch.randn(10, generator=rng, dtype=torch.float64), 0.5)
        posterior = prior.posterior(problem)
        draws = posterior.draw(n, rng)
        centred = draws + (posterior.mean - draws.mean(0))
        of_mean, of_centred = (metrics.chi_squared(problem, image) for image in (posterior.mean, centred))
        moved.append(trust.of_a_draw("proximal", of_mean, of_centred))
        of_mean, of_draws = (metrics.chi_squared(problem, image) for image in (draws.mean(0), draws))
        plain.append(trust.of_a_draw("dds", of_mean, of_draws))
        raw.append(of_centred.mean())
    for found in (moved, plain):
        assert float(torch.stack(found).mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 10 / problems))
    assert float(torch.stack(raw).mean()) < 0.9


def test_of_a_draw_goes_slice_by_slice() -> None:
    of_draws = torch.tensor([[0.6, 1.0], [0.8, 1.4]])
    found = trust.of_a_draw("proximal", torch.tensor([0.4, 0.9]), of_draws)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.5]))
    torch.testing.assert_close(trust.of_a_draw("proximal", of_draws[0], of_draws[:1]), of_draws[0])


@pytest.mark.parametrize(
    ("chi2", "n", "word"),
    [(1.0, 8000, "consistent"), (1.1, 8000, "consistent"), (0.6, 8000, "over-fitted"), (1.5, 8000, "inconsistent"),
     (1.5, 50, "consistent"), (0.6, 50, "consistent"), (0.01, 24, "over-fitted"), (0.35, 24, "consistent"),
     (0.1, 6, "consistent"), (math.nan, 50, "no verdict"), (math.inf, 50, "no verdict")],
)  # fmt: skip
def test_verdict(chi2: float, n: int, word: str) -> None:
    """Few data leave more room than many."""
    assert trust.verdict(chi2, n).startswith(word)
    expected = {"consistent": 0, "over-fitted": -1, "inconsistent": 1, "no verdict": math.nan}[word]
    assert trust.standing(chi2, n) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("noise", ["stated", "estimated", "raised"])
def test_a_small_misfit_is_the_noise_s_or_the_images_fault(noise: str) -> None:
    """Which of the two it does not tell; noise that was estimated convicts nobody."""
    words = trust.verdict(0.6, 8000, noise=noise)
    assert f"either the {noise} noise is too large, or the images follow" in words
    assert words.startswith("over-fitted" if noise == "stated" else "no verdict")
    assert math.isnan(trust.standing(0.6, 8000, noise=noise)) is (noise != "stated")
    assert f"down to the {noise} noise" in trust.verdict(1.5, 8000, noise=noise)


def test_verdict_on_noise_free_data() -> None:
    """What the default leaves of clean data is consistent, what a tilted detector makes it leave is not; data of 0 say nothing."""
    for residual, word in ((3.5e-4, "consistent"), (2.8e-3, "inconsistent"), (math.nan, "no verdict: all data are 0")):
        assert trust.verdict(residual, 8000, noise="absent").startswith(word)
    assert "larger than the 1.5e-03 of noise-free data" in trust.verdict(2.8e-3, 8000, noise="absent")


def test_measured_part_against_dense_algebra(problem: Problem, rng: Generator) -> None:
    x = torch.randn(3, 4, 5, generator=rng, dtype=torch.float64)
    M, W = problem.A.matrix, torch.diag(torch.as_tensor(problem.noise_std) ** -2)  # type: ignore[attr-defined]
    information = M.T @ W @ M
    expected = torch.linalg.solve(information + torch.eye(20) / 0.7**2, information @ x.reshape(3, 20).T).T
    repeated = Problem(problem.A, problem.y.expand(3, 8), problem.noise_std)
    part = trust.measured_part(repeated, x, spread=0.7)
    torch.testing.assert_close(part, expected.reshape(3, 4, 5), rtol=1e-6, atol=1e-8)


def test_measured_part_of_noise_free_data_is_nearly_the_projection(problem: Problem, rng: Generator) -> None:
    """A⁺A x, where no singular value is small."""
    x = torch.randn(4, 5, generator=rng, dtype=torch.float64)
    M = problem.A.matrix  # type: ignore[attr-defined]
    expected = (torch.linalg.pinv(M) @ M @ x.flatten()).reshape(4, 5)
    part = trust.measured_part(Problem(problem.A, problem.y, 0.0), x, spread=1.0)
    torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_map_of_noise_free_data_within_a_limited_angle(scale: float, rng: Generator) -> None:
    """Eq. (3) with noise of 1e-3 of the data's rms, by dense algebra; not a matter of how many steps are taken, nor of the unit. A⁺A
    would give all of the image: with 60 views in 100 degrees there are more data than pixels."""
    A = ParallelBeamCT((20, 20), equispaced_angles(60, math.radians(100)), 29, 8.0, 8.0)
    x = scale * torch.rand(20, 20, generator=rng)
    problem = Problem(A, A(x), 0.0)
    M = dense(A)
    precision = (scale * 0.03 / (1e-3 * float(problem.y.double().square().mean().sqrt()))) ** 2  # s² / σ²
    information = precision * M.T @ M
    exact = torch.linalg.solve(information + torch.eye(400, dtype=M.dtype), information @ x.double().flatten())
    expected = trust.support_map(exact.reshape(20, 20), x.double())
    found = trust.support_map(trust.measured_part(problem, x, spread=scale * 0.03), x)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.01)
    assert float(expected.mean()) < 0.96 and torch.linalg.matrix_rank(M) == 400


# Photon counts


@pytest.mark.parametrize("photons", [0.05, 0.5, 1.0, 2.0, 10.0, 200.0])
def test_the_truth_fits_its_photons(photons: float) -> None:
    """χ² of the true image is 1 on average, with the variance that the tolerance takes, for any number of photons; so it is consistent."""
    m, sent = 4000, 1000.0
    A = Masking(torch.ones(50, 80))
    x = math.log(sent / photons) + 0.3 * torch.rand(50, 80, generator=Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for seed in range(200):
        problem = simulate_counts(A, x, Generator().manual_seed(seed), photons=sent)
        found.append(float(trust.chi_squared(problem, x)))
    inverse = trust.inverse_photons(problem, x)
    chi2, variance = torch.tensor(found).double(), (2 + inverse) / m
    assert inverse == pytest.approx(float((x.exp() / sent).mean()))
    assert float(chi2.mean()) == pytest.approx(1, abs=4 * math.sqrt(variance / 200))
    assert float(chi2.var()) == pytest.approx(variance, rel=0.5)
    assert sum(trust.verdict(value, m, inverse).startswith("consistent") for value in found) >= 198
    assert not trust.verdict(float(trust.chi_squared(problem, 2 * x)), m, inverse).startswith("consistent")


def test_chi_squared_of_photons_that_are_seen() -> None:
    """A batch and draws of it, of a scan with a dead cell; without counts it is the weighted misfit."""
    arrived = torch.tensor([[3.0, 0.0, 9.0], [1.0, 2.0, 9.0]])
    A = Masking(torch.tensor([[1.0, 1.0, 0.0]]))
    y, std = from_counts(arrived[:, None], 10.0)
    problem = Problem(A, A(y), std, counts=Counts(arrived[:, None], 10.0))
    x = torch.rand(4, 2, 1, 3, generator=Generator().manual_seed(0))
    expected = 10 * torch.exp(-x[:, :, 0, :2].double())
    by_hand = ((arrived[:, :2] - expected) ** 2 / expected).mean(-1)
    torch.testing.assert_close(trust.chi_squared(problem, x), by_hand)
    assert trust.inverse_photons(problem, x) == pytest.approx(float((1 / expected).mean()))
    bare = dataclasses.replace(problem, counts=None)
    torch.testing.assert_close(trust.chi_squared(bare, x), metrics.chi_squared(bare, x))
    assert trust.inverse_photons(bare, x) == 0


def test_draws_that_fit_worse_than_usual(problem: Problem) -> None:
    """By more than chance and model leave open; of noise-free data where it is known what usual draws leave of them."""
    many = Problem(Masking(torch.ones(80, 100)), torch.zeros(80, 100), 0.1)
    chi2 = torch.tensor([1.4, 1.6])
    assert trust.worse_fit(chi2, 1.0, many) == "the draws leave a chi^2 of 1.5, those of the nearest calibration 1"
    assert not trust.worse_fit(chi2, 1.4, many) and not trust.worse_fit(None, 1.0, many)
    assert not trust.worse_fit(chi2, 1.0, many, inverse_photons=8000.0)
    exact, left = dataclasses.replace(many, noise_std=0.0), torch.tensor([1.0e-3, 1.2e-3])
    assert "relative residual of 0.0011, those of the nearest calibration 0.0003" in trust.worse_fit(
        left, 1.0, exact, residual=3e-4
    )
    assert not trust.worse_fit(left, 1.0, exact, residual=5e-4) and not trust.worse_fit(left, 1.0, exact)


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
