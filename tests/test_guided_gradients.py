"""Guidance by gradients (DPS, MCG, PiGDM, MMPS, TMPD) and by misfits (score-SDE, score-ALD) against exact posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from principal_draws import principal_draws
from torch import Generator, Tensor

from scoreinv.operators.dense import Matrix
from scoreinv.posterior.dps import DPS
from scoreinv.posterior.guidance import Guided
from scoreinv.posterior.mcg import MCG
from scoreinv.posterior.mmps import MMPS, SOLVERS, conjugate_gradients, gmres
from scoreinv.posterior.pigdm import PiGDM
from scoreinv.posterior.score_ald import ScoreALD
from scoreinv.posterior.score_sde import ScoreSDE
from scoreinv.posterior.tmpd import TMPD
from scoreinv.priors.denoiser import Denoiser, NetworkPrior, Rescaled
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import Ancestral, euler, heun
from scoreinv.streams import normal

F64 = torch.float64
METHODS = (DPS, MCG, MMPS, PiGDM, ScoreALD, ScoreSDE, TMPD)
LINEAR = (MCG, MMPS, PiGDM, TMPD)
"""Those whose pull depends on the data divided by their noise alone."""

UNEVEN = torch.tensor([0.1, 0.2, 0.4], dtype=F64)
NOISES = [0.0, 0.2, UNEVEN]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def example(noise_std: float | Tensor = 0.2) -> tuple[GaussianPrior, Problem]:
    """Three noisy data of eight correlated numbers: the Gaussian example of the docstrings."""
    i = torch.arange(8, dtype=F64)
    covariance = torch.exp(-((i[:, None] - i) ** 2) / 8) + 0.05 * torch.eye(8)
    prior, rng = GaussianPrior(torch.sin(i / 3), covariance), seeded(4)
    A = Matrix(torch.randn(3, 8, generator=rng, dtype=F64))
    y = A(principal_draws(prior, 1, rng)[0]) + torch.as_tensor(noise_std) * torch.randn(3, generator=rng, dtype=F64)
    return prior, Problem(A, y, noise_std)


def batched(problem: Problem, n: int) -> Problem:
    """The problem with a batch of n equal members."""
    return problem.flat().repeated(n)


def points(n: int, d: int = 8) -> Tensor:
    return torch.randn(n, d, generator=seeded(9), dtype=F64)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


# exact denoisers


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("noise_std", NOISES)
@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_mmps_is_the_posterior_mean_of_a_gaussian(solver: str, noise_std: float | Tensor, sigma: float) -> None:
    prior, problem = example(noise_std)
    x = math.hypot(1, sigma) * points(4)
    denoise = MMPS(prior, solver=solver, iterations=3).condition(prior, batched(problem, 4))
    torch.testing.assert_close(
        denoise(x, number(sigma)), prior.posterior(problem)(x, number(sigma)), rtol=1e-5, atol=1e-6
    )


def test_mmps_takes_a_level_for_each_member() -> None:
    prior, problem = example()
    x, sigmas = points(3), torch.tensor([0.1, 1.0, 10.0], dtype=F64)
    got = MMPS(prior, iterations=3).condition(prior, batched(problem, 3))(x, sigmas)
    torch.testing.assert_close(got, prior.posterior(problem)(x, sigmas), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("noise_std", NOISES)
def test_white_images_make_pigdm_and_tmpd_exact(noise_std: float | Tensor) -> None:
    _, problem = example(noise_std)
    white = GaussianPrior(torch.zeros(8, dtype=F64), 0.49 * torch.eye(8, dtype=F64))
    exact = white.posterior(problem)(points(4), number(0.6))
    for method in (PiGDM(white, data_std=0.7, damping=0.0, tolerance=1e-9), TMPD(white, tolerance=1e-9)):
        got = method.condition(white, batched(problem, 4))(points(4), number(0.6))
        torch.testing.assert_close(got, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("noise_std", NOISES)
def test_independent_pixels_make_tmpd_exact_and_pigdm_not(noise_std: float | Tensor) -> None:
    _, problem = example(noise_std)
    prior = GaussianPrior(torch.zeros(8, dtype=F64), torch.linspace(0.2, 2, 8, dtype=F64).diag())
    exact = prior.posterior(problem)(points(4), number(0.6))
    tmpd, pigdm = (
        m.condition(prior, batched(problem, 4))(points(4), number(0.6))
        for m in (TMPD(prior, tolerance=1e-9), PiGDM(prior, damping=0.0))
    )
    torch.testing.assert_close(tmpd, exact, rtol=1e-6, atol=1e-8)
    assert float((pigdm - exact).abs().max()) > 0.1


def test_row_sums_that_are_not_positive_are_clipped() -> None:
    """Pixels that are each other's negative: J 1 is zero up to the independent part, of which a share is taken."""
    covariance = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=F64)
    prior = GaussianPrior(torch.zeros(2, dtype=F64), covariance)
    problem = Problem(Matrix(torch.tensor([[1.0, 0.0]])), torch.ones(1, 1, dtype=F64))
    got = TMPD(prior, least=0.1).condition(prior, problem)(torch.zeros(1, 2, dtype=F64), number(1.0))
    # D = 0, Jᵀ Aᵀ = (1, -1) / 3, the clipped variance 0.1
    torch.testing.assert_close(got, torch.tensor([[1.0, -1.0]], dtype=F64) / 0.3)


