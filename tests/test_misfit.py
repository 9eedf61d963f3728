"""The exact likelihood of photon counts: derivatives, limits, the parabola at an estimate, and what methods draw with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from principal_draws import principal_draws
from scipy import stats
from scipy.optimize import minimize
from test_gaussian_draws import Rows, RowWise
from torch import Generator, Tensor

from scoreinv.misfit import log_likelihood, misfit, quadratic_at
from scoreinv.operators.ct import ParallelBeamCT, equispaced_angles
from scoreinv.operators.dense import Matrix
from scoreinv.posterior.daps import DAPS
from scoreinv.posterior.dds import DDS
from scoreinv.posterior.dps import DPS
from scoreinv.posterior.padis import PaDIS
from scoreinv.posterior.pnp_dm import PnPDM
from scoreinv.posterior.red_diff import REDDiff
from scoreinv.posterior.score_ald import ScoreALD
from scoreinv.posterior.score_sde import ScoreSDE
from scoreinv.posterior.sitcom import SITCOM
from scoreinv.priors.denoiser import Denoiser, Rescaled
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Counts, Method, Problem, from_counts, simulate_counts

F64 = torch.float64
ROWS = torch.rand(5, 4, generator=Generator().manual_seed(1), dtype=F64)
"""Path lengths: no entry is negative."""


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def counted(A: Matrix, arrived: Tensor, photons: float) -> Problem:
    y, std = from_counts(arrived.double(), photons)
    return Problem(A, y, std, counts=Counts(arrived.double(), photons))


def weighted(problem: Problem) -> Problem:
    """The same data without their counts."""
    return dataclasses.replace(problem, counts=None)


def example() -> Problem:
    """Two members: few photons, one datum without any and one with more than were sent."""
    return counted(Matrix(ROWS), torch.tensor([[3.0, 0.0, 1.0, 7.0, 2.0], [12.0, 4.0, 5.0, 1.0, 0.0]]), 10.0)


# The likelihood


def test_it_is_the_poisson_likelihood() -> None:
    """Differences of ln p between images, against scipy's; an image that attenuates everywhere."""
    problem = example()
    x = torch.rand(2, 2, 4, generator=seeded(2), dtype=F64)
    exact = [
        torch.from_numpy(
            stats.poisson.logpmf(problem.counts.arrived, 10 * torch.exp(-problem.A(v)))  # type: ignore[union-attr]
        ).sum(1)
        for v in x
    ]
    got = [log_likelihood(problem, v) for v in x]
    torch.testing.assert_close(got[0] - got[1], exact[0] - exact[1])


