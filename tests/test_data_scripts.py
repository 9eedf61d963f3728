"""Data scripts: files come whole, once and unaltered (from a server inside the test); conversions keep the geometry."""

from __future__ import annotations

import hashlib
import io
import math
import socket
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from file_server import Server, md5, serving, zipped
from scipy.io import loadmat, savemat

from scoreinv.files.scan import read_scan
from scoreinv.operators.ct import FanBeamCT

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data_scripts"))

import _download
import htc2022

CONTENT = np.random.default_rng(0).bytes(200_000)
CHECKSUM = md5(CONTENT)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as s:
        s.content = CONTENT
        yield s


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


@pytest.mark.parametrize(
    ("status", "hint"), [(404, "has it moved"), (403, "wants a login"), (429, "try again later"), (500, "answers 500")]
)
def test_says_what_the_server_answers(server: Server, tmp_path: Path, status: int, hint: str) -> None:
    server.status = status
    with pytest.raises(OSError, match=rf"the server answers {status} .*{hint}|{hint}"):
        _download.fetch(server.url, tmp_path / "file.bin", CHECKSUM)
    assert list(tmp_path.iterdir()) == []


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/file"
    with pytest.raises(OSError, match=r"cannot be reached: .*refused.*run the same command again"):
        _download.fetch(url, tmp_path / "file.bin", CHECKSUM)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_size_is_noticed_before_the_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="200000 bytes, expected 199999; the file on the server has changed"):
        _download.fetch(server.url, tmp_path / "file.bin", CHECKSUM, len(CONTENT) - 1)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_and_limit(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--limit: .* more than 0.0001 GB"):
        _download.fetch(server.url, tmp_path / "file.bin", CHECKSUM, limit_gb=1e-4)
    usage = type("Usage", (), {"free": len(CONTENT) - 1})
    monkeypatch.setattr(_download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"0.00 GB are needed, 0.00 GB are free"):
        _download.fetch(server.url, tmp_path / "file.bin", CHECKSUM)
    assert list(tmp_path.iterdir()) == []


def test_without_a_checksum_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    """Two halves need not belong together; a broken connection is still noticed where the server told the length."""
    server.break_after = 70_000
    with pytest.raises(OSError, match="ended after 70000 of 200000 bytes"):
        _download.fetch(server.url, tmp_path / "file.bin", None)
    server.break_after = None
    for _ in range(2):
        assert _download.fetch(server.url, tmp_path / "file.bin", None).read_bytes() == CONTENT
    assert server.ranges == [None] * 3


# Parts of archives on a server


def test_takes_one_member_out_of_a_remote_archive(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "AHEAD", 2**12)
    server.content = zipped({f"{k}.bin": CONTENT[k:] for k in range(5)}, zipfile.ZIP_STORED)
    with _download.remote_zip(server.url) as archive:
        for _ in range(2):
            path = _download.extract(archive, "3.bin", tmp_path / "new" / "3.bin")
        with pytest.raises(ValueError, match=r"holds no 7.bin"):
            _download.extract(archive, "7.bin", tmp_path / "7.bin")
    assert path.read_bytes() == CONTENT[3:]
    fetched = sum(1 - int.__sub__(*map(int, r.removeprefix("bytes=").split("-"))) for r in server.ranges if r)
    assert len(CONTENT) < fetched < 1.3 * len(CONTENT)  # of five times as much


def test_a_damaged_member_is_noticed(server: Server, tmp_path: Path) -> None:
    whole = zipped({"a.bin": CONTENT}, zipfile.ZIP_STORED)
    server.content = whole.replace(CONTENT[1000:1100], bytes(100))
    assert len(server.content) == len(whole) != 0 and server.content != whole
    with pytest.raises(ValueError, match="Bad CRC-32"), _download.remote_zip(server.url) as archive:
        _download.extract(archive, "a.bin", tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_remote_archives_need_ranges(server: Server) -> None:
    server.knows_ranges = False
    with pytest.raises(OSError, match="sends no parts of files"), _download.remote_zip(server.url):
        pass


# Records


def test_a_record_is_asked_for_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_download, "ZENODO", f"{server.base}/records")
    server.add_record(7, {"a.bin": CONTENT})
    for _ in range(2):
        record = _download.zenodo(7, tmp_path)
    assert server.paths == ["/records/7"]
    assert record.files["a.bin"] == _download.Remote(f"{server.base}/content/a.bin", len(CONTENT), CHECKSUM)
    assert "cc-by-4.0" in capsys.readouterr().err
    assert "cc-by-4.0" in (tmp_path / "LICENCE_zenodo_7.txt").read_text()
    with pytest.raises(ValueError, match=r"holds no b.bin, only a.bin; has it changed"):
        record.choose(["b.bin"])
    with pytest.raises(ValueError, match=r"--limit: a.bin is 0.00 GB, more than 0.0001 GB"):
        record.choose(["a.bin"], 1e-4)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"<html>", "expected JSON; has the service changed"), (b'{"files": [], "metadata": {}}', "'title'")],
)
def test_another_answer_than_a_record_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, message: str
) -> None:
    monkeypatch.setattr(_download, "ZENODO", f"{server.base}/records")
    server.content = answer
    with pytest.raises(ValueError, match=message):
        _download.zenodo(8, tmp_path)
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
    server.content = zipped({htc2022.member("tb"): mat_file()})
    monkeypatch.setattr(htc2022, "URL", server.url)
    monkeypatch.setattr(htc2022, "CHECKSUM", f"sha256:{hashlib.sha256(server.content).hexdigest()}")
    for n in ("12", "6"):
        assert htc2022.main(["--out", str(tmp_path), "--phantom", "tb", "--views", n, "--size", "16"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "htc2022_teaching_data.zip", "LICENCE_htc2022.txt",
        "htc2022_tb_12views_16px.h5", "htc2022_tb_6views_16px.h5",
    }  # fmt: skip
    assert server.ranges == [None]
    assert htc2022.main(["--out", str(tmp_path), "--phantom", "td"]) == 2


def test_htc_other_views_of_one_file_name_are_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every 7th of 36 views are six, but not those that are spread evenly; a file that does not say is kept."""
    server.content = zipped({htc2022.member("tb"): mat_file()})
    monkeypatch.setattr(htc2022, "URL", server.url)
    monkeypatch.setattr(htc2022, "CHECKSUM", md5(server.content))
    assert kept(every=7) != kept(6) and len(kept(every=7)) == 6
    arguments = ["--out", str(tmp_path), "--phantom", "tb", "--size", "16"]
    path = tmp_path / "htc2022_tb_6views_16px.h5"
    for _ in range(2):
        assert htc2022.main([*arguments, "--every", "7"]) == 0
    before = path.read_bytes()
    with h5py.File(path) as file:
        assert file.attrs["conversion"] == '{"arc": 360.0, "every": 7, "size": 16, "views": null}'
    capsys.readouterr()
    assert htc2022.main([*arguments, "--views", "6"]) == 2
    assert capsys.readouterr().err == (
        f"htc2022: error: {path}: was made with --every 7 and without --views, now asked for with --every 1 and with --views 6: "
        "give another --out, or delete the file\n"
    )
    assert path.read_bytes() == before and len(read_scan(path).problem.y) == 6
    with h5py.File(path, "r+") as file:
        del file.attrs["conversion"]
    assert htc2022.main([*arguments, "--views", "6"]) == 0
    assert f"{path}: does not say with which options it was made; it is kept" in capsys.readouterr().err


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