def test_noise_free_pigdm_is_the_algorithm_of_its_paper() -> None:
    """Damping 1 adds Jᵀ A⁺ (y − A D) to D; damping 0 that divided by r² / σ²."""
    prior, problem = example(0.0)
    x, sigma = points(3), number(0.8)
    jacobian = torch.func.jacrev(lambda v: prior(v[None], sigma)[0])(x[0])
    clean = prior(x, sigma)
    plain = (problem.y - problem.A(clean)) @ torch.linalg.pinv(problem.A.matrix).T @ jacobian
    shrink = 0.25 / (0.25 + 0.64)
    for damping, factor in ((1.0, 1.0), (0.5, shrink**-0.5), (0.0, 1 / shrink)):
        method = PiGDM(prior, data_std=0.5, damping=damping, longest=math.inf, tolerance=1e-10)
        got = method.condition(prior, batched(problem, 3))(x, sigma)
        torch.testing.assert_close(got, clean + factor * plain, rtol=1e-7, atol=1e-9)


# exact samplers


@pytest.mark.parametrize(("step", "order"), [(euler, 1), (heun, 2)])
@pytest.mark.parametrize("noise_std", [0.0, UNEVEN])
def test_mmps_draws_tend_to_the_posterior(step: Callable[..., Tensor], order: int, noise_std: float | Tensor) -> None:
    """Fitted order of the errors of mean and covariance, without draws: the sampler is an affine map of its start.

    The mean is that of a start around 0, which the exact flow moves nearly to the posterior's; the covariance is that of a
    start with the exact one.
    """
    prior, problem = example(noise_std)
    posterior, start, end = prior.posterior(problem), number(5.0), number(0.05)
    eye = torch.eye(8, dtype=F64)
    inputs = torch.cat([torch.zeros(1, 8, dtype=F64), eye])
    mean = posterior.flow(inputs[:1], start, end)[0]
    denoise = MMPS(prior, iterations=3).condition(prior, batched(problem, 9))
    errors = []
    for n in (20, 40, 80):
        levels = karras(n, float(end), float(start))[:-1]
        outputs = last(sample(denoise, inputs, levels, step=step, rngs=member_streams(seeded(), 1, 9)))
        linear = (outputs[1:] - outputs[0]).T
        covariance = linear @ (posterior.covariance + start**2 * eye) @ linear.T
        gap = covariance - posterior.covariance - end**2 * eye
        errors.append([float((outputs[0] - mean).norm()), float(gap.norm())])
    found = torch.tensor(errors, dtype=F64)
    slopes = (found[:-1] / found[1:]).log2()
    assert ((slopes - order).abs() < 0.35).all(), slopes
    assert (found[-1] < {1: 0.3, 2: 0.02}[order]).all(), found


