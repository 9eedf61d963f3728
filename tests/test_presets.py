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
from scoreinv.operators import Grayscale, Masking, Matrix, ParallelBeamCT, equispaced_angles
from scoreinv.presets import PRESETS, Preset, preset_named
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem, simulate

SHORT = {"proximal": ["--set", "n_levels=2", "--set", "draw_levels=1"], "daps": ["--set", "n_levels=2"]}
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
    assert main(["reconstruct", str(scan), f"--{name}", *SHORT[chosen.method]]) == 0
    settings = read_reconstruction(scan.with_suffix(".recon.h5")).settings
    assert settings["preset"] == name and settings["method"] == chosen.method
    kept = {k: v for k, v in chosen.settings.items() if k not in ("n_levels", "draw_levels")}
    assert {k: settings[k] for k in kept} == kept and settings["n_levels"] == 2


def test_without_a_preset_the_default_is_as_it_was(scan: Path) -> None:
    assert main(["reconstruct", str(scan), *SHORT["proximal"]]) == 0
    settings = read_reconstruction(scan.with_suffix(".recon.h5")).settings
    assert settings["preset"] is None and settings["samples"] == 4


def test_what_the_user_says_counts_more(scan: Path) -> None:
    assert (
        main(["reconstruct", str(scan), "--fast", *SHORT["proximal"], "--samples", "3", "--set", "relaxation=1.1"]) == 0
    )
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
    assert main(["reconstruct", str(scan), "--fast", "--fast", *SHORT["proximal"]]) == 0


@pytest.mark.parametrize("name", PRESETS)
def test_images_that_the_prior_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Colour, and gray images that attenuate like a metal."""
    colour = Problem(Grayscale((3, 8, 8)), torch.full((1, 8, 8), 0.5), 0.01)
    A = ParallelBeamCT((16, 16), equispaced_angles(6), 23, 2.0, 2.0)
    metal = simulate(A, torch.full((16, 16), 1.0), torch.Generator().manual_seed(0))
    for k, problem in enumerate((colour, metal)):
        write_scan(tmp_path / f"{k}.h5", Scan(problem))
        _fails(["reconstruct", str(tmp_path / f"{k}.h5"), f"--{name}"], "is for images that the CT prior knows", capsys)


def test_pixels_without_data_start_from_more_noise() -> None:
    mask = torch.ones(8, 8, dtype=torch.bool)
    seen, mask = Problem(Masking(mask), torch.zeros(8, 8)), mask.clone()
    mask[2, 3] = False
    unseen = Problem(Masking(mask), torch.zeros(8, 8))
    calibrated, best = PRESETS["calibrated"], PRESETS["best"]
    assert calibrated.settings_for(seen) == calibrated.settings
    assert calibrated.settings_for(unseen) == {**calibrated.settings, **calibrated.unseen} != calibrated.settings
    assert best.settings_for(seen) == best.settings_for(unseen) == best.settings  # `proximal` looks for itself


def test_calibrated_draws_have_the_exact_posterior_of_a_gaussian_prior(rng: torch.Generator) -> None:
    """Of independent pixels as wide as `prior_std`, half as many data as pixels: mean (AᵀA + τ²/s² I)⁻¹ Aᵀy and covariance
    (AᵀA / τ² + I / s²)⁻¹."""
    settings = PRESETS["calibrated"].settings
    s, tau, f64 = settings["prior_std"], 0.05, torch.float64
    prior = GaussianPrior(torch.zeros(2, 4, dtype=f64), s**2 * torch.eye(8, dtype=f64))
    matrix = torch.randn(4, 8, generator=rng, dtype=f64)
    A = Matrix(matrix, (2, 4))
    problem = simulate(A, prior.draw(1, rng), rng)
    problem = Problem(A, problem.y + tau * torch.randn(problem.y.shape, generator=rng, dtype=f64), tau)
    draws = configure.method("daps", {**settings, "samples": 1500}, lambda: prior)(problem, rng).reshape(1500, 8)
    covariance = torch.linalg.inv(matrix.T @ matrix / tau**2 + torch.eye(8, dtype=f64) / s**2)
    mean = covariance @ matrix.T @ problem.y[0] / tau**2
    scale = covariance.diagonal().sqrt()
    assert float(((draws.mean(dim=0) - mean) / scale).abs().max()) < 0.1
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.0, atol=0.12 * float(scale.max()) ** 2)


def test_unknown_presets() -> None:
    with pytest.raises(ValueError, match="no preset is named 'quick'; known: fast, best, calibrated"):
        preset_named("quick")
    assert isinstance(preset_named("best"), Preset)


def _fails(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("scoreinv: warning")]
    assert len(errors) == 1 and words in errors[0], errors
