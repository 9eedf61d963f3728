"""Problems: what is refused, data that are no measurements, and priors that are not what they should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

import scoreinv as si
from scoreinv import metrics, trust
from scoreinv.misfit import misfit
from scoreinv.operators import Masking, ParallelBeamCT, equispaced_angles
from scoreinv.operators.dense import Matrix
from scoreinv.posterior.daps import DAPS
from scoreinv.posterior.dds import DDS
from scoreinv.posterior.dps import DPS
from scoreinv.posterior.pnp_dm import PnPDM
from scoreinv.posterior.red_diff import REDDiff
from scoreinv.posterior.sitcom import SITCOM
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem, simulate, simulate_counts

SIDE = 8


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def matrix(data: int = 3, pixels: int = 4) -> Matrix:
    return Matrix(torch.randn(data, pixels, generator=rng()))


def prior(*shape: int) -> GaussianPrior:
    n = int(np.prod(shape))
    return GaussianPrior(torch.zeros(shape), torch.eye(n))


# Data that say nothing


@dataclass(frozen=True)
class Masked:
    """One image, and its problem with zeros where nothing is measured, and with noise there."""

    x: Tensor
    mask: Tensor
    zeros: Problem
    noisy: Problem


@pytest.fixture
def masked() -> Masked:
    mask = torch.rand(SIDE, SIDE, generator=rng(1)) < 0.25
    A, noise = Masking(mask), 0.1 * torch.randn(SIDE, SIDE, generator=rng(6))
    x = prior(SIDE, SIDE).draw(1, rng(5))[0]
    return Masked(x, mask, Problem(A, A(x + noise), 0.1), Problem(A, A(x) + noise, 0.1))


def test_what_is_not_measured_does_not_count_in_chi_squared(masked: Masked) -> None:
    by_hand = (((masked.noisy.y - masked.x) / 0.1)[masked.mask]).square().mean()
    for problem in (masked.zeros, masked.noisy):
        assert problem.A.n_data == int(masked.mask.sum())
        assert float(metrics.chi_squared(problem, masked.x)) == pytest.approx(float(by_hand), rel=1e-5)
        assert trust.verdict(float(metrics.chi_squared(problem, masked.x)), problem.A.n_data).startswith("consistent")
    exact = Problem(masked.zeros.A, masked.noisy.y, 0.0)  # a relative residual, of the measured pixels too
    off = (masked.noisy.y - masked.x)[masked.mask].norm() / masked.noisy.y[masked.mask].norm()
    assert float(metrics.chi_squared(exact, masked.x)) == pytest.approx(float(off), rel=1e-5)


@pytest.mark.parametrize("method", [SITCOM, DPS], ids=["SITCOM", "DPS"])
def test_what_is_not_measured_does_not_steer(masked: Masked, method: Any) -> None:
    solver = method(prior(SIDE, SIDE), samples=2, n_levels=10)
    torch.testing.assert_close(solver(masked.zeros, rng()), solver(masked.noisy, rng()), rtol=1e-4, atol=1e-4)


def test_counts_that_are_not_measured(masked: Masked) -> None:
    made = simulate_counts(Masking(masked.mask), masked.x.abs(), rng(), photons=50.0)
    assert made.counts is not None
    dark = Problem(made.A, made.y, made.noise_std, None, made.counts.mapped(lambda n: n * masked.mask))
    u = made.A(masked.x.abs())[None]
    one, other = misfit(made.flat()), misfit(dark.flat())
    for name in ("value", "slope", "curvature"):
        torch.testing.assert_close(getattr(one, name)(u), getattr(other, name)(u))


def test_the_mask_of_a_composition_is_that_of_the_sinogram() -> None:
    A = ParallelBeamCT((SIDE, SIDE), equispaced_angles(6), 11, 1.0, 1.0)
    rows = Masking.rows(A.out_shape, [0, 2, 4])
    assert A.seen is None and A.n_data == 66 and (rows @ A).n_data == 33
    assert torch.equal((rows @ A).seen, rows.mask)


# What does not fit together


A43 = matrix()
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an array as noise": ({"noise_std": np.full(3, 0.1)}, "noise_std must be a number or a torch tensor, got ndarray"),
    "a list as noise": ({"noise_std": [0.1, 0.1, 0.1]}, "noise_std must be a number or a torch tensor, got list"),
    "no noise": ({"noise_std": None}, "noise_std must be a number or a torch tensor, got NoneType"),
    "text as noise": ({"noise_std": "0.1"}, "noise_std must be a number or a torch tensor, got str"),
    "no data": ({"y": None}, "y, the data, must be a torch tensor, got None"),
    "a truth of another shape": ({"truth": torch.zeros(7)}, r"truth should have the shape \(4,\), it has \(7,\)"),
    "too many truths": ({"truth": torch.zeros(2, 4)}, r"truth should have the shape \(4,\), it has \(2, 4\)"),
    "one number as data": (
        {"A": Matrix(torch.ones(1, 4), data_shape=()), "y": torch.ones(())},
        r"maps \(4,\) to \(\); both need a dimension at least, \(1,\) for one number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_do_not_fit(case: str) -> None:
    change, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        Problem(**{"A": A43, "y": torch.ones(3), "noise_std": 0.1, **change})


def test_noise_of_a_batch_is_repeated() -> None:
    problem = Problem(A43, torch.ones(2, 3), torch.tensor([0.1, 0.2, 0.3])).repeated(2)
    assert torch.equal(torch.as_tensor(problem.noise_std), torch.tensor([0.1, 0.2, 0.3]).expand(4, 3))


def test_numpy_numbers_are_numbers() -> None:
    assert float(Problem(A43, torch.ones(3), np.float32(0.5)).noise_std) == 0.5


def test_noise_free_data_are_not_the_truth_itself() -> None:
    x = torch.ones(4)
    problem = simulate(Masking(torch.ones(4)), x, rng())
    problem.y[0] = 5
    assert float(x[0]) == 1


def test_signals_are_refused_before_anything_is_computed() -> None:
    def never(problem: Problem, rng: Generator) -> Tensor:
        raise AssertionError("computed")

    with pytest.raises(ValueError, match=r"expected images \(..., H, W\), Matrix has \(4,\)"):
        si.reconstruct(Problem(A43, torch.ones(3), 0.1), never)


# Priors that are not what they should be


def several(x: Tensor, sigma: Tensor) -> Tensor:
    """As networks with channels have it."""
    return (x / (1 + torch.as_tensor(sigma) ** 2))[:, None]


@pytest.mark.parametrize("method", [DAPS, DDS, DPS, PnPDM, SITCOM], ids=lambda m: m.__name__)
def test_images_with_a_channel_too_many(method: Any) -> None:
    problem = Problem(Matrix(torch.randn(7, 16, generator=rng()), (4, 4), (7,)), torch.ones(7), 0.1)
    with pytest.raises(ValueError, match=r"shaped like what it is given|must have the shape"):
        method(several, samples=2)(problem, rng())


@pytest.mark.parametrize("method", [DPS, SITCOM], ids=lambda m: m.__name__)
def test_priors_without_a_gradient(method: Any) -> None:
    def in_numpy(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.from_numpy(0.5 * x.detach().numpy())

    with pytest.raises(
        ValueError, match="this method needs the gradient of the prior, and torch cannot follow in_numpy"
    ):
        method(in_numpy)(Problem(A43, torch.ones(3), 0.1), rng())


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (REDDiff, {"weight": float("nan")}, "weight must be a number, got nan"),
        (SITCOM, {"discrepancy": float("nan")}, "discrepancy must be a number"),
        (DDS, {"sigma_max": float("inf")}, "expected 0 < sigma_min <= sigma_max, finite"),
        (DAPS, {"samples": 2.5}, "expected samples of at least 1, a whole number, got 2.5"),
        (DPS, {"samples": True}, "a whole number, got True"),
        (DPS, {"samples": "3"}, "a whole number, got 3"),
    ],
)
def test_settings_that_are_refused(method: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        method(prior(4), **settings)


def test_randomness_has_a_source() -> None:
    for nothing in (None, 3):
        with pytest.raises(TypeError, match=r"expected a torch\.Generator as the source of all randomness"):
            DDS(prior(4))(Problem(A43, torch.ones(3), 0.1), nothing)  # type: ignore[arg-type]