@pytest.mark.parametrize(("step", "n_levels", "tolerance"), [("heun", 30, 0.0), ("ancestral", 150, 0.12)])
def test_draws_of_mmps_have_the_mean_and_covariance_of_the_posterior(
    step: str, n_levels: int, tolerance: float
) -> None:
    """Within what 1000 draws allow; ancestral steps are still a little narrow at 150 levels."""
    prior, problem = example()
    posterior, n = prior.posterior(problem), 1000
    x = MMPS(prior, samples=n, step=step, n_levels=n_levels, iterations=3)(problem, seeded(1))
    root = torch.linalg.cholesky(torch.linalg.inv(posterior.covariance))
    white = (x - posterior.mean) @ root
    assert float(white.mean(0).abs().max()) < 4 / n**0.5
    spectrum = torch.linalg.eigvalsh(torch.cov(white.T))
    lowest, highest = (
        (1 - (8 / n) ** 0.5) ** 2,
        (1 + (8 / n) ** 0.5) ** 2,
    )  # of n draws of a white Gaussian: Marchenko-Pastur
    assert spectrum[0] > lowest - 0.05 - tolerance and spectrum[-1] < highest + 0.1


def test_mmps_on_a_mixture_is_close_and_dps_is_not() -> None:
    """Two modes that the data do not tell apart: the share of the first is kept; the spread within is not by DPS."""
    eye = 0.1 * torch.eye(2, dtype=F64)
    means = torch.tensor([[1.0, 2.0], [1.0, -2.0]], dtype=F64)
    prior = GaussianMixturePrior(torch.tensor([0.7, 0.3], dtype=F64), means, torch.stack([eye, eye]))
    problem = Problem(Matrix(torch.tensor([[1.0, 0.0]])), torch.tensor([1.2], dtype=F64), 0.3)
    exact = prior.posterior(problem)
    x = MMPS(prior, samples=600, step="heun", n_levels=30)(problem, seeded())
    assert float((x[:, 1] > 0).double().mean()) == pytest.approx(float(exact.weights[0]), abs=0.06)
    assert float(x[:, 0].mean()) == pytest.approx(float(exact.means[0, 0]), abs=0.04)
    assert float(x[:, 0].var()) == pytest.approx(float(exact.covariances[0, 0, 0]), rel=0.25)
    narrow = DPS(prior, samples=600, n_levels=30)(problem, seeded())
    assert float(narrow[:, 0].var()) < 0.5 * float(exact.covariances[0, 0, 0])


BIASES = {
    "mmps": (MMPS, {"iterations": 3}, (0.01, 0.82, 0.86)),
    "pigdm": (PiGDM, {}, (0.22, 0.75, 1.02)),
    "pigdm, s_d 0.5": (PiGDM, {"data_std": 0.5}, (0.15, 0.99, 0.99)),
    "pigdm, damping 1": (PiGDM, {"data_std": 0.5, "damping": 1.0}, (0.45, 1.42, 1.15)),
    "pigdm, whole pulls": (PiGDM, {"weight": "whole"}, (0.22, 0.35, 1.02)),
    "tmpd": (TMPD, {}, (0.33, 1.29, 1.11)),
    "dps": (DPS, {"n_levels": 50}, (0.08, 0.087, 0.91)),
    "mcg": (MCG, {}, (0.35, 0.39, 1.08)),
    "score_sde": (ScoreSDE, {}, (0.42, 2.13, 1.48)),
    "score_ald": (ScoreALD, {}, (0.20, 1.13, 1.22)),
}
"""Error of the mean in posterior standard deviations, and variance over the exact one in the range of Aᵀ and in the null space."""


@pytest.mark.parametrize("name", BIASES)
def test_what_each_method_draws_is_what_its_docstring_says(name: str) -> None:
    prior, problem = example()
    method, options, expected = BIASES[name]
    x = method(prior, samples=600, **options)(problem, seeded())
    posterior = prior.posterior(problem)
    error = float(((x.mean(0) - posterior.mean) / posterior.covariance.diagonal().sqrt()).square().mean().sqrt())
    rows = torch.linalg.svd(problem.A.matrix).Vh
    ratios = [
        float((torch.cov(x.T) @ v.T * v.T).sum() / (posterior.covariance @ v.T * v.T).sum())
        for v in (rows[:3], rows[3:])
    ]
    assert error == pytest.approx(expected[0], abs=0.1)
    assert ratios == pytest.approx(expected[1:], rel=0.2)


# the Krylov solvers


