"""Reconstructions in the formats of other programs, read back by other libraries and by `files.images`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch

import scoreinv as si
from scoreinv.cli import main
from scoreinv.files.export import Images, images_of, write_images
from scoreinv.files.images import read_image
from scoreinv.files.volume import FIGURES, create_volume, opened
from scoreinv.units import hu_from_mu

WATER, PIXEL_MM, H, W = 0.0193, 0.75, 6, 5


def reconstruction(*slices: int, **others: Any) -> si.Reconstruction:
    """Three draws of noise around water."""
    rng = torch.Generator().manual_seed(0)
    samples = WATER * (1 + 0.3 * torch.randn(3, *slices, H, W, generator=rng))
    known = {"settings": {"method": "proximal"}, "pixel_mm": PIXEL_MM, "mu_water_per_mm": WATER}
    return si.Reconstruction(samples, **{**known, **others})


def stored(folder: Path, r: si.Reconstruction) -> Path:
    si.write_reconstruction(folder / "r.h5", r)
    return folder / "r.h5"


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return stored(tmp_path, reconstruction(half_width=torch.full((H, W), 0.1 * WATER)))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return stored(tmp_path, reconstruction(3))


def test_images_are_in_hounsfield_units(one: Path) -> None:
    r = si.read_reconstruction(one)
    assert r.std is not None and r.mean_hu is not None
    np.testing.assert_allclose(images_of(one).hu[0], r.mean_hu, atol=1e-3)
    np.testing.assert_allclose(images_of(one, "std").hu[0], 1000 * r.std / WATER, rtol=1e-6)
    np.testing.assert_allclose(images_of(one, "half_width").hu, 100, rtol=1e-5)
    np.testing.assert_allclose(images_of(one, "upper").hu - images_of(one, "lower").hu, 200, rtol=1e-4)
    assert images_of(one).pixel_mm == PIXEL_MM and "proximal: mean [HU]" in images_of(one).about


def test_intervals_say_that_they_are_not_calibrated(tmp_path: Path) -> None:
    r = reconstruction()
    path = stored(tmp_path, r)
    width = 1000 * torch.as_tensor(r.interval) / WATER
    np.testing.assert_allclose(images_of(path, "half_width").hu[0], width, rtol=1e-5)
    np.testing.assert_allclose(images_of(path, "upper").hu - images_of(path, "lower").hu, 2 * width[None], rtol=1e-4)
    assert "proximal: uncalibrated upper [HU]" in images_of(path, "upper").about
    known = stored(tmp_path, reconstruction(half_width=torch.full((H, W), 0.1 * WATER)))
    assert "proximal: upper [HU]" in images_of(known, "upper").about


def test_the_support_map_is_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = reconstruction(measured=WATER * torch.rand(H, W, generator=torch.Generator().manual_seed(1)))
    path = stored(tmp_path, r)
    np.testing.assert_array_equal(images_of(path, "support").hu[0], torch.as_tensor(r.support))
    assert main(["export", str(path), "--what", "support", "--out", str(tmp_path / "s.dcm")]) == 0
    assert "support [1], 0." in capsys.readouterr().out
    back = pydicom.dcmread(tmp_path / "s.dcm")
    assert (back.RescaleType, back.WindowWidth) == ("US", 1)
    np.testing.assert_allclose(
        back.pixel_array * float(back.RescaleSlope), torch.as_tensor(r.support).numpy(), atol=1e-4
    )
    with pytest.raises(ValueError, match="has no support: no prior was used"):
        images_of(stored(tmp_path, reconstruction()), "support")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.dcm", "x.tif", "x.npy", "series"])
def test_what_is_written_is_what_is_read(one: Path, tmp_path: Path, name: str) -> None:
    assert main(["export", str(one), "--out", str(tmp_path / name)]) == 0
    known = name.endswith((".tif", ".npy"))
    back = read_image(tmp_path / name, PIXEL_MM if known else None)
    assert back.pixel_mm == pytest.approx(PIXEL_MM)
    np.testing.assert_allclose(back.hu, images_of(one).hu, atol=0 if not name.endswith(("dcm", "series")) else 1 / 16)
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_names_in_capitals(one: Path, tmp_path: Path) -> None:
    for name, head in (("X.NPY", b"\x93NUMPY"), ("X.NII", b"\\\x01"), ("X.TIF", b"II*")):
        write_images(tmp_path / name, images_of(one))
        assert (tmp_path / name).read_bytes().startswith(head)


def test_slices_without_such_an_image(tmp_path: Path) -> None:
    hu = np.zeros((3, H, W), np.float32)
    hu[1] = np.nan
    for name in ("x.nii", "x.dcm", "x.npy", "series"):
        with pytest.raises(ValueError, match="1 of 3 slices have no such image, the first is slice 1"):
            write_images(tmp_path / name, Images(hu, PIXEL_MM, "interval"), slice_mm=1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.nii.gz", "x.tif", "x.npy", "series"])
def test_slices_keep_their_order(three: Path, tmp_path: Path, name: str) -> None:
    write_images(tmp_path / name, images_of(three), slice_mm=2.5)
    back = read_image(tmp_path / name, PIXEL_MM if name.endswith((".tif", ".npy")) else None)
    np.testing.assert_allclose(back.hu, images_of(three).hu, atol=1 / 16)


def test_one_slice_of_several(three: Path, tmp_path: Path) -> None:
    assert main(["export", str(three), "--out", str(tmp_path / "x.dcm"), "--slice", "-1", "--what", "std"]) == 0
    np.testing.assert_allclose(read_image(tmp_path / "x.dcm").hu, images_of(three, "std").hu[2:], atol=1 / 32)


def test_nifti_says_where_a_pixel_lies(three: Path, tmp_path: Path) -> None:
    """Columns go to the left, rows to the back, slices up; the middle of the first slice is the origin."""
    write_images(tmp_path / "x.nii.gz", images_of(three), slice_mm=2.5)
    image: Any = nibabel.load(tmp_path / "x.nii.gz")  # type: ignore[no-untyped-call]
    assert image.shape == (W, H, 3) and nibabel.aff2axcodes(image.affine) == ("L", "P", "S")  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(image.header.get_zooms(), (PIXEL_MM, PIXEL_MM, 2.5))
    np.testing.assert_allclose(image.affine @ [(W - 1) / 2, (H - 1) / 2, 0, 1], [0, 0, 0, 1], atol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_dicom_says_where_a_pixel_lies_and_what_it_is(three: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "series", images_of(three), slice_mm=2.5)
    read = [pydicom.dcmread(p) for p in sorted((tmp_path / "series").iterdir())]
    assert [float(d.ImagePositionPatient[2]) for d in read] == [0.0, 2.5, 5.0]
    assert len({d.SeriesInstanceUID for d in read}) == 1 and len({d.SOPInstanceUID for d in read}) == 3
    d = read[1]
    assert d.Modality == "CT" and "DERIVED" in d.ImageType and d.PatientID == "" and d.Manufacturer == "scoreinv"
    assert [float(v) for v in d.PixelSpacing] == [PIXEL_MM, PIXEL_MM]
    hu = d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept)
    np.testing.assert_allclose(hu, images_of(three).hu[1], atol=0.5 * float(d.RescaleSlope) + 1e-3)


HEIGHTS = (101.5, 104.0, 106.5)


def test_slices_lie_at_the_heights_of_their_scan(tmp_path: Path) -> None:
    path = stored(tmp_path, reconstruction(3, z_mm=HEIGHTS))
    write_images(tmp_path / "x.nii", images_of(path))
    image: Any = nibabel.load(tmp_path / "x.nii")  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(image.affine @ [(W - 1) / 2, (H - 1) / 2, 2, 1], [0, 0, HEIGHTS[2], 1], atol=1e-4)
    write_images(tmp_path / "series", images_of(path))
    read = [pydicom.dcmread(p) for p in sorted((tmp_path / "series").iterdir())]
    assert [float(d.ImagePositionPatient[2]) for d in read] == list(HEIGHTS)
    assert {float(d.SliceThickness) for d in read} == {2.5}
    write_images(tmp_path / "one.dcm", images_of(path, index=-2))
    assert float(pydicom.dcmread(tmp_path / "one.dcm").ImagePositionPatient[2]) == HEIGHTS[1]
    write_images(tmp_path / "apart.nii", images_of(path), slice_mm=5.0)  # what is given counts more
    apart: Any = nibabel.load(tmp_path / "apart.nii")  # type: ignore[no-untyped-call]
    assert apart.header.get_zooms()[2] == 5.0 and apart.affine[2, 3] == 0


def test_uneven_heights_go_into_a_series_alone(tmp_path: Path) -> None:
    path = stored(tmp_path, reconstruction(3, z_mm=(1.0, 2.0, 4.0)))
    with pytest.raises(
        ValueError, match="slices are 1 to 2 mm apart, NIfTI holds even distances: write a DICOM series"
    ):
        write_images(tmp_path / "x.nii", images_of(path))
    write_images(tmp_path / "series", images_of(path))
    assert len(read_image(tmp_path / "series").hu) == 3
    same = stored(tmp_path, reconstruction(3, z_mm=(1.0, 2.0, 1.0)))
    with pytest.raises(ValueError, match="two slices have the same height"):
        write_images(tmp_path / "x.nii", images_of(same))


def test_tiff_says_how_large_a_pixel_is(one: Path, tmp_path: Path) -> None:
    from PIL import Image

    write_images(tmp_path / "x.tif", images_of(one))
    with Image.open(tmp_path / "x.tif") as picture:
        tags: Any = picture.tag_v2  # type: ignore[attr-defined]
    assert tags[296] == 3 and float(tags[282]) == float(tags[283]) == pytest.approx(10 / PIXEL_MM)  # per cm


def test_metal_is_not_clipped(tmp_path: Path) -> None:
    hu = np.linspace(-1000, 60000, H * W, dtype=np.float32).reshape(1, H, W)
    write_images(tmp_path / "x.dcm", Images(hu, PIXEL_MM, "metal"))
    np.testing.assert_allclose(read_image(tmp_path / "x.dcm").hu, hu, atol=1.01)


def test_the_same_image_makes_the_same_file(one: Path, tmp_path: Path) -> None:
    for name in ("dcm", "nii.gz", "tif"):
        for k in (1, 2):
            write_images(tmp_path / f"{k}.{name}", images_of(one))
        assert (tmp_path / f"1.{name}").read_bytes() == (tmp_path / f"2.{name}").read_bytes()
    write_images(tmp_path / "std.dcm", images_of(one, "std"))
    write_images(tmp_path / "wide.dcm", Images(images_of(one).hu, 2 * PIXEL_MM, images_of(one).about))
    uids = {pydicom.dcmread(tmp_path / f"{k}.dcm").SOPInstanceUID for k in ("1", "std", "wide")}
    assert len(uids) == 3
    assert (
        pydicom.dcmread(tmp_path / "std.dcm").SeriesInstanceUID != pydicom.dcmread(tmp_path / "1.dcm").SeriesInstanceUID
    )


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_volumes(tmp_path: Path, kind: str) -> None:
    if kind == "zarr":
        pytest.importorskip("zarr", reason="zarr is an optional extra")
    path = tmp_path / f"v.{kind}"
    attributes = {"pixel_mm": PIXEL_MM, "mu_water_per_mm": WATER, "z_mm": (4.0, 7.0)}
    create_volume(path, (2, H, W), ["mean", "std"], request={}, settings={"method": "dds"}, attributes=attributes)
    mean = np.random.default_rng(0).normal(WATER, 0.01, (2, H, W)).astype(np.float32)
    with opened(path, write=True) as volume:
        volume.add(0, {"mean": mean[0], "std": mean[0]}, dict.fromkeys(FIGURES, 1.0))
    with pytest.raises(ValueError, match="1 of 2 slices are not there yet, the first is 1"):
        images_of(path)
    np.testing.assert_allclose(images_of(path, index=0).hu[0], hu_from_mu(mean[0], WATER), rtol=1e-4, atol=1e-2)
    with pytest.raises(ValueError, match="slice 1 is not there"):
        images_of(path, index=-1)
    with opened(path, write=True) as volume:
        volume.add(1, {"mean": mean[1], "std": mean[1]}, dict.fromkeys(FIGURES, 1.0))
    np.testing.assert_allclose(images_of(path).hu, hu_from_mu(mean, WATER), rtol=1e-4, atol=1e-2)
    assert images_of(path).z_mm == (4.0, 7.0) and images_of(path, index=-1).z_mm == (7.0,)
    assert main(["export", str(path), "--out", str(tmp_path / "v.nii.gz")]) == 0
    image: Any = nibabel.load(tmp_path / "v.nii.gz")  # type: ignore[no-untyped-call]
    assert image.header.get_zooms()[2] == 3.0
    with pytest.raises(ValueError, match="has no fbp: the operator has none, or it is a volume"):
        images_of(path, "fbp")


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "an unknown format": ({}, ["--out", "x.mat"], "expected a name that ends in .nii, .nii.gz"),
    "an unknown image": ({}, ["--what", "median"], "expected one of mean, std"),
    "no deviation": ({"one": True}, ["--what", "std"], "has no std: it is of one image"),
    "no interval": ({"one": True}, ["--what", "upper"], "has no half_width: it is of one image"),
    "no truth": ({}, ["--what", "truth"], "has no truth: it is not known"),
    "no size": ({"pixel_mm": None}, [], "needs the size of a pixel"),
    "no Hounsfield units": ({"mu_water_per_mm": None}, [], "have no Hounsfield units"),
    "no distance": (
        {"slices": 2},
        [],
        "distance of the 2 slices, which the reconstruction does not state: give --slice-mm",
    ),
    "a distance of nothing": ({"slices": 2}, ["--slice-mm", "0"], "expected a positive length, got 0"),
    "several slices in one file": (
        {"slices": 2},
        ["--out", "x.dcm"],
        "one DICOM file holds one slice, there are 2",
    ),
    "no such slice": ({"slices": 2}, ["--slice", "2"], "has slices 0 to 1"),
    "a folder that is there": ({}, ["--out", "."], "is there already"),
    "no such folder": ({}, ["--out", "nowhere/x.nii"], "nowhere"),
    "no such folder for a series": ({}, ["--out", "nowhere/x"], "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    change, options, message = BAD[case]
    change = dict(change)
    slices, alone = [change.pop("slices")] if "slices" in change else [], change.pop("one", False)
    r = reconstruction(*slices, **change)
    path = stored(tmp_path, si.Reconstruction(r.samples[:1], pixel_mm=PIXEL_MM, mu_water_per_mm=WATER) if alone else r)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(path), "--out", "x.nii", *options]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_other_files_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("x")
    assert main(["export", str(tmp_path / "x.txt"), "--out", str(tmp_path / "x.nii")]) == 2
    assert "expected a reconstruction or a volume" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "y.h5"), "--out", str(tmp_path / "x.nii")]) == 2
    assert "y.h5" in capsys.readouterr().err
