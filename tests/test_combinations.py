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


UNEVEN = [n for n in POSTERIOR if n not in ("repaint", "song_faithful", "latent_daps")]
TOO_FAR = {"flow_dps", "padis", "song_exact", "tds", "mcg_diff"}
"""With few steps or particles they are far from any data, precise ones or not."""


@pytest.mark.parametrize("name", UNEVEN)
def test_a_precise_datum_does_not_silence_the_others(name: str) -> None:
    """Four data have a noise of 0.1, the first one 25 times less, as two photon counts 640 times apart: the others are met as well as without it."""
    A = Matrix(torch.eye(9)[:5], image_shape=(3, 3))
    place = torch.cartesian_prod(torch.arange(3), torch.arange(3)).double()
    prior = GaussianPrior(torch.zeros(3, 3), torch.exp(-(torch.cdist(place, place) ** 2)) + 0.02 * torch.eye(9))
    truth = prior.draw(1, Generator().manual_seed(2))[0].float()
    noise = torch.randn(5, generator=Generator().manual_seed(3))
    errors = []
    for precise in (0.1, 0.004):
        std = torch.tensor([precise, 0.1, 0.1, 0.1, 0.1])
        problem = Problem(A, A(truth) + std * noise, std)
        law = prior.posterior(problem)
        few = {"samples": 8, "particles": 32, "n_levels": 40, "n_sweeps": 40} | (
            {} if name == "mcg_diff" else {"data_std": 1.0}
        )
        method = configure.method(name, {k: v for k, v in few.items() if configure.has_setting(name, k)}, lambda: prior)
        x = method(problem, Generator().manual_seed(4)).mean(0)
        errors.append(float(((x - law.mean).flatten() / law.covariance.diagonal().sqrt())[1:5].square().mean().sqrt()))
    assert errors[1] < max(1.0, 1.5 * errors[0]), errors
    assert errors[0] < 1.5 or name in TOO_FAR, errors


@pytest.mark.parametrize("std", [0.0, 0.1])
@pytest.mark.parametrize("name", sorted(set(POSTERIOR) - {"song_faithful"}))
def test_what_is_not_measured_does_not_count(name: str, std: float) -> None:
    """Neither what stands there nor its noise, be it 0."""
    mask = torch.rand(4, 5, generator=Generator().manual_seed(1)) < 0.5
    A, x = Masking(mask), torch.randn(4, 5, generator=Generator().manual_seed(2))
    if name == "tds" and std == 0:
        pytest.skip("TDS needs noise")
    problems = [
        Problem(A, torch.where(mask, x, 0.0), std),
        Problem(A, torch.where(mask, x, 3.0), std),
        Problem(A, torch.where(mask, x, 3.0), torch.where(mask, std, 0.0 if std else 0.7)),
    ]
    first, *others = (small(name)(p, Generator().manual_seed(3)) for p in problems)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["cg", "gmres"])
@pytest.mark.parametrize("name", ["mmps", "pigdm", "tmpd"])
def test_noise_free_data_that_no_image_makes(name: str, solver: str) -> None:
    """Least squares; members with noise beside them are as they are alone."""
    if solver == "gmres" and name != "mmps":
        pytest.skip("a solver of MMPS")
    A = Matrix(torch.randn(30, 9, generator=Generator().manual_seed(1)), image_shape=(3, 3))
    y = (
        A(torch.randn(2, 3, 3, generator=Generator().manual_seed(2)))
        + torch.randn(2, 30, generator=Generator().manual_seed(3)) / 20
    )
    best = torch.linalg.lstsq(A.matrix, y[0][:, None].double()).solution.reshape(3, 3)
    prior = GaussianPrior(torch.zeros(3, 3), torch.eye(9))
    settings = {"n_levels": 30, **({"solver": solver, "iterations": 12} if name == "mmps" else {})}
    std = torch.tensor([0.0, 0.1])[:, None]
    x = configure.method(name, settings, lambda: prior)(Problem(A, y, std), Generator().manual_seed(4))[0]
    assert float((x[0] - best).abs().max()) < 0.02
    law = prior.posterior(Problem(A, y[1].double(), 0.1))
    assert float(((x[1] - law.mean).flatten() / law.covariance.diagonal().sqrt()).abs().max()) < 5


