"""Measured scans: 2DeteCT and the walnut, from files whose exact line integrals are known to scan files."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from file_server import Server, serving, zipped
from PIL import Image
from scipy.io import savemat

from scoreinv.files.scan import read_scan
from scoreinv.operators.ct import FanBeamCT
from scoreinv.phantoms import Ellipse, line_integrals, random_ellipses

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data_scripts"))

import _convert
import _download
import fips_walnut
import htc2022
import two_detect


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as s:
        monkeypatch.setattr(_download, "ZENODO", f"{s.base}/records")
        yield s


# Both


@pytest.mark.parametrize("offset_mm", [0.0, -3.0])
def test_the_image_is_the_disc_that_every_view_sees_whole(offset_mm: float) -> None:
    """The tangent of the image's inscribed circle meets the nearer edge of the detector; views are those kept of the full turn."""
    kept = np.array([0, 3, 7])
    A = _convert.full_turn(
        kept, 10, 40, cell_mm=1.0, offset_mm=offset_mm, source_origin_mm=90.0, source_detector_mm=150.0, size=16
    )
    radius = 16 * A.pixel_mm / 2
    edge = 150.0 * math.tan(math.asin(radius / 90.0))
    assert edge == pytest.approx(20.0 - abs(offset_mm))
    assert A.out_shape == (3, 40) and A.source_detector_mm == 150.0 and A.detector_offset_mm == offset_mm
    assert list(A.angles) == pytest.approx([0, 0.6 * math.pi, 1.4 * math.pi])


# 2DeteCT


def tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16)).save(buffer, "tiff")
    return buffer.getvalue()


def fan(distances: Any, n_cells: int, n_views: int, cell_mm: float, offset_cells: float = 0.0) -> FanBeamCT:
    """A scan of a full turn; a script says where its source and detector stand. Only its rays are used."""
    R, D = distances.SOURCE_ORIGIN_MM, distances.SOURCE_DETECTOR_MM
    angles = (2 * np.pi * np.arange(n_views) / n_views).tolist()
    return FanBeamCT((1, 1), angles, n_cells, R, D - R, 1.0, cell_mm, detector_offset_mm=offset_cells * cell_mm)


def phantom(width_mm: float) -> tuple[Ellipse, ...]:
    return random_ellipses(torch.Generator().manual_seed(3), width_mm=width_mm)


CELL_MM = 2 * two_detect.PIXEL_MM


def measured(offset_cells: float = 0.0) -> torch.Tensor:
    """Exact line integrals in 40 cells, the object 4 of the 4.9 mm that are seen."""
    return line_integrals(phantom(4.0), fan(two_detect, 40, 36, CELL_MM, offset_cells))


DARK, FLAT = 100, 30000


def detect_files(y: np.ndarray) -> dict[str, bytes]:
    """Counts with these line integrals; the first view is repeated at the end."""
    pixels = np.repeat(DARK + FLAT * np.exp(-np.concatenate([y, y[:1]])), 2, axis=1)
    row = np.ones((1, pixels.shape[1]))
    return {
        "sinogram.tif": tiff(np.rint(pixels)), "dark.tif": tiff(DARK * row),
        "flat1.tif": tiff((DARK + FLAT - 300) * row), "flat2.tif": tiff((DARK + FLAT + 300) * row),
    }  # fmt: skip


