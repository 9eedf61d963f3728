"""Conjugate gradients against direct solutions, member by member."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Generator, Tensor

from scoreinv.linop import LinearOperator
from scoreinv.problem import Problem
from scoreinv.solvers import cg, cgls, cgls_iterates, cr, mean_column_square, noise_weights


@dataclass(frozen=True, eq=False)
class Dense(LinearOperator):
    """An explicit matrix on images (n,)."""

    m: Tensor

    @property
    def in_shape(self) -> tuple[int, ...]:
        return (self.m.shape[1],)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.m.shape[0],)

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.m.to(x).T

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.m.to(y)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(n: int = 12) -> Tensor:
    m = rand(n, n)
    return m @ m.T + torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize("start", [None, 1])
def test_cg_solves_what_a_direct_solver_solves(start: int | None) -> None:
    m, b = spd(), rand(3, 12, seed=1)
    x0 = None if start is None else rand(3, 12, seed=2)
    x = cg(lambda v: v @ m, b, x0, max_iterations=40)
    torch.testing.assert_close(x, torch.linalg.solve(m, b.T).T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_cg_has_the_iterates_of_scipy(n: int) -> None:
    m, b = spd(), rand(1, 12, seed=1)
    theirs, _ = scipy.sparse.linalg.cg(m.numpy(), b[0].numpy(), maxiter=n, rtol=0)
    torch.testing.assert_close(
        cg(lambda v: v @ m, b, max_iterations=n)[0], torch.from_numpy(theirs), rtol=1e-9, atol=1e-9
    )


def test_cg_members_that_are_done_stay_and_zero_stays_zero() -> None:
    scales = torch.tensor([0.0, 1.0, 1e3], dtype=torch.float64)
    m, b = spd(), rand(3, 12, seed=1) * scales[:, None]
    x0 = torch.zeros_like(b)
    x0[1] = torch.linalg.solve(m, b[1])  # solved from the start: 0 / 0 ahead
    x = cg(lambda v: v @ m, b, x0, max_iterations=200, tolerance=1e-10)
    assert x.isfinite().all()
    assert torch.equal(x[:2], x0[:2])
    torch.testing.assert_close(x[2], torch.linalg.solve(m, b[2]), rtol=1e-7, atol=1e-7)


def test_cg_batch_is_its_members() -> None:
    m = spd()
    b = rand(4, 12, seed=1) * torch.tensor([1e-3, 1.0, 1e3, 0.0], dtype=torch.float64)[:, None]

    def apply(v: Tensor) -> Tensor:  # elementwise sums, so that the map itself does not depend on the batch
        return (v[:, :, None] * m).sum(1)

    together = cg(apply, b, max_iterations=6, tolerance=1e-2)
    for k in range(4):
        assert torch.equal(together[k], cg(apply, b[k : k + 1], max_iterations=6, tolerance=1e-2)[0])


def test_cg_stops_at_the_tolerance_and_counts_its_applications() -> None:
    m, b = spd(), rand(2, 12, seed=1)
    calls = []

    def apply(v: Tensor) -> Tensor:
        calls.append(1)
        return v @ m

    x = cg(apply, b, max_iterations=50, tolerance=1e-3)
    assert len(calls) < 14
    assert (((x @ m) - b).norm(dim=1) <= 1.001e-3 * b.norm(dim=1)).all()
    calls.clear()
    cg(apply, b, max_iterations=3)
    assert len(calls) == 3


def test_cg_semidefinite_with_a_null_space_stays_finite() -> None:
    m = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    x = cg(lambda v: v @ m, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), max_iterations=20)
    torch.testing.assert_close(x, torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("shape", [(20, 12), (8, 12)])
def test_cgls_gives_the_least_squares_solution_of_least_norm(shape: tuple[int, int]) -> None:
    m, y = rand(*shape), rand(3, shape[0], seed=1)
    x = cgls(Dense(m), y, max_iterations=60, tolerance=1e-13)
    torch.testing.assert_close(x.T, torch.linalg.pinv(m) @ y.T, rtol=1e-8, atol=1e-8)


def test_cgls_keeps_the_start_in_the_null_space() -> None:
    m, y, x0 = rand(8, 12), rand(2, 8, seed=1), rand(2, 12, seed=2)
    pinv = torch.linalg.pinv(m)
    expected = x0 + (y - x0 @ m.T) @ pinv.T
    torch.testing.assert_close(
        cgls(Dense(m), y, x0, max_iterations=60, tolerance=1e-13), expected, rtol=1e-8, atol=1e-8
    )


def test_cgls_weights_are_those_of_weighted_least_squares() -> None:
    m, y = rand(20, 6), rand(2, 20, seed=1)
    w = rand(2, 20, seed=2).square()
    expected = torch.stack(
        [
            torch.from_numpy(np.linalg.lstsq((m * w[k].sqrt()[:, None]).numpy(), (y[k] * w[k].sqrt()).numpy())[0])
            for k in range(2)
        ]
    )
    torch.testing.assert_close(
        cgls(Dense(m), y, max_iterations=40, tolerance=1e-13, weights=w), expected, rtol=1e-8, atol=1e-8
    )


def test_cgls_iterates_are_those_of_cg_on_the_normal_equations() -> None:
    m, y, x0 = rand(20, 12), rand(2, 20, seed=1), rand(2, 12, seed=2)
    for n, x in enumerate(cgls_iterates(Dense(m), y, x0, max_iterations=6), start=1):
        torch.testing.assert_close(x, cg(lambda v: v @ m.T @ m, y @ m, x0, max_iterations=n), rtol=1e-8, atol=1e-8)
    assert n == 6


def test_cgls_without_iterations_or_data() -> None:
    m, x0 = rand(5, 4), rand(1, 4, seed=2)
    assert torch.equal(cgls(Dense(m), rand(1, 5), x0, max_iterations=0), x0)
    assert torch.equal(cgls(Dense(m), torch.zeros(2, 5), max_iterations=9), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_iterations": -1}, "negative"), ({"max_iterations": 1, "tolerance": -1.0}, "negative")],
)
def test_bad_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cg(lambda v: v, rand(1, 3), **options)
    with pytest.raises(ValueError, match=message):
        cgls(Dense(rand(3, 3)), rand(1, 3), **options)


def test_start_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\), got \(3,\)"):
        cg(lambda v: v, rand(1, 3), rand(3), max_iterations=1)


def test_gradients_are_left_as_they_were() -> None:
    for _ in cgls_iterates(Dense(rand(5, 4)), rand(1, 5), max_iterations=2):
        assert torch.is_grad_enabled()


def test_noise_weights() -> None:
    A, y = Dense(rand(3, 4)), rand(2, 3)
    w, sigma = noise_weights(Problem(A, y, 0.5))
    assert w is None and sigma.tolist() == [0.5, 0.5]
    w, sigma = noise_weights(Problem(A, y, torch.tensor([[1.0], [2.0]])))
    assert w is None and sigma.tolist() == [1.0, 2.0]
    w, sigma = noise_weights(Problem(A, y, torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 4.0]])))
    assert w is not None and w.tolist() == [[1, 1, 1], [0.25, 1, 0.0625]] and sigma.tolist() == [0, 1]
    with pytest.raises(ValueError, match="zero for some data"):
        noise_weights(Problem(A, y, torch.tensor([0.0, 1.0, 1.0])))


def test_mean_column_square() -> None:
    signs = Dense(torch.diag(torch.tensor([1.0, -2.0, 3.0])))
    assert mean_column_square(signs) == pytest.approx(14 / 3)
    m = rand(40, 300)
    assert mean_column_square(Dense(m), 200) == pytest.approx(float(m.square().sum()) / 300, rel=0.03)


def test_cg_steps_of_each_member(rng: Generator) -> None:
    """With a number of steps for each, a member is what it is alone."""
    root = torch.randn(3, 8, 8, generator=rng, dtype=torch.float64)
    M, b = (
        root @ root.mT + 0.1 * torch.eye(8, dtype=torch.float64),
        torch.randn(3, 8, generator=rng, dtype=torch.float64),
    )
    steps = torch.tensor([1, 4, 8])
    together = cg(lambda x: (M @ x[..., None])[..., 0], b, max_iterations=steps)
    for k, n in enumerate(steps.tolist()):
        alone = cg(lambda x, k=k: (M[k] @ x[..., None])[..., 0], b[k : k + 1], max_iterations=n)  # type: ignore[misc]
        torch.testing.assert_close(together[k : k + 1], alone)


def test_conjugate_residuals_find_least_squares_of_a_singular_matrix() -> None:
    """Of data in its range and of others; every member as alone."""
    half = torch.randn(2, 6, 3, generator=Generator().manual_seed(1), dtype=torch.float64)
    M = half @ half.mT
    b = torch.randn(2, 6, generator=Generator().manual_seed(2), dtype=torch.float64)
    b[0] = M[0] @ b[0]
    x = cr(lambda v: (M @ v[..., None])[..., 0], b, max_iterations=20)
    expected = (torch.linalg.pinv(M, rtol=1e-9) @ b[..., None])[..., 0]
    torch.testing.assert_close((M @ x[..., None])[..., 0], (M @ expected[..., None])[..., 0])
    alone = cr(lambda v: v @ M[1], b[1:], max_iterations=20)
    torch.testing.assert_close(alone[0], x[1])
    assert float(cr(lambda v: 0 * v, b, max_iterations=3).abs().max()) == 0


@pytest.mark.parametrize("unit", [1e-15, 1e-8, 1.0, 1e8, 1e15])
@pytest.mark.parametrize("start", [False, True])
def test_solutions_do_not_depend_on_the_unit(unit: float, start: bool) -> None:
    """In float32, where squares of such numbers are 0 or infinite."""
    m, b = spd(), rand(3, 12, seed=1)
    expected = torch.linalg.solve(m, b.T).T
    x0 = (expected + 0.1 * rand(3, 12, seed=2)).float() * unit if start else None
    x = cg(lambda v: v @ m.float(), b.float() * unit, x0, max_iterations=60, tolerance=1e-6)
    torch.testing.assert_close(x.double() / unit, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    if not start:
        x = cr(lambda v: v @ m.float(), b.float() * unit, max_iterations=60, tolerance=1e-6)
        torch.testing.assert_close(x.double() / unit, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_map_that_is_no_number_gives_no_solution(wrong: float) -> None:
    """Else what was never solved would pass for an answer; the other member is not touched."""
    m, b = spd().float(), rand(2, 12, seed=1).float()

    def apply(v: Tensor) -> Tensor:
        return torch.stack([v[0] @ m, v[1] * wrong])

    for solve in (cg, cr):
        x = solve(apply, b, max_iterations=40, tolerance=1e-6)
        torch.testing.assert_close(x[0], torch.linalg.solve(m, b[0]), rtol=0, atol=1e-3)
        assert not x[1].isfinite().all()
    x = cgls(Dense(torch.full((3, 12), wrong)), b[:, :3], max_iterations=5)
    assert not x.isfinite().all()
