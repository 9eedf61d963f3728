"""Collections of images and LoDoPaB-CT, each the whole way from a server inside the test with small files of the same layout."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import sys
import tarfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from file_server import Server, md5, serving, zipped

from scoreinv.files.images import read_image, read_image_set
from scoreinv.files.scan import read_scan

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data_scripts"))

import _convert
import _download
import _tcia
import brats
import fastmri
import fips_walnut
import ldct
import ldct_projections
import lidc_idri
import lodopab
import two_detect
from helix import BODY, Helix


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as s:
        monkeypatch.setattr(_download, "ZENODO", f"{s.base}/records")
        monkeypatch.setattr(_tcia, "API", s.base)
        yield s


SCRIPTS = (brats, fastmri, fips_walnut, ldct, ldct_projections, lidc_idri, lodopab, two_detect)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
def test_help_tells_where_the_data_come_from(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    text = capsys.readouterr().out
    assert (
        "doi:10." in text
        and "--out" in text
        and "--limit" in text
        and f"python data_scripts/{script.__name__}.py" in text
    )


# Conversion


def test_split_is_by_name_alone() -> None:
    names = [f"P{k}" for k in range(3000)]
    parts = [_convert.part_of(n) for n in names]
    assert [_convert.part_of(n) for n in reversed(names)] == parts[::-1]
    # Four standard deviations of binomial counts.
    for part, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(parts.count(part) / 3000 - share) < 4 * math.sqrt(share * (1 - share) / 3000)
    assert [_convert.part_of(f"LIDC-IDRI-{k:04d}") for k in (1, 2, 3)] == PINNED


PINNED = ["train", "test", "train"]
"""Must never change: a patient who moved from train to test would spoil every comparison."""


def test_images_become_a_training_set(tmp_path: Path) -> None:
    hu = np.array([[[-3000.0, 0.4], [0.6, 40000.0]]])
    path = tmp_path / "new" / "a.h5"
    _convert.write_images(path, hu, 0.7, ["p"], licence="free")
    images = read_image_set([path])
    assert images.images[0].tolist() == [[-1000, 0], [1, 32767]]
    assert (list(images.patients), list(images.pixel_mm)) == (["p"], [0.7])
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"]


def test_block_mean() -> None:
    image = np.arange(30.0).reshape(1, 5, 6)
    assert _convert.block_mean(image, 2).tolist() == [[[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]]
    assert _convert.block_mean(image, 1).tolist() == image.tolist()


# The Cancer Imaging Archive


def dicom(patient: str, z: int, series: str, value: int) -> bytes:
    """A CT slice of 8 x 8 pixels of 0.5 mm; stored values are HU + 1024."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.PatientID, ds.SeriesInstanceUID, ds.Modality = patient, series, "CT"
    ds.Rows = ds.Columns = 8
    ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept = [0.5, 0.5], 1, -1024
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelData = np.full((8, 8), value + 1024, dtype=np.uint16).tobytes()
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def series_zip(patient: str, uid: str, n: int, *, manifest: dict[str, str] | None = None, drop: int = 0) -> bytes:
    """What getImageWithMD5Hash sends; slices lie in descending z, slice at z has 10 z HU."""
    files = {f"1-{k}.dcm": dicom(patient, n - k, uid, 10 * (n - k)) for k in range(n)}
    sums = (
        {name: md5(content).removeprefix("md5:") for name, content in files.items()} if manifest is None else manifest
    )
    table = io.StringIO()
    csv.writer(table).writerows([("Filename", "MD5Hash"), *sums.items()])
    return zipped({**dict(list(files.items())[drop:]), "md5hashes.csv": table.getvalue().encode(), "LICENSE": b"by"})


def entry(patient: str, uid: str, n: int, **changes: Any) -> dict[str, Any]:
    return {
        "PatientID": patient, "SeriesInstanceUID": uid, "Modality": "CT", "SeriesDescription": "chest", "ImageCount": n,
        "FileSize": 10**6 * n, "LicenseName": "CC BY 3.0", "LicenseURI": "https://cc/by/3.0", **changes,
    }  # fmt: skip