def test_gmres_solves_what_cg_cannot() -> None:
    M = torch.randn(2, 6, 6, generator=seeded(1), dtype=F64) + 2 * torch.eye(6)
    b = torch.randn(2, 6, generator=seeded(2), dtype=F64)

    def times(v: Tensor) -> Tensor:
        return (M @ v[..., None])[..., 0]

    torch.testing.assert_close(gmres(times, b, 6), torch.linalg.solve(M, b))
    assert float((times(conjugate_gradients(times, b, 6)) - b).norm()) > 0.1
    # fewer steps: the least residual in the span of b, M b, M² b
    krylov = torch.stack([b, times(b), times(times(b))], dim=-1)
    image = M @ krylov
    best = (krylov @ torch.linalg.lstsq(image, b[..., None]).solution)[..., 0]
    torch.testing.assert_close(gmres(times, b, 3), best)


def test_gmres_of_members_that_are_done_early() -> None:
    """b = 0, b an eigenvector, and a singular but consistent system; beside an ordinary one, more steps than directions."""
    M = torch.stack([torch.eye(4), torch.diag(torch.tensor([2.0, 3, 4, 5])), torch.diag(torch.tensor([1.0, 2, 0, 0]))])
    b = torch.tensor([[0.0, 0, 0, 0], [0, 3, 0, 0], [1, 1, 0, 0]])
    got = gmres(lambda v: (M @ v[..., None])[..., 0], b, 6)
    torch.testing.assert_close(got, torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 0], [1, 0.5, 0, 0]]), atol=1e-5, rtol=0)


def test_few_steps_of_both_solvers_stay_between_prior_and_posterior() -> None:
    """One step does not reach the data; the residual falls with every step."""
    prior, problem = example(0.0)
    x, sigma = points(4), number(0.5)
    for solver in SOLVERS:
        left = [problem.A(prior(x, sigma)) - problem.y] + [
            problem.A(MMPS(prior, solver=solver, iterations=k).condition(prior, batched(problem, 4))(x, sigma))
            - problem.y
            for k in (1, 2, 3)
        ]
        norms = torch.stack([r.norm(dim=1) for r in left])
        assert (norms[-1] < 1e-6).all()
        if solver == "gmres":  # its residual is that of the data; CG's falls in another norm
            assert (norms.diff(dim=0) < 0).all()


# the update rules of the papers


@pytest.mark.parametrize("noise_std", [0.2, UNEVEN])
def test_dps_with_ancestral_steps_is_algorithm_1(noise_std: float | Tensor) -> None:
    prior, problem = example(noise_std)
    x, sigma, sigma_next = points(2), number(1.2), number(0.7)
    denoise = DPS(prior, zeta=0.6).condition(prior, batched(problem, 2))
    got = Ancestral()(denoise, x, sigma, sigma_next, member_streams(seeded(), 1, 2))
    plain = Ancestral()(prior, x, sigma, sigma_next, member_streams(seeded(), 1, 2))
    v = x.clone().requires_grad_()
    norm = float(torch.linalg.matrix_norm(problem.A.matrix, 2))
    erring = (norm * sigma) ** 2
    weights = torch.as_tensor(
        1 / (UNEVEN**2 + erring) if isinstance(noise_std, Tensor) else 1.0
    )  # constant where it is even
    r = problem.A(prior(v, sigma)) - problem.y
    slope = (weights * r).detach()
    (gradient,) = torch.autograd.grad((slope / slope.norm(dim=1, keepdim=True) * r).sum(), v)
    if not isinstance(noise_std, Tensor):
        torch.testing.assert_close(
            gradient, torch.autograd.grad((problem.A(prior(v, sigma)) - problem.y).norm(dim=1).sum(), v)[0]
        )
    zeta = (1 - (sigma_next / sigma) ** 2) * 0.6 * sigma * 8**0.5 / norm
    torch.testing.assert_close(got, plain - zeta * gradient, rtol=1e-4, atol=1e-5)


def test_dps_that_meets_the_data_stays() -> None:
    prior, problem = example()
    x, sigma = points(1), number(0.5)
    met = Problem(problem.A, problem.A(prior(x, sigma)))
    torch.testing.assert_close(DPS(prior).condition(prior, met)(x, sigma), prior(x, sigma))


