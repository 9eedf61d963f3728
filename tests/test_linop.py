"""Laws of the base class, on a dense matrix of which everything is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Generator, Tensor

from scoreinv.linop import Composition, LinearOperator


@dataclasses.dataclass(frozen=True, eq=False)
class Dense(LinearOperator):
    """A matrix (data, pixels) between images of shapes that it is given."""

    matrix: Tensor
    image: tuple[int, int]
    data: tuple[int, int]

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.image

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.data

    def _forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():  # like ASTRA: autograd sees nothing of what happens in here
            return (x.flatten(-2) @ self.matrix.to(x).T).reshape(*x.shape[:-2], *self.out_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            return (y.flatten(-2) @ self.matrix.to(y)).reshape(*y.shape[:-2], *self.in_shape)


@pytest.fixture
def A(rng: Generator) -> Dense:  # noqa: N802
    return Dense(torch.randn(6, 12, generator=rng, dtype=torch.float64), (3, 4), (2, 3))


def randn(rng: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,)])
def test_any_number_of_batch_dimensions(A: Dense, rng: Generator, batch: tuple[int, ...]) -> None:
    x = randn(rng, *batch, 3, 4)
    expected = torch.einsum("dp,...p->...d", A.matrix, x.flatten(-2)).unflatten(-1, (2, 3))
    torch.testing.assert_close(A(x), expected)
    assert A(x.float()).dtype == torch.float32


def test_adjoint_is_the_transpose_and_its_adjoint_the_operator(A: Dense, rng: Generator) -> None:
    x, y = randn(rng, 5, 3, 4), randn(rng, 5, 2, 3)
    torch.testing.assert_close((A(x) * y).sum((-2, -1)), (x * A.H(y)).sum((-2, -1)))
    assert A.H.in_shape == A.out_shape and A.H.out_shape == A.in_shape
    assert A.H.H is A and A.H == A.H and hash(A.H) == hash(A.H) and repr(A.H) == f"{A!r}.H"


def test_gradients_of_first_and_second_order(A: Dense, rng: Generator) -> None:
    x, v = randn(rng, 3, 4).requires_grad_(), randn(rng, 3, 4)
    assert torch.autograd.gradcheck(lambda t: A(t), x)
    assert torch.autograd.gradgradcheck(lambda t: A(t) ** 3, x)
    (gradient,) = torch.autograd.grad((A(x) ** 2).sum() / 2, x, create_graph=True)
    (second,) = torch.autograd.grad((gradient * v).sum(), x)
    torch.testing.assert_close(second.flatten(), A.matrix.T @ A.matrix @ v.flatten())


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # torch's own, at its first use of forward mode
def test_forward_mode_and_vmap(A: Dense, rng: Generator) -> None:
    x, v = randn(rng, 5, 3, 4), randn(rng, 5, 3, 4)
    value, tangent = torch.func.jvp(lambda t: A(t), (x,), (v,))
    torch.testing.assert_close((value, tangent), (A(x), A(v)))
    for dim in (0, 2):
        torch.testing.assert_close(torch.func.vmap(lambda t: A(t), in_dims=dim)(x.movedim(0, dim)), A(x))
    jacobian = torch.func.jacrev(lambda t: A(t))(x[0])
    torch.testing.assert_close(jacobian.reshape(6, 12), A.matrix)
    hessian = torch.func.hessian(lambda t: (A(t) ** 2).sum() / 2)(x[0])
    torch.testing.assert_close(hessian.reshape(12, 12), A.matrix.T @ A.matrix)


def test_composition_is_the_product(A: Dense, rng: Generator) -> None:
    B = Dense(randn(rng, 2, 6), (2, 3), (1, 2))
    C, product = B @ A, B.matrix @ A.matrix
    x, y = randn(rng, 4, 3, 4), randn(rng, 4, 1, 2)
    assert isinstance(C, Composition) and C.in_shape == (3, 4) and C.out_shape == (1, 2)
    torch.testing.assert_close(C(x).flatten(1), x.flatten(1) @ product.T)
    torch.testing.assert_close(C.H(y).flatten(1), y.flatten(1) @ product)
    torch.testing.assert_close((A.H @ B.H)(y), C.H(y))
    assert B @ A == C and hash(B @ A) == hash(C) and A.H @ A != C
    with pytest.raises(ValueError, match=r"Dense @ Dense: the left one takes \(3, 4\).*gives \(2, 3\)"):
        A @ A
    with pytest.raises(TypeError):
        A @ torch.eye(12)  # type: ignore[operator]


def test_norm_squared_is_the_largest_singular_value_squared(A: Dense) -> None:
    # The iteration stops when a step changes it by 1e-4: from below, and a little short of it.
    exact = float(torch.linalg.svdvals(A.matrix)[0]) ** 2
    assert A.norm_squared() == pytest.approx(exact, rel=2e-3) and A.norm_squared() < exact * (1 + 1e-5)
    assert A.H.norm_squared() == pytest.approx(exact, rel=2e-3)
    doubled = Dense(2 * A.matrix, A.image, A.data)
    assert doubled.norm_squared() == pytest.approx(4 * A.norm_squared(), rel=1e-4)
    assert Dense(torch.zeros(6, 12), (3, 4), (2, 3)).norm_squared() == 0


def test_shapes_may_be_lists() -> None:
    class Listed(Dense):
        @property
        def in_shape(self) -> list[int]:  # type: ignore[override]
            return [3, 4]

    A = Listed(torch.ones(6, 12), (3, 4), (2, 3))
    assert A(torch.ones(5, 3, 4)).shape == (5, 2, 3)


def test_what_cannot_be_hashed_has_no_norm(A: Dense) -> None:
    class Unhashable(Dense):
        __hash__ = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match="Unhashable: an operator must be hashable"):
        Unhashable(A.matrix, A.image, A.data).norm_squared()


def test_errors_say_what_was_expected_and_what_came(A: Dense) -> None:
    with pytest.raises(ValueError, match=r"Dense: expected a shape \(\*batch, 3, 4\), got \(5, 4, 3\)"):
        A(torch.zeros(5, 4, 3))
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        A(torch.zeros(4))
    with pytest.raises(ValueError, match=r"Adjoint: expected a shape \(\*batch, 2, 3\), got \(3, 4\)"):
        A.H(torch.zeros(3, 4))
    with pytest.raises(TypeError, match=r"floating-point.*torch\.int64"):
        A(torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="ndarray"):
        A(torch.zeros(3, 4).numpy())  # type: ignore[arg-type]
    wide = type("Wide", (Dense,), {"_forward": lambda self, x: Dense._forward(self, x)[..., None]})
    with pytest.raises(
        ValueError, match=r"Wide: its map should give \(5, 2, 3\) of \(5, 3, 4\), it gave \(5, 2, 3, 1\)"
    ):
        wide(A.matrix, A.image, A.data)(torch.zeros(5, 3, 4))