def offer(server: Server, collection: str, series: list[dict[str, Any]]) -> None:
    query = urllib.parse.urlencode({"Collection": collection, "format": "json"})
    server.routes[f"/getSeries?{query}"] = json.dumps(series).encode()
    for s in series:
        uid, n = s["SeriesInstanceUID"], s["ImageCount"]
        server.routes[f"/getImageWithMD5Hash?SeriesInstanceUID={uid}"] = series_zip(s["PatientID"], uid, n)


LIDC = [
    entry("LIDC-IDRI-0002", "1.2.2", 4), entry("LIDC-IDRI-0001", "1.2.10", 2), entry("LIDC-IDRI-0001", "1.2.11", 5),
    entry("LIDC-IDRI-0001", "1.2.12", 9, Modality="DX"), entry("LIDC-IDRI-0003", "1.2.3", 3),
]  # fmt: skip


def test_lidc_the_whole_way(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offer(server, "LIDC-IDRI", LIDC)
    arguments = ["--out", str(tmp_path), "--patients", "2", "--slices", "3", "--bin", "2"]
    assert lidc_idri.main(arguments) == 0
    shown = capsys.readouterr()
    paths = [Path(line) for line in shown.out.split()]
    folder = tmp_path / "lidc_idri"
    assert paths == [folder / _convert.part_of(p) / f"{p}.h5" for p in ("LIDC-IDRI-0001", "LIDC-IDRI-0002")]
    assert "CC BY 3.0 https://cc/by/3.0" in shown.err and (folder / "LICENCE_lidc_idri.txt").read_text() in shown.err
    assert server.paths[1:] == [f"/getImageWithMD5Hash?SeriesInstanceUID={uid}" for uid in ("1.2.11", "1.2.2")]
    images = read_image(paths[0])
    # Slices in ascending z; of 5, numbers 0, 1 and 3.
    assert images.hu[:, 0, 0].tolist() == [10, 20, 40] and images.hu.shape == (3, 4, 4)
    assert (images.pixel_mm, images.patient) == (1.0, "LIDC-IDRI-0001")
    with h5py.File(paths[0]) as file:
        assert set(json.loads(file.attrs["source_md5"])) == {f"1-{k}.dcm" for k in range(5)}
        assert file.attrs["md5_published"] == 1 and "CC BY 3.0" in file.attrs["licence"]

    # Again: nothing is asked for; one patient more: one archive more.
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    asked = len(server.paths)
    assert lidc_idri.main(arguments) == 0
    assert len(server.paths) == asked
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    assert lidc_idri.main([*arguments, "--patients", "3"]) == 0
    assert server.paths[asked:] == ["/getImageWithMD5Hash?SeriesInstanceUID=1.2.3"]
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".h5", ".json", ".txt"}


def options_of(path: Path) -> str:
    """As they are kept in a converted file."""
    with h5py.File(path) as file:
        return str(file.attrs["conversion"])


