"""Laws that DAPS, PnP-DM, RED-diff, SITCOM and PaDIS keep alike."""

from __future__ import annotations

import pytest
import torch
from test_gaussian_draws import MATRIX, RowWise
from torch import Generator, Tensor

from scoreinv.posterior.daps import DAPS
from scoreinv.posterior.padis import PaDIS
from scoreinv.posterior.pnp_dm import PnPDM
from scoreinv.posterior.red_diff import REDDiff
from scoreinv.posterior.sitcom import SITCOM
from scoreinv.priors.denoiser import Denoiser, Rescaled
from scoreinv.problem import Method, Problem

METHODS = {
    "daps": lambda prior, **more: DAPS(prior, n_levels=6, ode_steps=3, **more),
    "daps_langevin": lambda prior, **more: DAPS(prior, n_levels=4, draw="langevin", iterations=5, prior_std=1.0, **more),
    "padis": lambda prior, **more: PaDIS(prior, n_levels=6, steps=3, patch=4, **more),
    "pnp_dm": lambda prior, **more: PnPDM(prior, n_sweeps=6, prior_steps=3, **more),
    "red_diff": lambda prior, **more: REDDiff(prior, n_levels=12, **more),
    "sitcom": lambda prior, **more: SITCOM(prior, n_levels=6, iterations=6, weight=0.1, **more),
}  # fmt: skip
NAMES = sorted(METHODS)
A = RowWise(MATRIX, 5)


def two_modes(x: Tensor, sigma: Tensor) -> Tensor:
    """Independent pixels, ±1 with a spread of 0.3: of any image size, and not linear."""
    v = torch.as_tensor(sigma).to(x).reshape(-1, *[1] * (x.ndim - 1)) ** 2
    return (0.09 * x + v * torch.tanh(x / (0.09 + v))) / (0.09 + v)


def data(batch: tuple[int, ...] = (2,)) -> tuple[Tensor, Tensor]:
    """y and uneven noise of every datum."""
    rng = Generator().manual_seed(7)
    std = 0.2 + torch.rand(*batch, *A.out_shape, generator=rng, dtype=torch.float64)
    return A(torch.randn(*batch, *A.in_shape, generator=rng, dtype=torch.float64).sign()), std


def solve(method: Method, problem: Problem, seed: int = 0) -> Tensor:
    return method(problem, Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_batch_dimensions_come_back(name: str) -> None:
    y, std = data((2, 3))
    for dtype in (torch.float32, torch.float64):
        x = solve(METHODS[name](two_modes, samples=4), Problem(A, y.to(dtype), std.to(dtype)))
        assert x.shape == (4, 2, 3, 5, 6) and x.dtype == dtype and x.isfinite().all() and not x.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_a_member_does_not_depend_on_its_mates(name: str) -> None:
    """Nor does a mate's noise level, which may be zero, change it."""
    y, std = data()
    std[1] = 0.01 if name == "daps_langevin" else 0.0
    method = METHODS[name](two_modes, samples=2)
    together = solve(method, Problem(A, y, std))
    for k in (0, 1):
        first, more = (y[k : k + 1], std[k : k + 1]), (y[k], std[k])
        swapped = solve(method, Problem(A, y[[k, 1 - k]], std[[k, 1 - k]]))[:, 0]
        torch.testing.assert_close(solve(method, Problem(A, *first))[:, 0], swapped)
        torch.testing.assert_close(solve(method, Problem(A, *more)), swapped)
    torch.testing.assert_close(solve(method, Problem(A, y[0], std[0])), together[:, 0])


@pytest.mark.parametrize("name", NAMES)
def test_draws_follow_the_seed_alone(name: str) -> None:
    y, std = data()
    problem = Problem(A, y, std)
    few, many = (solve(METHODS[name](two_modes, samples=n), problem) for n in (2, 4))
    torch.testing.assert_close(few, many[:2])
    other = solve(METHODS[name](two_modes, samples=2), problem, seed=1)
    assert all((a - b).abs().max() > 1e-3 for a, b in ((few[0], few[1]), (few[0], other[0]), (few[:, 0], few[:, 1])))


@pytest.mark.parametrize("name", NAMES)
def test_each_datum_has_its_own_noise(name: str) -> None:
    """The same number everywhere is that number; and a datum of no weight may say anything."""
    y, std = data()
    method = METHODS[name](two_modes)
    same = solve(method, Problem(A, y, 0.4))
    torch.testing.assert_close(solve(method, Problem(A, y, torch.full_like(std, 0.4))), same)
    uneven = std.clone()
    uneven[..., 0] = 1e7
    torch.testing.assert_close(*(solve(method, Problem(A, wrong, uneven)) for wrong in moved(y)), rtol=1e-3, atol=1e-3)
    assert (solve(method, Problem(A, moved(y)[1], std)) - solve(method, Problem(A, y, std))).abs().max() > 1e-2


def moved(y: Tensor) -> tuple[Tensor, Tensor]:
    """y, and y with another first datum in every row."""
    other = y.clone()
    other[..., 0] += 2
    return y, other


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("image", "operator"), [(0.0193, 1.0), (1.0, 50.0), (0.0193, 30.0)])
def test_units_do_not_matter(name: str, image: float, operator: float) -> None:
    """x in another unit, A in another unit: the same answer in those units."""
    y, std = data()
    expected = solve(METHODS[name](two_modes), Problem(A, y, std))
    prior: Denoiser = Rescaled(two_modes, 0.0, image)
    c = image * operator
    got = solve(METHODS[name](prior), Problem(RowWise(operator * MATRIX, 5), c * y, c * std))
    torch.testing.assert_close(got / image, expected, rtol=1e-3, atol=1e-3)
