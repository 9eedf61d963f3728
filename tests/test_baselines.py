"""Classical methods against explicit formulas, certificates and other people's code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import pywt
import scipy.optimize
import torch
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from scoreinv.baselines import tuned, wavelet
from scoreinv.baselines.fbp import FBP
from scoreinv.baselines.fista import FistaTV, FistaWavelet
from scoreinv.baselines.iterative import CGLS, SIRT
from scoreinv.baselines.tv import duality_gap, gradient, gradient_adjoint, prox_tv, total_variation
from scoreinv.linop import LinearOperator
from scoreinv.problem import Method, Problem
from scoreinv.solvers import mean_column_square

RNG = torch.Generator()


@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    """An explicit matrix on images (H, W); products in float64, row by row, so that a batch cannot matter."""

    m: Tensor
    shape: tuple[int, int]

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.m.shape[0],)

    def _forward(self, x: Tensor) -> Tensor:
        return (x.flatten(-2)[..., None, :].double() * self.m).sum(-1).to(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y[..., None, :].double() * self.m.T).sum(-1).reshape(*y.shape[:-1], *self.shape).to(y)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks(n: int = 8, batch: int = 1) -> Tensor:
    """Piecewise constant images, (batch, n, n), non-negative."""
    return torch.nn.functional.interpolate(rand(batch, 1, 2, 2), size=(n, n), mode="nearest")[:, 0] + 0.1


def few_sums(n: int = 8, rows: int = 40) -> Matrix:
    """Fewer non-negative sums than pixels."""
    return Matrix((rand(rows, n * n, seed=5) < 0.3).double(), (n, n))


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table of its own, so that these tests do not depend on what was tuned last."""
    methods = {
        "fbp": [{"tau": 0.0, "window": "ramp"}, {"tau": 0.02, "window": "hann"}],
        "sirt": [{"tau": 0.0, "iterations": 100}, {"tau": 0.02, "iterations": 25}],
        "cgls": [{"tau": 0.0, "iterations": 16}, {"tau": 0.02, "iterations": 4}],
        "fista_tv": [
            {"tau": 0.0, "weight": 0.001},
            {"tau": 0.02, "weight": 0.004},
            {"tau": 0.08, "weight": 0.032},
        ],
        "fista_wavelet": [{"tau": 0.0, "weight": 0.001}],
    }
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"methods": methods}))
    monkeypatch.setattr(tuned, "PATH", path)
    tuned._read.cache_clear()
    yield
    tuned._read.cache_clear()


