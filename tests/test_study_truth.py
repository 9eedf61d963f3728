"""True images of a sweep, the finer ones that data are made from, and the operators that make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scoreinv.arguments import fits
from scoreinv.phantoms import line_integrals, random_ellipses
from scoreinv.study import ImageFile, Phantoms
from scoreinv.study.operators import data_operator, operator
from scoreinv.study.truth import finer, load, located
from scoreinv.units import mu_from_hu


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two patients with 3 and 1 slices of 16 x 16, and a finer file that has the first one's slice 1."""
    fine = 2 * np.random.default_rng(0).integers(-400, 400, (4, 32, 32))
    hu = fine.reshape(4, 16, 2, 16, 2).mean((2, 4)).round().astype(np.int16)
    names = ["a", "a", "a", "b"]
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["hu"], file["patient"], file["pixel_mm"] = hu, names, np.full(4, 2.0)
    with h5py.File(tmp_path / "fine.h5", "w") as file:
        file["hu"], file["patient"], file["pixel_mm"] = fine[1:2].astype(np.int16), names[:1], np.full(1, 1.0)
    return str(tmp_path / "v.h5"), str(tmp_path / "fine.h5")


def means(image: Tensor, factor: int) -> Tensor:
    return F.avg_pool2d(image[None], factor)[0]


def test_slices_of_patients(files: tuple[str, str]) -> None:
    middle = ImageFile(files[0]).records()
    assert [(r["patient"], r["slice"]) for r in middle] == [("a", 1), ("b", 0)]
    assert len(ImageFile(files[0], slices="all").records()) == 4
    assert [r["slice"] for r in ImageFile(files[0], patients=("a",), slices=(0, 2)).records()] == [0, 2]
    assert [r["patient"] for r in ImageFile(files[0], patients=1).records()] == ["a"]
    with h5py.File(files[0]) as file:
        torch.testing.assert_close(load(middle[0]), torch.from_numpy(file["hu"][1]).float())
        (small,) = ImageFile(files[0], patients=("b",), size=4).records()
        torch.testing.assert_close(load(small), means(torch.from_numpy(file["hu"][3]).float(), 4))
    assert small["pixel_mm"] == 8.0 and small["shape"] == [4, 4]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"patients": ("c",)}, "has no patient 'c'"),
        ({"patients": 0}, "at least 1"),
        ({"slices": (1,), "patients": ("b",)}, "slices 0 to 0, not 1"),
        ({"size": 5}, "does not divide"),
        ({"fine": "absent.h5"}, "absent.h5"),
    ],
)
def test_what_is_not_in_a_file(files: tuple[str, str], more: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, OSError), match=words):
        ImageFile(files[0], **more).records()


def test_a_stored_finer_slice_is_taken(files: tuple[str, str]) -> None:
    first, second = ImageFile(files[0], fine=files[1]).records()
    with h5py.File(files[1]) as file:
        torch.testing.assert_close(finer(first, 2), torch.from_numpy(file["hu"][0]).float())
    assert first["fine"] is not None and second["fine"] is None
    (other,) = ImageFile(files[0], patients=("a",), slices=(0,), fine=files[1]).records()
    assert other["fine"] is None  # another slice of that patient


def test_the_original_is_finer_than_what_it_was_reduced_to(files: tuple[str, str]) -> None:
    (record,) = ImageFile(files[0], patients=("b",), size=8).records()
    with h5py.File(files[0]) as file:
        torch.testing.assert_close(finer(record, 2), torch.from_numpy(file["hu"][3]).float())


@pytest.mark.parametrize("refine", [2, 3])
def test_interpolation_keeps_the_means(files: tuple[str, str], refine: int) -> None:
    (record,) = ImageFile(files[0], patients=("b",)).records()
    found = finer(record, refine)
    assert found.shape == (16 * refine, 16 * refine)
    torch.testing.assert_close(means(found, refine), load(record), atol=1e-3, rtol=0)
    repeated = load(record).repeat_interleave(refine, 0).repeat_interleave(refine, 1)
    assert float((found - repeated).abs().max()) > 10


@pytest.mark.parametrize("phantom", ["ellipses", "shepp_logan"])
def test_phantoms_are_sampled_on_the_finer_grid(phantom: Any) -> None:
    (record,) = Phantoms(phantom, size=16).records()
    torch.testing.assert_close(means(finer(record, 2), 2), load(record), atol=1e-2, rtol=0)
    assert not torch.equal(finer(record, 2), load(record).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_file_that_changed_is_noticed(files: tuple[str, str]) -> None:
    (record,) = ImageFile(files[0], patients=("b",)).records()
    with h5py.File(files[0], "r+") as file:
        file["hu"][3, 0, 0] += 2
    with pytest.raises(ValueError, match="not the image that it was"):
        load(record)


def test_data_may_be_moved(files: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOREINV_DATA", str(Path(files[0]).parent))
    for written in ("$SCOREINV_DATA/v.h5", "${SCOREINV_DATA}/v.h5"):
        assert located(written) == Path(files[0])
        assert [r["sha256"] for r in ImageFile(written).records()] == [
            r["sha256"] for r in ImageFile(files[0]).records()
        ]
    monkeypatch.delenv("SCOREINV_DATA")
    with pytest.raises(ValueError, match="set SCOREINV_DATA"):
        located("$SCOREINV_DATA/v.h5")


# The operator that makes the data


def test_finer_data_are_nearer_to_exact_line_integrals() -> None:
    """The rays and the detector are the same; what shrinks is the error of the pixels."""
    (record,) = Phantoms("ellipses", size=32).records()
    A = operator({"name": "parallel_beam_ct", "n_views": 9}, (32, 32), record["pixel_mm"])
    exact = line_integrals(random_ellipses(torch.Generator().manual_seed(0), width_mm=350.0), A)

    def error(refine: int) -> float:
        made = data_operator(A, {"refine": refine, "weights": "line"})
        assert made.out_shape == A.out_shape and made.in_shape == (32 * refine, 32 * refine)
        return float((made(mu_from_hu(finer(record, refine))).double() - exact).norm() / exact.norm())

    assert error(4) < 0.5 * error(1)


def test_the_same_operator_unless_told_otherwise() -> None:
    A: Any = operator(
        {"name": "fan_beam_ct", "n_views": 4, "source_origin_mm": 90, "origin_detector_mm": 60}, (8, 8), 2.0
    )
    assert data_operator(A, {}) is A
    made: Any = data_operator(A, {"weights": "strip"})
    assert made.weights == "strip" and made.angles == A.angles and made.detector_mm == A.detector_mm


@pytest.mark.parametrize(
    ("value", "hint", "good"),
    [
        (1, int, True), (True, int, False), (1.0, int, False), (1, float, True), ("1", float, False), (None, int | None, True),
        ("a", int | None, False), ([1, 2], tuple[int, int], True), ([1], tuple[int, int], False), ([1, "a"], tuple[int, ...], False),
        ((0.5, 1), "anything", True), (1, bool, False),
    ],
)  # fmt: skip
def test_plain_values_fit_annotations(value: Any, hint: Any, good: bool) -> None:
    assert fits(value, hint) is good