@pytest.mark.parametrize("name", POSTERIOR)
def test_settings_that_are_infinite_or_no_whole_numbers(name: str) -> None:
    cls = plugins.get("methods", name)
    for f in dataclasses.fields(cls):
        value = getattr(small(name), f.name)
        if isinstance(value, float) and (name, f.name) != ("pigdm", "longest"):
            with pytest.raises(ValueError, match=r"finite|must lie|infinit|expected"):
                cls(two_modes, **{f.name: float("inf")})
        if isinstance(value, int) and not isinstance(value, bool):
            with pytest.raises(ValueError, match="whole number"):
                cls(two_modes, **{f.name: value + 0.5})


@pytest.mark.parametrize("name", ["dps", "mmps", "sitcom", "padis"])
def test_gradients_within_inference_mode(name: str) -> None:
    problem = Problem(Masking(torch.ones(4, 5)), torch.zeros(4, 5), 0.1)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        small(name)(problem, Generator().manual_seed(0))


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
        (
            Exponential(),
            torch.zeros(4, 5),
            0.1,
            "must be a scoreinv.LinearOperator, got Exponential; .* scoreinv.Nonlinear",
        ),
        (MATRIX, torch.zeros(6, dtype=torch.float16), 0.1, "float32 or float64, got torch.float16"),
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
    ids=["nonlinear", "half", "complex", "integers", "not finite", "complex noise", "empty"],
)
def test_problems_that_are_refused(A: Any, y: Tensor, noise_std: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Problem(A, y, noise_std)


class Fourier(LinearOperator):
    """Half of the coefficients, complex."""

    in_shape, out_shape = (4, 5), (4, 3)

    def _forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.irfft(y, n=5)


@pytest.mark.parametrize("name", sorted(set(POSTERIOR) - {"repaint", "song_faithful"}))
def test_operators_that_make_complex_data(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"Fourier: expected real data of its map, got torch.complex(64|128); give real and imaginary"
    ):
        taken(name, Problem(Fourier(), torch.zeros(4, 3), 0.1))


def test_complex_operators_are_refused() -> None:
    with pytest.raises(ValueError, match="Matrix: expected a real matrix"):
        Matrix(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"Matrix: expected a floating-point .* got torch.complex64"):
        MATRIX(torch.ones(4, 5, dtype=torch.complex64))


@dataclasses.dataclass(frozen=True)
class _Broken(LinearOperator):
    """Of images (4, 5), with data that are NaN."""

    in_shape: tuple[int, ...] = (4, 5)
    out_shape: tuple[int, ...] = (4, 5)

    def _forward(self, x: Tensor) -> Tensor:
        return x * torch.nan

    def _adjoint(self, y: Tensor) -> Tensor:
        return y * 1.0


@pytest.mark.parametrize("name", [*sorted(set(POSTERIOR) - set(ONLY)), "padis"])
def test_an_operator_that_gives_nan_is_found_out(name: str) -> None:
    """No method passes its prior's images off as an answer."""
    with pytest.raises((ArithmeticError, ValueError), match=r"NaN or infinity|lost all its weights"):
        small(name)(Problem(_Broken(), torch.ones(4, 5), 0.1), Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(set(POSTERIOR) - {"song_faithful"}))
def test_a_prior_that_forgets_members_is_found_out(name: str) -> None:
    """torch would give all of them the first one's image. (`song_faithful` takes parallel beam only, and shares its loop with `song_exact`.)"""
    method = dataclasses.replace(small(name), prior=lambda x, sigma: two_modes(x, sigma)[:1])  # type: ignore[type-var]
    problem = Problem(Masking(torch.ones(4, 5)), torch.zeros(2, 4, 5), 0.1)
    with pytest.raises(ValueError, match=r"(should|must) return .*shaped like|expected"):
        method(problem, Generator().manual_seed(0))
