"""`--fast`, `--best` and `--calibrated`: what they take, what goes before them, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreinv import configure, reconstruction
from scoreinv.cli import main
from scoreinv.files.reconstruction import read_reconstruction
from scoreinv.files.scan import Scan, write_scan
from scoreinv.operators import Grayscale, ParallelBeamCT, equispaced_angles
from scoreinv.presets import PRESETS, Preset, preset_named
from scoreinv.problem import Problem, simulate

SHORT = ["--set", "n_levels=2", "--set", "draw_levels=1"]
"""The random walk of a test need not be long."""


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Twelve noisy views of a disc of water, 32 x 32."""
    i, j = np.mgrid[:32, :32] - 15.5
    np.save(tmp_path / "x.npy", np.where(i**2 + j**2 < 13**2, 0, -1000).astype(np.int16))
    command = ["simulate", str(tmp_path / "x.npy"), "--pixel-mm", "2", "--views", "12", "--noise", "0.01"]
    assert main([*command, "--out", str(tmp_path / "scan.h5")]) == 0
    return tmp_path / "scan.h5"


@pytest.mark.parametrize("name", PRESETS)
def test_settings_are_of_the_method_and_are_kept_with_the_result(scan: Path, name: str) -> None:
    chosen = PRESETS[name]
    configure.method(chosen.method, chosen.settings, lambda: lambda x, sigma: x)
    assert main(["reconstruct", str(scan), f"--{name}", *SHORT]) == 0
    settings = read_reconstruction(scan.with_suffix(".recon.h5")).settings
    assert settings["preset"] == name and settings["method"] == chosen.method
    kept = {k: v for k, v in chosen.settings.items() if k not in ("n_levels", "draw_levels")}
    assert {k: settings[k] for k in kept} == kept and settings["n_levels"] == 2


def test_without_a_preset_the_default_is_as_it_was(scan: Path) -> None:
    assert main(["reconstruct", str(scan), *SHORT]) == 0
    settings = read_reconstruction(scan.with_suffix(".recon.h5")).settings
    assert settings["preset"] is None and settings["samples"] == 4


def test_what_the_user_says_counts_more(scan: Path) -> None:
    assert main(["reconstruct", str(scan), "--fast", *SHORT, "--samples", "3", "--set", "relaxation=1.1"]) == 0
    result = read_reconstruction(scan.with_suffix(".recon.h5"))
    assert len(result.samples) == 3 and result.settings["relaxation"] == 1.1


def test_presets_of_their_own_prior_take_it_where_it_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Today's priors first, then as if the quick one were shipped."""
    assert PRESETS["fast"].prior == "ct-256-fast"
    monkeypatch.setattr("scoreinv.presets.shipped", lambda: ["ct-256"])
    assert PRESETS["fast"].prior_name() is None
    monkeypatch.setattr("scoreinv.presets.shipped", lambda: ["ct-256", "ct-256-fast"])
    assert PRESETS["fast"].prior_name() == "ct-256-fast" and PRESETS["best"].prior_name() is None


@pytest.mark.parametrize(
    ("preset", "given", "loaded"), [("fast", None, "ct-256-fast"), ("fast", "mine", "mine"), ("best", None, None)]
)
def test_the_prior_that_is_loaded(
    monkeypatch: pytest.MonkeyPatch, preset: str, given: str | None, loaded: str | None
) -> None:
    """What reaches `ct_prior` is the preset's own prior, unless the user gave one."""
    seen: list[Any] = []

    def ct_prior(path: Any, **more: Any) -> Any:
        seen.append(path)
        raise ValueError("far enough")

    monkeypatch.setattr("scoreinv.presets.shipped", lambda: ["ct-256", "ct-256-fast"])
    monkeypatch.setattr(reconstruction, "ct_prior", ct_prior)
    A = ParallelBeamCT((16, 16), equispaced_angles(6), 23, 2.0, 2.0)
    problem = simulate(A, torch.full((16, 16), 0.0193), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="far enough"):
        reconstruction.reconstruct(Scan(problem), preset=preset, prior=given)
    assert seen == [loaded]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fast", "--best"], "--fast and --best exclude each other"),
        (["--fast", "--best", "--calibrated"], "--fast and --best and --calibrated exclude each other"),
        (["--calibrated", "--method", "dds"], "--calibrated chooses the method itself"),
        (["--best", "--tuned", "t.json"], "--best and --tuned exclude each other"),
        (["--tuned", "t.json"], "t.json: No such file"),
        (["--calibrated", "--samples", "0"], "samples"),
        (["--fast", "--set", "relaxationn=1.1"], "Did you mean 'relaxation'"),
    ],
)
def test_bad_options(scan: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    _fails(["reconstruct", str(scan), *options], words, capsys)


def test_a_preset_may_be_named_twice(scan: Path) -> None:
    assert main(["reconstruct", str(scan), "--fast", "--fast", *SHORT]) == 0


@pytest.mark.parametrize("name", PRESETS)
def test_images_that_the_prior_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Colour, and gray images that attenuate like a metal."""
    colour = Problem(Grayscale((3, 8, 8)), torch.full((1, 8, 8), 0.5), 0.01)
    A = ParallelBeamCT((16, 16), equispaced_angles(6), 23, 2.0, 2.0)
    metal = simulate(A, torch.full((16, 16), 1.0), torch.Generator().manual_seed(0))
    for k, problem in enumerate((colour, metal)):
        write_scan(tmp_path / f"{k}.h5", Scan(problem))
        _fails(["reconstruct", str(tmp_path / f"{k}.h5"), f"--{name}"], "is for images that the CT prior knows", capsys)


def test_unknown_presets() -> None:
    with pytest.raises(ValueError, match="no preset is named 'quick'; known: fast, best, calibrated"):
        preset_named("quick")
    assert isinstance(preset_named("best"), Preset)


def _fails(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("scoreinv: warning")]
    assert len(errors) == 1 and words in errors[0], errors