def test_mcg_takes_the_gradient_of_the_pseudo_inverse() -> None:
    prior, problem = example(0.0)
    x, sigma = points(3), number(0.05)
    v = x.clone().requires_grad_()
    clean = prior(v, sigma)
    needed = (problem.y - problem.A(clean)) @ torch.linalg.pinv(problem.A.matrix).T
    (gradient,) = torch.autograd.grad(needed.norm(dim=1).sum(), v)
    lengths = 0.3 * sigma * 8**0.5
    assert (needed.norm(dim=1) > lengths).all()  # the bound of eq. (3) is not active
    got = MCG(prior, zeta=0.3).condition(prior, batched(problem, 3))(x, sigma)
    torch.testing.assert_close(got, clean.detach() - lengths * gradient, rtol=1e-6, atol=1e-8)


def test_bounded_mcg_without_projections_is_noise_free_pigdm() -> None:
    prior, problem = example(0.0)
    options = {"samples": 2, "n_levels": 6, "sigma_max": 5.0}
    mcg = MCG(prior, zeta=1e6, relaxation=0.0, last_relaxation=0.0, **options)(problem, seeded())
    pigdm = PiGDM(prior, damping=1.0, tolerance=1e-10, **options)(problem, seeded())
    torch.testing.assert_close(mcg, pigdm, rtol=1e-6, atol=1e-8)


def test_the_projection_of_mcg() -> None:
    """For A >= 0 the SIRT-like step; for others a step that never raises the misfit, where the SIRT step would."""
    prior, problem = example(0.0)
    sigmas, x = torch.tensor([2.0, 1.0, 0.0], dtype=F64), points(1)
    positive = problem.A.matrix.abs()
    A = Matrix(positive)
    y = torch.ones(1, 3, dtype=F64)
    project = MCG(prior).projection(Problem(A, y), sigmas)
    sirt = ((y - A(x)) @ positive) / (positive.T @ positive @ torch.ones(8, dtype=F64))
    for sigma, relaxation in ((2.0, 1.0), (1.0, 0.8), (0.0, 0.6)):
        got = project(x, number(sigma), member_streams(seeded(), 1, 1))
        torch.testing.assert_close(got, x + relaxation * sirt)
    band = 2 * torch.eye(8, dtype=F64) - 0.5 * (
        torch.eye(8).roll(1, 0) + torch.eye(8).roll(-1, 0)
    )  # row sums 1, ‖A‖² 9
    sign = torch.tensor([1.0, -1] * 4, dtype=F64)[None]
    for matrix, start in ((band, sign), (problem.A.matrix, points(1))):
        operator = Matrix(matrix)
        zero = torch.zeros(1, len(matrix), dtype=F64)
        step = MCG(prior).projection(Problem(operator, zero), sigmas)(
            start, number(2.0), member_streams(seeded(), 1, 1)
        )
        assert operator(step).norm() < operator(start).norm()


def test_score_sde_never_steps_past_the_data() -> None:
    """A rate below √(1 − σ'² / σ²) counts as that."""
    prior, problem = example(0.0)
    sigma, sigma_next = number(1.0), number(0.6)
    small, bound, larger = (
        ScoreSDE(prior, rate=rate).step(batched(problem, 1))(prior, points(1), sigma, sigma_next, [seeded()])
        for rate in (0.1, 0.8, 0.9)
    )
    torch.testing.assert_close(small, bound)
    assert not torch.allclose(bound, larger, atol=1e-3)


@pytest.mark.parametrize("noise_std", NOISES)
def test_score_sde_adds_the_gradient_of_the_perturbed_misfit(noise_std: float | Tensor) -> None:
    """One predictor step, snr = 0, against the formula with the same draws."""
    prior, problem = example(noise_std)
    x, sigma, sigma_next = points(2), number(1.5), number(1.1)
    step = ScoreSDE(prior, rate=0.9, snr=0.0).step(batched(problem, 2))
    got = step(prior, x, sigma, sigma_next, member_streams(seeded(), 1, 2))
    rngs = member_streams(seeded(), 1, 2)
    z, fresh = normal(rngs, x), normal(rngs, x)
    v = x.clone().requires_grad_()
    variance = torch.as_tensor(noise_std) ** 2 + (0.9 * sigma) ** 2 * problem.A.norm_squared()
    misfit = ((problem.A(v) - problem.y - sigma * problem.A(z)) ** 2 / (2 * variance)).sum()
    (gradient,) = torch.autograd.grad(misfit, v)
    score = (prior(x, sigma) - x) / sigma**2 - gradient
    change = sigma**2 - sigma_next**2
    torch.testing.assert_close(got, x + change * score + change.sqrt() * fresh, rtol=1e-6, atol=1e-8)