METHODS: list[Method] = [
    SIRT(20),
    SIRT(),
    CGLS(5),
    CGLS(),
    FistaTV(1e-2, unit=1.0, max_iterations=60, tolerance=1e-3),
    FistaTV(unit=1.0, max_iterations=40),
    FistaWavelet(1e-2, "db2", 2, unit=1.0, max_iterations=60, tolerance=1e-3),
    FistaWavelet(None, "haar", 1, unit=1.0, max_iterations=20),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_batch_is_its_members_and_shapes_are_a_methods(method: Method) -> None:
    A = few_sums()
    x = blocks(batch=6).reshape(2, 3, 8, 8) * torch.tensor([1e-2, 1.0, 0.0])[:, None, None].double()
    y, std = A(x), 0.01 * rand(2, 3, 1, seed=3)
    together = method(Problem(A, y + 0.01 * rand(*y.shape, seed=4), std), RNG)
    assert together.shape == (1, 2, 3, 8, 8) and together.dtype == torch.float64 and together.isfinite().all()
    for i in range(2):
        for j in range(3):
            alone = method(Problem(A, y[i, j] + 0.01 * rand(*y.shape, seed=4)[i, j], float(std[i, j])), RNG)
            assert alone.shape == (1, 8, 8)
            torch.testing.assert_close(together[0, i, j], alone[0], rtol=1e-9, atol=1e-12)
    assert eval(repr(method)) == method  # noqa: S307


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_dtype_and_gradient_mode_follow(method: Method) -> None:
    A = few_sums()
    assert method(Problem(A, A(blocks().float())), RNG).dtype == torch.float32
    assert torch.is_grad_enabled()


# total variation


def test_gradient_and_its_adjoint() -> None:
    x, p = rand(3, 5, 7), rand(3, 2, 5, 7, seed=1)
    torch.testing.assert_close((gradient(x) * p).sum((1, 2, 3)), (x * gradient_adjoint(p)).sum((1, 2)))
    eye = torch.eye(35).reshape(35, 5, 7).double()
    assert float(torch.linalg.matrix_norm(gradient(eye).flatten(1), 2) ** 2) < 8


def test_total_variation_by_hand() -> None:
    x = torch.zeros(2, 4, 4)
    x[0, 1:3, 1:3] = 2.0  # five corners' differences apart from one corner with both: 2 · (6 + √2)
    x[1, :, 2:] = -3.0
    torch.testing.assert_close(total_variation(x), torch.tensor([2 * (6 + 2**0.5), 12.0]))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_prox_is_certified_by_its_duality_gap(nonnegative: bool) -> None:
    b, weight = rand(2, 12, 9) - 0.3, torch.tensor([0.05, 0.5]).double()
    x, p = prox_tv(b, weight, iterations=500, nonnegative=nonnegative)
    gap = duality_gap(x, p, weight)
    assert (gap >= -1e-12).all() and (gap < 1e-3).all()
    assert (gradient_adjoint(p) - (b - x) / weight.reshape(-1, 1, 1)).abs().max() < 1e-9 or nonnegative
    assert not nonnegative or ((x >= 0).all() and (b < 0).any())
    value = 0.5 * (x - b).square().sum((1, 2)) + weight * total_variation(x)
    for seed in range(20):
        other = x + 10.0 ** -(seed % 4) * (rand(*x.shape, seed=seed) - 0.5)
        other = other.clamp(min=0) if nonnegative else other
        assert (0.5 * (other - b).square().sum((1, 2)) + weight * total_variation(other) >= value - gap).all()


def test_gap_bounds_the_distance_after_few_steps_and_shrinks() -> None:
    b, weight = rand(1, 12, 9), torch.tensor([0.3]).double()
    exact, _ = prox_tv(b, weight, iterations=1000)
    gaps = []
    for n in (3, 30, 300):
        x, p = prox_tv(b, weight, iterations=n)
        gaps.append(float(duality_gap(x, p, weight)))
        assert 0.5 * float((x - exact).square().sum()) <= gaps[-1]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2]


def test_prox_is_skimages_denoiser() -> None:
    b = blocks(16)[0] + 0.2 * rand(16, 16, seed=1)
    theirs = denoise_tv_chambolle(b.numpy(), weight=0.3, eps=1e-12, max_num_iter=2000)
    ours, _ = prox_tv(b[None], torch.tensor([0.3]).double(), iterations=500)
    torch.testing.assert_close(ours[0], torch.from_numpy(theirs), rtol=0, atol=2e-3)


def test_prox_of_weight_zero_is_the_projection_and_warm_start_goes_on() -> None:
    b = rand(1, 6, 6) - 0.5
    assert torch.equal(prox_tv(b, torch.zeros(1), iterations=3, nonnegative=True)[0], b.clamp(min=0))
    weight = torch.tensor([0.3]).double()
    _, p = prox_tv(b, weight, iterations=50)
    cold, warm = (prox_tv(b, weight, iterations=10, p=start) for start in (None, p))
    assert float(duality_gap(*warm, weight)) < 0.1 * float(duality_gap(*cold, weight))


# FISTA


def test_fista_tv_minimises_what_it_says() -> None:
    """On images of one row TV is Σ|steps|, so that minimising is a smooth problem with bounds, which SciPy solves
    exactly."""
    m = rand(8, 10, seed=5) - 0.5
    A = Matrix(m, (1, 10))
    c = mean_column_square(A)
    truth = torch.tensor([[[1.0] * 4 + [3.0] * 3 + [0.5] * 3]]).double()
    problem = Problem(A, A(truth) + 0.1 * rand(1, 8, seed=2))
    method = FistaTV(2e-2, max_iterations=400, tolerance=0, unit=1.0, nonnegative=False)

    def f(z: np.ndarray) -> tuple[float, np.ndarray]:
        image = np.concatenate([[0], np.cumsum(z[1:10] - z[10:])]) + z[0]
        r = m.numpy() @ image - problem.y[0].numpy()
        slope = np.cumsum((m.numpy().T @ r / c)[::-1])[::-1]
        steps = slope[1:]
        return float(r @ r / (2 * c) + 2e-2 * z[1:].sum()), np.concatenate([slope[:1], steps + 2e-2, -steps + 2e-2])

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-10}
    best = scipy.optimize.minimize(
        f, np.zeros(19), jac=True, method="L-BFGS-B", bounds=[(None, None)] + [(0, None)] * 18, options=options
    )
    x = method(problem, RNG)[0]
    assert float(method.objective(problem, x)) == pytest.approx(best.fun, rel=1e-6)
    image = np.concatenate([[0], np.cumsum(best.x[1:10] - best.x[10:])]) + best.x[0]
    np.testing.assert_allclose(x[0, 0], image, atol=1e-3)