def is_kept(
    script: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], changed: list[str], words: str
) -> None:
    """Files of other options are refused and stay as they are, with the same they are there, and of unknown ones it is said."""
    capsys.readouterr()
    assert script.main(arguments) == 0
    shown = capsys.readouterr()
    paths = [Path(line) for line in shown.out.split()]
    before = {path: path.read_bytes() for path in paths}
    assert "with which options" not in shown.err
    assert script.main([*arguments, *changed]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and f"{words}: give another --out, or delete the file" in shown.err
    assert {path: path.read_bytes() for path in paths} == before
    for path in paths:
        with h5py.File(path, "r+") as file:
            del file.attrs["conversion"]
    assert script.main([*arguments, *changed]) == 0
    shown = capsys.readouterr()
    assert [Path(line) for line in shown.out.split()] == paths
    assert all(f"{path}: does not say with which options it was made; it is kept\n" in shown.err for path in paths)


def test_files_keep_the_options_that_shape_them(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(server, "LIDC-IDRI", LIDC)
    arguments = ["--out", str(tmp_path), "--patients", "1", "--bin", "2"]
    assert lidc_idri.main(arguments) == 0
    (path,) = tmp_path.rglob("*.h5")
    assert options_of(path) == '{"bin": 2, "slices": null}'
    words = f"{path}: was made with --bin 2 and without --slices, now asked for with --bin 1 and with --slices 30"
    is_kept(lidc_idri, capsys, arguments, ["--bin", "1", "--slices", "30"], words)
    path.write_bytes(b"not HDF5")
    assert lidc_idri.main(arguments) == 2
    assert f"{path}: not an HDF5 file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "patient", ["../../elsewhere", "..", ".", "", "a/b", "a\\b", "/abs", "c:a", "a\n", "a\0", 7, None]
)
@pytest.mark.parametrize("kept", [False, True])
def test_patients_whose_names_lead_elsewhere_are_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], patient: Any, kept: bool
) -> None:
    """Whether the server says so or the answer that is kept."""
    series = [*LIDC, entry(patient, "1.2.9", 3)]
    offer(server, "LIDC-IDRI", LIDC)
    query = urllib.parse.urlencode({"Collection": "LIDC-IDRI", "format": "json"})
    server.routes[f"/getSeries?{query}"] = json.dumps(series).encode()
    out = tmp_path / "in" / "data"
    if kept:
        (out / "lidc_idri").mkdir(parents=True)
        (out / "lidc_idri" / "series.json").write_text(json.dumps(series))
    assert lidc_idri.main(["--out", str(out)]) == 2
    shown = capsys.readouterr().err
    assert (
        f"getSeries, PatientID: expected a name that files can have, got {patient!r}; has the data set changed?"
        in shown
    )
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == (["series.json"] if kept else [])


