"""Helical scans become parallel views: exact for cylinders, near for ellipsoids, with the noise that there is."""

from __future__ import annotations

import dataclasses
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from helix import BODY, Ellipsoid, Helix

import scoreinv as si
from scoreinv.cli import main
from scoreinv.files.ct_pd import is_projections, read_projections
from scoreinv.rebinning import heights, rebin

SIZE, VIEWS = 60, 7
BALLS = (
    Ellipsoid((10.0, -5.0, 3.0), (150.0, 105.0, 300.0), 0.2, 0.0192),
    Ellipsoid((-50.0, 20.0, 10.0), (40.0, 25.0, 20.0), -0.6, 0.006),
    Ellipsoid((60.0, -30.0, -5.0), (18.0, 30.0, 40.0), 0.9, -0.012),
    Ellipsoid((0.0, 50.0, -15.0), (30.0, 20.0, 20.0), 0.9, 0.02),
)
SPOTS = ((0.002, 0.5, -3.0), (-0.002, -0.5, 3.0))
SCANNERS = {
    "one focal spot": Helix(),
    "two focal spots": Helix(spots=SPOTS),
    "four focal spots": Helix(spots=tuple((a, z, r) for a, z, r in SPOTS for z in (z, -z))),
    "the other sense": Helix(sense=-1),
    "flat": Helix(flat=True),
    "columns the other way": Helix(along=-1),
    "rows the other way": Helix(up=1),
    "fine": Helix(columns=240, column_mm=3.75, centre=(121.25, 8.5), views_a_turn=320),
}


def cells(scan: si.Scan, objects: tuple[Ellipsoid, ...], fine: int = 8) -> np.ndarray:
    """The exact mean over each cell, (views, cells)."""
    A: Any = scan.problem.A
    d, z = A.detector_mm / fine, scan.z_mm[0]
    out = np.zeros(A.out_shape)
    u = (np.arange(fine * A.n_detectors) + 0.5) * d - A.n_detectors * A.detector_mm / 2
    for i, theta in enumerate(A.angles):
        foot = np.stack([u * math.cos(theta), u * math.sin(theta), np.full_like(u, z)], -1)
        along = np.array([math.sin(theta), -math.cos(theta), 0.0])
        for o in objects:
            flat = o.slice_at(z)
            p = np.array([flat.integral(f - 900 * along, (f + 900 * along)[None])[0] for f in foot])
            out[i] += p.reshape(-1, fine).mean(1)
    return out


def error(scan: si.Scan, objects: tuple[Ellipsoid, ...]) -> float:
    exact = cells(scan, objects)
    return float(np.sqrt(np.mean((scan.problem.y.numpy() - exact) ** 2)) / exact.max())


@pytest.mark.parametrize("name", SCANNERS)
def test_cylinders_are_rebinned_exactly(name: str, tmp_path: Path) -> None:
    """But for interpolation between columns of 6 mm (2 mm for the fine one) at the axis."""
    helix = SCANNERS[name]
    folder = helix.write(tmp_path / "s", helix.scan(BODY))
    scan = rebin(folder, n_views=VIEWS, size=SIZE)
    assert error(scan, BODY) < (0.0012 if name == "fine" else 0.007)
    assert scan.mu_water_per_mm == 0.0192 and scan.info["focal_spots"] == len(helix.spots)
    assert scan.info["columns_reversed"] is (helix.along == -1) and scan.info["other_columns_error"] > 20
    assert scan.info["other_rows_error"] == pytest.approx(1, abs=0.1)  # a cylinder does not tell


@pytest.mark.parametrize(("along", "up"), [(1, -1), (1, 1), (-1, -1), (-1, 1)])
def test_the_data_tell_how_columns_and_rows_are_counted(along: int, up: int, tmp_path: Path) -> None:
    helix = Helix(along=along, up=up)
    scan = rebin(helix.write(tmp_path / "s", helix.scan(BALLS)), [8.0], n_views=VIEWS, size=SIZE)
    assert (scan.info["columns_reversed"], scan.info["rows_reversed"]) == (along == -1, up == 1)
    assert scan.info["other_columns_error"] > 20 and scan.info["other_rows_error"] > 5
    assert error(scan, BALLS) < 0.008


def test_slices_lie_at_their_heights(tmp_path: Path) -> None:
    """A ball is a disc of the size that its slice has; several slices are what each is alone."""
    helix = dataclasses.replace(SCANNERS["fine"], views_a_turn=200)
    folder = helix.write(tmp_path / "s", helix.scan(BALLS))
    both = rebin(folder, [-10.0, 10.0], n_views=VIEWS, size=SIZE)
    assert both.problem.y.shape == (2, VIEWS, SIZE) and torch.as_tensor(both.problem.noise_std).shape == (
        2,
        VIEWS,
        SIZE,
    )
    for k, z in enumerate((-10.0, 10.0)):
        alone = rebin(folder, [z], n_views=VIEWS, size=SIZE)
        assert torch.equal(both.problem.y[k], alone.problem.y)
        assert error(alone, BALLS) < 0.003
        wrong = dataclasses.replace(alone, z_mm=(z + 6.0,))
        assert error(wrong, BALLS) > 2 * error(alone, BALLS)


