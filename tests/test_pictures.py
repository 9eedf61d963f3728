"""Pictures are drawn whole, show what they are given, and refuse what they cannot show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scoreinv import pictures
from scoreinv.files.images import read_image


def slice_hu(side: int = 32) -> Tensor:
    return torch.linspace(-1000, 1000, side * side).reshape(side, side)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_reconstruction_picture_grows_with_what_is_known(tmp_path: Path) -> None:
    x = slice_hu()
    given: dict[str, Tensor] = {}
    widths = []
    for name in ("mean_hu", "std_hu", "fbp_hu", "truth_hu"):
        given[name] = x if name != "std_hu" else x.abs() / 10
        pictures.reconstruction_picture(tmp_path / "p.png", title="A title", pixel_mm=1.0, **given)  # type: ignore[arg-type]
        widths.append(pixels(tmp_path / "p.png").shape[1])
    assert widths == sorted(set(widths))
    assert list(tmp_path.iterdir()) == [tmp_path / "p.png"]


def test_the_same_figures_give_the_same_picture(tmp_path: Path) -> None:
    for name in "ab":
        pictures.reconstruction_picture(tmp_path / name, mean_hu=slice_hu(), truth_hu=slice_hu() + 10)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("name", "kind"), [("p.png", "PNG"), ("p.jpg", "JPEG"), ("p.JPEG", "JPEG"), ("p", "PNG")])
def test_a_picture_is_what_its_name_says(tmp_path: Path, name: str, kind: str) -> None:
    pictures.reconstruction_picture(tmp_path / name, mean_hu=slice_hu())
    with Image.open(tmp_path / name) as picture:
        assert picture.format == kind


def test_vector_graphics_and_unknown_formats(tmp_path: Path) -> None:
    for name, head in (("p.pdf", b"%PDF"), ("p.svg", b"<?xml")):
        pictures.reconstruction_picture(tmp_path / name, mean_hu=slice_hu())
        assert (tmp_path / name).read_bytes().startswith(head)
    with pytest.raises(ValueError, match=r"written as png, pdf, svg, jpg, jpeg, not bmp"):
        pictures.reconstruction_picture(tmp_path / "p.bmp", mean_hu=slice_hu())


def test_the_window_is_applied(tmp_path: Path) -> None:
    means = []
    for window in ((-1000.0, 1000.0), (-160.0, 240.0), (-3000.0, 0.0)):
        pictures.reconstruction_picture(tmp_path / "p.png", mean_hu=torch.full((32, 32), -100.0), window=window)
        shown = pixels(tmp_path / "p.png")
        means.append(int(shown[shown.shape[0] // 2, shown.shape[1] // 2, 0]))
    expected = [255 * (-100 - low) / (high - low) for low, high in ((-1000, 1000), (-160, 240), (-3000, 0))]
    np.testing.assert_allclose(means, expected, atol=2)


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.2, 1), (1, 1), (1.5, 2), (3, 5), (7, 10), (10, 10), (140, 200), (float("nan"), 1)]
)
def test_limits_of_colour_scales_are_round(value: float, rounded: float) -> None:
    assert pictures._round_up(value) == rounded


def test_panels_show_error_and_scores() -> None:
    truth = slice_hu().numpy()
    shown = {
        p[0]: p
        for p in pictures._panels(
            {"reconstruction": truth + 30, "uncertainty": 0 * truth + 3, "truth": truth}, (-1000, 1000)
        )
    }
    assert list(shown) == ["Reconstruction", "Truth", "Uncertainty", "Error"]
    np.testing.assert_allclose(shown["Error"][1], 30, atol=1e-3)
    assert shown["Error"][4] == "RMSE 30 HU"
    assert shown["Error"][3] == (-50, 50) and shown["Uncertainty"][3] == (0, 50)
    assert shown["Reconstruction"][4].startswith("36.")  # 30 of 2000 HU, less what the window clips


def test_a_calibrated_interval_takes_the_place_of_the_standard_deviation(tmp_path: Path) -> None:
    hu = slice_hu()
    shown = {
        p[0]: p
        for p in pictures._panels({"reconstruction": hu.numpy(), "half width": hu.numpy() * 0 + 70}, (-1000, 1000))
    }
    assert shown["Uncertainty"][3:] == ((0.0, 100.0), "± calibrated interval")
    files = [tmp_path / "std.png", tmp_path / "width.png"]
    for path, more in zip(files, ({}, {"half_width_hu": 0 * hu + 70}), strict=True):
        pictures.reconstruction_picture(path, mean_hu=hu, std_hu=0 * hu + 10, **more)
    assert files[0].read_bytes() != files[1].read_bytes()


def test_a_training_plot_reads_the_log_as_it_is_written(tmp_path: Path) -> None:
    rows = [
        {
            "step": str(k),
            "hours": f"{k / 10}",
            "loss": f"{1 / k}",
            "psnr_0.1": f"{30 + k}",
            "psnr_1": "" if k == 1 else "20",
        }
        for k in (1, 2, 3)
    ]
    pictures.training_plot(tmp_path / "t.png", rows)
    assert pixels(tmp_path / "t.png").std() > 10
    pictures.training_plot(tmp_path / "one.png", [{"hours": 0.1, "loss": 0.5}])
    with pytest.raises(ValueError, match="no rows yet"):
        pictures.training_plot(tmp_path / "none.png", [])


def test_a_gray_png_reads_back_to_half_a_gray_level(tmp_path: Path) -> None:
    x = slice_hu()
    pictures.write_png_gray(tmp_path / "g.png", x)
    np.testing.assert_allclose(read_image(tmp_path / "g.png", 1.0).hu[0], x, atol=0.51 * 2000 / 255)
    pictures.write_png_gray(tmp_path / "w.png", torch.tensor([[-500.0, -160.0, 40.0, 240.0, 9e9]]), (-160.0, 240.0))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "w.png")), [[0, 0, 128, 255, 255]])


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images differ in shape: reconstruction \(32, 32\), truth \(16, 16\)"):
        pictures.reconstruction_picture(tmp_path / "p.png", mean_hu=slice_hu(), truth_hu=slice_hu(16))
    with pytest.raises(ValueError, match=r"expected one image \(H, W\)"):
        pictures.reconstruction_picture(tmp_path / "p.png", mean_hu=slice_hu()[None])
    with pytest.raises(ValueError, match="window must be"):
        pictures.reconstruction_picture(tmp_path / "p.png", mean_hu=slice_hu(), window=(5.0, 5.0))
    assert list(tmp_path.iterdir()) == []
