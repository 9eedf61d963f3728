"""Noise levels, steps and the loop, held against the closed forms of a Gaussian prior."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from scoreinv import progress
from scoreinv.priors.exact import GaussianPrior
from scoreinv.sampling.levels import geometric, karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import (
    Ancestral,
    DPMSolver2M,
    Langevin,
    PredictorCorrector,
    Step,
    euler,
    heun,
    reverse_diffusion,
)
from scoreinv.streams import normal, split

STEPS: dict[str, Callable[[], Step]] = {
    "euler": lambda: euler,
    "heun": lambda: heun,
    "dpm_solver_2m": DPMSolver2M,
    "ddim, eta 0.5": lambda: Ancestral(0.5),
    "ancestral": Ancestral,
    "reverse_diffusion": lambda: reverse_diffusion,
    "langevin": lambda: Langevin(0.16, n_steps=2),
    "predictor_corrector": lambda: PredictorCorrector(reverse_diffusion, Langevin(0.16)),
}
PRIOR = GaussianPrior(
    torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),
    torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, -0.2], [0.0, -0.2, 0.3]], dtype=torch.float64),
)


def streams(n: int, seed: int = 0) -> list[torch.Generator]:
    return split(torch.Generator().manual_seed(seed), n)


def start(n: int, sigma: float, seed: int = 1) -> Tensor:
    """Exact draws of x₀ + σ n."""
    rng = torch.Generator().manual_seed(seed)
    x0 = PRIOR.draw(n, rng)
    return x0 + sigma * torch.randn(x0.shape, generator=rng, dtype=torch.float64)


# levels


@pytest.mark.parametrize("levels", [geometric, karras])
def test_levels(levels: Callable[..., Tensor]) -> None:
    sigmas = levels(7, 0.01, 50.0)
    assert sigmas.shape == (8,)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    torch.testing.assert_close(sigmas[[0, -2]], torch.tensor([50.0, 0.01], dtype=torch.float64))


def test_geometric_has_equal_ratios_and_is_the_limit_of_karras() -> None:
    sigmas = geometric(6, 0.1, 3.2)
    torch.testing.assert_close(sigmas[:-1], torch.tensor([3.2, 1.6, 0.8, 0.4, 0.2, 0.1], dtype=torch.float64))
    torch.testing.assert_close(karras(6, 0.1, 3.2, rho=1e6), sigmas, rtol=1e-4, atol=0)


def test_karras_values() -> None:
    expected = torch.tensor([80.0, 9.7232, 0.4700, 0.0020, 0.0], dtype=torch.float64)  # eq. 5 by hand, n = 4, ρ = 7
    torch.testing.assert_close(karras(4, 0.002, 80.0), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("arguments", [(0, 0.1, 1.0), (4, 0.0, 1.0), (4, 2.0, 1.0), (4, -1.0, 1.0)])
@pytest.mark.parametrize("levels", [geometric, karras])
def test_levels_refuse(levels: Callable[..., Tensor], arguments: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match=levels.__name__):
        levels(*arguments)


# accuracy


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim, eta 0", 1), ("heun", 2), ("dpm_solver_2m", 2)])
@pytest.mark.parametrize("levels", [geometric, karras])
def test_order_of_convergence(levels: Callable[..., Tensor], name: str, order: int) -> None:
    step = Ancestral(0.0) if name == "ddim, eta 0" else STEPS[name]()
    x = start(5, 10.0)
    exact = PRIOR.flow(x, torch.tensor(10.0), torch.tensor(0.1))
    counts = torch.tensor([40.0, 80.0, 160.0, 320.0])
    errors = []
    for n in counts.int().tolist():
        got = last(sample(PRIOR, x, levels(n + 1, 0.1, 10.0)[:-1], step=step, rngs=streams(5)))
        errors.append((got - exact).norm())
    slopes = -torch.stack(errors).log2().diff()
    assert abs(slopes[-1] - order) < 0.12, slopes
    assert errors[-1] < 0.02


def moments_within_four_standard_errors(x: Tensor, mean: Tensor, covariance: Tensor) -> None:
    n = len(x)
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all(), x.mean(0) - mean
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    error = products.mean(0) - covariance
    assert (error.abs() < 4 * products.std(0) / n**0.5).all(), error


def rows(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser on images whose 100 rows are independent draws of the prior: (batch, 100, 3).

    The step rule of the Langevin corrector looks at the norms of a whole image, and is biased for one of three pixels.
    """
    return PRIOR(x.reshape(-1, 3), sigma).reshape(x.shape)


