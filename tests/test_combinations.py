"""Every posterior denoiser with every unconditional step: all methods made from `Guided`, times `STEPS`, times two operators.

And every posterior method with what it must take (images and data of any shape, noise-free data, an operator that measures nothing)
or refuse (no draws, complex data, a map that is not linear).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from scoreinv import configure, plugins
from scoreinv.linop import LinearOperator
from scoreinv.operators.dense import Matrix
from scoreinv.operators.grayscale import Grayscale
from scoreinv.operators.masking import Masking
from scoreinv.posterior.guidance import STEPS, Guided
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Method, Problem

SIDE = 8
CONDITIONS: dict[str, type[Guided]] = {
    name: method for name in plugins.BUILT_IN["methods"] if issubclass(method := plugins.get("methods", name), Guided)
}
OPERATORS: dict[str, LinearOperator] = {
    "matrix": Matrix(torch.randn(20, SIDE**2, generator=Generator().manual_seed(1)) / SIDE, image_shape=(SIDE, SIDE)),
    "masking": Masking(torch.rand(SIDE, SIDE, generator=Generator().manual_seed(2)) < 0.4),
}
NOISE = 0.05


@functools.lru_cache(maxsize=1)
def prior() -> GaussianPrior:
    """Smooth images: its denoiser is affine, so differentiable to any order."""
    place = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    covariance = torch.exp(-(torch.cdist(place, place) ** 2) / 8) + 0.02 * torch.eye(SIDE**2)
    return GaussianPrior(torch.linspace(-1, 1, SIDE**2).reshape(SIDE, SIDE), covariance.float())


def measured(operator: str) -> Problem:
    """Data of two images, and of unequal noise."""
    A, rng = OPERATORS[operator], Generator().manual_seed(3)
    y = A(prior().draw(2, rng))
    std = NOISE * (1 + torch.rand(y.shape, generator=rng))
    return Problem(A, y + std * torch.randn(y.shape, generator=rng), std)


def misfit(problem: Problem, x: Tensor) -> float:
    """Root mean square of A x − y, over what is measured."""
    residual = problem.A(x) - problem.y
    if isinstance(problem.A, Masking):
        residual = residual[..., problem.A.mask]
    return float(residual.square().mean().sqrt())


def solve(method: Guided, problem: Problem, seed: int = 0) -> Tensor:
    return method(problem, Generator().manual_seed(seed))


def test_the_whole_product_is_here() -> None:
    assert {"ddnm", "dds", "dps", "mcg", "mmps", "pigdm", "tmpd"} <= set(CONDITIONS)
    assert {"ancestral", "churn", "dpm_solver_2m", "euler", "heun", "predictor_corrector"} <= set(STEPS)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_with_a_step(condition: str, step: str, operator: str) -> None:
    """Finite, of the right shape, the same for the same seed and alone as in a batch, and much nearer to the data than the prior is."""
    problem = measured(operator)
    method = CONDITIONS[condition](prior(), samples=2, step=step, n_levels=20, sigma_max=10.0)
    x = solve(method, problem)
    assert x.shape == (2, 2, SIDE, SIDE) and x.dtype == problem.y.dtype and x.isfinite().all() and not x.requires_grad
    assert torch.equal(solve(method, problem), x)
    alone = Problem(problem.A, problem.y[0], torch.as_tensor(problem.noise_std)[0])
    torch.testing.assert_close(solve(method, alone), x[:, 0], rtol=1e-3, atol=1e-3)
    assert float((solve(method, problem, seed=1) - x).abs().max()) > 1e-3
    assert misfit(problem, x) < 0.25 * misfit(problem, prior().draw(100, Generator().manual_seed(4))[:, None])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_noise_free_data_with_less_noise_in_the_steps(condition: str, step: str) -> None:
    problem = Problem(OPERATORS["matrix"], measured("matrix").y)
    x = solve(CONDITIONS[condition](prior(), step=step, eta=0.3, n_levels=15, sigma_max=10.0), problem)
    assert x.shape == (1, 2, SIDE, SIDE) and x.isfinite().all()
    assert misfit(problem, x) < 0.1


# Every posterior method

POSTERIOR = [
    name
    for name, path in plugins.BUILT_IN["methods"].items()
    if path.startswith("scoreinv.posterior.")
    and configure.has_setting(name, "samples")  # all but pnp_admm, which makes one image
]
SMALL = {"n_levels": 4, "n_sweeps": 3, "particles": 4, "steps": 2, "prior_steps": 2, "patch": 2, "samples": 2}
MATRIX = Matrix(torch.randn(6, 20, generator=Generator().manual_seed(1)), image_shape=(4, 5))
ONLY = {"repaint": "Masking", "song_faithful": "ParallelBeamCT", "padis": r"images \(H, W\)"}
"""Methods for some operators, and what they say to others."""


def two_modes(x: Tensor, sigma: Tensor) -> Tensor:
    """A prior of images of any shape: independent pixels, ±1 with a spread of 0.3."""
    v = torch.as_tensor(sigma).to(x).reshape(-1, *[1] * (x.ndim - 1)) ** 2
    return (0.09 * x + v * torch.tanh(x / (0.09 + v))) / (0.09 + v)


def small(name: str, **more: Any) -> Method:
    """A posterior method with few evaluations."""
    cls = plugins.get("methods", name)
    known = {f.name for f in dataclasses.fields(cls)}
    method: Method = cls(two_modes, **{k: v for k, v in (SMALL | more).items() if k in known})
    return method


def taken(name: str, problem: Problem) -> None:
    """Draws are finite and of the right shape."""
    x = small(name)(problem, Generator().manual_seed(0))
    assert x.shape == (2, *problem.batch_shape, *problem.A.in_shape) and x.isfinite().all()


@pytest.mark.parametrize("name", POSTERIOR)
def test_colour_images(name: str) -> None:
    """3 x H x W, of which one grey value a pixel is measured."""
    A = Grayscale((3, 4, 5))
    problem = Problem(A, A(torch.rand(2, 3, 4, 5, generator=Generator().manual_seed(0))), 0.1)
    if name in ONLY:
        with pytest.raises(ValueError, match=ONLY[name]):
            taken(name, problem)
    else:
        taken(name, problem)
    if name == "repaint":
        taken(name, Problem(Masking(torch.ones(3, 4, 5)), torch.rand(2, 3, 4, 5), 0.1))


@pytest.mark.parametrize("name", sorted(set(POSTERIOR) - {"repaint", "song_faithful"}))
@pytest.mark.parametrize("noise", ["none", "even", "uneven"])
def test_data_of_fewer_dimensions_than_images(name: str, noise: str) -> None:
    y = torch.randn(2, 3, 6, generator=Generator().manual_seed(2))
    std = {"none": torch.zeros(()), "even": torch.tensor(0.1), "uneven": 0.1 + torch.rand(y.shape)}[noise]
    problem = Problem(MATRIX, y, std)
    if name == "tds" and noise == "none":
        with pytest.raises(ValueError, match=r"TDS: noise_std = 0 .* take MCGDiff"):
            taken(name, problem)
    else:
        taken(name, problem)


@pytest.mark.parametrize("name", sorted(set(POSTERIOR) - {"song_faithful"}))
def test_an_operator_that_measures_nothing(name: str) -> None:
    taken(name, Problem(Masking(torch.zeros(4, 5)), torch.zeros(2, 4, 5), 0.1))


@pytest.mark.parametrize("name", POSTERIOR)
def test_no_draws_are_refused(name: str) -> None:
    for samples in (0, -1):
        with pytest.raises(ValueError, match=f"samples.*{samples}|at least 1"):
            small(name, samples=samples)


# What no method ever sees


@dataclasses.dataclass(frozen=True)
class Exponential:
    """x -> exp(−x): shaped like an operator, but not linear."""

    in_shape: tuple[int, ...] = (4, 5)
    out_shape: tuple[int, ...] = (4, 5)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(-x)


@pytest.mark.parametrize(
    ("A", "y", "noise_std", "words"),
    [
        (Exponential(), torch.zeros(4, 5), 0.1, "must be a scoreinv.LinearOperator, got Exponential; .* linearised"),
        (
            MATRIX,
            torch.zeros(6, dtype=torch.complex64),
            0.1,
            "real floating-point data, got torch.complex64; .* two data",
        ),
        (MATRIX, torch.zeros(6, dtype=torch.int64), 0.1, "real floating-point data, got torch.int64"),
        (
            MATRIX,
            torch.tensor([0, 0, float("nan"), 0, 0, float("inf")]),
            0.1,
            r"2 of 6 data are NaN or infinite, the first at \(2,\)",
        ),
        (MATRIX, torch.zeros(6), torch.tensor(0.1j), "noise_std must be real"),
        (MATRIX, torch.zeros(0, 6), 0.1, r"y has no data, its shape is \(0, 6\)"),
    ],
    ids=["nonlinear", "complex", "integers", "not finite", "complex noise", "empty"],
)
def test_problems_that_are_refused(A: Any, y: Tensor, noise_std: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Problem(A, y, noise_std)


def test_complex_operators_are_refused() -> None:
    with pytest.raises(ValueError, match="Matrix: expected a real matrix"):
        Matrix(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"Matrix: expected a floating-point .* got torch.complex64"):
        MATRIX(torch.ones(4, 5, dtype=torch.complex64))