def test_fista_tv_ends_at_a_fixed_point_of_the_proximal_gradient_step() -> None:
    """In two dimensions and with x >= 0: a fixed point is the minimum, whatever led there."""
    A = few_sums(6, 30)
    problem = Problem(A, A(blocks(6) - 0.7) + 0.3 * rand(1, 30, seed=2))
    x = FistaTV(2e-2, max_iterations=300, tolerance=0, unit=1.0)(problem, RNG)[0]
    c, step = mean_column_square(A), 1.0
    moved, _ = prox_tv(
        x - step * A.H(A(x) - problem.y) / c, torch.tensor([step * 2e-2]).double(), iterations=500, nonnegative=True
    )
    assert (x == 0).any() and float(x.max()) > 0.1
    assert float((moved - x).norm()) < 1e-3 * float(x.norm())


def test_fista_tv_with_identity_is_the_prox() -> None:
    A = Matrix(torch.eye(36).double(), (6, 6))
    b = rand(1, 6, 6) - 0.2
    x = FistaTV(0.3, max_iterations=40, tolerance=0, unit=1.0, prox_iterations=20)(Problem(A, b.flatten(1)), RNG)[0]
    expected, _ = prox_tv(b, torch.tensor([0.3]).double(), iterations=500, nonnegative=True)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)


def test_fista_tv_objective_falls_once_the_weight_is_final() -> None:
    A = few_sums()
    problem = Problem(A, A(blocks(batch=2)) + 0.1 * rand(2, 40, seed=2))
    method = FistaTV(5e-2, max_iterations=200, tolerance=0, unit=1.0, prox_iterations=3)
    values = torch.stack([method.objective(problem, x) for x in method.iterates(problem)])
    final = values[160:]
    assert (final[1:] <= final[:-1] * (1 + 1e-12)).all()
    assert (final[-1] < 0.9 * values[20]).all()


def test_fista_tv_finds_a_piecewise_constant_image_from_few_data() -> None:
    A, truth = few_sums(), blocks()
    problem = Problem(A, A(truth))
    x = FistaTV(1e-4, max_iterations=400, tolerance=0, unit=1.0)(problem, RNG)[0]
    least_squares = CGLS(60)(problem, RNG)[0]
    assert float((x - truth).norm() / truth.norm()) < 0.02
    assert float((least_squares - truth).norm() / truth.norm()) > 0.15


def test_non_negativity_is_kept_where_asked() -> None:
    A = few_sums()
    y = -rand(1, 40)
    for method in (FistaTV(1e-3, unit=1.0, max_iterations=50), SIRT(10)):
        assert (method(Problem(A, y), RNG) >= 0).all()
        assert (replace(method, nonnegative=False)(Problem(A, y), RNG) < 0).any()


@pytest.mark.parametrize(
    "method", [FistaTV(1e-2, max_iterations=100), FistaWavelet(1e-2, "db2", 2, max_iterations=100)], ids=repr
)
def test_weight_does_not_depend_on_units(method: FistaTV | FistaWavelet) -> None:
    """The same image in other units of value and length is the same problem."""
    A, x = few_sums(), blocks()
    first = replace(method, unit=1.0)(Problem(A, A(x)), RNG)
    other = Matrix(7 * A.m, (8, 8))
    second = replace(method, unit=0.02)(Problem(other, other(0.02 * x)), RNG)
    torch.testing.assert_close(second / 0.02, first, rtol=1e-6, atol=1e-6)


