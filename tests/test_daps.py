"""DAPS where it is exact, and the bias of the published choice where that is known."""

from __future__ import annotations

import pytest
import torch
from test_gaussian_draws import (
    MATRIX,
    UNEVEN,
    Rows,
    RowWise,
    assert_drawn_from,
    exact,
    gaussian,
    problems,
    ratios,
    streams,
)
from torch import Generator, Tensor

from scoreinv.posterior.daps import DAPS, langevin_draw
from scoreinv.priors.denoiser import Counted
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem


def rng() -> Generator:
    return Generator().manual_seed(1)


@pytest.mark.parametrize("noise_std", [0.0, 0.5, UNEVEN], ids=["noise-free", "even", "uneven"])
@pytest.mark.parametrize("n_levels", [3, 12])
def test_exact_for_an_isotropic_prior(noise_std: float | Tensor, n_levels: int) -> None:
    """x̂₀ = D and r² = σ² s² / (σ² + s²): exact for every operator, whatever the levels."""
    s = 0.8
    prior, (one, many) = gaussian((s**2, s**2)), problems(noise_std, 8000)
    method = DAPS(Rows(prior), n_levels=n_levels, ode_steps=1, prior_std=s, sigma_max=200.0)
    assert_drawn_from(exact(prior, one), method(many, rng())[0])


def test_becomes_exact_for_other_gaussians_with_more_levels() -> None:
    prior, (one, many) = gaussian(), problems(0.5, 4000)

    law, distances = exact(prior, one), []
    for n_levels in (10, 40, 160):
        draws = DAPS(Rows(prior), n_levels=n_levels, ode_steps=1, prior_std=1.0)(many, rng())[0]
        distances.append(ratios(law, draws)[1])
    assert distances[0] > 0.15 > 0.1 > distances[1] > 0.045 > distances[2]
    assert_drawn_from(law, draws, slack=0.03)


def test_published_choice_at_one_level_follows_a_flattened_prior() -> None:
    """Flow and r = σ, prior N(0, 1), y = x + n with variances 1: the moments that the recursion of the head has at rest.

    With c the factor by which the flow shrinks x and w = σ_y² / (σ_y² + σ²): m = w c m + (1 − w) y, v = w² c² (v + σ²) + w σ².
    As σ → 0 they are those of N(0, 2) as prior: y 2/3 and 2/3, where the exact ones are y / 2 and 1/2.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    prior = GaussianPrior(torch.zeros(1, dtype=torch.float64), one)
    sigma, y, rows = 0.15, 1.5, 20000
    method = DAPS(Rows(prior), n_levels=250, ode_steps=12, sigma_max=sigma, sigma_min=sigma)
    problem = Problem(RowWise(one, rows), torch.full((rows, 1), y, dtype=torch.float64), 1.0)
    c, w = float(method._flow_end(one[None], torch.tensor(sigma))), 1 / (1 + sigma**2)
    assert c == pytest.approx(1 / (1 + sigma**2) ** 0.5, abs=2e-3)  # half of what D takes off
    mean, variance = (1 - w) * y / (1 - w * c), (w * c * sigma) ** 2 + w * sigma**2
    variance /= 1 - (w * c) ** 2
    assert mean == pytest.approx(y * 2 / 3, rel=0.1) and variance == pytest.approx(2 / 3, rel=0.1)
    x = method(problem, rng())
    assert float(x.mean()) == pytest.approx(mean, abs=5 * (variance / rows) ** 0.5)
    assert float(x.var()) == pytest.approx(variance, rel=5 * (2 / rows) ** 0.5)


def test_bias_that_the_docstring_states() -> None:
    prior, (one, many) = gaussian(), problems(0.5, 4000)
    law = exact(prior, one)
    assert ratios(law, DAPS(Rows(prior))(many, rng())[0])[0] == pytest.approx(1.50, abs=0.05)
    calibrated = DAPS(Rows(prior), ode_steps=1, prior_std=1.0)
    assert ratios(law, calibrated(many, rng())[0])[0] == pytest.approx(1.01, abs=0.03)


def test_langevin_draw_has_the_stated_covariance() -> None:
    """Along a direction of curvature c the variance is 1 / (c (1 − c / 4L))."""
    rows, r = 8000, 0.7
    _, many = problems(UNEVEN, rows)
    batch = Problem(many.A, many.y[None], UNEVEN)
    x = langevin_draw(batch, torch.ones(1, rows, 6, dtype=torch.float64), r, streams(1), iterations=150)
    precision = MATRIX.T @ (UNEVEN**-2).diag() @ MATRIX + torch.eye(6, dtype=torch.float64) / r**2
    bound = many.A.norm_squared() / UNEVEN.min() ** 2 + 1 / r**2
    curvature, vectors = torch.linalg.eigh(precision)
    assert curvature.max() < bound
    centre = precision.inverse() @ (MATRIX.T @ (UNEVEN**-2 * many.y[0]) + torch.ones(6, dtype=torch.float64) / r**2)
    covariance = (vectors / (curvature * (1 - curvature / (4 * bound)))) @ vectors.T
    assert_drawn_from(GaussianPrior(centre, covariance), x[0])


def test_langevin_comes_near_the_exact_draw() -> None:
    prior, (one, many) = gaussian((1.0, 1.0)), problems(0.5, 4000)
    method = DAPS(Rows(prior), n_levels=12, ode_steps=1, prior_std=1.0, draw="langevin", iterations=200)
    variance, distance = ratios(exact(prior, one), method(many, rng())[0])
    assert 1 < variance < 1.2 and distance < 0.1


def test_noise_free_data_are_met() -> None:
    _, many = problems(0.0, 5)
    x = DAPS(Rows(gaussian()), n_levels=5)(many, rng())
    torch.testing.assert_close(many.A(x), many.y[None], rtol=0, atol=1e-6)


def test_cost() -> None:
    prior = Counted(Rows(gaussian()))
    DAPS(prior, n_levels=4, ode_steps=3)(problems(0.5, 2)[1], rng())
    assert prior.n_evaluations == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"draw": "exat"}, "no draw is named 'exat'"), ({"prior_std": 0.0}, "prior_std > 0"), ({"ode_steps": 0}, "ode_steps")],
)  # fmt: skip
def test_settings_that_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DAPS(Rows(gaussian()), **settings)  # type: ignore[arg-type]


def test_langevin_needs_noise() -> None:
    with pytest.raises(ValueError, match="draw='exact'"):
        DAPS(Rows(gaussian()), draw="langevin")(problems(0.0, 2)[1], rng())
