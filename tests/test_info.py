"""`scoreinv info` on the weights of a learned baseline, on JSON and on sweeps: what it says, and what it says of files that are not whole."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from scoreinv.baselines.learned import geometry, network_class, save_network
from scoreinv.calibration import read_calibrations
from scoreinv.cli import main
from scoreinv.operators.ct import ParallelBeamCT, equispaced_angles

CARD: dict[str, Any] = {
    "description": "Network of the method neumann.",
    "steps": 3300, "hours": 0.497, "average": "decay 0.995",
    "operator": {"operator": "parallel_beam_ct", "n_views": 8, "pixel_mm": 1.5},
    "training": {"noise": [0.0, 0.005]},
    "data": {"images": 20, "patients": 4, "validation_patients": 3},
    "reconstruction_psnr_db": {"0": 33.1, "0.005": 32.25}, "reconstruction_psnr_convention": "window of -1000 to 1000 HU",
}  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """As `scoreinv train-baseline` writes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = network_class("neumann")(terms=2, widths=(16, 32))
    A = ParallelBeamCT((32, 32), equispaced_angles(8), 47, 1.5, 1.5)
    save_network("neumann", network, tmp_path / "neumann.safetensors", {"geometry": geometry(A), **CARD})
    return tmp_path / "neumann.safetensors"


def told(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["info", str(path)]) == 0
    return capsys.readouterr().out


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["info", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1 and "Traceback" not in printed.err
    return printed.err


def test_calibrations_that_ship(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(str(files("scoreinv").joinpath("calibrations.json")))
    text = told(path, capsys)
    assert len(text.splitlines()) == 1 + len(read_calibrations())
    first = read_calibrations()[0]
    assert f"proximal, 4 draws, ParallelBeamCT, 23 views, noise {first.conditions.relative_noise:g}" in text
    assert f"90% intervals, {first.factor:.3g} standard deviations either way; 14 patients" in text
    assert f"of the worst {first.coverage_least:.0%}; draws' chi^2 {first.chi2:.2f}" in text


def test_calibrations_of_other_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What decides where they hold is told: arc, share in view, residual."""
    (record,) = json.loads(Path(str(files("scoreinv").joinpath("calibrations.json"))).read_text(encoding="utf-8"))[1:2]
    record["conditions"] |= {"arc": 0.5, "in_view": 0.6}
    for said, words in (
        ({"residual": None}, "relative residual not stated"),
        ({"residual": 0.00031}, "relative residual 3.1e-04"),
    ):
        (tmp_path / "c.json").write_text(json.dumps([record | said]))
        text = told(tmp_path / "c.json", capsys)
        assert "23 views within 50% of a whole scan's turn that see 60% of the image, noise 0" in text and words in text


def test_tuned_constants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "relative_noise": 0.005,
        "tau": 0.1,
        "tuned": ["eta"],
        "settings": {},
        "eta": 0.7,
        "provenance": {"operator": "fan_beam_ct"},
    }
    (tmp_path / "tuned.json").write_text(json.dumps({"methods": {"dds": [row]}}))
    assert "tuned constants\ndds, noise 0.005 of the mean, fan_beam_ct: eta 0.7" in told(
        tmp_path / "tuned.json", capsys
    )
    source = {"operator": "fan_beam_ct", "patients": ["a", "b"], "trials": 7}
    row |= {"tuned": [], "psnr": 31.234, "provenance": source}
    (tmp_path / "tuned.json").write_text(json.dumps({"methods": {"dds": [row]}}))
    said = "fan_beam_ct: its own constants are as good (31.23 dB, 2 patients, 7 trials)"
    assert said in told(tmp_path / "tuned.json", capsys)


def test_a_card_stands_for_its_weights(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(weights.with_suffix(".json"), capsys) == told(weights, capsys)


def test_other_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{}", "[1]", "{", '{"methods": 1}', "[]"):
        (tmp_path / "x.json").write_text(text)
        assert "holds neither calibrations nor tuned constants" in refused(tmp_path / "x.json", capsys)


def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "small.toml"
    sweep.write_text(
        '[truth]\nphantom = "ellipses"\nsize = 16\n[operator]\nname = "parallel_beam_ct"\nn_views = 8\n[noise]\nrelative = 0.01\n'
        '[[method]]\nsweep.name = ["fbp", "repaint"]\n'
    )
    assert main(["bench", str(sweep), "--out", str(tmp_path / "store"), "--quiet"]) == 0
    capsys.readouterr()
    text = told(tmp_path / "store", capsys)
    assert "sweep, 2 rows, 1 of them failed: 2 methods, 1 problems, 1 images" in text and "failed: repaint" in text
    assert f"scoreinv report {tmp_path / 'store'} shows them" in text


def test_says_what_it_is_and_how_it_was_made(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(weights, capsys)
    n = sum(p.numel() for p in network_class("neumann")(terms=2, widths=(16, 32)).parameters())
    for words in (
        f"neumann.safetensors: weights of the learned baseline neumann, {n / 1e6:.2f} million",
        "trained on: ParallelBeamCT (32, 32) -> (8, 47), 8 views from 0 to 157.5 degrees, noise 0, 0.005 (standard deviation",
        '"n_views": 8',
        "3300 steps in 0.497 hours, 20 images of 4 patients; average: decay 0.995",
        "PSNR on 3 validation patients: 33.1 dB at noise 0, 32.25 dB at noise 0.005 (window of -1000 to 1000 HU)",
        f"SHA-256: {hashlib.sha256(weights.read_bytes()).hexdigest()}",
        f"--method neumann --set weights={weights}",
    ):
        assert words in text


def test_a_card_that_leaves_things_out(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = json.loads(weights.with_suffix(".json").read_text())
    kept = {k: card[k] for k in ("format", "method", "network", "sha256")}
    weights.with_suffix(".json").write_text(json.dumps({**kept, "data": 3, "geometry": {"angles_degrees": None}}))
    text = told(weights, capsys)
    assert "an operator that is not stated" in text and "noise not stated" in text and "? steps in ? hours" in text


def test_files_that_are_not_whole(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, card = weights.read_bytes(), json.loads(weights.with_suffix(".json").read_text())
    weights.write_bytes(whole[:-100])
    assert "neumann.safetensors: checksum differs from its card's" in refused(weights, capsys)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "checksum differs from its card's" in refused(weights, capsys)
    # A file cut short whose card was made to fit it.
    weights.write_bytes(whole[:-100])
    fitting = {**card, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    weights.with_suffix(".json").write_text(json.dumps(fitting))
    assert "its card describes no network that these weights fit" in refused(weights, capsys)
    weights.write_bytes(whole)
    weights.with_suffix(".json").write_text(json.dumps(card)[:-20])
    assert "neumann.json: is no JSON text" in refused(weights, capsys)
    weights.with_suffix(".json").write_text(json.dumps({**card, "method": "fbp_unett"}))
    assert "Did you mean 'fbp_unet'" in refused(weights, capsys)
    weights.with_suffix(".json").unlink()
    assert "neumann.json: no such file" in refused(weights, capsys)
    weights.with_suffix(".json").write_text(json.dumps(card))
    weights.unlink()
    assert "neumann.safetensors: no such file (a baseline's weights" in refused(weights, capsys)
