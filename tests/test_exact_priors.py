"""Exact priors against Monte Carlo, finite differences, brute-force integration and each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scoreinv.operators import Masking, Matrix
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior, dense
from scoreinv.problem import Problem


def gaussian(d: int, seed: int, spread: float = 1.0) -> GaussianPrior:
    rng = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=rng, dtype=torch.float64) / d**0.5
    mean = spread * torch.randn(d, generator=rng, dtype=torch.float64)
    return GaussianPrior(mean, root @ root.T + 0.05 * torch.eye(d, dtype=torch.float64))


def mixture(d: int = 2) -> GaussianMixturePrior:
    parts = [gaussian(d, seed, spread=2.0) for seed in (1, 2, 3)]
    return GaussianMixturePrior(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.stack([p.mean for p in parts]),
        torch.stack([p.covariance for p in parts]),
    )


PRIORS = {"gaussian": gaussian(2, 0), "mixture": mixture()}


def density_on_grid(
    prior: GaussianPrior | GaussianMixturePrior, half_width: float = 9.0, n: int = 361
) -> tuple[Tensor, Tensor]:
    """Points of the plane and the prior's density times the area of a cell, from the textbook formula."""
    axis = torch.linspace(-half_width, half_width, n, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    parts = prior.components if isinstance(prior, GaussianMixturePrior) else (prior,)
    weights = prior.weights if isinstance(prior, GaussianMixturePrior) else torch.ones(1)
    density = torch.zeros(len(points), dtype=torch.float64)
    for w, part in zip(weights, parts, strict=True):
        law = torch.distributions.MultivariateNormal(part.mean, part.covariance)
        density += w * law.log_prob(points).exp()
    return points, density * (axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_denoiser_is_the_posterior_mean(name: str, sigma: float) -> None:
    prior = PRIORS[name]
    points, mass = density_on_grid(prior)
    x = torch.tensor([[0.3, -1.2], [2.0, 1.0]], dtype=torch.float64)
    likelihood = torch.exp(-(torch.cdist(x, points) ** 2) / (2 * sigma**2)) * mass
    expected = likelihood @ points / likelihood.sum(1, keepdim=True)
    torch.testing.assert_close(prior(x, torch.tensor(sigma)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("noise_std", [0.4, torch.tensor([0.2], dtype=torch.float64)])
def test_posterior_by_integration(name: str, noise_std: float | Tensor) -> None:
    """Mean, covariance and evidence."""
    prior = PRIORS[name]
    row = torch.tensor([[0.8, -0.5]], dtype=torch.float64)
    y = torch.tensor([0.7], dtype=torch.float64)
    points, mass = density_on_grid(prior)
    weight = mass * torch.exp(-((points @ row[0] - y) ** 2) / (2 * float(noise_std) ** 2))
    mean = weight @ points / weight.sum()
    centred = points - mean
    covariance = (centred * weight[:, None]).T @ centred / weight.sum()

    problem = Problem(Matrix(row), y, noise_std)
    posterior = prior.posterior(problem)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(posterior.covariance, covariance, rtol=1e-6, atol=1e-6)
    evidence = (weight.sum() / (2 * torch.pi * float(noise_std) ** 2) ** 0.5).log()
    torch.testing.assert_close(prior.log_evidence(problem), evidence, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PRIORS)
def test_draws_have_the_moments_of_the_density(name: str) -> None:
    prior = PRIORS[name]
    n = 20_000
    x = prior.draw(n, torch.Generator().manual_seed(5))
    points, mass = density_on_grid(prior)
    mean = mass @ points
    second = (points * mass[:, None]).T @ points
    assert ((x.mean(0) - mean).abs() < 4 * x.std(0) / n**0.5).all()
    products = x[:, :, None] * x[:, None, :]
    assert ((products.mean(0) - second).abs() < 4 * products.std(0) / n**0.5).all()


def test_noise_free_posterior_meets_the_data() -> None:
    prior, rng = gaussian(5, 3), torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    matrix = torch.cat([matrix, matrix.sum(0, keepdim=True)])  # dependent rows: A Σ Aᵀ is singular
    y = matrix @ prior.draw(1, rng)[0]
    posterior = prior.posterior(Problem(Matrix(matrix), y))
    torch.testing.assert_close(matrix @ posterior.mean, y)
    torch.testing.assert_close(posterior.draw(4, rng) @ matrix.T, y.expand(4, 3), rtol=0, atol=1e-6)
    assert torch.linalg.matrix_rank(posterior.covariance, rtol=1e-9) == 3


def test_flow_is_the_ode_and_composes() -> None:
    prior, sigma, h = gaussian(4, 1), torch.tensor(0.7, dtype=torch.float64), 1e-4
    x = prior.draw(3, torch.Generator().manual_seed(0))
    ahead, behind = prior.flow(x, sigma, sigma + h), prior.flow(x, sigma, sigma - h)
    torch.testing.assert_close((ahead - behind) / (2 * h), (x - prior(x, sigma)) / sigma, rtol=1e-6, atol=1e-7)
    there = prior.flow(x, sigma, torch.tensor(5.0))
    torch.testing.assert_close(prior.flow(there, torch.tensor(5.0), sigma), x)


def test_flow_of_a_mixture_is_the_ode_and_composes() -> None:
    prior, sigma, h = mixture(), torch.tensor(0.7, dtype=torch.float64), 1e-4
    x = prior.draw(5, torch.Generator().manual_seed(0))
    ahead, behind = prior.flow(x, sigma, sigma + h), prior.flow(x, sigma, sigma - h)
    torch.testing.assert_close((ahead - behind) / (2 * h), (x - prior(x, sigma)) / sigma, rtol=1e-6, atol=1e-7)
    far, zero = torch.tensor(30.0), torch.tensor(0.0)
    there = prior.flow(x, zero, far)
    torch.testing.assert_close(prior.flow(there, far, zero), x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(prior.flow(there[1:2], far, zero), prior.flow(there, far, zero)[1:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(prior.flow(x, sigma, sigma), x, rtol=0, atol=0)


def test_flow_of_a_mixture_of_one_is_that_of_a_gaussian() -> None:
    """The integrated flow against the closed form: the stated tolerance, with room for its growth."""
    one = gaussian(4, 1)
    prior = GaussianMixturePrior(torch.ones(1), one.mean[None], one.covariance[None])
    x = 20 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start, stop = torch.tensor([20.0, 5.0, 0.1]), torch.tensor([0.0, 0.3, 9.0])
    expected = torch.cat([one.flow(x[k : k + 1], start[k], stop[k]) for k in range(3)])
    for tolerance in (1e-6, 1e-9):
        error = (prior.flow(x, start, stop, tolerance=tolerance) - expected).norm(dim=1)
        assert (error < 3 * tolerance * torch.maximum(x.norm(dim=1), expected.norm(dim=1))).all()
        assert (error > 1e-3 * tolerance).all()
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        prior.flow(x, start, stop, tolerance=0)


def test_flow_carries_the_density() -> None:
    """ln p_σ'(x') = ln p_σ(x) − ln |det ∂x' / ∂x|, the determinant by finite differences."""
    prior, h = mixture(), 1e-4
    start, stop = torch.tensor(4.0), torch.tensor(0.5)
    x = torch.tensor([[0.5, -2.0], [3.0, 1.0]], dtype=torch.float64)
    shifts = h * torch.cat([torch.eye(2), -torch.eye(2)]).double()
    ends = prior.flow((x[:, None] + shifts).flatten(0, 1), start, stop).reshape(2, 4, 2)
    jacobians = (ends[:, :2] - ends[:, 2:]) / (2 * h)
    moved = prior.log_density(prior.flow(x, start, stop), stop)
    torch.testing.assert_close(moved, prior.log_density(x, start) - jacobians.det().abs().log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PRIORS)
def test_score_is_the_gradient_of_the_log_density(name: str) -> None:
    prior, sigma = PRIORS[name], torch.tensor(0.5, dtype=torch.float64)
    x = prior.draw(6, torch.Generator().manual_seed(2)).requires_grad_()
    (gradient,) = torch.autograd.grad(prior.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(prior.score(x, sigma), gradient)
    torch.testing.assert_close((prior(x, sigma) - x) / sigma**2, gradient)


@pytest.mark.parametrize("name", PRIORS)
def test_log_density_without_noise_is_that_of_the_prior(name: str) -> None:
    points, mass = density_on_grid(PRIORS[name], n=41)
    got = PRIORS[name].log_density(points, torch.tensor(0.0)).exp() * (18 / 40) ** 2
    torch.testing.assert_close(got, mass, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", PRIORS)
def test_jacobian_is_the_derivative_of_the_denoiser(name: str) -> None:
    prior, rng = PRIORS[name], torch.Generator().manual_seed(3)
    sigmas = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    x, v, w = (torch.randn(3, 2, dtype=torch.float64, generator=rng) for _ in range(3))
    differences = (prior(x + 1e-5 * v, sigmas) - prior(x - 1e-5 * v, sigmas)) / 2e-5
    torch.testing.assert_close(prior.jvp(x, sigmas, v), differences, rtol=1e-6, atol=1e-8)
    (back,) = torch.autograd.grad(prior(x.requires_grad_(), sigmas), x, w)
    torch.testing.assert_close(prior.jvp(x, sigmas, w).detach(), back)  # symmetric
    assert prior.jvp(x.float(), sigmas, v.float()).dtype == torch.float32


def test_moments_of_a_mixture() -> None:
    prior = mixture()
    points, mass = density_on_grid(prior)
    centred = points - prior.mean
    torch.testing.assert_close(prior.mean, mass @ points, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prior.covariance, (centred * mass[:, None]).T @ centred, rtol=1e-5, atol=1e-5)
    double = GaussianMixturePrior(2 * prior.weights, prior.means, prior.covariances)  # weights are normalised
    x = points[:50]
    torch.testing.assert_close(
        double.log_density(x, torch.tensor(1.0)), prior.log_density(x, torch.tensor(1.0)), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(double.mean, prior.mean)


@pytest.mark.parametrize("name", PRIORS)
def test_a_level_for_each_member(name: str) -> None:
    prior = PRIORS[name]
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.1, 1.0, 10.0])
    together = prior(x, sigmas)
    assert together.dtype == torch.float32
    alone = torch.cat([prior(x[k : k + 1], sigmas[k]) for k in range(3)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("noise_std", [0.0, 1e-4])
def test_the_posterior_of_a_float32_prior_is_as_good(noise_std: float) -> None:
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=rng)
    covariance = root @ root.T / 6 + 0.3 * torch.eye(6)
    A = Matrix(torch.randn(3, 6, generator=rng))
    single = GaussianPrior(torch.zeros(6), covariance)
    double = GaussianPrior(torch.zeros(6, dtype=torch.float64), covariance.double())
    problem = Problem(A, A(single.draw(1, rng)[0]), noise_std)
    found, exact = single.posterior(problem), double.posterior(problem)
    torch.testing.assert_close(found.covariance, exact.covariance, rtol=1e-9, atol=1e-14)
    assert found.draw(1, rng).dtype == torch.float32
    if noise_std == 0:
        assert float((A(found.draw(500, rng)) - problem.y).abs().max()) < 1e-5


def test_images_of_two_dimensions_and_dense_matrix() -> None:
    flat = gaussian(6, 4)
    prior = GaussianPrior(flat.mean.reshape(2, 3), flat.covariance)
    x = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(prior(x, torch.tensor(0.4)).flatten(1), flat(x.flatten(1), torch.tensor(0.4)))
    matrix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(dense(Matrix(matrix)), matrix)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianPrior(torch.zeros(3), torch.eye(2)), r"needs a covariance \(3, 3\)"),
        (lambda: GaussianPrior(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: GaussianPrior(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0]))), "semi-definite"),
        (lambda: GaussianPrior(torch.zeros(2, dtype=torch.int64), torch.eye(2)), "mean must be real floating-point"),
        (
            lambda: GaussianPrior(torch.zeros(2), torch.eye(2, dtype=torch.int64)),
            "covariance must be real floating-point",
        ),
        (lambda: GaussianPrior(torch.full((2,), math.nan), torch.eye(2)), "mean holds NaN or infinity"),
        (lambda: GaussianPrior(torch.zeros(2), math.nan * torch.eye(2)), "covariance holds NaN or infinity"),
        (
            lambda: GaussianMixturePrior(torch.tensor([1.0, math.inf]), torch.zeros(2, 1), torch.ones(2, 1, 1)),
            "weights holds NaN or infinity",
        ),
        (
            lambda: GaussianMixturePrior(torch.tensor([1.0, -1.0]), torch.zeros(2, 1), torch.ones(2, 1, 1)),
            "one positive weight, and one each of means and covariances",
        ),
        (lambda: gaussian(3, 0).posterior(Problem(Matrix(torch.ones(1, 3)), torch.zeros(2, 1))), "one image"),
        (lambda: gaussian(3, 0).posterior(Problem(Matrix(torch.ones(1, 2)), torch.zeros(1))), "one image"),
        (lambda: mixture().posterior(Problem(Matrix(torch.zeros(1, 2)), torch.ones(1))), "positive noise_std"),
        (
            lambda: GaussianMixturePrior(
                torch.ones(1), torch.zeros(1, 2), torch.diag(torch.tensor([1.0, 0.0]))[None]
            ).flow(torch.ones(1, 2), torch.tensor(1.0), torch.tensor(0.0)),
            "stop at a small positive sigma_next",
        ),
    ],
)
def test_what_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


# What rounding, certain directions and unseen data must not do


@pytest.mark.parametrize("large", [1e6, 1e9, 1e15])
def test_a_datum_without_information_hides_no_other(large: float) -> None:
    prior, y = gaussian(4, 0), torch.tensor([1.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    std = torch.tensor([0.1, 0.1, large, 0.1], dtype=torch.float64)
    law = prior.posterior(Problem(Matrix(torch.eye(4)), y, std))
    covariance = torch.linalg.inv(torch.linalg.inv(prior.covariance) + torch.diag(std**-2))
    expected = covariance @ (torch.linalg.solve(prior.covariance, prior.mean) + y / std**2)
    torch.testing.assert_close(law.mean, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(law.covariance, covariance, rtol=0, atol=1e-9)
    predicted = prior.covariance + torch.diag(std**2)
    off = y - prior.mean
    by_hand = -0.5 * (off @ torch.linalg.solve(predicted, off) + torch.logdet(2 * math.pi * predicted))
    torch.testing.assert_close(prior.log_evidence(Problem(Matrix(torch.eye(4)), y, std)), by_hand, rtol=1e-9, atol=0)


@pytest.mark.parametrize("std", [1e-6, 1e-9])
def test_a_posterior_far_more_certain_than_its_prior(std: float) -> None:
    law = gaussian(3, 0).posterior(Problem(Matrix(torch.eye(3)), torch.zeros(3, dtype=torch.float64), std))
    torch.testing.assert_close(law.covariance.diagonal() / std**2, torch.ones(3).double(), rtol=1e-5, atol=0)


def test_data_that_are_not_seen_are_no_data() -> None:
    A, seen = Masking(torch.tensor([[1, 0], [1, 0]])), Matrix(torch.eye(4)[[0, 2]], (2, 2))
    prior = GaussianPrior(torch.zeros(2, 2).double(), gaussian(4, 0).covariance)
    law = prior.posterior(Problem(seen, torch.tensor([0.7, -0.2]).double(), 0.3))
    evidence = prior.log_evidence(Problem(seen, torch.tensor([0.7, -0.2]).double(), 0.3))
    for junk in (0.0, 5.0):
        given = Problem(A, torch.tensor([[0.7, junk], [-0.2, junk]]).double(), 0.3)
        torch.testing.assert_close(prior.posterior(given).covariance, law.covariance)
        torch.testing.assert_close(prior.log_evidence(given), evidence)


def test_certain_data_that_follow_from_others_have_no_density() -> None:
    """Their posterior is that of the others."""
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(9)).double()
    rows[2] = rows[0] + rows[1]
    for seed in range(5):
        prior = gaussian(4, seed)
        x = prior.draw(1, torch.Generator().manual_seed(seed))[0]
        mix = GaussianMixturePrior(torch.ones(1), x.new_zeros(1, 4), prior.covariance[None])
        given = Problem(Matrix(rows), rows @ x, 0.0)
        for evidence in (prior.log_evidence, mix.log_evidence, mix.posterior):
            with pytest.raises(ValueError, match="have no density: some are noise-free and follow from others"):
                evidence(given)
        other = prior.posterior(Problem(Matrix(rows[:2]), rows[:2] @ x, 0.0))
        torch.testing.assert_close(prior.posterior(given).mean, other.mean, rtol=0, atol=1e-8)


def test_no_flow_leaves_zero_in_a_direction_without_variance() -> None:
    prior = GaussianPrior(torch.ones(2), torch.diag(torch.tensor([1.0, 0.0])))
    x = prior.draw(3, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="no flow leaves sigma = 0"):
        prior.flow(x, torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(prior.flow(x, torch.tensor(0.0), torch.tensor(0.0)), x)
    assert prior(x, torch.tensor(float("nan"))).isnan().all()


def test_blank_images_flow() -> None:
    """There is no size of their own that the tolerance could be relative to."""
    law = GaussianPrior(torch.full((4,), 0.3).double(), 0.25 * torch.eye(4).double())
    mix = GaussianMixturePrior(torch.ones(1).double(), law.mean[None], law.covariance[None])
    x, here, there = torch.zeros(1, 4).double(), torch.tensor(0.0), torch.tensor(3.0)
    torch.testing.assert_close(mix.flow(x, here, there), law.flow(x, here, there), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.draw(0, torch.Generator()), "a whole number of at least 1, got 0"),
        (lambda p: p.draw(2, None), "expected a torch.Generator, got NoneType"),
        (lambda p: p(torch.zeros(2), torch.tensor(1.0)), r"expected images \(batch, 2\) and one sigma"),
        (lambda p: p.log_density(torch.zeros(3, 1), torch.tensor(1.0)), r"got \(3, 1\)"),
        (lambda p: p.score(torch.zeros(3, 2), torch.ones(2)), r"got \(3, 2\) and \(2,\)"),
    ],
)
@pytest.mark.parametrize("name", PRIORS)
def test_calls_that_are_refused(name: str, call: Callable[[Any], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(PRIORS[name])


def test_a_mixture_looks_at_its_covariances() -> None:
    with pytest.raises(ValueError, match="positive semi-definite"):
        GaussianMixturePrior(torch.ones(1), torch.zeros(1, 2), -torch.eye(2)[None])
