"""Maps that are not linear: the methods that follow a gradient take them, all others say why not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from scoreinv import configure, plugins
from scoreinv.linop import Nonlinear
from scoreinv.operators.dense import Matrix
from scoreinv.posterior.dps import DPS
from scoreinv.posterior.padis import PaDIS
from scoreinv.posterior.red_diff import REDDiff
from scoreinv.posterior.sitcom import SITCOM
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Method, Problem, simulate
from scoreinv.solvers import cgls

SHAPE = (2, 3)
STD, NOISE = 0.5, 0.1
TAKEN: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "dps": (DPS, {"n_levels": 100}),
    "padis": (PaDIS, {"n_levels": 60}),
    "red_diff": (REDDiff, {"weight": 0.05}),
    "sitcom": (SITCOM, {}),
}


def prior() -> GaussianPrior:
    return GaussianPrior(torch.full(SHAPE, 0.5), STD**2 * torch.eye(math.prod(SHAPE)))


def transmission(x: Tensor) -> Tensor:
    """e^−x, pixel by pixel: the posterior of each is a one-dimensional integral."""
    return torch.exp(-x)


def exact(y: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of every pixel, by quadrature."""
    x = torch.linspace(-3, 4, 20001, dtype=torch.float64)
    log = -((x - 0.5) ** 2) / (2 * STD**2) - (y.double()[..., None] - torch.exp(-x)) ** 2 / (2 * NOISE**2)
    p = torch.softmax(log, -1)
    mean = (p * x).sum(-1)
    return mean, ((p * x**2).sum(-1) - mean**2).sqrt()


@pytest.mark.parametrize("name", TAKEN)
def test_a_linear_map_told_as_any_map_gives_the_same(name: str) -> None:
    cls, settings = TAKEN[name]
    A = Matrix(torch.randn(4, 6, generator=Generator().manual_seed(1)), image_shape=SHAPE)
    y = A(prior().draw(1, Generator().manual_seed(2)).float())
    start = cgls(A, y, max_iterations=10)
    told = Nonlinear(lambda x: A(x), SHAPE, (4,), around=start[0])
    assert told.norm_squared() == pytest.approx(A.norm_squared(), rel=1e-3)
    std = torch.tensor([0.1, 0.2, 0.1, 0.05])
    one, other = (cls(prior(), **settings)(Problem(a, y, std), Generator().manual_seed(3)) for a in (A, told))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", TAKEN)
def test_transmission_against_the_exact_posterior(name: str) -> None:
    """The mean of 16 draws, within what each method is off by where the map is linear; PaDIS samples, and has the width as well."""
    cls, settings = TAKEN[name]
    A = Nonlinear(transmission, SHAPE, SHAPE, around=torch.full(SHAPE, 0.5))
    x = prior().draw(8, Generator().manual_seed(5)).float()
    clean = simulate(A, x, Generator())
    problem = Problem(A, clean.y + NOISE * torch.randn(clean.y.shape, generator=Generator().manual_seed(6)), NOISE)
    mean, std = exact(problem.y)
    draws = cls(prior(), samples=16, **settings)(problem, Generator().manual_seed(7))
    off = (draws.mean(0) - mean) / std
    prior_off = (0.5 - mean) / std
    assert off.square().mean().sqrt() < 0.6 < 0.5 * prior_off.square().mean().sqrt()
    if name == "padis":
        assert (draws.var(0) / std**2).mean() == pytest.approx(1, abs=0.25)


NEEDS_LINEAR = [n for n in plugins.names("methods") if configure.needs_prior(n) and n not in (*TAKEN, "latent_daps")]


@pytest.mark.parametrize("name", [*NEEDS_LINEAR, "cgls", "fbp", "fista_tv", "sirt"])
def test_others_say_what_they_need(name: str) -> None:
    A = Nonlinear(transmission, (8, 8), (8, 8))
    method: Method = configure.method(name, {}, lambda: GaussianPrior(torch.zeros(8, 8), torch.eye(64)))
    with pytest.raises(ValueError, match=r"needs a linear|ParallelBeamCT|masks|Masking"):
        method(Problem(A, torch.ones(8, 8), 0.1), Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x: x.sum(-1), r"expected real data \(1, 2, 3\) of f, got torch.float32 \(1, 2\)"),
        (lambda x: torch.fft.fft(x), "got torch.complex64 .* real and imaginary parts"),
        (lambda x: x.detach() * 2, "cannot follow f"),
        (lambda x: x**2, "derivative of f is 0 or not finite at `around`"),
    ],
    ids=["shape", "complex", "detached", "flat"],
)
def test_maps_that_are_refused(f: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Nonlinear(f, SHAPE, SHAPE)


def test_an_image_of_another_shape_to_measure_around() -> None:
    with pytest.raises(ValueError, match=r"around should have the shape \(2, 3\), it has \(6,\)"):
        Nonlinear(transmission, SHAPE, SHAPE, around=torch.ones(6))
    assert Nonlinear(lambda x: x**2, SHAPE, SHAPE, around=torch.full(SHAPE, 3.0)).norm_squared() == pytest.approx(36)