@pytest.mark.parametrize("name", [n for n in STEPS if n != "langevin"])
def test_draws_have_the_prior_mean_and_covariance(name: str) -> None:
    """At the last positive level the law is N(μ, Σ + σ² I)."""
    sigma_max, sigma_min = 10.0, 0.05
    x = start(4000, sigma_max).reshape(40, 100, 3)
    sigmas = geometric(250, sigma_min, sigma_max)[:-1]
    got = last(sample(rows, x, sigmas, step=STEPS[name](), rngs=streams(40)))
    covariance = PRIOR.covariance + sigma_min**2 * torch.eye(3, dtype=torch.float64)
    moments_within_four_standard_errors(got.reshape(-1, 3), PRIOR.mean, covariance)


def test_langevin_goes_to_the_law_of_its_level() -> None:
    sigma, x = torch.tensor(0.8, dtype=torch.float64), torch.zeros(40, 100, 3, dtype=torch.float64)
    x = Langevin(0.15, n_steps=300)(rows, x, sigma, sigma, streams(40))
    covariance = PRIOR.covariance + 0.64 * torch.eye(3, dtype=torch.float64)
    moments_within_four_standard_errors(x.reshape(-1, 3), PRIOR.mean, covariance)


def test_steady_langevin_goes_to_the_law_of_its_level() -> None:
    """Where a ratio of norms draws x to where the score is large: few dimensions, one of them far more certain than the others."""
    variances = torch.tensor([1.0, 1.0, 1.0, 0.01], dtype=torch.float64)
    prior = GaussianPrior(torch.zeros(4, dtype=torch.float64), torch.diag(variances))
    x, sigma = torch.randn(3000, 4, generator=Generator().manual_seed(0)).double(), torch.tensor(0.1).double()
    exact = variances + 0.01
    ratio = {
        steady: Langevin(0.16, n_steps=400, steady=steady)(prior, x, sigma, sigma, streams(3000)).var(0) / exact
        for steady in (True, False)
    }
    assert float((ratio[True] - 1).abs().max()) < 5 * (2 / 3000) ** 0.5 + 0.06 and ratio[False].max() > 2


def test_langevin_stays_where_there_is_no_score() -> None:
    x, sigma = start(3, 1.0), torch.tensor(1.0, dtype=torch.float64)
    for steady in (True, False):
        moved = Langevin(0.16, steady=steady)(lambda x, sigma: x, x, sigma, sigma, streams(3))
        assert moved.isfinite().all() and torch.equal(moved, x) is not steady


def test_reverse_diffusion_to_zero_keeps_the_noise() -> None:
    n, sigma = 4000, torch.tensor(0.3, dtype=torch.float64)
    x = start(n, 0.3)
    got = reverse_diffusion(PRIOR, x, sigma, torch.zeros_like(sigma), streams(n))
    moments_within_four_standard_errors(
        got - PRIOR(x, sigma), torch.zeros(3, dtype=torch.float64), 0.09 * torch.eye(3, dtype=torch.float64)
    )


# equalities


@pytest.mark.parametrize("sigma_next", [0.0, 0.4])
def test_special_cases_are_the_euler_step(sigma_next: float) -> None:
    x, rngs = start(4, 2.0), streams(4)
    sigma, after = torch.tensor(2.0, dtype=torch.float64), torch.tensor(sigma_next, dtype=torch.float64)
    expected = euler(PRIOR, x, sigma, after, rngs)
    torch.testing.assert_close(Ancestral(0.0)(PRIOR, x, sigma, after, rngs), expected)
    torch.testing.assert_close(DPMSolver2M()(PRIOR, x, sigma, after, rngs), expected)
    if sigma_next == 0:
        torch.testing.assert_close(heun(PRIOR, x, sigma, after, rngs), PRIOR(x, sigma))
        torch.testing.assert_close(Ancestral(1.0)(PRIOR, x, sigma, after, rngs), PRIOR(x, sigma))


