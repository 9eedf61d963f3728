"""FlowDPS and Flower against their published rules in the flow's own coordinate, x_τ = (1 − τ) ε + τ x₀."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoreinv.operators.dense import Matrix
from scoreinv.posterior.flow import FlowDPS, Flower, flow_levels
from scoreinv.priors.denoiser import Counted, Denoiser, Rescaled
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem
from scoreinv.sampling.loop import member_streams
from scoreinv.streams import normal


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ROOT = torch.randn(5, 5, generator=seeded(5), dtype=torch.float64) / 5**0.5
PRIOR = GaussianPrior(torch.linspace(-1, 1, 5, dtype=torch.float64), ROOT @ ROOT.T + 0.05 * torch.eye(5).double())
M = torch.randn(3, 5, generator=seeded(1), dtype=torch.float64)
Y = torch.randn(3, generator=seeded(2), dtype=torch.float64)
STD = torch.tensor([0.1, 0.3, 0.7], dtype=torch.float64)


def flow_of(prior: Denoiser) -> Callable[[Tensor, float], Tensor]:
    """The flow's estimate of x₀, made from our denoiser: the same image at another scale."""
    return lambda x_tau, tau: prior(x_tau / tau, torch.tensor((1 - tau) / tau, dtype=torch.float64))


def taus(method: FlowDPS | Flower) -> list[float]:
    return (1 / (1 + method.levels())).tolist()


def in_flow_coordinates(method: FlowDPS | Flower, step: Callable[..., Tensor]) -> Tensor:
    """x_τ from (1 − τ) ε at the first level to τ = 1, with the noise that the method draws."""
    grid, rngs = taus(method), member_streams(seeded(0), method.samples, 1)
    x = (1 - grid[0]) * normal(rngs, torch.zeros(method.samples, 5).double())
    for tau, after in itertools.pairwise(grid):
        x = step(x, tau, after, rngs)
    return x


def test_flow_dps_in_its_own_coordinate() -> None:
    method = FlowDPS(PRIOR, samples=3, n_levels=7, iterations=20)
    W = (STD.min() / STD) ** 2
    estimate = flow_of(PRIOR)

    def step(x: Tensor, tau: float, after: float, rngs: list[torch.Generator]) -> Tensor:
        clean = estimate(x, tau)
        noise = (x - tau * clean) / (1 - tau)  # x_τ = (1 − τ) ε̂ + τ D
        fitted = clean + (Y - clean @ M.T) @ torch.linalg.pinv(W.sqrt()[:, None] * M).T.mul(W.sqrt()[:, None])
        z0y = tau * clean + (1 - tau) * fitted
        return after * z0y + (1 - after) * ((1 - after) ** 0.5 * noise + after**0.5 * normal(rngs, x))

    got = method(Problem(Matrix(M), Y, STD), seeded(0))
    torch.testing.assert_close(got, in_flow_coordinates(method, step), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("refinement", ["draw", "mean"])
def test_flower_in_its_own_coordinate(refinement: str) -> None:
    method = Flower(PRIOR, samples=3, n_levels=7, refinement=refinement, iterations=50)
    precision = M.T @ (M / STD[:, None] ** 2)
    estimate = flow_of(PRIOR)

    def step(x: Tensor, tau: float, after: float, rngs: list[torch.Generator]) -> Tensor:
        clean, nu2, data = estimate(x, tau), (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2), Y.expand(3, 3)
        if refinement == "draw":
            clean = clean + nu2**0.5 * normal(rngs, clean)
            data = data + STD * normal(rngs, data)
        system = precision + torch.eye(5).double() / nu2
        destination = torch.linalg.solve(system, (data / STD**2) @ M + clean / nu2, left=False)
        return after * destination + (1 - after) * normal(rngs, x)

    got = method(Problem(Matrix(M), Y, STD), seeded(0))
    # gaussian_draw stops its CG at a relative residual of 1e-4
    torch.testing.assert_close(got, in_flow_coordinates(method, step), atol=2e-3, rtol=1e-3)


def test_the_variance_of_a_destination_is_that_of_white_images() -> None:
    """ν² = Var[x₀ | x_τ] for x₀ ~ N(0, I), which is why Flower is exact for them."""
    sigma = torch.tensor([0.01, 0.5, 3.0], dtype=torch.float64)
    tau = 1 / (1 + sigma)
    torch.testing.assert_close((1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2), 1 / (1 + 1 / sigma**2))


def test_levels() -> None:
    """Equally spaced times for Flower (0.01 apart with its 100 steps), shifted ones for FlowDPS."""
    times = torch.tensor(taus(Flower(PRIOR, sigma_max=1e9)))
    published = torch.cat([torch.arange(100) / 100, torch.ones(1)])
    torch.testing.assert_close(times, published, atol=2e-4, rtol=0)
    u = torch.linspace(1.0, 0.003, 28, dtype=torch.float64)
    fraction = 4 * u / (1 + 3 * u)  # 1 − τ after a shift of 4
    last = float(fraction[-1] / (1 - fraction[-1]))
    got = flow_levels(28, last, 1e9, 4.0)
    torch.testing.assert_close((got / (1 + got))[:-1], fraction, atol=1e-6, rtol=0)
    assert float(got[-1]) == 0


@pytest.mark.parametrize(("make", "n"), [(FlowDPS, 28), (Flower, 100)])
def test_number_of_evaluations(make: type, n: int) -> None:
    prior = Counted(PRIOR)
    make(prior, samples=2)(Problem(Matrix(M), Y, STD), seeded(0))
    assert prior.n_evaluations == 2 * n


def test_times_are_in_the_prior_s_unit() -> None:
    """The weight 1 − τ and ν² are of noise in units of the prior's scale."""
    for method in (FlowDPS, Flower):
        plain = method(PRIOR, n_levels=6)(Problem(Matrix(M), Y, STD), seeded(0))
        scaled = method(Rescaled(PRIOR, 0.0, 50.0), n_levels=6)(Problem(Matrix(M), 50 * Y, 50 * STD), seeded(0))
        torch.testing.assert_close(scaled / 50, plain)
