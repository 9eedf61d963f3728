"""The command line as a user meets it: what it writes, and what it says to bad input (one line, exit code 2)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from scoreinv.cli import main
from scoreinv.files.reconstruction import read_reconstruction
from scoreinv.files.scan import read_scan
from scoreinv.noise import estimate_noise_std

FAST = ["--method", "fista_tv", "--set", "max_iterations=5"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disc of water with a bone in it, 32 x 32, in HU."""
    i, j = np.mgrid[:32, :32] - 15.5
    hu = np.where(i**2 + j**2 < 13**2, 0, -1000).astype(np.int16)
    hu[10:14, 18:22] = 900
    np.save(tmp_path / "image.npy", hu)
    return tmp_path / "image.npy"


@pytest.fixture
def scan(image: Path) -> Path:
    out = image.with_name("scan.h5")
    assert main(["simulate", str(image), "--pixel-mm", "2", "--views", "12", "--noise", "0.01", "--out", str(out)]) == 0
    return out


def test_simulate_and_reconstruct(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = read_scan(scan)
    assert stored.problem.y.shape[0] == 12 and stored.problem.truth is not None
    assert stored.problem.noise_std == pytest.approx(
        0.01 * float(stored.problem.A(stored.problem.truth).mean()), rel=1e-3
    )
    picture = scan.with_name("picture.png")
    assert main(["reconstruct", str(scan), *FAST, "--picture", str(picture)]) == 0
    result = read_reconstruction(scan.with_suffix(".recon.h5"))
    assert result.samples.shape == (1, 32, 32) and result.settings["method"] == "fista_tv"
    assert result.mean_hu is not None and result.pixel_mm == 2.0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "chi^2" in capsys.readouterr().out


def test_default_method_gives_mean_std_and_samples(scan: Path) -> None:
    out = scan.with_name("recon.h5")
    small = ["--set", "n_levels=2", "--set", "draw_levels=2"]
    assert main(["reconstruct", str(scan), "--samples", "3", "--seed", "5", *small, "--out", str(out)]) == 0
    with h5py.File(out) as file:
        assert file["samples"].shape == (3, 32, 32)
        np.testing.assert_allclose(file["mean"], file["samples"][:].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(file["std"], file["samples"][:].std(axis=0, ddof=1), atol=1e-6)
        settings = json.loads(file.attrs["settings"])
        assert file.attrs["seed"] == 5 and "torch" in json.loads(file.attrs["versions"])
    assert settings["method"] == "proximal" and settings["network_evaluations_per_image"] == 2 + 3 * 2
    assert len(settings["prior"]["sha256"]) == 64
    first = read_reconstruction(out).samples
    assert main(["reconstruct", str(scan), "--samples", "3", "--seed", "5", *small, "--out", str(out)]) == 0
    torch.testing.assert_close(read_reconstruction(out).samples, first, rtol=0, atol=0)


def test_noise_is_estimated_where_the_file_states_none(scan: Path) -> None:
    with h5py.File(scan, "r+") as file:
        del file["noise_std"]
        estimated = float(estimate_noise_std(torch.from_numpy(file["y"][:])))
    assert main(["reconstruct", str(scan), *FAST]) == 0
    settings = read_reconstruction(scan.with_suffix(".recon.h5")).settings
    assert settings["noise_estimated"] and settings["noise_std"] == pytest.approx(estimated, rel=1e-5)


def test_photons(image: Path) -> None:
    out = image.with_name("counts.h5")
    assert main(["simulate", str(image), "--pixel-mm", "2", "--photons", "1e4", "--out", str(out)]) == 0
    problem = read_scan(out).problem
    assert torch.as_tensor(problem.noise_std).shape == problem.y.shape
    residual = (problem.A(problem.truth) - problem.y) / problem.noise_std
    assert float(residual.square().mean()) == pytest.approx(1, abs=0.1)
    assert problem.counts is not None and problem.counts.photons == 1e4


def test_fan_beam_and_offset_from_the_command_line(image: Path) -> None:
    out = image.with_name("fan.h5")
    fan = [
        "--operator",
        "fan_beam_ct",
        "--source-origin-mm",
        "200",
        "--origin-detector-mm",
        "100",
        "--detector-offset-mm",
        "0.5",
    ]
    assert main(["simulate", str(image), "--pixel-mm", "1", *fan, "--views", "20", "--out", str(out)]) == 0
    A = read_scan(out).problem.A
    assert A.source_origin_mm == 200 and A.detector_offset_mm == 0.5 and max(A.angles) > np.pi
    assert main(["reconstruct", str(out), *FAST]) == 0


def test_colour_picture_through_grayscale(tmp_path: Path) -> None:
    skimage_io = pytest.importorskip("skimage.io")
    picture = tmp_path / "picture.png"
    skimage_io.imsave(
        picture, np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8), check_contrast=False
    )
    out = tmp_path / "gray.h5"
    assert main(["simulate", str(picture), "--operator", "grayscale", "--out", str(out)]) == 0
    for more in ([], ["--method", "sirt"]):
        assert (
            main(
                ["reconstruct", str(out), *more, "--picture", str(tmp_path / "x.png"), "--out", str(tmp_path / "x.h5")]
            )
            == 2
        )
    assert not (tmp_path / "x.h5").exists()  # refused before, not after
    assert main(["reconstruct", str(out), "--method", "cgls", "--set", "iterations=3"]) == 0
    assert read_reconstruction(out.with_suffix(".recon.h5")).samples.shape == (1, 3, 24, 24)


def test_info_and_list(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "parallel_beam_ct" in listed and "fista_tv" in listed
    assert main(["info", str(scan)]) == 0
    assert "ParallelBeamCT" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "sha256" in capsys.readouterr().out


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _no_hdf5(path: Path) -> None:
    path.write_text("angles, 0, 1, 2")


def _change(**arguments: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            operator = json.loads(file.attrs["operator"])
            operator["arguments"] |= {k: v for k, v in arguments.items() if k != "name"}
            operator["name"] = arguments.get("name", operator["name"])
            file.attrs["operator"] = json.dumps(operator)

    return change


def _spoil(value: float) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["y"][0, 3] = value

    return spoil


def _negative_counts(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        y = file["y"][:]
        del file["y"], file["noise_std"]
        file["counts"], file.attrs["photons"] = -y - 1, 100.0


BAD_SCANS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "truncated": (_truncate, "HDF5"),
    "not HDF5": (_no_hdf5, "not an HDF5 file"),
    "unknown operator": (_change(name="paralel_beam_ct"), "Did you mean 'parallel_beam_ct'"),
    "detectors do not match": (_change(n_detectors=40), "detectors"),
    "views do not match": (_change(angles=[0.0, 0.5]), "views"),
    "zero views": (_change(angles=[]), "view"),
    "unknown argument": (_change(n_detector=3), "Did you mean 'n_detectors'"),
    "NaN": (_spoil(float("nan")), "NaN or infinite"),
    "infinite": (_spoil(float("inf")), "NaN or infinite"),
    "negative counts": (_negative_counts, "negative"),
}


@pytest.mark.parametrize("case", BAD_SCANS)
def test_bad_scans(scan: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, words = BAD_SCANS[case]
    spoil(scan)
    _fails(["reconstruct", str(scan)], words, capsys)
    assert not scan.with_suffix(".recon.h5").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "fista_tw"], "Did you mean 'fista_tv'"),
        (["--method", "fista_tv", "--samples", "3"], "no samples"),
        (["--method", "fbp", "--prior", "ct-256-fast"], "method 'fbp' takes no prior"),
        (["--samples", "abc"], "argument --samples: invalid int value: 'abc' (scoreinv reconstruct --help explains)"),
        (["--method", "fista_tv", "--set", "wieght=1"], "Did you mean 'weight'"),
        (["--set", "weight"], "key=value"),
        (["--out", "no/such/folder/recon.h5"], "does not exist"),
        (["--prior", "weights.pt"], "safetensors"),
        (["--prior", "weights.safetensors"], "no such file"),
        (["--device", "gpu"], "--device"),
        (["--samples", "0"], "samples"),
        (["--set", "n_levels=2.5"], "n_levels should be int, got 2.5"),
        (["--out", "recon.nii.gz"], "`scoreinv export RESULT.h5 --out recon.nii.gz`"),
        (["--out", "recon.dcm"], "results are HDF5"),
        (["--every", "0"], "--every: expected a whole number of at least 1, got 0"),
        (["--picture", "recon.bmp"], "pictures are written as png, pdf, svg"),
    ],
)
def test_bad_options(scan: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    _fails(["reconstruct", str(scan), *options], words, capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--views", "0"], "view"),
        (["--noise", "-1"], "negative"),
        (["--photons", "-5"], "positive"),
        (["--operator", "fan_beam"], "Did you mean 'fan_beam_ct'"),
        (["--operator", "fan_beam_ct"], "source_origin_mm"),
        (["--set", "viws=3"], "no setting 'viws'"),
        (["--set", "n_views=2.5"], "n_views should be int, got 2.5"),
        (["--detectors", "0"], "n_detectors must be positive"),
    ],
)
def test_bad_simulations(image: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    out = image.with_name("scan.h5")
    _fails(["simulate", str(image), "--pixel-mm", "2", *options, "--out", str(out)], words, capsys)
    assert not out.exists()


def test_radians_by_mistake_warn(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = image.with_name("scan.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["simulate", str(image), "--pixel-mm", "2", "--arc", "3.14", "--out", str(out)]) == 0
    assert "within 3.14 of them; 180 degrees are 3.14 radians" in capsys.readouterr().err


def test_info_of_files_that_do_not_state_a_size(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(image)]) == 0
    assert "pixels of unknown size" in capsys.readouterr().out
    raw = image.with_name("raw.h5")
    with h5py.File(raw, "w") as file:
        file["exchange/data"] = np.ones((4, 2, 8), np.float32)
        file["exchange/theta"] = np.linspace(0, 135, 4)
        file["exchange/data_white"] = np.ones((1, 2, 8), np.float32)
    assert main(["info", str(raw)]) == 0
    said = capsys.readouterr().out
    assert (
        "4 views from 0 to 135 degrees, 2 detector rows of 8 bins of unknown width" in said
        and "with data_white" in said
    )


def test_info_shows_the_geometry(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(scan)]) == 0
    said = capsys.readouterr().out
    assert " degrees), n_detectors " in said and "pixel_mm 2.0" in said


def test_a_sweep_that_is_no_text(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fails(["bench", str(scan)], "is no TOML", capsys)


def test_no_samples_of_a_prior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fails(["sample", "--samples", "0", "--out", str(tmp_path / "s.png")], "samples and side of at least 1", capsys)


def test_percent_by_mistake_warn(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert (
            main(["simulate", str(image), "--pixel-mm", "2", "--noise", "5", "--out", str(image.with_name("s.h5"))])
            == 0
        )
    assert "500% of the mean of the data; 0.005 is half a per cent" in capsys.readouterr().err


def test_info_of_a_training_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        file["hu"], file["patient"] = np.zeros((3, 16, 16), np.int16), ["a", "a", "b"]
        file["pixel_mm"] = [0.7, 0.7, 0.9]
    assert main(["info", str(path)]) == 0
    assert "CT, 3 slices of 2 patients, 16 x 16, pixels of 0.7 to 0.9 mm, 0 to 0 HU" in capsys.readouterr().out


def test_degrees_by_mistake_warn(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = image.with_name("scan.h5")
    options = ["--set", "angles=[0, 30, 60, 90]"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["simulate", str(image), "--pixel-mm", "2", *options, "--out", str(out)]) == 0
    assert "degrees" in capsys.readouterr().err


def test_result_cannot_be_written(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fails(["reconstruct", str(scan), "--out", str(scan.parent)], "folder", capsys)


def test_interrupt_leaves_nothing(scan: Path) -> None:
    out = scan.with_name("recon.h5")
    arguments = ["reconstruct", str(scan), "--out", str(out), "--set", "n_levels=100000"]
    # A background job of a shell inherits an ignored SIGINT: take Python's own handler, as in a terminal.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from scoreinv.cli import main; raise SystemExit(main({arguments}))"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not _is_projecting(process.pid):
                time.sleep(0.2)
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err
    assert not out.exists() and not [p for p in out.parent.iterdir() if p.name.startswith(".")]


def _is_projecting(pid: int) -> bool:
    maps = Path(f"/proc/{pid}/maps")
    return not maps.exists() or not os.access(maps, os.R_OK) or "astra" in maps.read_text()


def _fails(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if not line.startswith("scoreinv: warning")]
    assert code == 2, err
    assert len(errors) == 1 and words in errors[0], err


@pytest.mark.filterwarnings("default")
def test_values_that_are_hardly_hu_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "unit.npy", np.linspace(0, 1, 256).reshape(16, 16))
    command = [
        "simulate",
        str(tmp_path / "unit.npy"),
        "--pixel-mm",
        "2",
        "--views",
        "5",
        "--out",
        str(tmp_path / "s.h5"),
    ]
    assert main(command) == 0
    assert "values lie between 0 and 1 and are taken as HU" in capsys.readouterr().err