def test_score_ald_at_one_level_draws_from_its_stationary_law() -> None:
    """Langevin steps with a linear drift: mean and covariance in closed form, the step size's part included."""
    prior, problem = example()
    sigma, eps, n = 1.5, 0.2, 1000
    method = ScoreALD(
        prior, samples=n, n_levels=1, n_steps=80, step_size=eps, gamma=0.8, sigma_max=sigma, sigma_min=0.1
    )
    x = method(problem, seeded())
    eye = torch.eye(8, dtype=F64)
    precision = torch.linalg.inv(prior.covariance + sigma**2 * eye)
    variance = 0.04 + 0.64 * sigma**2 * problem.A.norm_squared()
    H = precision + problem.A.matrix.T @ problem.A.matrix / variance
    mean = torch.linalg.solve(H, precision @ prior.mean + problem.A.matrix.T @ problem.y / variance)
    M = eye - eps * sigma**2 * H
    covariance = 2 * eps * sigma**2 * torch.linalg.inv(eye - M @ M)
    D = prior.covariance @ precision  # the last step: D(x, σ)
    mean, covariance = prior.mean + D @ (mean - prior.mean), D @ covariance @ D.T
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    white = (x - mean) @ root
    assert float(white.mean(0).abs().max()) < 4 / n**0.5
    spectrum = torch.linalg.eigvalsh(torch.cov(white.T))
    assert spectrum[0] > 0.8 and spectrum[-1] < 1.22


# laws of all


