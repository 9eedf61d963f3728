"""Stationary priors against the same ones made dense, and against their normal equations at 256 x 256."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoreinv.operators import Masking, Matrix
from scoreinv.priors import fourier
from scoreinv.priors.exact import GaussianMixturePrior
from scoreinv.priors.fourier import StationaryPrior, matern
from scoreinv.priors.fourier_mixture import StationaryMixturePrior
from scoreinv.problem import Problem

SHAPE = (4, 5)  # an even and an odd side: the half of the frequencies that is kept differs


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stationary(seed: int = 0, std: float = 1.5, length: float = 1.2) -> StationaryPrior:
    return StationaryPrior(normal(*SHAPE, seed=seed), matern(SHAPE, std=std, length=length))


def matrix(rows: int = 7) -> Matrix:
    return Matrix(normal(rows, 20, seed=9), SHAPE)


def problem(noise_std: float | Tensor, A: Matrix | None = None) -> Problem:
    A = A or matrix()
    return Problem(A, A(stationary().draw(1, torch.Generator().manual_seed(4))[0]), noise_std)


NOISE = {"scalar": 0.3, "per measurement": torch.linspace(0.05, 1, 7, dtype=torch.float64), "none": 0.0}


@pytest.mark.parametrize("sigma", [torch.tensor(0.4), torch.tensor([0.0, 0.1, 2.0])])
def test_the_same_as_dense(sigma: Tensor) -> None:
    prior = stationary()
    dense = prior.dense()
    x, v = normal(3, *SHAPE, seed=1), normal(3, *SHAPE, seed=2)
    torch.testing.assert_close(prior(x, sigma), dense(x, sigma))
    torch.testing.assert_close(prior.jvp(x, sigma, v), dense.jvp(x, sigma, v))
    torch.testing.assert_close(prior.score(x, sigma), dense.score(x, sigma))
    torch.testing.assert_close(prior.log_density(x, sigma), dense.log_density(x, sigma))
    torch.testing.assert_close(prior.flow(x, sigma, torch.tensor(1.0)), dense.flow(x, sigma, torch.tensor(1.0)))
    torch.testing.assert_close(prior(x.float(), sigma), dense(x, sigma).float())
    torch.testing.assert_close(prior(x, sigma)[1:], prior(x[1:], sigma if sigma.ndim == 0 else sigma[1:]))


def test_the_covariance_is_stationary_on_a_torus() -> None:
    dense = stationary(std=1.5).dense()
    covariance = dense.covariance.reshape(*SHAPE, *SHAPE)
    torch.testing.assert_close(dense.covariance.diagonal(), torch.full((20,), 1.5**2, dtype=torch.float64))
    torch.testing.assert_close(covariance[3, 4].roll((1, 1), (0, 1)), covariance[0, 0])


def test_matern_of_smoothness_one_half_is_exponential() -> None:
    correlation = torch.fft.ifft(matern((600,), std=2.0, length=10.0, smoothness=0.5)).real
    distance = torch.arange(40, dtype=torch.float64)
    torch.testing.assert_close(correlation[:40], 4 * torch.exp(-distance / 10), rtol=0, atol=0.15)
    assert correlation[0] == pytest.approx(4)


def test_draws_have_the_covariance() -> None:
    x = stationary().draw(20_000, torch.Generator().manual_seed(0)).flatten(1) - stationary().mean.flatten()
    products = x[:, :, None] * x[:, None, :]
    error = (products.mean(0) - stationary().dense().covariance).abs()
    assert (error < 5 * products.std(0) / 20_000**0.5).all()


@pytest.mark.parametrize("noise", NOISE)
def test_posterior_is_that_of_the_dense_prior(noise: str) -> None:
    given = problem(NOISE[noise])
    expected, got = stationary().dense().posterior(given), stationary().posterior(given)
    torch.testing.assert_close(got.mean, expected.mean)
    torch.testing.assert_close(
        got.covariance_of(torch.eye(20, dtype=torch.float64).reshape(20, *SHAPE)), expected.covariance
    )
    torch.testing.assert_close(got.pixel_variance([(0, 0), (3, 2)]), expected.covariance.diagonal()[[0, 17]])
    torch.testing.assert_close(got.log_evidence(), stationary().dense().log_evidence(given))
    n = 10_000
    x = got.draw(n, torch.Generator().manual_seed(1)).flatten(1) - expected.mean.flatten()
    products = x[:, :, None] * x[:, None, :]
    assert (x.mean(0).abs() < 5 * x.std(0) / n**0.5 + 1e-8).all()
    assert ((products.mean(0) - expected.covariance).abs() < 5 * products.std(0) / n**0.5 + 1e-8).all()
    if noise == "none":
        torch.testing.assert_close(given.A(got.draw(3, torch.Generator())), given.y.expand(3, 7))


def test_dependent_noise_free_data_are_met() -> None:
    A = Matrix(torch.cat([matrix().matrix, matrix().matrix[:3]]), SHAPE)
    given = problem(0.0, A)
    posterior = stationary().posterior(given)
    torch.testing.assert_close(posterior.mean, stationary().dense().posterior(given).mean)
    with pytest.raises(ValueError, match="have no density"):
        posterior.log_evidence()


def mixtures(spectra: int) -> tuple[StationaryMixturePrior, GaussianMixturePrior]:
    parts = [stationary(seed, std=1 + 0.3 * seed * (spectra > 1)) for seed in range(3)]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means, all_spectra = torch.stack([p.mean for p in parts]), torch.stack([p.spectrum for p in parts])
    covariances = torch.stack([p.dense().covariance for p in parts])
    return (
        StationaryMixturePrior(weights, means, all_spectra if spectra > 1 else all_spectra[0]),
        GaussianMixturePrior(weights, means, covariances),
    )


@pytest.mark.parametrize("spectra", [1, 3])
def test_mixtures_are_the_same_as_dense(spectra: int) -> None:
    got, expected = mixtures(spectra)
    x, v, sigma = normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2), torch.tensor([0.3, 1.0])
    torch.testing.assert_close(got(x, sigma), expected(x, sigma))
    torch.testing.assert_close(got.jvp(x, sigma, v), expected.jvp(x, sigma, v))
    torch.testing.assert_close(got.log_density(x, sigma), expected.log_density(x, sigma))
    torch.testing.assert_close(got.flow(x, sigma, torch.tensor(2.0)), expected.flow(x, sigma, torch.tensor(2.0)))
    given = problem(1.0, matrix(2))
    ours, dense = got.posterior(given), expected.posterior(given)
    assert 0.3 < float(ours.weights.max()) < 0.9
    torch.testing.assert_close(ours.weights, dense.weights)
    torch.testing.assert_close(ours.mean, dense.mean)
    functionals = torch.eye(20, dtype=torch.float64).reshape(20, *SHAPE)
    torch.testing.assert_close(ours.covariance_of(functionals), dense.covariance)
    x = ours.draw(4000, torch.Generator().manual_seed(3)).flatten(1)
    assert ((x.mean(0) - dense.mean.flatten()).abs() < 5 * x.std(0) / 4000**0.5).all()
    torch.testing.assert_close(x.var(0), dense.covariance.diagonal(), rtol=0.15, atol=0)


def test_256_by_256_pixels() -> None:
    """The mean solves Σ⁻¹ (m − μ) = Aᵀ (y − A m) / σ_y²; an evidence is refused."""
    shape, std = (256, 256), 0.5
    prior = StationaryPrior(torch.ones(shape, dtype=torch.float64), matern(shape, std=1.0, length=8.0, smoothness=0.5))
    A = Masking(torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    x = prior.draw(1, torch.Generator().manual_seed(1))[0]
    given = Problem(A, A(x + std * normal(*shape, seed=2)), std)
    posterior = prior.posterior(given, tolerance=1e-8)
    mean = posterior.mean
    right = prior.times(A.H(given.y - A(mean))[None])[0] / std**2
    torch.testing.assert_close(mean - 1, right, rtol=0, atol=1e-5)
    assert (mean - x).square().mean().sqrt() < 0.6 * (x - 1).square().mean().sqrt()
    with pytest.raises(ValueError, match=r"19492 x 19492 matrix \(2.8 GiB\) is too much"):
        posterior.log_evidence()


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(4, 4\) and \(4, 5\)"):
        StationaryPrior(torch.zeros(SHAPE), torch.ones(4, 4))
    lopsided = matern(SHAPE, std=1.0, length=1.0)
    lopsided[1, 1] *= 2
    for spectrum in (lopsided, 1e-8 * lopsided, -torch.ones(SHAPE)):
        with pytest.raises(ValueError, match="the same at k and -k"):
            StationaryPrior(torch.zeros(SHAPE), spectrum)
    with pytest.raises(ValueError, match="one positive weight"):
        StationaryMixturePrior(torch.ones(2), torch.zeros(1, *SHAPE), torch.ones(SHAPE))
    with pytest.raises(ValueError, match="one image"):
        stationary().posterior(Problem(matrix(), torch.zeros(2, 7)))
    with pytest.raises(ArithmeticError, match="raise iterations or tolerance, or give the data"):
        _ = stationary().posterior(problem(0.01), iterations=2).mean
    monkeypatch.setattr(fourier, "LARGEST_DENSE", 6)
    with pytest.raises(ValueError, match="at most 6 data"):
        mixtures(3)[0].posterior(problem(0.1))
    mixtures(1)[0].posterior(problem(0.1))  # one spectrum needs no determinant


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_data_that_are_not_seen_are_no_data(noise_std: float) -> None:
    A = Masking(torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) < 0.5)
    y = torch.where(A.mask.bool(), normal(*SHAPE, seed=2), 7.0)
    given, prior = Problem(A, y, noise_std), stationary()
    law, other = prior.posterior(given), prior.dense().posterior(given)
    torch.testing.assert_close(law.mean, other.mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(law.log_evidence(), prior.dense().log_evidence(given), rtol=1e-7, atol=0)


def test_a_datum_without_information_hides_no_other() -> None:
    A, std = Masking(torch.ones(SHAPE)), torch.full(SHAPE, 0.01, dtype=torch.float64)
    std[1, 1] = 1e9
    given, prior = Problem(A, normal(*SHAPE, seed=2), std), stationary()
    law, other = prior.posterior(given), prior.dense().posterior(given)
    every = torch.eye(20, dtype=torch.float64).reshape(20, *SHAPE)
    torch.testing.assert_close(law.covariance_of(every), other.covariance, rtol=0, atol=1e-9)
    draws = law.draw(4000, torch.Generator().manual_seed(5))
    ratio = draws.flatten(1).var(0) / other.covariance.diagonal()
    assert float((ratio - 1).abs().max()) < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: matern(SHAPE, std=1.0, length=-1.0),
        lambda: matern(SHAPE, std=1.0, length=float("inf")),
        lambda: matern(SHAPE, std=-1.0, length=1.0),
        lambda: matern(SHAPE, std=1.0, length=1.0, smoothness=float("nan")),
        lambda: stationary().posterior(problem(0.1), tolerance=float("nan")),
        lambda: stationary().posterior(problem(0.1)).pixel_variance([(1,)]),
        lambda: stationary().log_density(torch.ones(SHAPE), torch.tensor(1.0)),
    ],
)
def test_arguments_that_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()