def test_weight_does_not_depend_on_how_often_each_datum_is_taken() -> None:
    A, x = few_sums(), blocks()
    y = A(x) + 0.1 * rand(1, 40, seed=2)
    method = FistaTV(1e-2, unit=1.0, max_iterations=100)
    twice = Matrix(A.m.repeat(2, 1), (8, 8))
    torch.testing.assert_close(
        method(Problem(twice, y.repeat(1, 2)), RNG), method(Problem(A, y), RNG), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    "method",
    [FistaTV(1e-2, unit=1.0, max_iterations=50), FistaWavelet(1e-2, "haar", 1, unit=1.0, max_iterations=50), CGLS(40)],
    ids=repr,
)
def test_data_that_are_mostly_noise_hardly_count(method: Method) -> None:
    m = rand(40, 16, seed=5)
    A = Matrix(torch.cat([m, m[:5]]), (4, 4))
    y = A(blocks(4))
    y[:, 40:] += 5  # spoilt, and known to be
    std = torch.cat([torch.full((40,), 0.01), torch.full((5,), 1e4)]).double()
    found = method(Problem(A, y, std), RNG)
    clean = y.clone()
    clean[:, 40:] -= 5
    torch.testing.assert_close(found, method(Problem(A, clean, std), RNG), rtol=1e-4, atol=1e-4)
    assert float((found - method(Problem(A, y, 0.01), RNG)).abs().max()) > 0.05


def test_done_members_stop_the_iterations() -> None:
    A = Matrix(torch.eye(16).double(), (4, 4))
    method = FistaTV(1e-3, unit=1.0, max_iterations=100, tolerance=1e-4)
    assert sum(1 for _ in method.iterates(Problem(A, rand(2, 16)))) < 100


# wavelets