def test_langevin_step_has_the_signal_to_noise_ratio() -> None:
    x, sigma, snr = start(3, 1.5), torch.tensor(1.5, dtype=torch.float64), 0.3
    moved = Langevin(snr)(PRIOR, x, sigma, sigma, streams(3)) - x
    z, score = normal(streams(3), x), (PRIOR(x, sigma) - x) / sigma**2
    for k in range(3):
        basis = torch.stack([score[k], z[k]], dim=1)
        drift, noise = torch.linalg.lstsq(basis, moved[k]).solution
        assert drift == pytest.approx(float(noise**2 / 2), rel=1e-6)  # ε and √(2ε)
        assert float(drift * score[k].norm() / (noise * z[k].norm())) == pytest.approx(snr, rel=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_a_batch_gives_what_its_members_give_alone(name: str) -> None:
    x, sigmas = start(3, 5.0), karras(6, 0.1, 5.0)
    together = last(sample(PRIOR, x, sigmas, step=STEPS[name](), rngs=streams(3)))
    for k in range(3):
        alone = last(sample(PRIOR, x[k : k + 1], sigmas, step=STEPS[name](), rngs=streams(3)[k : k + 1]))
        torch.testing.assert_close(together[k : k + 1], alone)


def test_multistep_solver_can_be_used_again() -> None:
    x, sigmas, step = start(2, 5.0), karras(8, 0.1, 5.0), DPMSolver2M()
    first = last(sample(PRIOR, x, sigmas[:-1], step=step, rngs=streams(2)))
    abandoned = sample(PRIOR, 2 * x, sigmas, step=step, rngs=streams(2))
    next(abandoned)
    torch.testing.assert_close(last(sample(PRIOR, x, sigmas[:-1], step=step, rngs=streams(2))), first)


# the loop


def test_loop_is_lazy_yields_every_level_and_leaves_gradients_alone() -> None:
    calls: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return PRIOR(x, sigma)

    x = start(2, 4.0).requires_grad_()
    iterates = sample(denoise, x, geometric(3, 1.0, 4.0), step=euler, rngs=streams(2))
    assert calls == []
    assert not next(iterates).requires_grad
    assert torch.is_grad_enabled()
    assert len(list(iterates)) == 2
    assert calls == [4.0, 2.0, 1.0]


def test_constraint_comes_before_each_step() -> None:
    order: list[tuple[str, float]] = []

    def constrain(x: Tensor, sigma: Tensor, rngs: object) -> Tensor:
        order.append(("constraint", float(sigma)))
        return x + 1

    def step(denoise: object, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: object) -> Tensor:
        order.append(("step", float(sigma)))
        return 2 * x

    got = last(
        sample(PRIOR, torch.zeros(1, 3), geometric(2, 1.0, 2.0), step=step, rngs=streams(1), constrain=constrain)
    )
    assert order == [("constraint", 2.0), ("step", 2.0), ("constraint", 1.0), ("step", 1.0)]
    torch.testing.assert_close(got, torch.full((1, 3), 6.0))


def test_predictor_corrector_order() -> None:
    seen: list[tuple[str, float, float]] = []

    def part(name: str) -> Step:
        def step(denoise: object, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: object) -> Tensor:
            seen.append((name, float(sigma), float(sigma_next)))
            return x

        return step

    last(
        sample(
            PRIOR,
            torch.zeros(1, 3),
            geometric(2, 1.0, 2.0)[:-1],
            step=PredictorCorrector(part("p"), part("c")),
            rngs=streams(1),
        )
    )
    assert seen == [("c", 2.0, 2.0), ("p", 2.0, 1.0)]


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0], [1.0, 0.0, 0.0], [1.0, -1.0], [[2.0, 1.0]]])
def test_loop_refuses_levels(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="noise levels"):
        sample(PRIOR, torch.zeros(1, 3), torch.tensor(sigmas), step=euler, rngs=streams(1))


def test_loop_refuses_a_wrong_number_of_streams() -> None:
    with pytest.raises(ValueError, match="batch of 2"):
        sample(PRIOR, torch.zeros(2, 3), torch.tensor([1.0, 0.0]), step=euler, rngs=streams(3))
    with pytest.raises(ValueError, match="no iterates"):
        last([])
    with pytest.raises(ValueError, match="eta"):
        Ancestral(1.5)


def test_member_streams_depend_on_sample_and_member_alone() -> None:
    def numbers(samples: int, batch: int) -> Tensor:
        rngs = member_streams(torch.Generator().manual_seed(3), samples, batch)
        return normal(rngs, torch.zeros(len(rngs), 2)).reshape(samples, batch, 2)

    large = numbers(3, 4)
    torch.testing.assert_close(numbers(2, 2), large[:2, :2])
    assert len(large.reshape(-1, 2).unique(dim=0)) == 12


# progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress.track(range(3), "walking")) == [0, 1, 2]
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.quiet():
        assert list(progress.track(range(3), "walking")) == [0, 1, 2]
    assert sys.stderr.getvalue() == ""
    assert list(progress.track(iter(range(3)), "walking", 3)) == [0, 1, 2]
    assert "walking" in sys.stderr.getvalue()
