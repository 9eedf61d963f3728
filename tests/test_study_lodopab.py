"""LoDoPaB-CT's protocol from files to figures: small files of the data set's layout, with all of its 1000 views."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_lodopab import disc, projections
from torch import Tensor

from scoreinv.cli import main
from scoreinv.files.lodopab import MU_MAX_PER_MM, MU_WATER_PER_MM
from scoreinv.study import (
    Context,
    LoDoPaB,
    MethodCall,
    Noise,
    OperatorCall,
    Sweep,
    compute,
    read,
    read_sweep,
    run,
    table,
)
from scoreinv.study.lodopab import measured
from scoreinv.study.operators import operator
from scoreinv.units import mu_from_hu

PROTOCOL = Path(__file__).parents[1] / "benchmarks" / "lodopab.toml"
SIDE, VIEWS, CELLS = 32, 1000, 47
PATIENTS = ("31", "7", "7", "7", "12")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three patients with 1, 3 and 1 slices, three slices a file; slice k is a disc of (k + 1) / 2 times its value, with Poisson noise."""
    monkeypatch.setattr("scoreinv.study.lodopab.SLICES_A_FILE", 3)
    monkeypatch.setenv("SCOREINV_DATA", str(tmp_path))
    made = tmp_path / "lodopab"
    made.mkdir()
    (made / "patient_ids_rand_test.csv").write_text("\n".join(PATIENTS) + "\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    scale = np.arange(1, len(PATIENTS) + 1)[:, None, None] / 2
    truth = (scale * disc(SIDE)).astype(np.float32)
    counts = rng.poisson(4096 * np.exp(-scale * projections(VIEWS, CELLS) * 1000 * MU_MAX_PER_MM))
    observation = (-np.log(np.maximum(counts, 0.1) / 4096) / (1000 * MU_MAX_PER_MM)).astype(np.float32)
    for kind, data in (("ground_truth", truth), ("observation", observation)):
        for k in range(2):
            with h5py.File(made / f"{kind}_test_{k:03d}.hdf5", "w") as file:
                file["data"] = data[3 * k : 3 * k + 3]
    return made


def sweep(**changes: Any) -> Sweep:
    parts: dict[str, Any] = {
        "truths": [LoDoPaB("$SCOREINV_DATA/lodopab")],
        "operators": [OperatorCall("parallel_beam_ct", {"n_views": 50})],
        "methods": [MethodCall("fbp")],
        "noises": [Noise(photons=4096)],
    }
    return Sweep(**parts | changes)


def test_the_protocol_from_files_to_the_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that ships, as it is; of its slower methods a cell each."""
    out = tmp_path / "rows"
    for some in (["method=fbp"], ["method=fista_tv", "n_views=23"], ["method=proximal", "n_views=23"]):
        only = [word for text in some for word in ("--only", text)]
        limit = [] if "method=fbp" in some else ["--limit", "1"]
        assert main(["bench", str(PROTOCOL), "--out", str(out), *only, *limit]) == 0
    printed = capsys.readouterr().out
    rows = read(out)
    assert len(rows) == 3 * 4 + 2 and {r["status"] for r in rows} == {"done"}
    assert {r["image"] for r in rows} == {"lodopab-31, slice 0", "lodopab-7, slice 1", "lodopab-12, slice 0"}
    assert {r["operator.n_views"] for r in rows} == {23, 60, 200, 1000} and {r["noise.photons"] for r in rows} == {4096}

    def mean(method: str, n_views: int, figure: str) -> float:
        own = [r[figure] for r in rows if r["method"] == method and r["operator.n_views"] == n_views]
        return sum(own) / len(own)

    for figure in ("psnr_range", "ssim_range", "psnr_full", "ssim_full"):
        assert mean("fbp", 23, figure) < mean("fbp", 60, figure) < mean("fbp", 1000, figure)
        assert rows[-2]["method"] == "fista_tv" and rows[-2][figure] > rows[0][figure]
    assert "PSNR, full range [dB] | SSIM, full range |" in printed and "LoDoPaB-CT test" in printed
    assert 0.5 < rows[-2]["chi2"] < 2  # the noise is that of 4096 photons
    assert main(["report", str(out)]) == 0
    assert "SSIM, range of the truth" in (out / "report.md").read_text(encoding="utf-8")


def test_figures_are_those_of_the_data_set(folder: Path) -> None:
    """On μ / μ_max, by scikit-image as the data set's own code calls it: not clipped, its default window."""
    (cell,) = sweep(truths=[LoDoPaB("$SCOREINV_DATA/lodopab", patients=("lodopab-12",))]).cells
    row = compute(cell, Context(images=True))
    x, truth = (
        mu_from_hu(torch.from_numpy(row.images[k]).double(), MU_WATER_PER_MM).numpy() / MU_MAX_PER_MM
        for k in ("mean_hu", "truth_hu")
    )
    with h5py.File(folder / "ground_truth_test_001.hdf5") as file:
        np.testing.assert_allclose(truth, np.asarray(file["data"][1]).T, atol=1e-6)
    for name, full in (("range", truth.max() - truth.min()), ("full", 1.0)):
        assert row.result[f"psnr_{name}"] == pytest.approx(peak_signal_noise_ratio(truth, x, data_range=full), abs=1e-3)
        similarity = structural_similarity(truth, x, data_range=full)
        assert row.result[f"ssim_{name}"] == pytest.approx(similarity, abs=1e-5)
    assert row.result["psnr_range"] != pytest.approx(row.result["psnr_full"], abs=0.1)


@pytest.mark.parametrize("n", [7, 23, 60, 200, 1000])
def test_views_keep_the_angles_that_they_were_made_at(folder: Path, n: int) -> None:
    """The chosen views are the stored ones of their angles, spread evenly, and fit the image; turned by a step they do not."""
    (cell, *_) = sweep(operators=[OperatorCall("parallel_beam_ct", {"n_views": n})]).cells
    record = cell.image
    A: Any = operator(cell.operator, tuple(record["shape"]), record["pixel_mm"])
    problem, truth = measured(record, A)
    assert problem.truth is None and problem.A is A and len(A.angles) == n
    views = [k * VIEWS // n for k in reversed(range(n))]
    assert list(A.angles) == pytest.approx([-(k + 0.5) * math.pi / VIEWS for k in views], abs=1e-12)
    with h5py.File(folder / "observation_test_000.hdf5") as file:
        stored = torch.from_numpy(np.asarray(file["data"][0])[views]) * 1000 * MU_MAX_PER_MM
    torch.testing.assert_close(problem.y, stored.float())

    def misfit(y: Tensor) -> float:
        return float((A(mu_from_hu(truth, MU_WATER_PER_MM)) - y).norm() / y.norm())

    assert misfit(problem.y) < 0.1 and misfit(problem.y.flip(0)) > 2 * misfit(problem.y)


def test_cells_are_counted_like_others(folder: Path) -> None:
    found = sweep(truths=[LoDoPaB("$SCOREINV_DATA/lodopab", slices="all")]).cells
    assert [(c.image["patient"], c.image["slice"], c.image["index"]) for c in found] == [
        ("lodopab-31", 0, 0), ("lodopab-7", 0, 1), ("lodopab-7", 1, 2), ("lodopab-7", 2, 3), ("lodopab-12", 0, 4),
    ]  # fmt: skip
    two = sweep(truths=[LoDoPaB("$SCOREINV_DATA/lodopab", patients=2, slices=(0,))]).cells
    assert [c.image["index"] for c in two] == [0, 1]
    moved = folder.rename(folder.with_name("elsewhere"))
    again = sweep(truths=[LoDoPaB(str(moved), patients=2, slices=(0,))]).cells
    assert [c.key for c in again] == [c.key for c in two]


def test_the_prior_works_in_the_units_of_the_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """μ_water is 0.020 per mm here."""
    from scoreinv.study import computing

    seen: list[float] = []
    real = computing.ct_prior
    monkeypatch.setattr(computing, "ct_prior", lambda p, **k: seen.append(k["mu_water_per_mm"]) or real(p, **k))
    (cell, *_) = sweep(methods=[MethodCall("proximal", {"samples": 1, "n_levels": 2})]).cells
    assert compute(cell, Context()).status == "done" and seen == [0.02]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noises": [Noise(0.01)]}, "stored, with the noise of 4096 photons"),
        ({"noises": [Noise(photons=1000)]}, "stored, with the noise of 4096 photons"),
        ({"operators": [OperatorCall("parallel_beam_ct", {}, {"refine": 2})]}, "nothing is simulated"),
        ({"operators": [OperatorCall("parallel_beam_ct", {"arc_degrees": 90})]}, "leave n_views and weights of the operator open, not arc"),
        ({"operators": [OperatorCall("parallel_beam_ct", {"n_views": 1001})]}, "have 1000 views, n_views = 1001"),
        ({"operators": [OperatorCall("fan_beam_ct", {"source_origin_mm": 900, "origin_detector_mm": 100})]}, "are of the operator"),
        ({"truths": [LoDoPaB("$SCOREINV_DATA/lodopab", patients=("lodopab-3",))]}, "has no patient 'lodopab-3'"),
        ({"truths": [LoDoPaB("$SCOREINV_DATA/lodopab", slices=(1,))]}, "patient lodopab-31 has slices 0 to 0, not 1"),
        ({"truths": [LoDoPaB("$SCOREINV_DATA/lodopab", "validation")]}, "data_scripts/lodopab.py --out FOLDER --part validation --patients N"),
    ],
)  # fmt: skip
def test_what_the_data_do_not_leave_open(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        sweep(**changes).cells  # noqa: B018


def test_missing_data_are_explained_with_their_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "observation_test_001.hdf5").unlink()
    assert main(["bench", str(PROTOCOL), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"lodopab\.toml:\d+: .*observation_test_001\.hdf5: no such file: `python data_scripts/lodopab\.py", error
    )
    assert "--patients 3" in error
    monkeypatch.setenv("SCOREINV_DATA", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"patient_ids_rand_test\.csv: no such file: `python data_scripts/lodopab\.py"):
        read_sweep(PROTOCOL)
    monkeypatch.delenv("SCOREINV_DATA")
    with pytest.raises(ValueError, match=r"lodopab\.toml:\d+: .*set SCOREINV_DATA"):
        read_sweep(PROTOCOL)


def test_data_that_changed_are_noticed(folder: Path, tmp_path: Path) -> None:
    (cell, *_) = sweep().cells
    with h5py.File(folder / "observation_test_000.hdf5", "r+") as file:
        file["data"][0, 3, 4] += 1
    A = operator(cell.operator, (SIDE, SIDE), cell.image["pixel_mm"])
    with pytest.raises(ValueError, match=r"observation_test_000\.hdf5: slice 0 is not what it was"):
        measured(cell.image, A)
    A = operator({"name": "parallel_beam_ct", "n_views": 9}, (SIDE, SIDE), cell.image["pixel_mm"])
    (other,) = sweep(truths=[LoDoPaB("$SCOREINV_DATA/lodopab", patients=("lodopab-12",))]).cells
    with pytest.raises(ValueError, match="were not made by ParallelBeamCT"):
        measured(other.image, A)


def test_other_images_have_no_such_columns(tmp_path: Path) -> None:
    from scoreinv.study import Phantoms

    rows = list(run(sweep(truths=[Phantoms("ellipses", size=16)]), tmp_path))
    assert rows[0]["psnr_full"] is None and rows[0]["psnr_range"] is not None
    assert "full range" not in table(rows)
