"""SITCOM against the minimum of its objective, its stopping rule, and the sampler that it is without data."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_gaussian_draws import MATRIX, UNEVEN, Rows, exact, gaussian, problems, ratios
from torch import Generator, Tensor

from scoreinv.posterior.sitcom import SITCOM
from scoreinv.priors.denoiser import Counted
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import member_streams
from scoreinv.streams import normal


def rng() -> Generator:
    return Generator().manual_seed(1)


@pytest.mark.parametrize("noise_std", [0.0, UNEVEN], ids=["noise-free", "uneven"])
@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_many_steps_minimise_the_objective(noise_std: float | Tensor, weight: float) -> None:
    """One level of a Gaussian prior: (1) is a quadratic in v, solved densely."""
    prior, (_, many) = gaussian(), problems(noise_std, 20)
    sigma = 0.8
    got = SITCOM(
        Rows(prior), n_levels=1, iterations=800, sigma_max=sigma, sigma_min=sigma, weight=weight, discrepancy=0.0
    )(many, rng())[0]
    x = sigma * normal(member_streams(rng(), 1, 1), torch.zeros(1, 20, 6, dtype=torch.float64))[0]
    std = torch.as_tensor(noise_std, dtype=torch.float64).expand(3)
    w = torch.ones(3, dtype=torch.float64) if std.max() == 0 else (std.min() / std) ** 2
    J = prior.covariance @ (prior.covariance + sigma**2 * torch.eye(6, dtype=torch.float64)).inverse()
    data = J @ MATRIX.T @ w.diag() / many.A.norm_squared()
    pull = weight / (1 + sigma**2)
    offset = many.y - (prior.mean - J @ prior.mean) @ MATRIX.T  # A D(v) - y = A J v - offset
    v = torch.linalg.solve(
        data @ MATRIX @ J + pull * torch.eye(6, dtype=torch.float64), (offset @ data.T + pull * x).T
    ).T
    torch.testing.assert_close(got, Rows(prior)(v[None], torch.tensor(sigma))[0], rtol=0, atol=2e-3)


def test_without_information_it_is_the_plain_sampler() -> None:
    """Data that any image explains stop every level at once: x ← D(x, σ) + σ' z, one evaluation each."""
    prior, (_, many) = gaussian(), problems(1e6, 20)
    counted = Counted(Rows(prior))
    got = SITCOM(counted, n_levels=6)(many, rng())[0]
    assert counted.n_evaluations == 6
    streams, like = member_streams(rng(), 1, 1), torch.zeros(1, 20, 6, dtype=torch.float64)
    sigmas = karras(6, 0.01, 20.0)
    x = sigmas[0] * normal(streams, like)
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = Rows(prior)(x, sigma) + sigma_next * normal(streams, like)
    torch.testing.assert_close(got, x[0])


@pytest.mark.parametrize("noise_std", [0.5, UNEVEN], ids=["even", "uneven"])
def test_stops_where_noise_explains_the_misfit(noise_std: float | Tensor) -> None:
    counted, (_, many) = Counted(Rows(gaussian())), problems(noise_std, 200)
    x = SITCOM(counted, iterations=50)(many, rng())
    misfit = float(((many.A(x) - many.y) / noise_std).square().mean())
    assert 0.5 < misfit <= 1
    assert counted.n_evaluations < 0.8 * 20 * 51


def test_noise_free_data_are_approached() -> None:
    """The rule never ends a level: K + 1 evaluations each; and more steps come closer."""
    _, many = problems(0.0, 50)

    def misfit(iterations: int) -> float:
        counted = Counted(Rows(gaussian()))
        x = SITCOM(counted, iterations=iterations)(many, rng())
        assert counted.n_evaluations == 20 * (iterations + 1)
        return float((many.A(x) - many.y).square().mean().sqrt())

    assert misfit(40) < 0.5 * misfit(10) < 0.1


def test_bias_that_the_docstring_states() -> None:
    prior, (one, many) = gaussian(), problems(0.5, 2000)
    variance, distance = ratios(exact(prior, one), SITCOM(Rows(prior))(many, rng())[0])
    assert variance == pytest.approx(0.48, abs=0.06) and distance == pytest.approx(0.24, abs=0.06)


def test_a_member_that_is_done_stays_while_others_go_on() -> None:
    prior, (_, many) = gaussian(), problems(0.5, 10)
    y = torch.stack([many.y, many.y + 3])
    std = torch.tensor([2.0, 0.05], dtype=torch.float64).reshape(2, 1, 1).expand(y.shape)
    together = SITCOM(Rows(prior), n_levels=5)(Problem(many.A, y, std), rng())
    alone = SITCOM(Rows(prior), n_levels=5)(Problem(many.A, y[:1], std[:1]), rng())
    torch.testing.assert_close(alone, together[:, :1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"weight": -1.0}, "weight"), ({"iterations": 0}, "iterations"), ({"discrepancy": -1.0}, "discrepancy")],
)
def test_settings_that_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SITCOM(Rows(gaussian()), **settings)  # type: ignore[arg-type]