@pytest.fixture
def detect_record(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    files = detect_files(measured().numpy())
    members = {f"2DeteCT_slices4001-5000/slice04001/mode2/{n}": c for n, c in files.items()}
    server.add_record(8014874, {"2DeteCT_slices4001-5000.zip": zipped(members)})
    return server


def test_two_detect_the_whole_way(detect_record: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--slice", "4001", "--mode", "2", "--size", "48"]
    assert two_detect.main(arguments) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "two_detect" / "slice04001_mode2_48px.h5"
    scan = read_scan(path)
    A = scan.problem.A
    assert isinstance(A, FanBeamCT) and A.image_shape == (48, 48) and not scan.noise_known
    # The rays graze the disc at the outer edges of the detector.
    assert A.pixel_mm * 48 / 2 == pytest.approx(431.019989 * math.sin(math.atan(20 * CELL_MM / 529.000488)))
    # Rounding to whole counts.
    torch.testing.assert_close(scan.problem.y, measured().float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(line_integrals(phantom(4.0), A), measured(), atol=1e-9, rtol=0)
    assert "cc-by-4.0" in scan.info["licence"]
    asked = len(detect_record.paths)
    assert two_detect.main(arguments) == 0
    assert two_detect.main([*arguments, "--views", "12"]) == 0  # from the files that are there
    assert len(detect_record.paths) == asked
    thin = read_scan(tmp_path / "two_detect" / "slice04001_mode2_12views_48px.h5").problem
    torch.testing.assert_close(thin.y, scan.problem.y[::3])
    assert two_detect.main(["--out", str(tmp_path), "--slice", "4001", "--mode", "1"]) == 2
    assert "holds no slice04001/mode1/sinogram.tif" in capsys.readouterr().err


def test_two_detect_shifted_detector(tmp_path: Path) -> None:
    """Until slice 2830, cell d + 1 of the file measured what the authors' geometry has in cell d."""
    y = np.concatenate([np.zeros((36, 1)), measured().numpy()[:, :-1]], axis=1)
    for name, content in detect_files(y).items():
        (tmp_path / name).write_bytes(content)
    for number, fits in ((1, True), (2830, True), (2831, False), (5521, True), (5871, False)):
        problem = two_detect.convert(tmp_path, number, size=48).problem
        exact = line_integrals(phantom(4.0), problem.A)  # type: ignore[arg-type]
        assert bool((exact - problem.y).abs().max() < 1e-4) == fits


def test_two_detect_takes_an_archive_that_is_there(
    detect_record: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "two_detect" / "2DeteCT_slices4001-5000.zip"
    archive.parent.mkdir()
    content = detect_record.routes.pop(f"/content/{archive.name}")
    archive.write_bytes(content[: len(content) // 2])
    assert two_detect.main(["--out", str(tmp_path), "--size", "48"]) == 2
    assert "File is not a zip file; delete it, or download it again" in capsys.readouterr().err
    archive.write_bytes(content)
    assert two_detect.main(["--out", str(tmp_path), "--size", "48"]) == 0


def test_two_detect_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--slice", "5200"], "--slice: there are slices 1 to 5000 and 5521 to 6370, got 5200"),
        (["--limit", "0.001"], "--limit: 1 scans are 0.015 GB"),
    ):
        assert two_detect.main(["--out", str(tmp_path), *options]) == 2
        assert message in capsys.readouterr().err
    files = detect_files(np.zeros((4, 10)))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="has 4 views and the repeated one, 5 were asked for"):
        two_detect.convert(tmp_path, 1, views=5)
    (tmp_path / "dark.tif").write_bytes(tiff(np.ones((1, 8))))
    with pytest.raises(ValueError, match="expected fields of one row of 20 pixels"):
        two_detect.convert(tmp_path, 1)
    (tmp_path / "dark.tif").write_bytes(files["dark.tif"][:5])
    with pytest.raises(ValueError, match=r"dark.tif: cannot be read as TIFF"):
        two_detect.convert(tmp_path, 1)


# Walnut


def walnut(offset_cells: float, *, reverse: bool) -> tuple[FanBeamCT, np.ndarray, np.ndarray]:
    """A fan-beam scan of 120 views and 96 wide cells, its line integrals, and its intensities as the file has them."""
    A = fan(fips_walnut, 96, 120, 1.2, offset_cells)
    y = line_integrals(phantom(32.0), A).numpy()
    brightness = 20000 + 500 * np.sin(np.arange(120))[:, None]
    return A, y, (brightness * np.exp(-(y[:, ::-1] if reverse else y))).T


@pytest.mark.parametrize(("offset", "reverse"), [(0.0, False), (2.3, True), (-1.6, False)])
def test_walnut_axis_and_order_are_found(tmp_path: Path, offset: float, reverse: bool) -> None:
    A, y, intensity = walnut(offset, reverse=reverse)
    savemat(tmp_path / "w.mat", {"sinogram1200": intensity})
    scan = fips_walnut.convert(tmp_path / "w.mat", size=48, cell_mm=1.2, edge=4)
    found = scan.problem.A
    assert isinstance(found, FanBeamCT) and scan.info["cells_reversed"] == reverse and not scan.noise_known
    assert found.detector_offset_mm == pytest.approx(A.detector_offset_mm, abs=0.1 * 1.2)
    np.testing.assert_allclose(scan.problem.y, y, atol=1e-5)
    assert found.angles == pytest.approx(A.angles)
    reach = 48 * 1.2 - abs(found.detector_offset_mm)
    assert found.pixel_mm * 48 / 2 == pytest.approx(110 * math.sin(math.atan(reach / 300)))


def test_axis_of_a_measured_scan(data_folder: Path) -> None:
    """HTC 2022, whose axis is known to project to the middle of the detector, in the order of the operator's cells."""
    mat = data_folder / "measured" / "htc2022_ta_full.mat"
    if not mat.is_file():
        pytest.skip("SCOREINV_DATA has no measured/htc2022_ta_full.mat")
    problem = htc2022.convert(mat, size=8).problem
    A, y = problem.A, problem.y.double().numpy()
    assert isinstance(A, FanBeamCT)
    for reverse in (False, True):
        cells = y[:, ::-1] if reverse else y
        offset_mm, found = fips_walnut.find_axis(cells, A.source_detector_mm, A.detector_mm)
        assert abs(offset_mm) < 0.2 * A.detector_mm and found == reverse


def test_walnut_the_whole_way(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    savemat(buffer, {"sinogram1200": walnut(1.0, reverse=False)[2]})
    server.add_record(fips_walnut.RECORD, {fips_walnut.FILE: buffer.getvalue()})
    monkeypatch.setattr(fips_walnut.convert, "__kwdefaults__", {"views": None, "size": 48, "cell_mm": 1.2, "edge": 4})
    arguments = ["--out", str(tmp_path), "--views", "40", "--size", "48"]
    for _ in range(2):
        assert fips_walnut.main(arguments) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "fips_walnut_40views_48px.h5")
    assert len(server.paths) == 2
    assert read_scan(tmp_path / "fips_walnut_40views_48px.h5").problem.y.shape == (40, 96)


def test_walnut_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fips_walnut.convert(tmp_path / "none.mat")
    path = tmp_path / "w.mat"
    savemat(path, {"other": 1.0})
    with pytest.raises(ValueError, match=r"expected a MATLAB 5 file with sinogram1200 .KeyError"):
        fips_walnut.convert(path)
    path.write_bytes(b"half a file")
    with pytest.raises(ValueError, match="expected a MATLAB 5 file"):
        fips_walnut.convert(path)
    savemat(path, {"sinogram1200": np.ones((200, 3))})
    with pytest.raises(ValueError, match=r"more than 200 cells, got \(200, 3\)"):
        fips_walnut.convert(path)
    savemat(path, {"sinogram1200": walnut(0.0, reverse=False)[2]})
    with pytest.raises(ValueError, match="--views: there are 120 views, got 121"):
        fips_walnut.convert(path, views=121, edge=4)
