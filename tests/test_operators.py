"""The laws for every operator, CT against exact line integrals and against ASTRA itself, and what constructors say."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from scoreinv import phantoms, plugins
from scoreinv.linop import LinearOperator
from scoreinv.operators import (
    FanBeamCT,
    GeometryWarning,
    Grayscale,
    Masking,
    Matrix,
    MemoryWarning,
    ParallelBeamCT,
    _astra,
    _system_matrix,
    equispaced_angles,
)
from scoreinv.testing import check_operator

TURN = 2 * math.pi


def parallel(**kwargs) -> ParallelBeamCT:
    return ParallelBeamCT((12, 16), equispaced_angles(5), 24, 1.3, 0.9, **kwargs)


def fan(**kwargs) -> FanBeamCT:
    return FanBeamCT((12, 16), equispaced_angles(5, TURN), 44, 60.0, 30.0, 1.3, 1.0, **kwargs)


OPERATORS = [
    parallel(),
    parallel(weights="strip", detector_offset_mm=0.4),
    parallel(weights="line"),
    fan(detector_offset_mm=0.4),
    fan(weights="strip"),
    Grayscale((3, 4, 5)),
    Masking([[1, 0, 1], [0, 0, 1]]),
    Masking.rows((30, 24), [0, 7, 29]),
    Masking.rows((5, 24), [0, 3]) @ parallel(),
    Matrix([[1.0, -0.3, 2.0], [0.1, 4.0, -0.0]]),
    Matrix(torch.randn(6, 20, generator=torch.Generator().manual_seed(0)), (4, 5), (3, 2)),
    Matrix([[1, 2], [3, 4], [5, 6], [7, 8]], (2, 1), (2, 2)),
    parallel().H,
]


@pytest.mark.parametrize("A", OPERATORS, ids=lambda A: type(A).__name__)
def test_the_laws_hold(A) -> None:
    check_operator(A)


def test_every_built_in_operator_is_among_them() -> None:
    known = {plugins.get("operators", name) for name in plugins.BUILT_IN["operators"]}
    assert known <= {type(A) for A in OPERATORS}


@dataclass(frozen=True)
class Broken(LinearOperator):
    """A 2 x 2 matrix with one law broken, to see that check_operator can fail."""

    law: str

    in_shape = out_shape = (2,)

    def _forward(self, x):
        matrix = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=x.dtype)
        out = x @ matrix.T
        if self.law == "shape":
            return out[..., None]
        if self.law == "dtype":
            return out.float()
        if self.law == "batch" and x.ndim > 1:
            return out * 1.01
        if self.law == "in place":
            x[..., 0] = 0
        if self.law == "follow the dtype":
            return torch.eye(2, dtype=torch.float64).mv(out[0] if out.ndim > 1 else out)
        return out + 0.01 if self.law == "linearity" else out

    def _adjoint(self, y):
        matrix = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=y.dtype)
        return y @ (matrix.T if self.law == "transpose" else matrix)

    def __repr__(self) -> str:
        return "Broken('another')" if self.law == "eval" else f"Broken({self.law!r})"


@pytest.mark.parametrize(
    "law", ["shape", "dtype", "batch", "linearity", "transpose", "eval", "in place", "follow the dtype"]
)
def test_a_broken_law_is_found_and_named(law) -> None:
    check_operator(Broken("none"))
    with pytest.raises(AssertionError, match=law):
        check_operator(Broken(law))


def test_an_operator_of_numbers_is_refused() -> None:
    with pytest.raises(AssertionError, match="need at least one dimension"):
        check_operator(Matrix(torch.ones(1, 4), data_shape=()))


# CT against exact line integrals

ELLIPSES = (
    phantoms.Ellipse((10.0, -14.0), (9.0, 5.0), 0.5, 0.02),
    phantoms.Ellipse((-12.0, 7.0), (6.0, 14.0), -0.3, 0.01),
    phantoms.Ellipse((0.0, 2.0), (30.0, 26.0), 0.1, 0.02),
)
ANGLES = np.linspace(0, math.pi, 12, endpoint=False) + 0.05


@pytest.mark.parametrize(
    "A",
    [
        ParallelBeamCT((128, 128), ANGLES, 190, 0.6, 0.6),
        ParallelBeamCT((100, 128), ANGLES, 260, 0.7, 0.5, detector_offset_mm=3.3),
        ParallelBeamCT((128, 100), ANGLES, 260, 0.7, 0.5, detector_offset_mm=-3.3, weights="line"),
        ParallelBeamCT((100, 128), ANGLES, 260, 0.7, 0.5, detector_offset_mm=3.3, weights="strip"),
        FanBeamCT((128, 128), 2 * ANGLES, 300, 150.0, 70.0, 0.6, 0.6),
        FanBeamCT((100, 128), 2 * ANGLES, 416, 150.0, 70.0, 0.7, 0.5, detector_offset_mm=3.3),
        FanBeamCT((128, 100), 2 * ANGLES, 260, 150.0, 0.0, 0.7, 0.5, detector_offset_mm=-3.3),
        FanBeamCT((100, 128), 2 * ANGLES, 416, 150.0, 70.0, 0.7, 0.5, weights="strip"),
    ],
    ids=lambda A: f"{type(A).__name__}, {A.weights}, offset {A.detector_offset_mm}",
)
def test_projections_agree_with_exact_line_integrals(A) -> None:
    """The rest is the pixels' doing: half goes when they are halved. Any wrong sign or axis gives above 10 %."""
    exact = phantoms.line_integrals(ELLIPSES, A)
    y = A(phantoms.rasterise(ELLIPSES, A.image_shape, A.pixel_mm))
    assert float((y - exact).norm() / exact.norm()) < 0.01
    assert float((y.flip(1) - exact).norm() / exact.norm()) > 0.05