def quick(method: type, prior: Denoiser, samples: int = 2) -> Callable[[Problem, Generator], Tensor]:
    return method(prior, samples=samples, n_levels=5, sigma_max=5.0, sigma_min=0.1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_what_its_members_give_alone(method: type) -> None:
    prior, problem = example()
    y = problem.A(prior.draw(3, seeded(2)))
    std = torch.tensor([[0.0, 0, 0], [0.1, 0.1, 0.1], [0.3, 0.1, 0.2]], dtype=F64)
    run = quick(method, prior)
    together = run(Problem(problem.A, y[None], std), seeded())
    assert together.shape == (2, 1, 3, 8) and together.dtype == F64 and not together.requires_grad
    first = run(Problem(problem.A, y[:1], std[:1]), seeded())
    torch.testing.assert_close(first[:, 0], together[:, 0, 0], rtol=1e-8, atol=1e-10)
    two = run(Problem(problem.A, y[:2], std[:2]), seeded())
    torch.testing.assert_close(two, together[:, 0, :2], rtol=1e-8, atol=1e-10)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_draw_depends_on_the_seed_and_its_number_alone(method: type) -> None:
    prior, problem = example()
    few, many, other = (quick(method, prior, n)(problem, seeded(s)) for n, s in ((2, 3), (4, 3), (2, 4)))
    torch.testing.assert_close(few, many[:2], rtol=1e-8, atol=1e-10)
    assert not torch.allclose(few, other, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise_std", [0.0, UNEVEN])
def test_another_unit_of_images_or_data_changes_nothing_else(method: type, noise_std: float | Tensor) -> None:
    prior, problem = example(noise_std)
    expected = quick(method, prior)(problem, seeded())
    scale = 0.0193
    scaled = Problem(problem.A, scale * problem.y, scale * torch.as_tensor(noise_std))
    got = quick(method, Rescaled(prior, 0.0, scale))(scaled, seeded())
    torch.testing.assert_close(got, scale * expected, rtol=1e-5, atol=1e-8)
    units = Problem(Matrix(250 * problem.A.matrix), 250 * problem.y, 250 * torch.as_tensor(noise_std))
    torch.testing.assert_close(quick(method, prior)(units, seeded()), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_noise_for_each_measurement(method: type) -> None:
    """Equal ones are one number; a datum with much noise is as good as none (its row is short, so ‖A‖ does not change)."""
    prior, problem = example()
    same = Problem(problem.A, problem.y, torch.full((3,), 0.2, dtype=F64))
    torch.testing.assert_close(quick(method, prior)(same, seeded()), quick(method, prior)(problem, seeded()))
    rows = torch.zeros(3, 8, dtype=F64)
    rows[0, :3], rows[1, 3:5], rows[2, 5:] = 1.0, 1.5, 0.1
    with_it = Problem(Matrix(rows), problem.y, torch.tensor([0.2, 0.1, 1e6], dtype=F64))
    without = Problem(Matrix(rows[:2]), problem.y[:2], torch.tensor([0.2, 0.1], dtype=F64))
    got, expected = quick(method, prior)(with_it, seeded()), quick(method, prior)(without, seeded())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", LINEAR)
def test_data_divided_by_their_noise_are_the_same_data(method: type) -> None:
    prior, problem = example(UNEVEN)
    options = {"relaxation": 0.0, "last_relaxation": 0.0} if method is MCG else {}
    run = method(prior, samples=2, n_levels=5, sigma_max=5.0, sigma_min=0.1, **options)
    divided = Problem(Matrix(problem.A.matrix / UNEVEN[:, None]), problem.y / UNEVEN, 1.0)
    torch.testing.assert_close(run(divided, seeded()), run(problem, seeded()), rtol=1e-5, atol=1e-6)


class Unguided(Guided):
    """The prior's own sampler."""

    def condition(self, prior: Denoiser, problem: Problem) -> Denoiser:
        return prior


@pytest.mark.parametrize("method", [DPS, MCG, MMPS, PiGDM, TMPD])
@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_data_that_say_nothing_leave_the_prior(method: type, noise_std: float) -> None:
    prior, _ = example()
    nothing = Problem(Matrix(torch.zeros(2, 8)), torch.zeros(2, dtype=F64), noise_std)
    expected = quick(Unguided, prior)(nothing, seeded())
    torch.testing.assert_close(quick(method, prior)(nothing, seeded()), expected)


def test_a_feeble_pull_leaves_the_prior_of_the_others() -> None:
    """rate and gamma to infinity: draws have the moments of Langevin and predictor steps on the prior alone."""
    prior, problem = example()
    zero = Problem(Matrix(torch.zeros(3, 8)), problem.y, 0.2)
    for weak, plain in (
        (ScoreSDE(prior, rate=1e6, n_levels=5), ScoreSDE(prior, n_levels=5)),
        (ScoreALD(prior, gamma=1e6, n_levels=5), ScoreALD(prior, n_levels=5)),
    ):
        torch.testing.assert_close(weak(problem, seeded()), plain(zero, seeded()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [MCG, MMPS, PiGDM, TMPD])
def test_noise_free_data_are_met(method: type) -> None:
    prior, problem = example(0.0)
    x = method(prior, samples=3, n_levels=15)(problem, seeded())
    before = (problem.A(quick(Unguided, prior)(problem, seeded())) - problem.y).abs().max()
    assert float((problem.A(x) - problem.y).abs().max()) < 2e-3 < float(before)


# networks


def network(perturbed: float) -> NetworkPrior:
    """An untrained network is the exact denoiser of white images of standard deviation 0.5; perturbed, it is no gradient."""
    torch.manual_seed(0)
    config = UNetConfig(widths=(16,), attention=(), embedding=16, unshuffle=2)
    model = EDMDenoiser(config).eval()
    last_layer = model.unet.head[-1]
    with torch.no_grad():
        last_layer.weight.copy_(perturbed * torch.randn(last_layer.weight.shape, generator=seeded(7)))
    for p in model.parameters():
        p.requires_grad_(False)
    return NetworkPrior(model)


def network_problem(noise_std: float) -> Problem:
    A = Matrix(torch.randn(20, 64, generator=seeded(1)) / 8, (8, 8))
    return Problem(A, A(0.5 * torch.randn(8, 8, generator=seeded(2))), noise_std)


@pytest.mark.parametrize("method", METHODS)
def test_an_untrained_network_is_a_white_prior(method: type) -> None:
    problem = network_problem(0.1)
    white = GaussianPrior(torch.zeros(8, 8), 0.25 * torch.eye(64))
    expected, got = (quick(method, prior)(problem, seeded()) for prior in (white, network(0.0)))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1.0, 0.0193])
def test_a_network_with_a_derivative_of_its_own(method: type, scale: float) -> None:
    """Draws come nearer to the data than the prior's own, at both scales, whether or not the caller records gradients."""
    prior = Rescaled(network(0.05), 0.0, scale)
    plain = network_problem(0.1)
    problem = Problem(plain.A, scale * plain.y, scale * 0.1)
    with torch.enable_grad():
        x = quick(method, prior)(problem, seeded())
    alone = quick(Unguided, prior)(problem, seeded())
    assert torch.isfinite(x).all() and not x.requires_grad
    assert (problem.A(x) - problem.y).norm() < 0.7 * (problem.A(alone) - problem.y).norm()


def test_gmres_and_cg_on_a_network() -> None:
    """Its J is not symmetric: both come near the same answer, that of the dense equations only GMRES."""
    prior, problem = network(0.1), network_problem(0.1)
    x, sigma = torch.randn(1, 8, 8, generator=seeded(3)), torch.tensor(0.7)
    J = torch.func.jacrev(lambda v: prior(v.reshape(1, 8, 8), sigma).flatten())(x.flatten()).double()
    assert float((J - J.T).norm() / J.norm()) > 0.01
    A = problem.A.matrix
    residual = problem.y.double() - A @ prior(x, sigma).flatten().double()
    u = torch.linalg.solve(0.01 * torch.eye(20) + 0.49 * A @ J.T @ A.T, residual)
    expected = prior(x, sigma).double() + 0.49 * (J.T @ A.T @ u).reshape(1, 8, 8)
    exact, near = (
        MMPS(prior, solver=s, iterations=20).condition(prior, batched(problem, 1))(x, sigma).double()
        for s in ("gmres", "cg")
    )
    torch.testing.assert_close(exact, expected, rtol=1e-3, atol=1e-3)
    assert 1e-3 < float((near - expected).norm()) < 0.5 * float((expected - prior(x, sigma)).norm())


# errors


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (DPS, {"zeta": -1.0}, "zeta >= 0, got -1"),
        (MCG, {"relaxation": 2.0}, r"relaxations in \[0, 2\)"),
        (MCG, {"iterations": 0}, "iterations of at least 1"),
        (MMPS, {"solver": "cgs"}, "no solver is named 'cgs'; known: cg, gmres"),
        (MMPS, {"iterations": 0}, "iterations of at least 1"),
        (PiGDM, {"data_std": 0.0}, "data_std > 0"),
        (PiGDM, {"damping": 1.5}, r"damping in \[0, 1\]"),
        (PiGDM, {"tolerance": -1.0}, "tolerance >= 0"),
        (PiGDM, {"longest": 0.0}, "longest > 0.*got 0.0"),
        (PiGDM, {"weight": "whole", "longest": math.inf}, "finite with weight 'whole', got inf"),
        (PiGDM, {"weight": "tweedy"}, "no weight is named 'tweedy'; known: tweedie, whole"),
        (ScoreALD, {"n_steps": 0}, "n_steps >= 1"),
        (ScoreALD, {"step_size": 0.5, "gamma": 0.5}, "must be below 2.*got 2.5: lower step_size"),
        (ScoreSDE, {"rate": 0.0}, "rate > 0"),
        (TMPD, {"least": 0.0}, "least > 0"),
        (DPS, {"sigma_min": 0.0}, "sigma_min"),
    ],
)
def test_options_that_are_refused(method: type, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"{method.__name__}: .*{message}"):
        method(example()[0], **options)


def test_some_data_noise_free_and_others_not() -> None:
    prior, problem = example(torch.tensor([0.0, 0.1, 0.1], dtype=F64))
    for method in (DPS, MCG, MMPS, PiGDM, TMPD):
        with pytest.raises(ValueError, match="noise_std is zero for some data"):
            quick(method, prior)(problem, seeded())


def test_unused_generators_are_not_asked_for(rng: Generator) -> None:
    """The projection of MCG draws nothing."""
    prior, problem = example()
    streams: Sequence[Generator] = ()
    project = MCG(prior).projection(batched(problem, 1), torch.tensor([1.0, 0.0], dtype=F64))
    assert project(points(1), number(1.0), streams).shape == (1, 8)
