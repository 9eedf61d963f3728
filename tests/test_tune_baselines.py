"""benchmarks/tune_baselines.py on small images: the data that settings are tuned on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import tune_baselines
from _data import middle_slices

from scoreinv.study.operators import data_operator
from scoreinv.units import mu_from_hu


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two patients with 3 and 1 slices of 16 x 16; the finer file has the first one's middle slice."""
    monkeypatch.setenv("SCOREINV_DATA", str(tmp_path))
    made = tmp_path / "ct"
    made.mkdir()
    rng = np.random.default_rng(0)
    fine = 2 * rng.integers(-100, 100, (4, 32, 32))
    hu = fine.reshape(4, 16, 2, 16, 2).mean((2, 4)).round().astype(np.int16)
    for name, images, patients, side in (("val", hu, ["b", "b", "b", "a"], 2.0), ("val_512", fine[1:2], ["b"], 1.0)):
        with h5py.File(made / f"{name}.h5", "w") as file:
            file["hu"], file["patient"] = images.astype(np.int16), np.array(patients, dtype=h5py.string_dtype())
            file["pixel_mm"] = np.full(len(images), side)
    return made


def test_data_of_a_finer_grid(folder: Path) -> None:
    """The same rays, truth and noise; the images are the stored finer one and an interpolated one, patient by patient."""
    chosen = middle_slices(folder / "val.h5")
    names, pixels, hu = [s.patient for s in chosen], [s.pixel_mm for s in chosen], torch.stack([s.hu for s in chosen])
    assert names == ["b", "a"]
    sources = tune_baselines.finer_images(folder, names)
    with h5py.File(folder / "val_512.h5") as file:
        torch.testing.assert_close(sources[0], torch.from_numpy(file["hu"][0]).float())
    for image, source in zip(hu, sources, strict=True):
        torch.testing.assert_close(F.avg_pool2d(source[None], 2)[0], image, atol=2.0, rtol=0)
    coarse, finer = (list(tune_baselines.simulated(hu, pixels, 0.0, s)) for s in (None, sources))
    for k, (one, other) in enumerate(zip(coarse, finer, strict=True)):
        assert one.A == other.A and torch.equal(torch.as_tensor(one.truth), torch.as_tensor(other.truth))
        torch.testing.assert_close(one.y, one.A(one.truth))
        made = data_operator(one.A, {"refine": 2, "weights": "strip"})
        torch.testing.assert_close(other.y, made(mu_from_hu(sources[k])[None]))
        difference = float((other.y - one.y).norm() / one.y.norm())
        assert 1e-3 < difference < 0.1  # no inverse crime, and the same object
    (noisy, _) = tune_baselines.simulated(hu, pixels, 0.01, sources)
    assert float((noisy.y - finer[0].y).std() / finer[0].y.mean()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(("options", "words"), [([], "the operator that reconstructs"), (["--finer-grid"], "512 x 512 pixels, strip")])  # fmt: skip
def test_the_command_states_its_data(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    command: list[Any] = ["tune_baselines.py", "--methods", "fbp", "--noise", "0", "--output", str(tmp_path / "t.json")]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    tune_baselines.main()
    (row,) = json.loads((tmp_path / "t.json").read_text())["methods"]["fbp"]
    assert row["window"] in tune_baselines.WINDOWS and words in row["provenance"]["simulation"]
    assert row["provenance"]["patients"] == ["b", "a"]


def test_levels_of_other_views_stand_beside_each_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More views leave less noise: τ falls like one over the root of their number. A level that is tuned anew replaces itself alone."""
    path = tmp_path / "t.json"
    for views in ("23", "46", "46"):
        command = ["tune_baselines.py", "--methods", "fbp", "--noise", "0.02", "--views", views, "--output", str(path)]
        monkeypatch.setattr(sys, "argv", command)
        tune_baselines.main()
    many, few = json.loads(path.read_text())["methods"]["fbp"]
    assert (many["views"], few["views"]) == (46, 23)
    assert few["tau"] / many["tau"] == pytest.approx(2**0.5, rel=0.02)
    assert "46 views over 180" in many["provenance"]["geometry"]