@pytest.mark.parametrize("A", [OPERATORS[0], OPERATORS[1], OPERATORS[3], OPERATORS[4]], ids=lambda A: type(A).__name__)
def test_the_matrix_and_astras_own_projectors_agree(A) -> None:
    with pytest.warns(MemoryWarning, match="MiB"):
        B = dataclasses.replace(A, memory_budget_bytes=1000)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 2, *A.in_shape, generator=rng), torch.randn(3, 2, *A.out_shape, generator=rng)
    torch.testing.assert_close(B(x), A(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(B.H(y), A.H(y), rtol=1e-4, atol=1e-5)
    check_operator(B, tol={torch.float32: 1e-5})
    assert B(x.double()).dtype == torch.float64


@pytest.mark.parametrize("A", [A for A in OPERATORS if isinstance(A, (ParallelBeamCT, FanBeamCT))])
def test_the_matrix_size_is_known_beforehand(A) -> None:
    """Within a third, where the detector sees the whole image."""
    large = dataclasses.replace(
        A, image_shape=(64, 64), n_detectors=280, **({"source_origin_mm": 150.0} if isinstance(A, FanBeamCT) else {})
    )
    bytes_held = 2 * 8 * _astra.system_matrix(large).nnz
    assert 0.7 < large.matrix_bytes / bytes_held < 1.5


@pytest.mark.parametrize("block", [7, 64])
def test_blocks_make_no_difference(block, monkeypatch) -> None:
    from scipy.sparse import random

    monkeypatch.setattr(_system_matrix, "BLOCK", block)
    monkeypatch.setattr(_system_matrix, "GROUP", 3)
    matrix = random(40, 30, 0.2, format="csr", dtype=np.float64, random_state=0)
    x = torch.randn(7, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_system_matrix.BlockedMatrix.of(matrix)(x), x @ torch.from_numpy(matrix.toarray()).T)


def test_equal_operators_share_one_matrix_and_do_not_pickle_it() -> None:
    import pickle

    _system_matrix._cached.cache_clear()
    for _ in range(2):
        parallel()(torch.ones(12, 16))
    info = _system_matrix._cached.cache_info()
    assert (info.misses, info.hits) == (1, 1)
    assert len(pickle.dumps(parallel())) < 1000


def test_the_gpu_path_uses_the_same_geometry_and_torch_memory(monkeypatch) -> None:
    """Without a GPU: the path taken for CUDA tensors runs with a CPU kernel in place of "cuda"."""
    import astra

    asked = []
    create = astra.create_projector

    def stand_in(kernel, projections, volume):
        asked.append(kernel)
        return create(
            {"parallel_vec": "linear", "fanflat_vec": "line_fanflat"}[projections["type"]], projections, volume
        )

    monkeypatch.setattr(astra, "create_projector", stand_in)
    for A in (parallel(detector_offset_mm=0.4), fan(detector_offset_mm=0.4)):
        x = torch.randn(3, *A.in_shape, generator=torch.Generator().manual_seed(0))
        y = _astra.project(A, x, adjoint=False, kernel="cuda")
        torch.testing.assert_close(y, A(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(_astra.project(A, y, adjoint=True, kernel="cuda"), A.H(y), rtol=1e-4, atol=1e-4)
    assert set(asked) >= {"cuda"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("A", [parallel(), fan(), parallel(weights="strip")], ids=["parallel", "fan", "strip"])
def test_on_a_gpu_the_numbers_are_those_of_the_cpu(A) -> None:
    x = torch.rand(3, *A.in_shape, generator=torch.Generator().manual_seed(0))
    y = torch.rand(3, *A.out_shape, generator=torch.Generator().manual_seed(1))
    for B, v in ((A, x), (A.H, y)):
        on_gpu = B(v.cuda())
        assert on_gpu.is_cuda
        assert float((on_gpu.cpu() - B(v)).norm() / B(v).norm()) < 0.1
        torch.testing.assert_close(B(v.cuda().double()).cpu(), B(v.double()))


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.rand(2, 12, 16, generator=torch.Generator().manual_seed(0)).half()
    assert parallel()(x).dtype == torch.float16
    torch.testing.assert_close(parallel()(x).float(), parallel()(x.float()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
def test_autocast_leaves_the_physics_alone(batch, rng) -> None:
    A, x = parallel(), torch.randn(batch, 12, 16, generator=rng)
    y = A(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(A(x), y, rtol=0, atol=0)
        torch.testing.assert_close(A.H(y), A.H(y.clone()), rtol=0, atol=0)
        assert A.norm_squared() == pytest.approx(parallel().norm_squared(), rel=1e-6)


@pytest.mark.parametrize("start", [0.0, 1.0, 5.0])
@pytest.mark.parametrize(("arc", "parallel", "fan"), [(60, 1 / 3, 1 / 6), (180, 1.0, 0.5), (360, 1.0, 1.0)])
def test_the_share_of_a_turn_that_views_cover(arc: float, parallel: float, fan: float, start: float) -> None:
    angles = [start + angle for angle in equispaced_angles(60, math.radians(arc))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # views that are held twice
        made = ParallelBeamCT((12, 16), angles, 24), FanBeamCT((12, 16), angles, 44, 60.0, 30.0)
    assert [A.covered() for A in made] == pytest.approx([parallel, fan])


@pytest.mark.parametrize(("cells", "offset"), [(16, 0.0), (11, 0.0), (11, 1.5), (5, 0.0), (3, 9.0)])
def test_the_share_of_the_image_that_every_view_sees(cells: int, offset: float) -> None:
    """Against points of the inscribed disc that are projected one by one, in many views; a detector that misses the axis sees nothing."""
    points = [complex(x, y) for x in np.linspace(-6, 6, 121) for y in np.linspace(-6, 6, 121) if abs(complex(x, y)) < 6]
    turned = np.array(points) * np.exp(-1j * np.array(equispaced_angles(90, TURN)))[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # data are missing
        made = (
            (ParallelBeamCT((12, 16), [0.0], cells, detector_offset_mm=offset), turned.real),
            (
                FanBeamCT((12, 16), [0.0], cells, 15.0, 4.0, detector_offset_mm=offset),
                turned.real * 19 / (15 + turned.imag),
            ),
        )
    for A, at in made:
        inside = (np.abs(at - offset) < cells / 2).all(axis=0)
        assert A.in_view() == pytest.approx(inside.mean(), abs=0.02)


def test_angles_come_in_any_form() -> None:
    angles = equispaced_angles(5)
    for form in (list(angles), np.array(angles), torch.tensor(angles, dtype=torch.float64)):
        assert ParallelBeamCT((12, 16), form, 24, 1.3, 0.9) == parallel()
        assert hash(ParallelBeamCT(np.array([12, 16]), form, np.int64(24), 1.3, 0.9)) == hash(parallel())


# What constructors say


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ParallelBeamCT((8, 8), [], 16), "at least one view"),
        (lambda: ParallelBeamCT((8, 8), [0.0, math.nan], 16), "finite, got nan for view 1"),
        (lambda: ParallelBeamCT((8, 8), [0.0], 0), "n_detectors must be positive"),
        (lambda: ParallelBeamCT((8, 0), [0.0], 16), "image_width must be positive"),
        (lambda: ParallelBeamCT((3, 8, 8), [0.0], 16), r"must be \(H, W\)"),
        (lambda: ParallelBeamCT((8, 8), [0.0], 16, pixel_mm=-1), "pixel_mm must be positive"),
        (lambda: ParallelBeamCT((8, 8), [0.0], 16, detector_mm=math.inf), "detector_mm must be positive and finite"),
        (lambda: ParallelBeamCT((8, 8), [0.0], 16, detector_offset_mm=math.nan), "detector_offset_mm must be finite"),
        (lambda: ParallelBeamCT((8, 8), [0.0], 16, weights="liner"), "Did you mean 'line"),
        (lambda: fan(weights="linear"), "Supported: 'line', 'strip'"),
        (lambda: fan(detector="equiangular"), "'equiangular' is not supported. Supported: 'flat'"),
        (lambda: fan(weights="strip", detector_offset_mm=1.0), "without a detector offset"),
        (lambda: FanBeamCT((8, 8), [0.0], 40, 5.0, 5.0), "the source must stay outside the image"),
        (lambda: FanBeamCT((8, 8), [0.0], 40, 50.0, -5.0), "origin_detector_mm must not be negative"),
        (lambda: FanBeamCT((8, 8), [0.0], 40, math.nan, 5.0), "source_origin_mm must be finite"),
        (lambda: equispaced_angles(0), "n_views >= 1"),
        (lambda: Grayscale((1, 4, 4)), r"must be \(3, H, W\)"),
        (lambda: Masking([[0, 2]]), "other values than 0 and 1"),
        (lambda: Masking([]), "at least one pixel"),
        (lambda: Masking.rows((4, 4), [4]), "between 0 and 3"),
        (lambda: Matrix([1.0, 2.0]), r"a real matrix \(data, pixels\), got torch.float32 \(2,\)"),
        (lambda: Matrix(torch.ones(2, 2, dtype=torch.complex64)), "got torch.complex64"),
        (lambda: Matrix([[1.0, math.inf]]), "not finite"),
        (lambda: Matrix(torch.ones(2, 6), (2, 2)), r"image_shape \(2, 2\) has 4 entries, the matrix asks for 6"),
        (lambda: Matrix(torch.ones(2, 6), (2, 3), (3,)), r"data_shape \(3,\) has 3 entries, the matrix asks for 2"),
    ],
)
def test_bad_input_is_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ParallelBeamCT((8, 8), equispaced_angles(4), 7), "casts a shadow from -4 to 4 mm"),
        (lambda: ParallelBeamCT((8, 8), equispaced_angles(4), 9, detector_offset_mm=2.0), "covers -2.5 to 6.5 mm"),
        (lambda: FanBeamCT((8, 8), equispaced_angles(4, TURN), 8, 20.0, 20.0), "9 cells|17 cells"),
        (lambda: ParallelBeamCT((8, 8), [0.0, 1.0, math.pi], 12), r"views 0 and 2 \(0 and 180 degrees\)"),
        (lambda: FanBeamCT((8, 8), [0.5, 1.0, 0.5 + TURN], 40, 30.0, 20.0), "views 0 and 2"),
        (lambda: ParallelBeamCT((8, 8), range(0, 180, 10), 12), "numpy.deg2rad"),
    ],
)
def test_doubtful_geometries_are_warned_of_where_they_are_made(call, message) -> None:
    with pytest.warns(GeometryWarning, match=message) as record:
        call()
    assert record[0].filename == __file__


def test_sound_geometries_are_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ParallelBeamCT((8, 8), equispaced_angles(4), 8)
        ParallelBeamCT((8, 8), [0.0, math.pi], 10, detector_offset_mm=0.25)  # a quarter cell: half a turn adds lines
        FanBeamCT((8, 8), [0.0, math.pi], 24, 30.0, 20.0)  # half a turn of a fan is another view


def test_masking_keeps_what_is_measured() -> None:
    x = torch.tensor([[1.0, math.nan], [3.0, 4.0]])
    torch.testing.assert_close(Masking([[1, 0], [0, 1]])(x), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
    assert Masking.rows((3, 2), [1]) == Masking([[0, 0], [1, 1], [0, 0]])
    assert Masking(np.eye(2, dtype=bool)) != Masking.rows((2, 2), [0])
    assert repr(Masking.rows((300, 10), [2, 5])) == "Masking.rows((300, 10), [2, 5])"
    checks = Masking((torch.arange(400) % 2 == 0).reshape(20, 20))
    assert repr(checks) == "<Masking of shape (20, 20), 200 of 400 measured>"
    check_operator(checks)


def test_grey_is_the_luminance_of_rec_709() -> None:
    x = torch.zeros(3, 1, 3)
    x[0, 0, 0] = x[1, 0, 1] = x[2, 0, 2] = 1
    torch.testing.assert_close(Grayscale((3, 1, 3))(x), torch.tensor([[[0.2126, 0.7152, 0.0722]]]))
    torch.testing.assert_close(Grayscale((3, 2, 2))(torch.full((3, 2, 2), 0.3)), torch.full((1, 2, 2), 0.3))


def test_a_matrix_multiplies_flattened_images() -> None:
    A = Matrix([[1, 2, 3, 4], [0, 0, 0, 1]], (2, 2), (1, 2))
    torch.testing.assert_close(A(torch.tensor([[1.0, 1.0], [1.0, 10.0]])), torch.tensor([[46.0, 10.0]]))
    assert repr(A) == "Matrix([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]], (2, 2), (1, 2))"
    assert repr(Matrix(torch.ones(2, 50))) == "<Matrix (50,) -> (2,)>"
    assert Matrix(A.matrix) != A and Matrix([[0.0]]) == Matrix([[-0.0]])