def test_the_noise_is_found(tmp_path: Path) -> None:
    for k, spots in enumerate((((0.0, 0.0, 0.0),), SPOTS)):
        helix = Helix(columns=100, column_mm=9.0, centre=(50.75, 8.5), spots=spots, turns=2.0)
        noisy, clean = (
            rebin(
                helix.write(tmp_path / f"{k}{photons}", helix.scan(BODY, photons=photons)), [0.0], n_views=40, size=100
            )
            for photons in (1e5, None)
        )
        z = ((noisy.problem.y - clean.problem.y) / torch.as_tensor(noisy.problem.noise_std)).flatten()
        inside = clean.problem.y.flatten() > 1.5
        assert float(z[inside].std()) == pytest.approx(1, abs=0.15) and float(z[~inside].std()) == pytest.approx(
            1, abs=0.3
        )
        assert abs(float(z.mean())) < 0.15


def test_an_image_is_where_it_should_be(tmp_path: Path) -> None:
    """x right and y up: FBP of many views shows the objects at their places, in Hounsfield units."""
    helix = SCANNERS["fine"]
    out = tmp_path / "scan.h5"
    helix.write(tmp_path / "s", helix.scan(BODY))
    assert main(["rebin", str(tmp_path / "s"), "--out", str(out), "--views", "80", "--size", "120"]) == 0
    scan = si.read_scan(out)
    hu, A = si.reconstruct(scan, "fbp").mean_hu, scan.problem.A
    assert hu is not None

    def at(x: float, y: float) -> float:
        p = A.pixel_mm  # type: ignore[attr-defined]
        i, j = round((120 - 1) / 2 - y / p), round((120 - 1) / 2 + x / p)
        return float(hu[i - 2 : i + 3, j - 2 : j + 3].mean())

    for (x, y), mu in (((-50.0, 20.0), 0.0252), ((60.0, -30.0), 0.0072), ((10.0, -60.0), 0.0192), ((0.0, 180.0), 0.0)):
        assert at(x, y) == pytest.approx(1000 * (mu / 0.0192 - 1), abs=25)


def test_implicit_files_hold_the_same(tmp_path: Path) -> None:
    helix = Helix(turns=2.0)
    data = helix.scan(BODY)
    one, other = (rebin(helix.write(tmp_path / str(i), data, implicit=i), n_views=3, size=SIZE) for i in (False, True))
    assert torch.equal(one.problem.y, other.problem.y)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(("text", "found"), [("0.02", 0.02), ("0.0192 ", 0.0192), ("0.192", 0.0193), ("", 0.0193)])
def test_attenuation_of_water_is_a_text(implicit: bool, text: str, found: float, tmp_path: Path) -> None:
    helix = Helix(turns=2.0, views_a_turn=60)
    folder = helix.write(tmp_path / "s", helix.scan(BODY[:1]), implicit=implicit, tag_70411001=("DS", text))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if text != "0.192" else "ignore")
        assert rebin(folder, n_views=3, size=SIZE).mu_water_per_mm == found
    if text == "0.192":
        with pytest.warns(UserWarning, match=r"water attenuates 0\.192, expected 0\.01 to 0\.06 per mm"):
            read_projections(folder)


SERIES: dict[str, Callable[[Path], object]] = {
    "a view is missing": lambda s: (s / "00150.dcm").unlink(),
    "many are missing": lambda s: [(s / f"{k:05d}.dcm").unlink() for k in range(100, 160)],
    "one is there twice": lambda s: shutil.copy(s / "00150.dcm", s / "again.dcm"),
    "all are there twice": lambda s: [shutil.copy(p, p.with_name(f"x{p.name}")) for p in sorted(s.iterdir())],
}


