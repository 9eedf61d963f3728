"""Particle filters: the parts against their laws, TDS and MCG-diff against exact posteriors as particles grow."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from scoreinv.operators import Masking, Matrix
from scoreinv.posterior.mcg_diff import MCGDiff
from scoreinv.posterior.particles import Cloud, ParticleFilter, effective_size, systematic, transition
from scoreinv.posterior.smc import TDS
from scoreinv.priors.denoiser import Counted, Rescaled
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior, dense
from scoreinv.priors.references import few_view_ct, four_modes
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras

METHODS = [TDS, MCGDiff]
QUICK: dict[str, Any] = {"particles": 8, "n_levels": 6, "data_std": 1.0}


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def gaussian() -> tuple[GaussianPrior, Problem]:
    """Six pixels of variance 0.05 to 2, three data of noise 0.2 to 0.4."""
    root = normal(6, 6) / 6**0.5
    prior = GaussianPrior(normal(6, seed=1), root @ root.T + 0.05 * torch.eye(6, dtype=torch.float64))
    A, std = Matrix(normal(3, 6, seed=2) / 2), torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)
    return prior, Problem(A, A(prior.draw(1, rng(3))[0]) + std * normal(3, seed=4), std)


def modes() -> tuple[GaussianMixturePrior, Problem]:
    case = four_modes()
    assert isinstance(case.prior, GaussianMixturePrior)
    return case.prior, case.problem


# the parts


def test_systematic_resampling_takes_each_particle_as_often_as_its_weight_says() -> None:
    log_weights = torch.stack([3 * normal(20), torch.zeros(20), torch.tensor([0.0] + 19 * [-math.inf])], dim=1)
    expected = 20 * torch.softmax(log_weights, 0)
    total = torch.zeros(20, 3)
    for u in torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64):
        chosen = systematic(log_weights, u.expand(3))
        counts = torch.stack([torch.bincount(chosen[:, b], minlength=20) for b in range(3)], dim=1)
        assert ((counts >= (expected - 1e-6).floor()) & (counts <= (expected + 1e-6).ceil())).all()
        total += counts
    torch.testing.assert_close(total.double() / 1000, expected, rtol=0, atol=2e-3)


def test_effective_size() -> None:
    log_weights = torch.stack([torch.full((8,), 3.0), torch.tensor(2 * [0.0] + 6 * [-math.inf])], dim=1)
    torch.testing.assert_close(effective_size(log_weights), torch.tensor([8.0, 2.0]))


def test_only_members_with_few_effective_particles_are_resampled() -> None:
    cloud = Cloud(10, [rng(0), rng(1)], 0.5, torch.device("cpu"))
    factors = torch.stack([torch.full((10,), -2.0), torch.tensor([0.0] + 9 * [-math.inf])], dim=1)
    cloud.reweigh(factors.flatten())
    particles = torch.arange(20.0)
    (after,) = cloud.resample(particles)
    assert torch.equal(after.reshape(10, 2)[:, 0], particles.reshape(10, 2)[:, 0])
    assert torch.equal(after.reshape(10, 2)[:, 1], torch.ones(10))
    assert torch.equal(cloud.log_weights, torch.tensor([-2.0, 0.0], dtype=torch.float64).expand(10, 2))
    torch.testing.assert_close(cloud.log_evidence, torch.tensor([0.0, -math.log(10)], dtype=torch.float64))
    with pytest.raises(ArithmeticError, match="lost all its weights"):
        cloud.reweigh(torch.full((20,), math.nan))


def test_the_chain_is_exact_for_a_white_gaussian_prior() -> None:
    """p(x' | x) of x' = x₀ + σ' n, x = x' + √(σ² − σ'²) n with x₀ ~ N(0, s²)."""
    x, sigma, sigma_next, s = normal(5), torch.tensor(2.0), torch.tensor(1.5), 0.7
    before, after = s**2 + sigma**2, s**2 + sigma_next**2
    mean, variance = transition(x, x * s**2 / before, sigma, sigma_next, s)
    torch.testing.assert_close(mean, x * after / before)
    torch.testing.assert_close(variance, after * (sigma**2 - sigma_next**2) / before)


# against exact posteriors


def estimates(method: ParticleFilter, problem: Problem, runs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean (runs, d) and second moment about the exact mean, and ln p(y), of independent runs."""
    many = Problem(problem.A, problem.y.expand(runs, *problem.y.shape), problem.noise_std)
    exact = method.prior.posterior(problem)  # type: ignore[attr-defined]
    found = method.weighted(many, rng())
    weights = torch.softmax(found.log_weights, 0).reshape(*found.log_weights.shape, *[1] * exact.mean.ndim)
    return (weights * found.images).sum(0), (weights * (found.images - exact.mean) ** 2).sum(0), found.log_evidence


@pytest.mark.parametrize("case", [gaussian, modes])
@pytest.mark.parametrize("method", METHODS)
def test_mean_and_variance_tend_to_the_exact_ones_as_particles_grow(method: type, case: Any) -> None:
    """The error of the mean falls as 1 / √N: from 4 to 128 particles by 5.7, here at least by 2.

    What the levels leave (40 of them) lies within the tolerances for 128 particles: 4 standard errors of 16 runs and 5 % of
    the posterior's deviation for the mean, 15 % for variances.
    """
    prior, problem = case()
    exact, runs = prior.posterior(problem), 16
    deviation = exact.covariance.diagonal().sqrt()
    options = {"n_levels": 40, "data_std": 1.0 if case is gaussian else 2.5}
    errors = []
    for n in (4, 128):
        mean, second, _ = estimates(method(prior, particles=n, **options), problem, runs)
        errors.append(float(((mean - exact.mean) / deviation).square().mean().sqrt()))
    assert errors[1] < 0.5 * errors[0]
    off = (mean.mean(0) - exact.mean).abs()
    assert (off < 4 * mean.std(0) / runs**0.5 + 0.05 * deviation).all()
    torch.testing.assert_close((second.mean(0) / deviation**2).mean(), torch.tensor(1.0).double(), rtol=0, atol=0.15)


@pytest.mark.parametrize("case", [gaussian, modes])
@pytest.mark.parametrize("method", METHODS)
def test_the_evidence_is_that_of_the_data(method: type, case: Any) -> None:
    """Σ w / N is unbiased for the density of what the filter weighs by: the likelihood without its constant (TDS), or the data
    in the operator's coordinates (MCG-diff). This fails if any factor of the weights is wrong.
    """
    prior, problem = case()
    options = {"particles": 64, "n_levels": 60, "data_std": 1.0 if case is gaussian else 2.5}
    *_, log_evidence = estimates(method(prior, **options), problem, 24)
    std = torch.as_tensor(problem.noise_std).double().expand(problem.y.shape)
    if method is TDS:
        expected = prior.log_evidence(problem) + (std * (2 * math.pi) ** 0.5).log().sum()
    else:
        singular = torch.linalg.svdvals(dense(problem.A) / std[:, None])
        expected = prior.log_evidence(problem) + (std / std.min()).log().sum() + (singular * std.min()).log().sum()
    ratio = (log_evidence - expected).exp()
    assert abs(float(ratio.mean()) - 1) < 3.5 * float(ratio.std()) / 24**0.5 + 0.1
    assert float(ratio.std()) < 2


@pytest.mark.parametrize("second", [0.5, 0.001])
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_levels_is_exact_for_a_white_gaussian_prior(method: type, second: float) -> None:
    """Levels of 200, 46, 7, 0.56 and 0.01: only particles make an error then.

    With noise of 0.4 the singular values lie at σ_i = 0.5, little below a level, and at 0.8 or 400, above the first.
    """
    s = 1.3
    prior = GaussianPrior(torch.zeros(3).double(), s**2 * torch.eye(3, dtype=torch.float64))
    A = Matrix([[0.8, 0.0, 0.0], [0.0, second, 0.0]])
    problem = Problem(A, torch.tensor([1.0, -0.8], dtype=torch.float64), 0.4)
    exact, runs = prior.posterior(problem), 16
    filter_ = method(prior, particles=500, n_levels=5, sigma_max=200.0, data_std=s, threshold=1.0)
    mean, moment, log_evidence = estimates(filter_, problem, runs)
    variance = exact.covariance.diagonal()
    ratio = (log_evidence - prior.log_evidence(problem)).exp()
    ratio = ratio / (2 * math.pi * 0.4**2 if method is TDS else 0.8 * second)
    for got, expected in ((mean, exact.mean), (moment, variance), (ratio, torch.ones(()).double())):
        assert ((got.mean(0) - expected).abs() < 4 * got.std(0) / runs**0.5 + 1e-3).all()
        assert (got.std(0) < 0.5).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_last_step_adds_no_noise(method: type) -> None:
    """What is not measured ends as D(x, σ_min), for a white prior of variance 1 and σ_min = 1 with the variance 1 / 2."""
    prior = GaussianPrior(torch.zeros(2).double(), torch.eye(2, dtype=torch.float64))
    problem = Problem(Matrix([[1.0, 0.0]]), torch.ones(1).double(), 0.5)
    x = method(prior, samples=1000, particles=1000, n_levels=10, sigma_min=1.0, data_std=1.0)(problem, rng())
    assert float(x[:, 1].var()) == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("method", METHODS)
def test_an_uninformative_measurement_gives_the_prior(method: type) -> None:
    prior, problem = gaussian()
    blind = Problem(problem.A, problem.y[None], 1e6)
    found = method(prior, particles=2000, n_levels=40, data_std=1.0).weighted(blind, rng())
    torch.testing.assert_close(found.log_weights, found.log_weights[:1].expand(2000, 1), rtol=0, atol=1e-6)
    x = found.images[:, 0]
    deviation = prior.covariance.diagonal().sqrt()
    assert ((x.mean(0) - prior.mean).abs() < 5 * deviation / 2000**0.5 + 0.05 * deviation).all()
    torch.testing.assert_close(x.var(0), prior.covariance.diagonal(), rtol=0.15, atol=0)


def test_mcg_diff_meets_noise_free_data() -> None:
    prior, problem = gaussian()
    noise_free = Problem(problem.A, problem.y)
    exact = prior.posterior(noise_free)
    method = MCGDiff(prior, particles=64, n_levels=40, data_std=1.0, sigma_min=0.005)
    many = Problem(problem.A, problem.y.expand(16, 3))
    found = method.weighted(many, rng())
    torch.testing.assert_close(problem.A(found.images), problem.y.expand(64, 16, 3), rtol=0, atol=1e-9)
    mean, second, _ = estimates(method, noise_free, 16)
    variance = exact.covariance.diagonal()
    off = (mean.mean(0) - exact.mean).abs()
    assert (off < 4 * mean.std(0) / 4 + 0.05 * variance.sqrt()).all()
    assert float(second.mean(0).sum() / variance.sum()) == pytest.approx(1, abs=0.15)


def test_mcg_diff_with_noise_at_a_level_of_the_grid() -> None:
    """The bridge has no width there: the particle takes the data's value, and the answer is that of a level beside it."""
    prior, _ = gaussian()
    A, level = Masking([1, 1, 0, 0, 0, 0]), float(karras(10, 0.01, 20.0)[4])
    y = A(prior.mean + 1)
    method = MCGDiff(prior, samples=4, particles=8, n_levels=10, data_std=1.0)
    at, beside = (method(Problem(A, y, std), rng()) for std in (level, level * (1 + 1e-9)))
    torch.testing.assert_close(at, beside, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_few_view_ct_in_the_unit_of_attenuation(method: type) -> None:
    """Draws at a hundredth of the scale follow the data and lie about the exact mean as far as they should."""
    case, scale = few_view_ct(rng(), size=8, views=5, relative_noise=0.1), 0.0193
    exact = case.posterior
    problem = Problem(case.A, scale * case.y, scale * case.noise_std)
    options = {"samples": 64, "n_levels": 40, "data_std": 1.0}
    x = method(Rescaled(case.prior, 0.0, scale), **options)(problem, rng()) / scale
    deviation = exact.covariance.diagonal().reshape(8, 8).sqrt()
    assert float(((x.mean(0) - exact.mean) / deviation).square().mean().sqrt()) < 1
    assert float((exact.mean / deviation).square().mean().sqrt()) > 3
    residual = (case.A(x) - case.y) / case.noise_std
    assert float(residual.square().mean()) < 2


# draws, batches, seeds


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_the_particles_as_often_as_their_weights_say(method: type) -> None:
    prior, problem = gaussian()
    filter_ = method(prior, **QUICK | {"samples": 8, "threshold": 0.0})
    draws, found = filter_(problem, rng(1)), filter_.weighted(problem, rng(1))
    assert found.images.shape == (8, 6) and found.log_weights.shape == (8,) and found.log_evidence.shape == ()
    counts = (draws[:, None] == found.images).all(-1).sum(0)
    expected = 8 * torch.softmax(found.log_weights, 0)
    assert int(counts.sum()) == 8
    assert ((counts - expected).abs() < 1).all() and float((expected - 1).abs().max()) > 0.2


@pytest.mark.parametrize("method", METHODS)
def test_a_draw_depends_on_its_seed_only(method: type) -> None:
    prior, problem = gaussian()
    few, many = (method(prior, **QUICK | {"samples": n})(problem, rng(3)) for n in (2, 5))
    torch.testing.assert_close(few, many[:2], rtol=0, atol=0)
    assert not torch.allclose(few, method(prior, **QUICK | {"samples": 2})(problem, rng(4)))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_what_its_members_give_alone(method: type) -> None:
    prior, problem = gaussian()
    y = problem.y + normal(2, 1, 3, seed=5)
    std = torch.stack([torch.as_tensor(problem.noise_std), torch.full((3,), 0.5).double()])[:, None]
    filter_ = method(prior, **QUICK | {"samples": 2})
    together = filter_(Problem(problem.A, y, std), rng())
    assert together.shape == (2, 2, 1, 6)
    torch.testing.assert_close(filter_(Problem(problem.A, y[:1], std[:1]), rng()), together[:, :1])
    torch.testing.assert_close(filter_(Problem(problem.A, y[0, 0], std[0, 0]), rng()), together[:, 0, 0])
    assert not torch.allclose(together[:, 0], together[:, 1])
    single = filter_(Problem(problem.A, y.float(), std.float()), rng())
    assert single.dtype == torch.float32 and torch.isfinite(single).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_problem_in_another_unit(method: type) -> None:
    prior, problem = gaussian()
    scale = 0.02
    scaled = Problem(problem.A, scale * problem.y, scale * torch.as_tensor(problem.noise_std))
    expected = method(prior, **QUICK)(problem, rng())
    got = method(Rescaled(prior, 0.0, scale), **QUICK)(scaled, rng())
    torch.testing.assert_close(got, scale * expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_number_of_evaluations(method: type) -> None:
    prior, problem = gaussian()
    counted = Counted(prior)
    method(counted, **QUICK)(Problem(problem.A, problem.y.expand(2, 3), 0.3), rng())
    assert counted.n_evaluations == 2 * 8 * 6


def test_chunks_make_no_difference() -> None:
    prior, problem = gaussian()
    std = torch.stack([torch.as_tensor(problem.noise_std), torch.tensor([0.5, 0.1, 0.7]).double()])
    two = Problem(problem.A, problem.y + normal(2, 3, seed=5), std)
    whole, parts = (TDS(prior, **QUICK, chunk_pixels=n)(two, rng()) for n in (1000, 18))
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 9}, {"samples": 0}, {"n_levels": 0}, {"sigma_min": 30.0}, {"data_std": 0.0}, {"threshold": 1.5},
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_options_that_are_refused(method: type, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=method.__name__):
        method(gaussian()[0], **QUICK | options)


def test_more_that_is_refused() -> None:
    prior, problem = gaussian()
    with pytest.raises(ValueError, match="chunk_pixels"):
        TDS(prior, chunk_pixels=0)
    with pytest.raises(ValueError, match=r"noise_std = 0 leaves no likelihood .* MCGDiff"):
        TDS(prior, **QUICK)(dataclasses.replace(problem, noise_std=0.0), rng())
    with pytest.raises(ArithmeticError, match="lost all its weights"):
        TDS(lambda x, sigma: x * math.nan, **QUICK)(problem, rng())