def test_members_of_an_archive_whose_names_lead_elsewhere_are_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(server, "LIDC-IDRI", LIDC[:1])
    files = {"1-0.dcm": dicom("LIDC-IDRI-0002", 0, "1.2.2", 0), "a/..": dicom("LIDC-IDRI-0002", 1, "1.2.2", 0)}
    server.routes["/getImageWithMD5Hash?SeriesInstanceUID=1.2.2"] = zipped(files)
    assert lidc_idri.main(["--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "LIDC-IDRI-0002.zip: expected a name that files can have, got '..'" in shown
    assert "1 of 1 patients could not be converted" in shown


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (series_zip("LIDC-IDRI-0001", "1.2.11", 5, drop=1), "1-0.dcm is missing"),
        (series_zip("LIDC-IDRI-0001", "1.2.11", 4), "holds 4 of the 5 images"),
        (series_zip("LIDC-IDRI-0001", "1.2.11", 5, manifest={"1-0.dcm": "0" * 32}), "the server's list says 0000"),
        (series_zip("LIDC-IDRI-0001", "1.2.11", 5)[:-300], "is no whole zip archive"),
        (b"<html>maintenance</html>", "is no whole zip archive"),
    ],
    ids=["file missing", "fewer images", "other checksum", "cut short", "no archive"],
)
def test_a_broken_series_is_reported_and_the_others_go_on(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], archive: bytes, message: str
) -> None:
    offer(server, "LIDC-IDRI", LIDC)
    server.routes["/getImageWithMD5Hash?SeriesInstanceUID=1.2.11"] = archive
    assert lidc_idri.main(["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and "1 of 3 patients could not be converted: LIDC-IDRI-0001" in error
    files = sorted(p.stem for p in (tmp_path / "lidc_idri").rglob("*") if p.suffix in (".h5", ".zip", ".part", ".dcm"))
    assert files == ["LIDC-IDRI-0002", "LIDC-IDRI-0003"]


def test_a_series_without_published_sums(server: Server, tmp_path: Path) -> None:
    offer(server, "LIDC-IDRI", LIDC[:1])
    server.routes["/getImageWithMD5Hash?SeriesInstanceUID=1.2.2"] = series_zip(
        "LIDC-IDRI-0002", "1.2.2", 4, manifest={}
    )
    assert lidc_idri.main(["--out", str(tmp_path)]) == 0
    (path,) = tmp_path.rglob("*.h5")
    with h5py.File(path) as file:
        assert file.attrs["md5_published"] == 0 and len(json.loads(file.attrs["source_md5"])) == 4


def test_lidc_limit_and_refusals(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*options: str) -> tuple[int, str]:
        return lidc_idri.main(["--out", str(tmp_path), *options]), capsys.readouterr().err

    code, error = run()
    assert code == 2 and "the server answers 404" in error
    server.content = b""
    code, error = run()
    assert code == 2 and "knows no collection LIDC-IDRI" in error
    server.content = b'[{"Patient": 1}]'
    code, error = run()
    assert code == 2 and "has the API changed?" in error
    assert list(tmp_path.rglob("*.json")) == []
    server.content = None
    offer(server, "LIDC-IDRI", LIDC)
    code, error = run("--limit", "0.004")
    assert code == 2 and "--limit: the first patient's series alone is 0.005 GB" in error
    code, error = run("--limit", "0.009")  # 5, 4 and 3 MB
    assert code == 0 and "--limit: the first 2 of 3 patients that are missing" in error
    assert len(list(tmp_path.rglob("*.h5"))) == 2


def test_ldct_takes_images_of_one_dose(server: Server, tmp_path: Path) -> None:
    series = [
        entry(patient, f"2.{p}.{k}", 2 + k, SeriesDescription=description)
        for p, patient in enumerate(("C001", "L004", "N012"))
        for k, description in enumerate(("Full Dose Images", "Low Dose Images", "Full dose projections"))
    ]
    offer(server, "LDCT-and-Projection-data", series)
    assert ldct.main(["--out", str(tmp_path), "--dose", "full"]) == 0
    assert ldct.main(["--out", str(tmp_path), "--dose", "low", "--exam", "l"]) == 0
    asked = [p.rpartition("=")[2] for p in server.paths if "getImage" in p]
    assert asked == ["2.0.0", "2.1.0", "2.1.1"]


def projections_zip(folder: Path, patient: str, *, spoil: bool = False) -> tuple[bytes, int]:
    """A small spiral as the server sends it, and its number of views."""
    helix = Helix(columns=40, rows=8, column_mm=22.5, row_mm=8.0, centre=(20.75, 4.5), views_a_turn=60, turns=2.0)
    helix.write(folder, helix.scan(BODY))
    files = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
    sums = {name: md5(content).removeprefix("md5:") for name, content in files.items()}
    if spoil:
        files["00005.dcm"] = files["00006.dcm"]
    table = io.StringIO()
    csv.writer(table).writerows([("Filename", "MD5Hash"), *sums.items()])
    return zipped({**files, "md5hashes.csv": table.getvalue().encode()}), len(files)


def test_ldct_projections_become_scan_files(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, n = projections_zip(tmp_path / "made", "L001")
    kinds = (("Full Dose Images", 3), ("Full dose projections", n), ("Low Dose Projections", n))
    series = [entry("L001", f"3.{k}", many, SeriesDescription=words) for k, (words, many) in enumerate(kinds)]
    offer(server, "LDCT-and-Projection-data", series)
    server.routes["/getImageWithMD5Hash?SeriesInstanceUID=3.1"] = archive
    arguments = ["--out", str(tmp_path), "--views", "9", "--size", "40", "--slices", "2"]
    assert ldct_projections.main(arguments) == 0
    (path,) = (Path(line) for line in capsys.readouterr().out.split())
    folder = tmp_path / "ldct_projections_full"
    assert path == folder / _convert.part_of("L001") / "L001_9views_40px.h5"
    scan = read_scan(path)
    assert scan.problem.y.shape == (2, 9, 40) and scan.noise_known and scan.mu_water_per_mm == 0.0192
    assert scan.info["patient"] == "L001" and scan.info["md5_published"] and "CC BY 3.0" in scan.info["licence"]
    assert {p.name for p in folder.iterdir()} == {"LICENCE_ldct_projections_full.txt", path.parent.name, "series.json"}
    asked = len(server.paths)
    assert options_of(path) == '{"size": 40, "slices": 2, "views": 9}'
    words = f"{path}: was made with --slices 2, now asked for with --slices 3"
    is_kept(ldct_projections, capsys, arguments, ["--slices", "3"], words)
    assert len(server.paths) == asked
    server.routes["/getImageWithMD5Hash?SeriesInstanceUID=3.2"] = projections_zip(
        tmp_path / "again", "L001", spoil=True
    )[0]
    assert ldct_projections.main([*arguments, "--dose", "low"]) == 2
    assert "00005.dcm has the MD5" in capsys.readouterr().err
    assert list((tmp_path / "ldct_projections_low").glob("*/*.h5")) == []


# MRI


def tarred(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def brain(k: int) -> bytes:
    """(x, y, z, contrast) of 1 mm: a bright block whose place tells axes apart, and its contrast; two slices are dark."""
    import nibabel

    values = np.zeros((12, 10, 6, 4), np.int16)
    for c in range(4):
        values[2:5, 1:8, 1:5, c] = 100 * (k + 1) * (c + 1)
    image = nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 1.0, 1.0]))  # type: ignore[no-untyped-call]
    return gzip.compress(image.to_bytes())


@pytest.fixture
def brains(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    members = {f"Task01_BrainTumour/imagesTr/BRATS_{k:03d}.nii.gz": brain(k) for k in range(3)}
    archive = tarred(
        {
            **members,
            "Task01_BrainTumour/labelsTr/BRATS_000.nii.gz": b"x",
            "Task01_BrainTumour/imagesTr/._BRATS_000.nii.gz": b"x",
        }
    )
    server.routes["/Task01_BrainTumour.tar"] = archive
    for name, value in (
        ("URL", f"{server.base}/Task01_BrainTumour.tar"),
        ("MD5", md5(archive)),
        ("SIZE", len(archive)),
    ):
        monkeypatch.setattr(brats, name, value)
    return server


def test_brats_the_whole_way(brains: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brats.main(["--out", str(tmp_path), "--contrast", "t1", "--patients", "2", "--slices", "3"]) == 0
    shown = capsys.readouterr()
    paths = [Path(line) for line in shown.out.split()]
    assert [p.name for p in paths] == ["BRATS_000.h5", "BRATS_001.h5"] and "CC BY-SA 4.0" in shown.err
    assert all(p.parent == tmp_path / "brats_t1" / _convert.part_of(p.stem) for p in paths)
    images = read_image_set(paths)
    assert list(images.patients) == ["BRATS_000"] * 3 + ["BRATS_001"] * 3 and set(images.pixel_mm) == {1.0}
    hu = np.stack(images.images[:3])
    assert set(np.unique(hu)) == {-1000, 1000}
    # x to the left of the image grows, y upwards: rows from the front, columns from the right
    expected = np.full((10, 12), -1000)
    expected[::-1, ::-1][1:8, 2:5] = 1000
    assert (hu == expected).all()
    assert brats.main(["--out", str(tmp_path), "--contrast", "flair", "--patients", "1"]) == 0
    assert len([p for p in brains.paths if "tar" in p]) == 1  # the archive is there
    assert options_of(paths[0]) == '{"slices": 3}'
    words = f"{paths[0]}: was made with --slices 3, now asked for with --slices 2"
    arguments = ["--out", str(tmp_path), "--contrast", "t1", "--patients", "2", "--slices", "3"]
    is_kept(brats, capsys, arguments, ["--slices", "2"], words)


def test_names_of_brats_are_those_of_files(
    brains: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tarred({"Task01_BrainTumour/imagesTr/BRATS_..\\..\\a.nii.gz": brain(0)})
    brains.routes["/Task01_BrainTumour.tar"] = archive
    monkeypatch.setattr(brats, "MD5", md5(archive))
    monkeypatch.setattr(brats, "SIZE", len(archive))
    assert brats.main(["--out", str(tmp_path)]) == 2
    assert "Task01_BrainTumour.tar: expected a name that files can have, got 'BRATS_..\\\\" in capsys.readouterr().err
    assert list(tmp_path.rglob("*.h5")) == []


def test_fastmri_the_whole_way(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    volumes = {f"file{k}": rng.random((4, 9, 8)).astype(np.float32) for k in range(3)}
    members = {}
    for k, (name, images) in enumerate(volumes.items()):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file["reconstruction_esc" if k else "reconstruction_rss"] = images
            file["kspace"] = images.astype(np.complex64)
            header = "<encoding><encodedSpace><fieldOfView_mm><x>320</x></fieldOfView_mm></encodedSpace><reconSpace><matrixSize><x>320</x></matrixSize>"
            file["ismrmrd_header"] = header + "<fieldOfView_mm><x>160</x></fieldOfView_mm></reconSpace></encoding>"
            file.attrs["patient_id"] = "ab12" if k < 2 else "cd34"
        members[f"singlecoil_val/{name}.h5"] = buffer.getvalue()
    archive = tarred({**members, "singlecoil_val/README": b"x"}, "w:xz")
    server.routes["/knee.tar.xz?Signature=1"] = archive
    sha = hashlib.sha256(archive).hexdigest()
    arguments = ["--out", str(tmp_path), "--archive", f"{server.base}/knee.tar.xz?Signature=1", "--sha256", sha]
    assert fastmri.main([*arguments, "--slices", "2"]) == 0
    shown = capsys.readouterr()
    paths = [Path(line) for line in shown.out.split()]
    assert {p.stem: p.parent.name for p in paths} == {
        name: _convert.part_of("ab12" if k < 2 else "cd34") for k, name in enumerate(volumes)
    }
    assert "data sharing agreement" in shown.err
    images = read_image_set([p for p in paths if p.stem == "file2"])
    top = float(np.quantile(volumes["file2"], 0.998))
    np.testing.assert_allclose(
        np.stack(images.images), 2000 * np.clip(volumes["file2"][[0, 2]] / top, 0, 1) - 1000, atol=0.51
    )
    assert set(images.patients) == {"cd34"} and set(images.pixel_mm) == {0.5}
    asked = len(server.paths)
    assert fastmri.main([*arguments, "--slices", "2"]) == 0 and len(server.paths) == asked
    assert options_of(paths[0]) == '{"slices": 2}'
    words = "was made with --slices 2, now asked for with --slices 3"
    is_kept(fastmri, capsys, [*arguments, "--slices", "2"], ["--slices", "3"], words)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (folder / "file1.h5").write_bytes(members["singlecoil_val/file1.h5"])
    assert fastmri.main(["--out", str(tmp_path / "again"), "--archive", str(folder)]) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such archive or folder"),
        (b"nonsense", "is no whole tar archive"),
        (tarred({"a.txt": b"x"}), "holds no .h5 files"),
        (tarred({"a.h5": b"x"}), "a: cannot be read as HDF5"),
        (tarred({"singlecoil_val/a\x1b[2J.h5": b"x"}), "x.tar: expected a name that files can have, got 'a\\x1b[2J'"),
    ],
)
def test_other_archives_than_fastmri(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.tar"
    if content is not None:
        path.write_bytes(content)
    assert fastmri.main(["--out", str(tmp_path), "--archive", str(path)]) == 2
    assert words in capsys.readouterr().err


def test_magnitudes_are_checked() -> None:
    for bad in (np.zeros((2, 3, 3)), -np.ones((1, 2, 2)), np.full((1, 2, 2), np.nan)):
        with pytest.raises(ValueError, match="expected magnitudes"):
            _convert.magnitudes(bad)
    few = np.zeros((1, 100, 100))
    few[0, 0, 0] = 5.0
    assert _convert.magnitudes(few).max() == 1000


# LoDoPaB-CT


@pytest.fixture
def lodopab_record(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Five slices of four patients in files of two."""
    monkeypatch.setattr(lodopab, "SLICES_A_FILE", 2)
    rng = np.random.default_rng(0)
    archives: dict[str, dict[str, bytes]] = {"ground_truth_test.zip": {}, "observation_test.zip": {}}
    for number, n in enumerate((2, 2, 1)):
        for kind, shape in (("ground_truth", (n, 36, 36)), ("observation", (n, 6, 17))):
            buffer = io.BytesIO()
            with h5py.File(buffer, "w") as file:
                file["data"] = rng.random(shape).astype(np.float32)
            archives[f"{kind}_test.zip"][f"{kind}_test_{number:03d}.hdf5"] = buffer.getvalue()
    files = {name: zipped(members) for name, members in archives.items()}
    server.add_record(lodopab.RECORD, {**files, "patient_ids_rand_test.csv": b"31\n31\n7\n12\n5\n"})
    return server


def test_lodopab_whole_part(lodopab_record: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, folder = lodopab_record, tmp_path / "lodopab"
    arguments = ["--out", str(tmp_path), "--part", "test", "--scan", "3", "--every", "2"]
    assert lodopab.main(arguments) == 0
    shown = capsys.readouterr().out.split()
    assert shown == [str(folder / f"images_test_{k:03d}.h5") for k in range(3)] + [
        str(folder / "scan_test_3_every2.h5")
    ]
    assert list(folder.glob("*.zip")) == [] and len(list(folder.glob("*.hdf5"))) == 6
    images = read_image_set([folder / "images_test_001.h5"])
    assert list(images.patients) == ["lodopab-7", "lodopab-12"] and images.pixel_mm[0] == pytest.approx(260 / 36)
    with h5py.File(folder / "ground_truth_test_001.hdf5") as file:
        x = file["data"][0]
    # μ [1/m] = 20 + HU (20 - 0.02) / 1000, the image transposed.
    np.testing.assert_allclose(images.images[0], 1000 * (81.35858 * x.T - 20) / 19.98, atol=0.51)
    scan = read_scan(folder / "scan_test_3_every2.h5")
    with h5py.File(folder / "observation_test_001.hdf5") as file:
        torch.testing.assert_close(scan.problem.y, torch.tensor(file["data"][1, ::2] * 81.35858))
    asked = len(server.paths)
    assert lodopab.main(arguments) == 0
    assert len(server.paths) == asked


def test_lodopab_some_patients(lodopab_record: Server, tmp_path: Path) -> None:
    """Patients 31 and 7 lie in files 0 and 1; they come out of the archives on the server."""
    server, folder = lodopab_record, tmp_path / "lodopab"
    assert lodopab.main(["--out", str(tmp_path), "--part", "test", "--patients", "2"]) == 0
    assert sorted(p.name for p in folder.glob("*.hdf5")) == [
        f"{kind}_test_{k:03d}.hdf5" for kind in ("ground_truth", "observation") for k in (0, 1)
    ]
    whole = [r for p, r in zip(server.paths, server.ranges, strict=True) if p.endswith(".zip") and r is None]
    assert whole == []
    assert lodopab.main(["--out", str(tmp_path), "--part", "test"]) == 0
    assert len(list(folder.glob("*.hdf5"))) == 6


def test_lodopab_refusals(lodopab_record: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--limit", "1e-6"], "--limit: ground_truth_test.zip, observation_test.zip is 0.00 GB"),
        (
            ["--limit", "1e-6", "--patients", "1"],
            "--limit: 33% of ground_truth_test.zip, observation_test.zip is 0.00 GB",
        ),
        (["--part", "train"], "holds no patient_ids_rand_train.csv"),
        (["--scan", "5"], "--scan: test has slices 0 to 4, got 5"),
    ):
        assert lodopab.main(["--out", str(tmp_path), *options]) == 2
        assert message in capsys.readouterr().err
    lodopab_record.routes["/content/observation_test.zip"] = b"other"
    assert lodopab.main(["--out", str(tmp_path / "again")]) == 2
    assert "the file on the server has changed" in capsys.readouterr().err