@pytest.mark.parametrize("case", SERIES)
def test_a_series_is_whole(case: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "s"
    shutil.copytree(small, folder)
    SERIES[case](folder)
    _fails([str(folder), "--out", str(tmp_path / "x.h5")], "views are missing, there twice, or out of order", capsys)


def test_a_file_without_pixels(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "s"
    shutil.copytree(small, folder)
    path = sorted(folder.iterdir())[150]
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    _fails([str(folder), "--out", str(tmp_path / "x.h5")], f"{path.name}: holds 0 pixels", capsys)


def test_more_views_than_were_measured(tmp_path: Path) -> None:
    """Their noise is stated for as many as are independent: FBP's noise is what white noise of that level makes."""
    helix = Helix(columns=60, column_mm=15.0, centre=(30.75, 8.5), turns=2.0, views_a_turn=80)
    folders = [
        helix.write(tmp_path / str(k), helix.scan(BODY, photons=photons)) for k, photons in enumerate((1e5, None))
    ]
    spread = []
    for n in (20, 200):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            noisy, clean = (rebin(folder, [0.0], n_views=n, size=SIZE) for folder in folders)
        assert any("about 20 are independent" in str(w.message) for w in said) is (n == 200)
        A: Any = noisy.problem.A
        white = torch.as_tensor(noisy.problem.noise_std) * torch.randn(
            A.out_shape, generator=torch.Generator().manual_seed(0)
        )
        made, expected = A.fbp(noisy.problem.y - clean.problem.y, "hann"), A.fbp(white, "hann")
        spread.append(float(made.std() / expected.std()))
    assert spread[1] / spread[0] == pytest.approx(1, abs=0.3)  # it would be √10 without


def test_a_focal_spot_that_moves_is_said(tmp_path: Path) -> None:
    drift = tuple((0.001 * math.sin(k), 0.0, 0.0) for k in range(100))
    helix = Helix(spots=drift, turns=2.0)
    folder = helix.write(tmp_path / "s", helix.scan(BODY[:1]))
    with pytest.warns(UserWarning, match=r"does not keep to . places, but moves by 0\.00"):
        assert len(read_projections(folder).spots) in (1, 2, 4)


def test_info_says_which_slices_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helix = Helix()
    folder = helix.write(tmp_path / "s", helix.scan(BODY[:1]))
    assert is_projections(folder) and not is_projections(tmp_path)
    low, high = heights(read_projections(folder))
    assert main(["info", str(folder)]) == 0
    said = capsys.readouterr().out
    assert (
        "400 views in 2.5 turns, 90 columns and 16 rows of a cylindrical detector" in said
        and f"{low:.1f} to {high:.1f} mm" in said
    )
    for z in (low, high):
        rebin(folder, [z], n_views=5, size=SIZE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    helix = Helix(turns=2.0)
    return helix.write(tmp_path_factory.mktemp("ctpd") / "s", helix.scan(BODY[:1]))


def _fails(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rebin", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and words in error, error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--z", "500"], "has no whole slice at 500 mm; slices from"),
        (["--views", "0"], "n_views >= 1"),
        (["--size", "2"], "size >= 8"),
        (["--out", "nowhere/x.h5"], "does not exist"),
    ],
)
def test_bad_options(
    small: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _fails([str(small), "--out", str(tmp_path / "x.h5"), *options], words, capsys)
    assert list(tmp_path.iterdir()) == []


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "no angle": ({"tag_70311001": ("FL", None)}, "it does not state: phi"),
    "no detector": ({"tag_70291011": ("US", None)}, "size of the detector"),
    "a ball of a detector": (
        {"tag_7029100B": ("CS", "SPHERICAL")},
        "the detector is SPHERICAL; understood are CYLINDRICAL and FLAT",
    ),
    "fewer rows than pixels": ({"tag_70291010": ("US", 8)}, "holds 1440 pixels, its header says 90 x 8"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_files_that_lack_something(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed, words = CHANGES[case]
    helix = Helix(turns=1.0, views_a_turn=100)
    folder = helix.write(tmp_path / "s", helix.scan(BODY[:1]), **changed)
    _fails([str(folder), "--out", str(tmp_path / "x.h5")], words, capsys)


def test_folders_of_other_things(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "x.h5")]
    _fails([str(tmp_path / "none"), *out], "no such folder", capsys)
    _fails([str(tmp_path), *out], "holds no DICOM files", capsys)
    mixed = tmp_path / "mixed"
    shutil.copytree(small, mixed)
    (mixed / "00001.dcm").write_bytes(b"x" * 200)
    _fails([str(mixed), *out], "cannot be read as DICOM", capsys)
    si_dcm = tmp_path / "images"
    si_dcm.mkdir()
    r = si.Reconstruction(torch.full((1, 8, 8), 0.0193), pixel_mm=1.0, mu_water_per_mm=0.0193)
    si.write_reconstruction(tmp_path / "r.h5", r)
    assert main(["export", str(tmp_path / "r.h5"), "--out", str(si_dcm / "a.dcm")]) == 0
    _fails([str(si_dcm), *out], "is no projection in DICOM-CT-PD", capsys)


def test_a_part_of_a_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helix = Helix(turns=0.2)
    folder = helix.write(tmp_path / "s", helix.scan(BODY[:1]))
    _fails([str(folder), "--out", str(tmp_path / "x.h5")], "fewer than one whole slice needs", capsys)


def test_a_spiral_that_leaves_lines_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helix = Helix(feed_mm=150.0)
    folder = helix.write(tmp_path / "s", helix.scan(BODY[:1]))
    _fails([str(folder), "--out", str(tmp_path / "x.h5")], "the pitch is too large", capsys)