def test_the_misfit_is_never_negative_and_nothing_at_its_best() -> None:
    problem = example()
    fit = misfit(problem)
    y = -(problem.counts.arrived / 10).clamp(min=1e-30).log()  # type: ignore[union-attr]
    best = torch.where(y < 0, 1 - problem.counts.arrived / 10, y)  # type: ignore[union-attr]
    torch.testing.assert_close(fit.value(best), torch.zeros(2, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(fit.slope(best), torch.zeros(2, 5, dtype=F64), rtol=0, atol=1e-12)
    assert (fit.value(best + 0.3 * torch.randn(best.shape, generator=seeded(), dtype=F64)) > 0).all()


@pytest.mark.parametrize("kind", ["counts", "even", "uneven", "noise-free"])
def test_slope_and_curvature_are_derivatives(kind: str) -> None:
    """Of the value by autograd, of the value and the slope by differences; on both sides of u = 0."""
    problem = example()
    if kind != "counts":
        std = {"even": 0.3, "uneven": problem.noise_std, "noise-free": 0.0}[kind]
        problem = Problem(problem.A, problem.y, std)
    fit = misfit(problem)
    u = torch.randn(2, 5, generator=seeded(3), dtype=F64).requires_grad_()
    (gradient,) = torch.autograd.grad(fit.value(u).sum(), u)
    torch.testing.assert_close(fit.slope(u.detach()), gradient / 2)
    u, h = u.detach(), 1e-5
    for k in range(5):
        e = h * torch.eye(5, dtype=F64)[k]
        torch.testing.assert_close(
            (fit.value(u + e) - fit.value(u - e)) / (4 * h), fit.slope(u)[:, k], atol=1e-7, rtol=1e-6
        )
        change = (fit.slope(u + e) - fit.slope(u - e))[:, k] / (2 * h)
        torch.testing.assert_close(change, fit.curvature(u)[:, k], atol=1e-6, rtol=1e-6)
    assert (fit.curvature(u) <= fit.steepest[:, None] * (1 + 1e-12)).all()


def test_the_gradient_in_the_image() -> None:
    """Aᵀ (P exp(−A x) − N), and that by autograd through the operator."""
    problem = example()
    x = torch.rand(2, 4, generator=seeded(2), dtype=F64).requires_grad_()
    (gradient,) = torch.autograd.grad(log_likelihood(problem, x).sum(), x)
    expected = (10 * torch.exp(-x.detach() @ ROWS.T) - problem.counts.arrived) @ ROWS  # type: ignore[union-attr]
    torch.testing.assert_close(gradient, expected)


def test_float32_is_good_enough() -> None:
    """At 1e6 photons, differences of the likelihood of a unit are found among numbers of a million."""
    A, x = Matrix(ROWS), torch.rand(4, generator=seeded(2), dtype=F64)
    problem = simulate_counts(A, x, seeded(), photons=1e6).flat()
    single = Problem(A, problem.y.float(), 0.0, counts=problem.counts.mapped(Tensor.float))  # type: ignore[union-attr]
    near = x[None] + 1e-3
    torch.testing.assert_close(
        log_likelihood(single, near.float()).double(), log_likelihood(problem, near), rtol=1e-2, atol=1e-2
    )


def test_many_photons_make_the_weights_exact() -> None:
    problem = counted(Matrix(ROWS), torch.full((1, 5), 4e7, dtype=F64), 1e8)
    near = problem.y + 2 * torch.as_tensor(problem.noise_std) * torch.randn(1, 5, generator=seeded(), dtype=F64)
    exact, first_order = misfit(problem), misfit(weighted(problem))
    torch.testing.assert_close(exact.value(near), first_order.value(near), rtol=1e-3, atol=0)
    torch.testing.assert_close(exact.slope(near), first_order.slope(near), rtol=1e-3, atol=1e-8)


def test_noise_free_data_have_no_likelihood() -> None:
    with pytest.raises(ValueError, match="noise_std is 0"):
        log_likelihood(Problem(Matrix(ROWS), torch.zeros(1, 5)), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("arrived", "photons", "words"),
    [
        (torch.ones(5), 0.0, "photons must be positive"),
        (-torch.ones(5), 9.0, "not negative"),
        (torch.ones(4), 9.0, "one shape"),
    ],
)
def test_counts_that_are_refused(arrived: Tensor, photons: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Problem(Matrix(ROWS), torch.zeros(5), counts=Counts(arrived, photons))


def test_counts_go_where_the_data_go() -> None:
    problem = simulate_counts(Matrix(ROWS), torch.rand(2, 3, 4, generator=seeded()), seeded(), photons=50.0)
    assert problem.counts is not None and problem.counts.photons == 50
    flat = problem.flat().repeated(2)
    assert flat.counts is not None
    y, std = from_counts(flat.counts.arrived, 50.0)
    torch.testing.assert_close(flat.y, y)
    torch.testing.assert_close(flat.noise_std, std)


# The parabola at an estimate


def few_photons(photons: float = 10.0, seed: int = 5) -> tuple[GaussianPrior, Problem]:
    """Four correlated numbers behind eight rays of which one in twenty gets through."""
    i = torch.arange(4, dtype=F64)
    prior = GaussianPrior(
        torch.full((4,), 1.5, dtype=F64), 0.3 * torch.exp(-((i[:, None] - i) ** 2) / 4) + 0.01 * torch.eye(4)
    )
    A = Matrix(torch.rand(8, 4, generator=seeded(6), dtype=F64))
    return prior, simulate_counts(A, prior.draw(1, seeded(seed))[0], seeded(seed), photons=photons)


def most_probable(prior: GaussianPrior, problem: Problem) -> Tensor:
    """The maximum of the exact posterior, by BFGS on the formula."""
    matrix, precision = problem.A.matrix.numpy(), torch.linalg.inv(prior.covariance).numpy()  # type: ignore[attr-defined]
    mean, arrived, photons = prior.mean.numpy(), problem.counts.arrived.numpy(), problem.counts.photons  # type: ignore[union-attr]

    def cost(x):  # type: ignore[no-untyped-def]
        expected = photons * math.e ** (-matrix @ x)
        d = x - mean
        gradient = precision @ d + matrix.T @ (arrived - expected)
        return d @ precision @ d / 2 + (expected + arrived * (matrix @ x)).sum(), gradient

    found = minimize(cost, mean, jac=True, method="BFGS", options={"gtol": 1e-8})
    return torch.from_numpy(found.x)


@pytest.mark.parametrize("photons", [3.0, 10.0, 1e4])
@pytest.mark.parametrize("start", [0.0, 1.5, 6.0])
def test_rounds_of_parabolas_end_at_the_most_probable_image(photons: float, start: float) -> None:
    prior, problem = few_photons(photons)
    x = torch.full((4,), start, dtype=F64)
    for _ in range(30):
        x = prior.posterior(quadratic_at(problem, x)).mean
    torch.testing.assert_close(x, most_probable(prior, problem), rtol=1e-5, atol=1e-5)
    off = prior.posterior(weighted(problem)).mean - x
    assert float(off.abs().max()) > (0.05 if photons <= 10 else 1e-4)


def test_the_parabola_has_the_gradient_and_curvature_of_the_likelihood() -> None:
    problem = example()
    x = torch.rand(2, 4, generator=seeded(2), dtype=F64)
    parabola = quadratic_at(problem, x)
    assert parabola.counts is None
    gradients = []
    for p in (problem, parabola):
        v = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(log_likelihood(p, v).sum(), v)[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(torch.as_tensor(parabola.noise_std) ** -2, 10 * torch.exp(-problem.A(x)))
    opaque = quadratic_at(problem.flat(), 1e3 * torch.ones(2, 4, dtype=F64))
    assert opaque.y.isfinite().all() and torch.as_tensor(opaque.noise_std).isfinite().all()


def test_gaussian_noise_is_a_parabola_already() -> None:
    problem = weighted(example())
    assert quadratic_at(problem, torch.zeros(2, 4, dtype=F64)) is problem


# What methods draw

SPREAD = 0.5
OPAQUE = GaussianPrior(torch.full((1,), 3.0, dtype=F64), torch.full((1, 1), SPREAD**2, dtype=F64))
"""A thick object: of 10 photons a ray half of one arrives."""
RAYS = RowWise(torch.tensor([[0.05]] + [[1.0]] * 12, dtype=F64), 1)
"""One that hardly touches it, and 12 that go through it."""


def low_dose(n: int, photons: float = 10.0) -> tuple[Problem, Tensor]:
    """n objects that such rays go through, as the rows of one image, and their true attenuation (n, 1)."""
    x = OPAQUE.draw(n, seeded(8))
    return simulate_counts(RowWise(RAYS.matrix, n), x, seeded(9), photons=photons), x


def on_a_grid(problem: Problem, *, exact: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of the posterior of every row, by sums over a fine grid; exact, or with the weights."""
    grid = torch.linspace(0.5, 6.5, 801, dtype=F64)
    u = grid[:, None, None] * RAYS.matrix[:, 0]
    if exact:
        counts = problem.counts
        assert counts is not None
        fit = -(counts.photons * torch.exp(-u) + counts.arrived * u)
    else:
        fit = -((u - problem.y) ** 2) / (2 * torch.as_tensor(problem.noise_std) ** 2)
    logs = fit.sum(-1) - (grid[:, None] - 3) ** 2 / (2 * SPREAD**2)
    weights = torch.softmax(logs, 0)
    mean = (weights * grid[:, None]).sum(0)
    return mean, (weights * (grid[:, None] - mean) ** 2).sum(0)


def test_weights_are_biased_at_a_low_dose_and_the_likelihood_is_not() -> None:
    """Over objects drawn from the prior, errors of exact posterior means cancel; those of the weights do not."""
    problem, x = low_dose(600)
    errors = {exact: on_a_grid(problem, exact=exact)[0] - x[:, 0] for exact in (True, False)}
    standard_error = float(errors[True].std()) / 600**0.5
    assert abs(float(errors[True].mean())) < 4 * standard_error < 0.05
    assert float(errors[False].mean()) < -0.15  # more transparent than they are
    bright, _ = low_dose(20, photons=1e5)
    means = [on_a_grid(bright, exact=exact)[0] for exact in (True, False)]
    assert float((means[0] - means[1]).abs().max()) < 1e-3


def many_draws(problem: Problem, n: int) -> Problem:
    """Every row n times."""

    def repeat(t: Tensor) -> Tensor:
        return t.repeat(n, 1)

    A = RowWise(RAYS.matrix, n * len(problem.y))
    assert problem.counts is not None
    return Problem(
        A, repeat(problem.y), repeat(torch.as_tensor(problem.noise_std)), None, problem.counts.mapped(repeat)
    )


def test_langevin_daps_draws_from_the_exact_posterior() -> None:
    """Exact for one number (see the head of DAPS) but for the variance that Langevin steps of finite length add."""
    problem, _ = low_dose(25)
    method = DAPS(Rows(OPAQUE), n_levels=12, ode_steps=1, prior_std=SPREAD, draw="langevin", iterations=200)
    repeated, means = many_draws(problem, 200), {}
    for exact in (True, False):
        x = method(repeated if exact else weighted(repeated), seeded())[0].reshape(200, 25)
        mean, variance = on_a_grid(problem, exact=exact)
        means[exact] = x.mean(0)
        assert float(((x.mean(0) - mean) / variance.sqrt()).square().mean().sqrt()) < 0.15
        assert float((x.var(0) / variance).mean()) == pytest.approx(1.05, abs=0.1)
    assert float((means[True] - means[False]).mean()) > 0.1


def test_score_ald_rests_at_the_exact_posterior() -> None:
    """Its law as σ_min and the steps go to 0; here what they leave is small against the bias of the weights."""
    problem, _ = low_dose(25)
    repeated = many_draws(problem, 40)
    method = ScoreALD(Rows(OPAQUE), n_levels=60, n_steps=20, step_size=0.1, sigma_min=0.05)
    got = [method(p, seeded())[0].reshape(40, 25).mean(0) for p in (repeated, weighted(repeated))]
    exact, _ = on_a_grid(problem, exact=True)
    assert abs(float((got[0] - exact).mean())) < 0.06
    assert float((got[1] - exact).mean()) < -0.1


def members(problem: Problem, which: slice) -> Problem:
    """Some of the rows, as images of their own."""
    assert problem.counts is not None
    y, std = problem.y[which, None], torch.as_tensor(problem.noise_std)[which, None]
    return Problem(RAYS, y, std, None, problem.counts.mapped(lambda n: n[which, None]))


GRADIENTS: dict[str, Callable[[Denoiser], Method]] = {
    "daps": lambda prior: DAPS(prior, n_levels=8, draw="langevin", iterations=200),
    "dps": lambda prior: DPS(prior, n_levels=60),
    "padis": lambda prior: PaDIS(prior, n_levels=30, patch=200),
    "red_diff": lambda prior: REDDiff(prior, n_levels=200),
    "score_ald": lambda prior: ScoreALD(prior),
    "score_sde": lambda prior: ScoreSDE(prior, n_levels=100),
    "sitcom": lambda prior: SITCOM(prior, discrepancy=0.5),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_methods_that_follow_the_exact_gradient(name: str) -> None:
    """Many photons: as near to the truth as with the weights. Few: without most of their bias; and a batch is its members."""
    method = GRADIENTS[name](Rows(OPAQUE))
    bright, x = low_dose(20, photons=1e6)
    far, as_far = (float((method(p, seeded())[0] - x).abs().mean()) for p in (bright, weighted(bright)))
    assert far < 1.2 * as_far + 0.01
    dim, x = low_dose(200)
    error, biased = (float((method(p, seeded())[0] - x).mean()) for p in (dim, weighted(dim)))
    assert biased < -0.15 and abs(error) < 0.3 * abs(biased)
    together = members(dim, slice(0, 3))
    torch.testing.assert_close(method(together, seeded())[:, :1], method(members(dim, slice(0, 1)), seeded()))


def test_a_ct_slice_at_a_low_dose() -> None:
    """What the head of `scoreinv.misfit` says: errors of the attenuation within a disc, relative to that of the disc."""
    side, mu = 16, 0.02
    place = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    disc = ((place - 7.5).norm(dim=1) < 6.5).reshape(side, side)
    covariance = 0.04 * torch.exp(-(torch.cdist(place, place) ** 2) / 8) + 0.0005 * torch.eye(side**2)
    unit = GaussianPrior(disc.float(), covariance.float())
    prior, A = Rescaled(unit, 0.0, mu), ParallelBeamCT((side, side), equispaced_angles(20), 24, 20.0, 20.0)
    red, dds = REDDiff(prior, sigma_max=5.0), DDS(prior, n_levels=30, step="heun")
    errors = []
    for seed in range(1, 5):  # one image's errors are within 0.05 of the mean
        x = (mu * principal_draws(unit, 1, seeded(seed))[0]).clamp(min=0)
        problem = simulate_counts(A, x, seeded(2), photons=30.0)
        found = [red(weighted(problem), seeded())[0], red(problem, seeded())[0], dds(problem, seeded())[0]]
        image = found[-1]
        for _ in range(4):
            image = dds(quadratic_at(problem, image), seeded())[0]
        errors.append([float((z - x)[disc].mean() / mu) for z in (*found, image)])
    assert torch.tensor(errors).mean(0).tolist() == pytest.approx([-0.21, 0.02, -0.24, -0.07], abs=0.03)


def test_other_methods_go_on_with_the_weights() -> None:
    problem, _ = low_dose(5)
    method = PnPDM(Rows(OPAQUE), n_sweeps=5, prior_steps=3)
    torch.testing.assert_close(method(problem, seeded()), method(weighted(problem), seeded()))


def test_balanced_slopes() -> None:
    """(u − y) (τ² + v) / (σ_y² + v): the slope itself for even noise and for v = 0, all data alike for large v; of counts with their sign."""
    A = Matrix(torch.eye(4))
    u, y = torch.randn(2, 4, generator=Generator().manual_seed(1)), torch.zeros(2, 4)
    std = torch.tensor([[0.1, 1.0, 10.0, 0.1], [0.2, 0.2, 0.2, 0.2]])
    fit, v = misfit(Problem(A, y, std)), torch.tensor([0.5, 2.0])
    tau2 = std.amin(1, keepdim=True) ** 2
    torch.testing.assert_close(fit.balanced(u, v), u * (tau2 + v[:, None]) / (std**2 + v[:, None]))
    torch.testing.assert_close(fit.balanced(u, 0.0), fit.slope(u))
    torch.testing.assert_close(fit.balanced(u, 1e8), u, rtol=1e-4, atol=1e-6)
    clean = misfit(Problem(A, y, 0.0))
    torch.testing.assert_close(clean.balanced(u, 0.0), u)
    counts = torch.tensor([[1.0, 30.0, 1000.0, 0.0]])
    exact = misfit(Problem(A, torch.zeros(1, 4), 1.0, counts=Counts(counts, 1000.0)))
    for at in (torch.zeros(1, 4), torch.full((1, 4), 3.0), torch.full((1, 4), -2.0)):
        far = exact.balanced(at, 1e8)
        assert torch.equal(far.sign(), exact.slope(at).sign()) and float(far.max()) <= 3
        torch.testing.assert_close(exact.balanced(at, 0.0), exact.slope(at))
