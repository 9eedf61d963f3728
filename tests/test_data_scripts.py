"""Data scripts: files come whole, once and unaltered (from a server inside the test); conversions keep the geometry."""

from __future__ import annotations

import hashlib
import http.server
import io
import math
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from scoreinv.files.scan import read_scan
from scoreinv.operators.ct import FanBeamCT

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data_scripts"))

import _download
import htc2022

CONTENT = np.random.default_rng(0).bytes(200_000)
CHECKSUM = f"md5:{hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}"


class Server(http.server.ThreadingHTTPServer):
    """Serves one file whatever the path; can break off, ignore ranges, and remembers what was asked for."""

    content = CONTENT
    break_after: int | None = None
    knows_ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        s, asked = self.server, self.headers["Range"]
        s.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and s.knows_ranges else 0
        if start >= len(s.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(s.content) - start))
        self.end_headers()
        self.wfile.write(s.content[start : s.break_after])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as s:
        thread = threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield s
        s.shutdown()
        thread.join()


def test_fetches_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    for _ in range(2):
        assert _download.fetch(server.url, path, CHECKSUM) == path
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert server.ranges == [None]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_goes_on_where_the_connection_broke(server: Server, tmp_path: Path, knows_ranges: bool) -> None:
    path, part = tmp_path / "file.bin", tmp_path / "file.bin.part"
    server.knows_ranges, server.break_after = knows_ranges, 70_000
    with pytest.raises(OSError, match="run the same command again"):
        _download.fetch(server.url, path, CHECKSUM)
    assert part.read_bytes() == CONTENT[:70_000] and not path.exists()
    server.break_after = None
    assert _download.fetch(server.url, path, CHECKSUM).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=70000-"] and not part.exists()


def test_takes_a_part_that_is_whole(server: Server, tmp_path: Path) -> None:
    """Killed between the last byte and the renaming: the server has nothing to add (416)."""
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert _download.fetch(server.url, tmp_path / "file.bin", CHECKSUM).read_bytes() == CONTENT


@pytest.mark.parametrize("held", [b"", b"x" * 1000, b"x" * 300_000], ids=["none", "begun", "too long"])
def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path, held: bytes) -> None:
    if held:
        (tmp_path / "file.bin.part").write_bytes(held)
    with pytest.raises(ValueError, match=r"has the checksum md5:\w+, expected md5:"):
        _download.fetch(server.url, tmp_path / "file.bin", CHECKSUM if held else "md5:0")
    assert list(tmp_path.iterdir()) == []


def test_replaces_a_damaged_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT[:-1])
    assert _download.fetch(server.url, path, CHECKSUM).read_bytes() == CONTENT


def test_says_what_the_server_answers(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.send_error(404))
    with pytest.raises(OSError, match="the server answers 404"):
        _download.fetch(server.url, tmp_path / "file.bin", CHECKSUM)
    assert list(tmp_path.iterdir()) == []


# HTC 2022

SINOGRAM = np.random.default_rng(1).random((37, 24))
PARAMETERS = {
    "projectName": "small", "angles": np.linspace(0, 360, 37), "distanceSourceOrigin": 410.66,
    "distanceSourceDetector": 553.74, "pixelSizePost": 5.0, "effectivePixelSizePost": 5.0 * 410.66 / 553.74 / 32,
}  # fmt: skip


def mat_file(**changes: Any) -> bytes:
    """A small file in the challenge's form; 37 views from 0 to 360 degrees, image of 118.6 mm."""
    buffer = io.BytesIO()
    data = {"type": "2d", "sinogram": SINOGRAM, "parameters": {**PARAMETERS, **changes}}
    savemat(buffer, {"CtDataFull": data})
    return buffer.getvalue()


@pytest.fixture
def mat(tmp_path: Path) -> Path:
    path = tmp_path / "htc2022_small_full.mat"
    path.write_bytes(mat_file())
    return path


