"""Exact priors against Monte Carlo, finite differences, brute-force integration and each other."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scoreinv.linop import LinearOperator
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior, dense
from scoreinv.problem import Problem


@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    """A dense matrix as an operator on images of one row."""

    matrix: Tensor

    @property
    def in_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[1],)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[0],)

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)


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
    prior = PRIORS[name]
    row = torch.tensor([[0.8, -0.5]], dtype=torch.float64)
    y = torch.tensor([0.7], dtype=torch.float64)
    points, mass = density_on_grid(prior)
    weight = mass * torch.exp(-((points @ row[0] - y) ** 2) / (2 * float(noise_std) ** 2))
    mean = weight @ points / weight.sum()
    centred = points - mean
    covariance = (centred * weight[:, None]).T @ centred / weight.sum()

    posterior = prior.posterior(Problem(Matrix(row), y, noise_std))
    if isinstance(posterior, GaussianMixturePrior):
        w = posterior.weights[:, None]
        got_mean = (w * posterior.means).sum(0)
        between = (posterior.means - got_mean)[:, :, None] * (posterior.means - got_mean)[:, None, :]
        got_covariance = (w[..., None] * (posterior.covariances + between)).sum(0)
    else:
        got_mean, got_covariance = posterior.mean, posterior.covariance
    torch.testing.assert_close(got_mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got_covariance, covariance, rtol=1e-6, atol=1e-6)


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


def test_score_of_the_mixture_is_the_gradient_of_its_log_density() -> None:
    prior, sigma = mixture(), torch.tensor(0.5, dtype=torch.float64)
    x = prior.draw(6, torch.Generator().manual_seed(2)).requires_grad_()
    parts = torch.stack([c.log_density(x, sigma) for c in prior.components])
    (gradient,) = torch.autograd.grad(torch.logsumexp(parts + prior.weights.log()[:, None], 0).sum(), x)
    torch.testing.assert_close((prior(x, sigma) - x) / sigma**2, gradient)


@pytest.mark.parametrize("name", PRIORS)
def test_a_level_for_each_member(name: str) -> None:
    prior = PRIORS[name]
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.1, 1.0, 10.0])
    together = prior(x, sigmas)
    assert together.dtype == torch.float32
    alone = torch.cat([prior(x[k : k + 1], sigmas[k]) for k in range(3)])
    torch.testing.assert_close(together, alone)


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
        (
            lambda: GaussianMixturePrior(torch.tensor([1.0, -1.0]), torch.zeros(2, 1), torch.ones(2, 1, 1)),
            "positive weight",
        ),
        (lambda: gaussian(3, 0).posterior(Problem(Matrix(torch.ones(1, 3)), torch.zeros(2, 1))), "one image"),
        (lambda: gaussian(3, 0).posterior(Problem(Matrix(torch.ones(1, 2)), torch.zeros(1))), "one image"),
        (lambda: mixture().posterior(Problem(Matrix(torch.zeros(1, 2)), torch.ones(1))), "positive noise_std"),
    ],
)
def test_what_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
