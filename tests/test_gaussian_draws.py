"""Draws by perturb-and-CG against dense algebra; and what the tests of the methods built on them share.

Many draws are cheap as the rows of one image: an operator and a prior that treat every row alone make a row a draw of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor

from scoreinv.linop import LinearOperator
from scoreinv.posterior.gaussian_draws import gaussian_draw
from scoreinv.priors.denoiser import Denoiser
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem

UNEVEN = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class RowWise(LinearOperator):
    """x (rows, d) -> M x, row by row."""

    matrix: Tensor
    rows: int

    @property
    def in_shape(self) -> tuple[int, ...]:
        return (self.rows, self.matrix.shape[1])

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.rows, self.matrix.shape[0])

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)


@dataclass(frozen=True, eq=False)
class Rows:
    """A prior of rows, as one of images of independent rows."""

    prior: Denoiser

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma)
        of_rows = sigma if sigma.ndim == 0 else sigma.repeat_interleave(x.shape[1])
        return self.prior(x.reshape(-1, x.shape[-1]), of_rows).reshape(x.shape)


MATRIX = torch.randn(3, 6, generator=Generator().manual_seed(0), dtype=torch.float64) / 2
"""3 of 6 directions are measured; singular values 1.67, 1.19 and 0.33."""


def gaussian(variances: tuple[float, float] = (0.5, 1.5)) -> GaussianPrior:
    """Six pixels with variances between these."""
    return GaussianPrior(
        torch.linspace(-1, 1, 6, dtype=torch.float64), torch.linspace(*variances, 6, dtype=torch.float64).diag()
    )


def problems(noise_std: float | Tensor, rows: int, matrix: Tensor = MATRIX) -> tuple[Problem, Problem]:
    """y of one row, and the same data `rows` times as one image."""
    truth = torch.tensor([[0.3, -1.0, 0.8, 0.4, 1.9, 0.2]], dtype=torch.float64)[:, : matrix.shape[1]]
    y = truth @ matrix.T
    if isinstance(noise_std, float) and noise_std == 0:
        one, many = RowWise(matrix, 1), RowWise(matrix, rows)
        return Problem(one, y), Problem(many, y.repeat(rows, 1))
    y = y + 0.5 * torch.randn(y.shape, generator=Generator().manual_seed(2), dtype=torch.float64)
    return Problem(RowWise(matrix, 1), y, noise_std), Problem(RowWise(matrix, rows), y.repeat(rows, 1), noise_std)


def exact(prior: GaussianPrior, one: Problem) -> GaussianPrior:
    """The posterior of one row."""
    flat = GaussianPrior(prior.mean[None], prior.covariance).posterior(one)
    return GaussianPrior(flat.mean[0], flat.covariance)


def assert_drawn_from(law: GaussianPrior, draws: Tensor, *, slack: float = 0.0) -> None:
    """Mean and covariance of draws (n, d) within five standard errors, and `slack` more (of a standard deviation, of a variance).

    Directions that the law leaves no freedom must be met to 1e-5.
    """
    eigenvalues, vectors = torch.linalg.eigh(law.covariance)
    centred = (draws - law.mean) @ vectors
    fixed = eigenvalues < 1e-9
    if fixed.any():
        torch.testing.assert_close(centred[:, fixed], torch.zeros_like(centred[:, fixed]), rtol=0, atol=1e-5)
    white = centred[:, ~fixed] / eigenvalues[~fixed].sqrt()
    n, d = white.shape
    torch.testing.assert_close(white.mean(0), torch.zeros(d).to(white), rtol=0, atol=5 / n**0.5 + slack)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(d).to(white), rtol=0, atol=5 * (2 / n) ** 0.5 + slack)


def ratios(law: GaussianPrior, draws: Tensor) -> tuple[float, float]:
    """Total variance over the exact one; distance of the means in units of the exact standard deviation (rms)."""
    distance = (draws.mean(0) - law.mean) / law.covariance.diagonal().sqrt()
    return float(draws.var(0).sum() / law.covariance.trace()), float(distance.square().mean().sqrt())


def streams(n: int) -> list[Generator]:
    return [Generator().manual_seed(k) for k in range(n)]


def law_of_head(matrix: Tensor, y: Tensor, noise_std: float | Tensor, centre: Tensor, r: float) -> GaussianPrior:
    """Eq. (1), as N(c, r² I) conditioned on the data."""
    prior = GaussianPrior(centre[None], r**2 * torch.eye(len(centre), dtype=torch.float64))
    law = prior.posterior(Problem(RowWise(matrix, 1), y[None], noise_std))
    return GaussianPrior(law.mean[0], law.covariance)


@pytest.mark.parametrize("noise_std", [0.0, 0.5, UNEVEN], ids=["noise-free", "even", "uneven"])
@pytest.mark.parametrize("r", [0.1, 3.0])
def test_mean_and_covariance_are_exact(noise_std: float | Tensor, r: float) -> None:
    one, many = problems(noise_std, 20000)
    centre = torch.linspace(1, -1, 6, dtype=torch.float64)
    batch = Problem(many.A, many.y[None], noise_std)
    u = gaussian_draw(batch, centre.expand(1, 20000, 6), r, streams(1), tolerance=1e-9)
    assert_drawn_from(law_of_head(MATRIX, one.y[0], noise_std, centre, r), u[0])


def test_members_keep_their_own_spread_and_noise() -> None:
    """Three members, one of them noise-free, each against its own dense law."""
    rows, stds = 8000, [0.0, 0.2, 0.7]
    spreads = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    y = problems(0.5, rows)[0].y.expand(3, rows, 3)
    std = torch.tensor(stds, dtype=torch.float64).reshape(3, 1, 1).expand(y.shape)
    centre = torch.linspace(1, -1, 6, dtype=torch.float64).expand(3, rows, 6)
    u = gaussian_draw(Problem(RowWise(MATRIX, rows), y, std), centre, spreads, streams(3), tolerance=1e-9)
    for k in range(3):
        assert_drawn_from(law_of_head(MATRIX, y[k, 0], stds[k], centre[k, 0], float(spreads[k])), u[k])


def test_a_member_does_not_depend_on_its_mates() -> None:
    y = torch.randn(2, 4, 3, generator=Generator().manual_seed(5), dtype=torch.float64)
    std = torch.tensor([0.0, 0.5], dtype=torch.float64).reshape(2, 1, 1).expand(y.shape)
    centre, A = torch.ones(2, 4, 6, dtype=torch.float64), RowWise(MATRIX, 4)
    together = gaussian_draw(Problem(A, y, std), centre, 1.0, streams(2))
    for k in (0, 1):
        alone = gaussian_draw(Problem(A, y[k : k + 1], std[k : k + 1]), centre[:1], 1.0, streams(2)[k : k + 1])
        torch.testing.assert_close(alone[0], together[k])


def test_what_is_refused() -> None:
    _, many = problems(0.5, 2)
    centre = torch.zeros(1, 2, 6, dtype=torch.float64)
    batched = Problem(many.A, many.y[None], 0.5)
    with pytest.raises(ValueError, match="positive spread"):
        gaussian_draw(batched, centre, 0.0, streams(1))
    std = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match="zero for some data"):
        gaussian_draw(Problem(many.A, many.y[None], std), centre, 1.0, streams(1))