@pytest.mark.parametrize(("name", "levels"), [("haar", 3), ("db4", 2), ("sym4", 1), ("db3", 3)])
def test_transform_is_orthogonal_and_pywavelets(name: str, levels: int) -> None:
    x = rand(2, 40, 48)
    c = wavelet.analysis(x, name, levels)
    torch.testing.assert_close(c.square().sum(), x.square().sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(wavelet.synthesis(c, name, levels), x, rtol=1e-12, atol=1e-12)
    coarse, *details = pywt.wavedec2(x.numpy(), name, mode="periodization", level=levels)
    h, w = 40 >> levels, 48 >> levels
    np.testing.assert_allclose(c[:, :h, :w], coarse, atol=1e-8)
    for k, (horizontal, vertical, diagonal) in enumerate(details):
        h, w = 40 >> (levels - k), 48 >> (levels - k)
        np.testing.assert_allclose(c[:, h : 2 * h, :w], horizontal, atol=1e-8)
        np.testing.assert_allclose(c[:, :h, w : 2 * w], vertical, atol=1e-8)
        np.testing.assert_allclose(c[:, h : 2 * h, w : 2 * w], diagonal, atol=1e-8)


def test_prox_of_the_l1_norm_satisfies_its_optimality_condition() -> None:
    """(b − x) / λ is a subgradient: sign(c) where a detail c survives, at most 1 in size elsewhere, 0 in the coarse
    block."""
    b, lam = rand(2, 16, 16) - 0.5, torch.tensor([0.1, 0.3]).double()
    x, norm = wavelet.prox_l1(b, lam, "db3", 2)
    c, g = wavelet.analysis(x, "db3", 2), wavelet.analysis((b - x) / lam.reshape(-1, 1, 1), "db3", 2)
    assert g[:, :4, :4].abs().max() < 1e-10
    d = wavelet.details(c, 2)
    alive = d.abs() > 1e-9
    assert 0.02 < float(alive.double().mean()) < 0.9
    torch.testing.assert_close(g[alive], d[alive].sign(), rtol=1e-8, atol=1e-8)
    assert g[~alive].abs().max() <= 1 + 1e-10
    torch.testing.assert_close(norm, d.abs().sum((1, 2)))


@pytest.mark.parametrize("n", [8, 7])
def test_fista_wavelet_is_at_a_minimum(n: int) -> None:
    """Optimality: −∇(data term) / weight is a subgradient of the norm; for odd sides on the larger canvas, so only
    shapes then."""
    A = Matrix(rand(80, n * n, seed=5) - 0.5, (n, n))
    problem = Problem(A, A(blocks(n)) + 0.1 * rand(1, 80, seed=2))
    method = FistaWavelet(2e-2, "db2", 2, max_iterations=300, tolerance=0, unit=1.0)
    x = method(problem, RNG)[0]
    assert x.shape == (1, n, n)
    assert float((A(x) - problem.y).norm()) < 0.5 * float(problem.y.norm())
    if n == 8:
        g = wavelet.analysis(A.H(problem.y - A(x)) / mean_column_square(A) / 2e-2, "db2", 2)
        d = wavelet.details(wavelet.analysis(x, "db2", 2), 2)
        alive = d.abs() > 1e-6
        assert alive.any() and not alive.all()
        torch.testing.assert_close(g[alive], d[alive].sign(), rtol=0, atol=2e-3)
        assert float(g.abs().max()) < 1 + 2e-3 and float(g[:, :2, :2].abs().max()) < 2e-3


@pytest.mark.parametrize(
    ("name", "message"), [("db44", "no discrete wavelet"), ("bior2.2", "not orthogonal"), ("morl", "no discrete")]
)
def test_wavelets_that_will_not_do(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FistaWavelet(1.0, name)


# SIRT, CGLS, FBP


def test_sirt_by_its_formula_with_matrices() -> None:
    A = few_sums()
    m, y = A.m.numpy(), A(blocks())[0].numpy() + rand(40, seed=1).numpy()
    R, C = np.diag(1 / m.sum(1)), np.diag(1 / m.sum(0))
    x = np.zeros(64)
    for found in islice(SIRT(nonnegative=False, relaxation=0.7).iterates(Problem(A, torch.from_numpy(y))), 9):
        x = x + 0.7 * C @ m.T @ R @ (y - m @ x)
        np.testing.assert_allclose(found[0].numpy().ravel(), x, rtol=1e-10)


def test_sirt_falls_in_its_own_norm_and_ignores_empty_rows_and_columns() -> None:
    m = few_sums().m.clone()
    m[3], m[:, 5] = 0, 0
    A = Matrix(m, (8, 8))
    y = A(blocks())
    R = torch.where(m.sum(1) > 0, 1 / m.sum(1), 0)
    residuals = [float((R * (A(x) - y).square()).sum()) for x in islice(SIRT().iterates(Problem(A, y)), 50)]
    assert all(b < a for a, b in pairwise(residuals)) and residuals[-1] < 3e-2 * residuals[0]
    x = SIRT(5)(Problem(A, y), RNG)
    assert float(x.flatten()[5]) == 0


def test_sirt_refuses_signed_operators() -> None:
    with pytest.raises(ValueError, match="negative row or column sums"):
        SIRT(1)(Problem(Matrix(-torch.eye(4).double(), (2, 2)), torch.zeros(1, 4).double()), RNG)


def test_cgls_is_weighted_least_squares() -> None:
    A = Matrix(rand(40, 16), (4, 4))
    y, std = rand(2, 40, seed=1), 0.1 + rand(2, 40, seed=2)
    found = CGLS(200)(Problem(A, y, std), RNG)[0]
    for k in range(2):
        expected = np.linalg.lstsq(A.m.numpy() / std[k].numpy()[:, None], (y[k] / std[k]).numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[k].ravel(), expected, rtol=1e-6, atol=1e-8)


def test_tuned_counts_differ_between_members() -> None:
    A = few_sums()
    y = A(blocks()).expand(2, 40)
    noisy = 0.02 * 0.0193 * mean_column_square(A) ** 0.5
    found = CGLS()(Problem(A, y, torch.tensor([[0.0], [noisy]]).double()), RNG)[0]
    torch.testing.assert_close(found[0], CGLS(16)(Problem(A, y[:1]), RNG)[0, 0])
    torch.testing.assert_close(found[1], CGLS(4)(Problem(A, y[:1]), RNG)[0, 0])


class WithFBP(Matrix):
    def fbp(self, y: Tensor, window: str = "hann") -> Tensor:
        return y.reshape(-1, *self.shape) * len(window)


def test_fbp_asks_the_operator_and_picks_its_window_by_noise() -> None:
    A, y = WithFBP(torch.eye(16).double(), (4, 4)), rand(2, 3, 16)
    assert torch.equal(FBP("hann")(Problem(A, y), RNG), (4 * y).reshape(1, 2, 3, 4, 4))
    assert torch.equal(FBP()(Problem(A, y[0, 0]), RNG), (4 * y[0, 0]).reshape(1, 4, 4))
    with pytest.raises(ValueError, match=r"Matrix has no method fbp\(y, window\)"):
        FBP("hann")(Problem(few_sums(), rand(1, 40)), RNG)


# tuned settings


def test_tuned_weight_is_a_power_of_the_noise() -> None:
    """And linear in the noise power below the lowest level that has noise."""
    tau = torch.tensor([0.0, 0.01, 0.02, 0.04, 0.08, 0.32]).double()
    expected = torch.tensor([0.001, 0.00175, 0.004, 0.004 * 2**1.5, 0.032, 0.032 * 4**1.5]).double()
    torch.testing.assert_close(tuned.weight("fista_tv", tau), expected)
    torch.testing.assert_close(tuned.weight("fista_wavelet", tau), torch.full((6,), 0.001).double())


def test_tuned_weight_of_noise_that_is_not_uniform() -> None:
    """The root mean square counts; twice as much data of nearly no weight change the image hardly, and so the weight on data and image."""
    A = few_sums()
    one = A(blocks()).double()
    std = torch.where(torch.arange(one.shape[-1]) % 2 == 0, 0.01, 0.03).double().expand(one.shape)
    rms = float(std.square().mean().sqrt())
    scale = 0.0193 * mean_column_square(A) ** 0.5
    tau = tuned.noise_level(Problem(A, one, std), 0.0193)
    torch.testing.assert_close(tau, torch.full_like(tau, rms / scale))
    weight = float(tuned.weight("fista_tv", tau)[0]) * (0.01 / rms) ** 2
    own, given = (replace(FistaTV(max_iterations=20), weight=w)(Problem(A, one, std), RNG) for w in (None, weight))
    torch.testing.assert_close(own, given)


def test_tuned_counts_and_windows() -> None:
    tau = torch.tensor([0.0, 0.01, 0.02, 0.2])
    assert tuned.iterations("sirt", tau) == [100, 50, 25, 25]
    assert tuned.window("fbp", tau) == ["ramp", "ramp", "hann", "hann"]
    with pytest.raises(ValueError, match="no weight for sirt"):
        tuned.weight("sirt", tau)
    with pytest.raises(ValueError, match="no weight for nothing"):
        tuned.weight("nothing", tau)


def test_untuned_methods_take_the_tables_value() -> None:
    A = few_sums()
    problem = Problem(A, A(blocks()))
    short = FistaTV(unit=1.0, max_iterations=30)
    assert torch.equal(short(problem, RNG), replace(short, weight=0.001)(problem, RNG))
    assert torch.equal(SIRT()(problem, RNG), SIRT(100)(problem, RNG))


def test_shipped_table_is_complete() -> None:
    path = Path(tuned.__file__).with_name("tuned.json")
    methods = json.loads(path.read_text())["methods"]
    for name, setting in {
        "cgls": "iterations",
        "fbp": "window",
        "fista_tv": "weight",
        "fista_wavelet": "weight",
        "sirt": "iterations",
    }.items():
        rows = methods[name]
        assert rows[0]["tau"] == 0 < rows[1]["tau"]
        for row in rows:
            assert setting in row
            assert {"data", "patients", "criterion", "date", "command", "version"} <= set(row["provenance"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: SIRT(0),
        lambda: SIRT(relaxation=2.0),
        lambda: CGLS(0),
        lambda: FistaTV(0.0),
        lambda: FistaTV(unit=0.0),
        lambda: FistaTV(prox_iterations=0),
        lambda: FistaTV(max_iterations=0),
        lambda: FistaWavelet(-1.0),
        lambda: FistaWavelet(levels=0),
    ],
)
def test_settings_that_make_no_sense(make: object) -> None:
    with pytest.raises(ValueError, match="must"):
        make()  # type: ignore[operator]
