"""PiGDM's weights: the paper's update, the bound on Tweedie's, and what both draw on exact Gaussians."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from principal_draws import principal_draws
from torch import Generator, Tensor

from scoreinv.operators.dense import Matrix
from scoreinv.posterior.pigdm import PiGDM
from scoreinv.priors.adapters.azula import as_azula
from scoreinv.priors.exact import GaussianPrior, dense
from scoreinv.priors.references import few_view_ct, masked_image
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import member_streams
from scoreinv.sampling.steps import Ancestral

F64 = torch.float64


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def noise_free() -> tuple[GaussianPrior, Problem, Tensor]:
    """A correlated prior, three data of eight numbers for two members, and points."""
    i = torch.arange(8, dtype=F64)
    prior = GaussianPrior(torch.sin(i), torch.exp(-((i[:, None] - i) ** 2) / 8) + 0.05 * torch.eye(8))
    A = Matrix(torch.randn(3, 8, generator=seeded(1), dtype=F64))
    y = torch.randn(2, 3, generator=seeded(2), dtype=F64)
    return prior, Problem(A, y), torch.randn(2, 8, generator=seeded(3), dtype=F64)


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("at", [0, 20, 48, 49])
def test_a_step_with_whole_pulls_is_the_papers(at: int, eta: float) -> None:
    """x' = (the prior's step from x) + Jᵀ A⁺ (y − A D), whatever the step: algorithm 1."""
    prior, problem, x = noise_free()
    levels = karras(50, 0.01, 20.0)
    sigma, sigma_next = levels[at], levels[at + 1]
    denoise = PiGDM(prior, weight="whole", eta=eta, tolerance=1e-10).condition(prior, problem)
    got = Ancestral(eta)(denoise, x, sigma, sigma_next, member_streams(seeded(), 1, 2))
    plain = Ancestral(eta)(prior, x, sigma, sigma_next, member_streams(seeded(), 1, 2))
    jacobian = torch.func.jacrev(lambda v: prior(v[None], sigma)[0])(x[0])
    pull = (problem.y - problem.A(prior(x, sigma))) @ torch.linalg.pinv(dense(problem.A)).T @ jacobian
    torch.testing.assert_close(got, plain + pull, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("weight", ["tweedie", "whole"])
def test_no_step_is_longer_than_the_part_asked_for(weight: str) -> None:
    """At σ = 5 Tweedie's weight, 101 r², is far above the bound; at σ = 0.05 it is below, and "whole" is not."""
    prior, problem, x = noise_free()
    levels = karras(50, 0.01, 20.0)[:-1]
    for sigma, bounded in ((levels[12], True), (levels[38], weight == "whole")):
        pulls = [
            PiGDM(prior, data_std=0.5, weight=weight, longest=longest, tolerance=1e-10).condition(prior, problem)(
                x, sigma
            )
            - prior(x, sigma)
            for longest in (0.5, 1.0)
        ]
        torch.testing.assert_close(pulls[1], (2.0 if bounded else 1.0) * pulls[0], rtol=1e-7, atol=1e-12)


def test_the_bound_falls_away_as_levels_are_added() -> None:
    prior, problem, x = noise_free()
    few, many, tweedie = (
        PiGDM(prior, data_std=0.5, tolerance=1e-10, **options).condition(prior, problem)(
            x, torch.tensor(2.0, dtype=F64)
        )
        for options in ({"n_levels": 50}, {"n_levels": 1000}, {"longest": math.inf})
    )
    torch.testing.assert_close(many, tweedie)
    assert float((few - tweedie).norm()) > 0.5 * float((few - prior(x, torch.tensor(2.0))).norm())


def test_shares_of_steps() -> None:
    prior, _, _ = noise_free()
    levels = karras(4, 0.1, 10.0)
    ratio = levels[1:] / levels[:-1]
    settings: dict[str, Any] = {"n_levels": 4, "sigma_min": 0.1, "sigma_max": 10.0}
    for options, shares in (
        ({"eta": 1.0}, 1 - ratio**2),
        ({"eta": 0.0}, 1 - ratio),
        ({"step": "heun"}, 1 - ratio),
        ({"step": "predictor_corrector", "eta": 0.0}, 1 - ratio**2),
    ):
        method = PiGDM(prior, **settings, **options)
        torch.testing.assert_close(method.share(levels[:-1]), shares)
        assert float(method.share(levels[1].float() * 1.01)) == pytest.approx(float(shares[1]))
        assert float(shares[-1]) == 1.0
        outside = method.share(torch.tensor([1e-9, 1e9], dtype=F64))  # below and above all levels
        torch.testing.assert_close(outside, shares[[-1, 0]])


# what it draws