def kept(n_views: int | None = None, **choice: Any) -> list[int]:
    """Degrees of the views that a conversion keeps, checked against their data."""
    problem = htc2022.convert(io.BytesIO(mat_file()), views=n_views, size=16, **choice).problem
    degrees = [round(math.degrees(a)) for a in problem.A.angles]  # type: ignore[attr-defined]
    torch.testing.assert_close(problem.y, torch.tensor(SINOGRAM[[d // 10 for d in degrees]], dtype=torch.float32))
    return degrees


def test_htc_geometry(mat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert htc2022.main(["--out", str(tmp_path), "--from", str(mat), "--size", "16"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "htc2022_small_36views_16px.h5"
    scan = read_scan(path)
    A = scan.problem.A
    assert isinstance(A, FanBeamCT) and not scan.noise_known
    assert (A.image_shape, A.n_detectors, A.detector_mm) == ((16, 16), 24, 5.0)
    assert (A.source_origin_mm, A.source_detector_mm) == pytest.approx((410.66, 553.74))
    assert A.pixel_mm == pytest.approx(5.0 * 410.66 / 553.74)
    assert A.angles == pytest.approx(np.deg2rad(np.arange(36) * 10))
    torch.testing.assert_close(scan.problem.y, torch.tensor(SINOGRAM[:-1], dtype=torch.float32))


def test_htc_views() -> None:
    assert kept() == [*range(0, 360, 10)]
    assert kept(every=9) == kept(4) == [0, 90, 180, 270]
    assert kept(arc_deg=90) == [*range(0, 90, 10)]
    assert kept(3, arc_deg=90) == [0, 30, 60]


def test_htc_archive(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, twice: one download; afterwards other views come from the archive that is there."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(htc2022.member("tb"), mat_file())
    server.content = buffer.getvalue()
    monkeypatch.setattr(htc2022, "URL", server.url)
    monkeypatch.setattr(htc2022, "CHECKSUM", f"sha256:{hashlib.sha256(server.content).hexdigest()}")
    for n in ("12", "6"):
        assert htc2022.main(["--out", str(tmp_path), "--phantom", "tb", "--views", n, "--size", "16"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "htc2022_teaching_data.zip", "htc2022_tb_12views_16px.h5", "htc2022_tb_6views_16px.h5",
    }  # fmt: skip
    assert server.ranges == [None]
    assert htc2022.main(["--out", str(tmp_path), "--phantom", "td"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views", "37"], "--views: there are 36 views over 360 degrees, got 37"),
        (["--views", "0"], "got 0"),
        (["--every", "0"], "--every: there are 36 views"),
        (["--arc", "0"], "--arc: expected more than 0 degrees"),
        (["--size", "0"], "--size: expected at least 1 pixel"),
        (["--from", "nowhere.mat"], "nowhere.mat"),
        (["--from", __file__], "expected a MATLAB 5 file with the structure CtDataFull"),
    ],
)
def test_htc_bad_input(
    mat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert htc2022.main(["--out", str(tmp_path), "--from", str(mat), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.glob("*.h5")) == []


def test_htc_other_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="expected \\(5 angles, cells\\)"):
        htc2022.convert(io.BytesIO(mat_file(angles=np.arange(5.0))))
    buffer = io.BytesIO()
    savemat(buffer, {"another": 1})
    with pytest.raises(ValueError, match="KeyError: 'CtDataFull'"):
        htc2022.convert(buffer)


@pytest.mark.filterwarnings("ignore::scoreinv.operators.ct.MemoryWarning")
def test_htc_reconstruction_is_the_authors(data_folder: Path) -> None:
    """FBP of 64 rows of the converted scan against theirs, which is in 1/pixel."""
    folder = data_folder / "measured"
    if not (folder / "htc2022_ta_full_recon_fbp.mat").is_file():
        pytest.skip("SCOREINV_DATA has no measured/htc2022_ta_full_recon_fbp.mat")
    problem = htc2022.convert(folder / "htc2022_ta_full.mat").problem
    assert isinstance(problem.A, FanBeamCT) and problem.y.shape == (720, 560)
    strip = replace(problem.A, image_shape=(64, 512))
    theirs = loadmat(folder / "htc2022_ta_full_recon_fbp.mat")["reconFullFbp"][224:288] / strip.pixel_mm
    ours = strip.fbp(problem.y).numpy()
    assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9999
