"""DDS against what is known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scoreinv.linop import LinearOperator
from scoreinv.posterior.dds import DDS
from scoreinv.posterior.guidance import STEPS
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem


@dataclass(frozen=True, eq=False)
class Dense(LinearOperator):
    """x -> M x on images of one row."""

    matrix: Tensor

    @property
    def in_shape(self) -> tuple[int, ...]:
        return (1, self.matrix.shape[1])

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (1, self.matrix.shape[0])

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)


@pytest.fixture
def prior() -> GaussianPrior:
    covariance = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).diag()
    return GaussianPrior(torch.zeros(1, 6, dtype=torch.float64), covariance)


@pytest.mark.parametrize("step", sorted(STEPS))
def test_noise_free_data_are_met(prior: GaussianPrior, rng: torch.Generator, step: str) -> None:
    A = Dense(torch.randn(3, 6, generator=rng, dtype=torch.float64))
    y = A(torch.randn(2, 1, 6, generator=rng, dtype=torch.float64))
    x = DDS(prior, samples=3, step=step, n_levels=10)(Problem(A, y), rng)
    assert x.shape == (3, 2, 1, 6)
    torch.testing.assert_close(A(x), y.expand(3, 2, 1, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("step", sorted(STEPS))
def test_informative_data_give_the_posterior_mean(prior: GaussianPrior, rng: torch.Generator, step: str) -> None:
    """Where the data decide (noise a hundredth of the prior's spread), every step ends within the noise of the exact mean."""
    A = Dense(torch.eye(6, dtype=torch.float64) + 0.1 * torch.randn(6, 6, generator=rng, dtype=torch.float64))
    y = A(torch.randn(1, 6, generator=rng, dtype=torch.float64))
    exact = prior.posterior(Problem(A, y, 0.01)).mean
    x = DDS(prior, samples=4, step=step, n_levels=20, sigma_min=0.02)(Problem(A, y, 0.01), rng)
    assert float((x.mean(dim=0) - exact).abs().max()) < 0.02


def test_draws_differ_in_the_null_space_only(prior: GaussianPrior, rng: torch.Generator) -> None:
    A = Dense(torch.eye(6, dtype=torch.float64)[:4])
    x = DDS(prior, samples=200)(Problem(A, torch.ones(1, 4, dtype=torch.float64)), rng)
    spread = x.std(dim=0)[0]
    assert float(spread[:4].max()) < 1e-6 and 0.5 < float(spread[4:].mean()) < 1.5


def test_a_draw_does_not_depend_on_those_beside_it(prior: GaussianPrior) -> None:
    A = Dense(torch.eye(6, dtype=torch.float64)[:4])
    problem = Problem(A, torch.ones(1, 4, dtype=torch.float64), 0.1)
    few, many = (DDS(prior, samples=n, n_levels=5)(problem, torch.Generator().manual_seed(3)) for n in (2, 5))
    torch.testing.assert_close(few, many[:2])


def test_unknown_step(prior: GaussianPrior) -> None:
    with pytest.raises(ValueError, match="no step is named 'heunn'"):
        DDS(prior, step="heunn")