def law(method: PiGDM, problem: Problem, n: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the draws of ancestral steps, without a draw: D_y is an affine map, found from n + 1 points."""
    levels = karras(method.n_levels, method.sigma_min, method.sigma_max)
    eye, shape = torch.eye(n, dtype=F64), problem.A.in_shape
    points = torch.cat([torch.zeros(1, n, dtype=F64), eye]).reshape(n + 1, *shape)
    denoise = method.condition(method.prior, problem.flat().repeated(n + 1))
    mean, covariance = torch.zeros(n, dtype=F64), levels[0] ** 2 * eye
    for sigma, sigma_next in itertools.pairwise(levels):
        values = denoise(points, sigma).reshape(n + 1, n)
        q = (sigma_next / sigma) ** 2
        M = (1 - q) * (values[1:] - values[0]).T + q * eye
        mean = M @ mean + (1 - q) * values[0]
        covariance = M @ covariance @ M.T + sigma_next**2 * (1 - q) * eye
    return mean, covariance


@pytest.mark.parametrize("name", ["masked", "CT"])
def test_the_default_weight_is_nearer_to_the_posterior_than_the_others(name: str) -> None:
    """Damping 1 is off in the mean or varies too much, whole pulls vary too little where there are data."""
    reference = masked_image(seeded(), size=6) if name == "masked" else few_view_ct(seeded(), size=6, views=3)
    assert isinstance(reference.prior, GaussianPrior)
    rng = seeded()
    y = reference.A(principal_draws(reference.prior, 1, rng)[0])
    problem = Problem(
        reference.A, y + reference.noise_std * torch.randn(y.shape, generator=rng, dtype=F64), reference.noise_std
    )
    exact = reference.prior.posterior(problem)
    inverse, n = torch.linalg.inv(exact.covariance), exact.covariance.shape[0]
    rows = torch.linalg.svd(dense(problem.A).double(), full_matrices=False)
    seen = rows.Vh[rows.S > 1e-6]
    divergences, errors, variances = [], [], []
    others: tuple[dict[str, Any], ...] = ({}, {"damping": 1.0}, {"weight": "whole"})
    for options in others:
        method = PiGDM(reference.prior, data_std=0.5, iterations=40, tolerance=1e-8, **options)
        mean, covariance = law(method, problem, n)
        gap = mean - exact.mean.flatten()
        errors.append(float((gap**2 / exact.covariance.diagonal()).mean().sqrt()))
        variances.append(float((seen @ covariance * seen).sum() / (seen @ exact.covariance * seen).sum()))
        ratio = torch.linalg.eigvals(inverse @ covariance).real
        divergences.append(float((ratio - 1 - ratio.log()).sum() + gap @ inverse @ gap) / 2)
    assert divergences[0] < 0.8 * min(divergences[1:]), divergences
    assert errors[0] < 0.5 * errors[1], errors
    assert abs(variances[0] - 1) < 0.25, variances
    assert abs(variances[0] - 1) < 0.5 * abs(variances[2] - 1), variances


def test_no_step_overshoots_but_without_bound() -> None:
    """Of a linear step all eigenvalues are in [0, 1]; for λ ≫ s_d² Tweedie's weight alone has some far below -1."""
    prior, problem, _ = noise_free()
    points = torch.cat([torch.zeros(1, 8, dtype=F64), torch.eye(8, dtype=F64)])
    levels = karras(50, 0.01, 20.0)
    lowest = []
    for longest in (1.0, math.inf):
        method = PiGDM(prior, longest=longest, tolerance=1e-10)
        denoise = method.condition(prior, Problem(problem.A, problem.y[:1]).repeated(9))
        found = []
        for sigma, sigma_next in itertools.pairwise(levels):
            q, values = (sigma_next / sigma) ** 2, denoise(points, sigma)
            M = (1 - q) * (values[1:] - values[0]).T + q * torch.eye(8)
            found.append(torch.linalg.eigvals(M).real)
        lowest.append(float(torch.stack(found).min()))
        assert float(torch.stack(found).max()) < 1 + 1e-9
    assert lowest[0] > -1e-9 and lowest[1] < -3, lowest


# azula


def test_whole_pulls_are_those_of_azula() -> None:
    """One of its steps, in its coordinate α_t x, for noise-free data with the exact pseudo-inverse."""
    pgdm, noise = pytest.importorskip("azula.guidance.pgdm"), pytest.importorskip("azula.noise")
    flat, problem, x = noise_free()
    prior = GaussianPrior(flat.mean.reshape(2, 4), flat.covariance)
    A, y, schedule = Matrix(dense(problem.A), (2, 4)), problem.y[:1], noise.VPSchedule()
    theirs = pgdm.PGDMSampler(
        as_azula(prior, schedule),
        y,
        lambda v: A(v[:, 0]),
        lambda v: (v @ torch.linalg.pinv(A.matrix).T).reshape(1, 1, 2, 4),
        eta=0.0,
        silent=True,
    )
    t, s = torch.tensor([0.4, 0.38], dtype=F64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    point = x[:1].reshape(1, 2, 4)
    expected = theirs.step(alpha_t * point[:, None], t, s)[:, 0] / alpha_s
    level, level_next = sigma_t / alpha_t, sigma_s / alpha_s
    settings: dict[str, Any] = {"n_levels": 2, "sigma_min": float(level_next), "sigma_max": float(level), "eta": 0.0}
    denoise = PiGDM(prior, weight="whole", tolerance=1e-10, **settings).condition(prior, Problem(A, y))
    got = Ancestral(0.0)(denoise, point, level, level_next, [seeded()])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
