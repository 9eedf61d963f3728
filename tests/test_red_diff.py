"""RED-diff against the fixed point that it has for Gaussian priors."""

from __future__ import annotations

import pytest
import torch
from test_gaussian_draws import MATRIX, UNEVEN, Rows, exact, gaussian, problems, ratios
from torch import Generator, Tensor

from scoreinv.posterior.red_diff import REDDiff
from scoreinv.priors.denoiser import Counted
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem


def rng() -> Generator:
    return Generator().manual_seed(1)


def fixed_point(prior: GaussianPrior, one: Problem, sigma: float, weight: float) -> Tensor:
    """Eq. (3), dense."""
    std = torch.as_tensor(one.noise_std, dtype=torch.float64).expand(3)
    v = sigma**2 * one.A.norm_squared()
    w = (std.min() ** 2 + v) / (std**2 + v)
    widened = prior.covariance + sigma**2 * torch.eye(6, dtype=torch.float64)
    weighted = MATRIX.T @ w.diag() / one.A.norm_squared()
    matrix = weighted @ MATRIX + weight * sigma**2 * widened.inverse()
    return prior.mean + torch.linalg.solve(matrix, weighted @ (one.y[0] - MATRIX @ prior.mean))


def at_one_level(prior: GaussianPrior, problem: Problem, sigma: float, weight: float) -> Tensor:
    """Mean over many rows of where small steps at one level come to rest: (6,), good to about 0.01."""
    method = REDDiff(
        Rows(prior),
        n_levels=800,
        sigma_max=sigma,
        sigma_min=sigma,
        weight=weight,
        learning_rate=0.01,
        start_iterations=1,
    )
    return method(problem, rng())[0].mean(0)


@pytest.mark.parametrize("noise_std", [0.0, 0.5, UNEVEN], ids=["noise-free", "even", "uneven"])
@pytest.mark.parametrize(("sigma", "weight"), [(0.5, 1.0), (1.0, 2.0)])
def test_rests_at_its_fixed_point(noise_std: float | Tensor, sigma: float, weight: float) -> None:
    prior, (one, many) = gaussian(), problems(noise_std, 400)
    expected = fixed_point(prior, one, sigma, weight)
    torch.testing.assert_close(at_one_level(prior, many, sigma, weight), expected, rtol=0, atol=0.04)
    assert float((expected - fixed_point(prior, one, sigma, weight / 2)).abs().max()) > 0.08  # a test that can tell


@pytest.mark.parametrize("noise_std", [0.5, UNEVEN], ids=["even", "uneven"])
def test_bayesian_weight_gives_the_posterior_mean_of_the_widened_prior(noise_std: float | Tensor) -> None:
    prior, (one, many) = gaussian(), problems(noise_std, 400)
    sigma = 0.7
    norm_squared, std = one.A.norm_squared(), torch.as_tensor(noise_std)
    v = sigma**2 * norm_squared if std.ndim else 0.0  # even noise may be taken as it is
    weight = float(std.min() ** 2 + v) / (norm_squared * sigma**2)
    one = Problem(one.A, one.y, (std**2 + v).sqrt())
    widened = GaussianPrior(prior.mean, prior.covariance + sigma**2 * torch.eye(6, dtype=torch.float64))
    got = at_one_level(prior, many, sigma, weight)
    torch.testing.assert_close(got, exact(widened, one).mean, rtol=0, atol=0.04)


def test_first_step_goes_down_the_gradient_by_the_learning_rate() -> None:
    """Adam's first step has the size of the learning rate along every pixel's gradient, whose sign eq. (2) gives."""
    prior, (_, many) = gaussian(), problems(0.5, 50)
    sigma, weight = 0.5, 0.3
    seen: list[Tensor] = []

    def spy(x: Tensor, level: Tensor) -> Tensor:
        seen.append(x)
        return Rows(prior)(x, level)

    after = REDDiff(spy, n_levels=1, sigma_max=sigma, sigma_min=sigma, weight=weight, start_iterations=1)(many, rng())
    A = many.A
    back = A.H(many.y)
    start = back * float(back[0].square().sum() / A(back)[0].square().sum())  # one step of CGLS from 0
    gradient = A.H(A(start) - many.y) / A.norm_squared() + weight * (
        start - Rows(prior)(seen[0], torch.tensor(sigma))[0]
    )
    torch.testing.assert_close(after[0], start - 0.1 * gradient.sign(), rtol=0, atol=1e-4)


def test_a_point_estimate() -> None:
    """What the head says: draws hardly vary, noisy data are over-fitted."""
    prior, (one, many) = gaussian(), problems(0.5, 2000)
    x = REDDiff(Rows(prior))(many, rng())
    assert ratios(exact(prior, one), x[0])[0] == pytest.approx(0.12, abs=0.03)
    assert float(((many.A(x) - many.y) / 0.5).square().mean()) < 0.01


def test_cost() -> None:
    prior = Counted(Rows(gaussian()))
    REDDiff(prior, n_levels=7, samples=2)(problems(0.5, 2)[1], rng())
    assert prior.n_evaluations == 14


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"weight": -1.0}, "weight"), ({"learning_rate": 0.0}, "learning_rate"), ({"sigma_min": 30.0}, "sigma_min")],
)
def test_settings_that_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        REDDiff(Rows(gaussian()), **settings)  # type: ignore[arg-type]
