"""Sweeps: what their cells are, what is computed and what is skipped, and what TOML says."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from scoreinv import plugins
from scoreinv.arguments import ArgumentError, resolved
from scoreinv.cli import main
from scoreinv.problem import Problem
from scoreinv.study import (
    Context,
    MethodCall,
    Noise,
    OperatorCall,
    Phantoms,
    Sweep,
    compute,
    plan,
    read,
    read_sweep,
    run,
    table,
)

ROOT = Path(__file__).parents[1]
SMALL = """
seeds = [0, 1]

[truth]
phantom = "ellipses"
size = 32

[operator]
name = "parallel_beam_ct"
sweep.n_views = [5, 9]
simulate = { refine = 2, weights = "strip" }

[noise]
relative = 0.01

[[method]]
name = "fbp"

[[method]]
name = "sirt"
iterations = 5
"""


class Restless:
    """A method that fails in one way, and then in another, until it is told to work."""

    def __init__(self, mood: str = "raise", samples: int = 1) -> None:
        self.mood, self.samples = mood, samples

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        assert problem.truth is None, "the truth is hidden"
        if self.mood == "raise":
            raise ZeroDivisionError("as planned\nin two lines")
        noise = torch.randn(self.samples, *problem.A.in_shape, generator=rng)
        return noise / (0 if self.mood == "diverge" else 100)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["methods"], "restless", f"{__name__}:Restless")


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    return tmp_path / "small.toml"


def sweep(**changes: Any) -> Sweep:
    parts: dict[str, Any] = {
        "truths": [Phantoms("ellipses", size=16)],
        "operators": [OperatorCall("parallel_beam_ct", {"n_views": 5})],
        "methods": [MethodCall("fbp")],
        "noises": [Noise(relative=0.01)],
    }
    return Sweep(**parts | changes)


def stable(row: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when and how fast."""
    return {
        k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds", "peak_memory_mib", "finished", "commit")
    }


# Cells


def test_cells_are_the_product(toml: Path) -> None:
    found = read_sweep(toml).cells
    assert len(found) == 2 * 2 * 2 == len({cell.key for cell in found})
    assert {(c.operator["n_views"], c.method["name"], c.seed) for c in found} == {
        (n, m, s) for n in (5, 9) for m in ("fbp", "sirt") for s in (0, 1)
    }
    assert found[0].simulate == {"refine": 2, "weights": "strip"} and found[0].prior is None
    assert found[0].operator["weights"] == "linear"  # a default


def test_toml_is_only_a_reader(toml: Path) -> None:
    by_hand = Sweep(
        truths=[Phantoms("ellipses", size=32)],
        operators=[OperatorCall("parallel_beam_ct", {"n_views": n}, {"refine": 2, "weights": "strip"}) for n in (5, 9)],
        methods=[MethodCall("fbp"), MethodCall("sirt", {"iterations": 5})],
        noises=[Noise(0.01)],
        seeds=(0, 1),
    )
    assert by_hand.cells == read_sweep(toml).cells
    assert [c.key for c in by_hand.cells] == [c.key for c in read_sweep(toml).cells]


def test_a_key_follows_from_what_the_numbers_follow_from() -> None:
    (one,) = sweep().cells
    for same in (
        sweep(operators=[OperatorCall("parallel_beam_ct", {"n_views": 5, "weights": "linear", "arc_degrees": 180})]),
        sweep(methods=[MethodCall("fbp", {"window": None})], title="another", images=True),
        sweep(noises=[Noise(0.01), Noise(0.01)]),
    ):
        assert [c.key for c in same.cells] == [one.key]
    keys = {one.key}
    for other in (
        sweep(operators=[OperatorCall("parallel_beam_ct", {"n_views": 5, "arc_degrees": 90})]),
        sweep(operators=[OperatorCall("parallel_beam_ct", {"n_views": 5}, {"refine": 2})]),
        sweep(truths=[Phantoms("ellipses", size=17)]),
        sweep(truths=[Phantoms("shepp_logan", size=16)]),
        sweep(methods=[MethodCall("fbp", {"window": "hann"})]),
        sweep(noises=[Noise(0.02)]),
        sweep(noises=[Noise(photons=100.0)]),
        sweep(seeds=(1,)),
    ):
        (cell,) = other.cells
        keys.add(cell.key)
    assert len(keys) == 9


def test_priors_multiply_only_the_methods_that_take_one() -> None:
    methods = [MethodCall("fbp"), MethodCall("proximal"), MethodCall("dds")]
    found = sweep(methods=methods, priors=("ct-256", None)).cells
    assert [(c.method["name"], c.prior and c.prior["name"]) for c in found] == [
        ("fbp", None), ("proximal", "ct-256"), ("dds", "ct-256"),
    ]  # fmt: skip
    assert len(found[1].prior["sha256"]) == 64  # type: ignore[index]


def test_computing_is_a_pure_function_of_a_cell() -> None:
    cells = sweep(methods=[MethodCall("fbp"), MethodCall("sirt", {"iterations": 3})], seeds=(0, 1)).cells
    there = {c.key: compute(c, Context(images=True)) for c in cells}
    for cell in reversed(pickle.loads(pickle.dumps(cells))):  # noqa: S301 (its own)
        back = compute(cell, Context())
        assert back.status == "done" and not back.images
        for figure in ("psnr", "ssim", "chi2", "evaluations"):
            assert back.result[figure] == there[cell.key].result[figure]
    json.dumps([dict(row.result) for row in there.values()], allow_nan=False)


def test_methods_see_the_same_data_and_seeds_others() -> None:
    methods = [MethodCall("sirt", {"iterations": n}) for n in (1, 2)]
    truths = [Phantoms("ellipses", count=2, size=16)]
    rows = [compute(c, Context()) for c in sweep(methods=methods, truths=truths, seeds=(0, 1)).cells]
    from scoreinv.study.computing import _problem

    def data(cell: Any) -> Tensor:
        about = (cell.image, cell.operator, cell.simulate, cell.noise, cell.seed)
        return _problem(*(json.dumps(v, sort_keys=True) for v in about))[0].y

    first = rows[0].cell
    assert torch.equal(data(first), data(rows[1].cell))
    assert len({float(data(r.cell).sum()) for r in rows}) == 4  # images and seeds


# Running


def test_what_exists_is_not_computed_again(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = toml.with_name("out")
    command = ["bench", str(toml), "--out", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert "8 cells, 0 done, 0 failed, 8 to compute" in capsys.readouterr().out and not out.exists()
    assert main([*command, "--limit", "3"]) == 0
    assert len(read(out)) == 3
    assert main([*command, "--only", "method=sirt", "--only", "n_views=9", "--only", "seed=1"]) == 0
    rows = read(out)
    assert len(rows) == 4 and rows[3]["label"] == "sirt(iterations=5)" and rows[3]["operator.n_views"] == 9
    capsys.readouterr()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "8 cells, 4 done, 0 failed, 4 to compute" in printed and "| sirt(iterations=5) | 2 |" in printed
    assert (out / "table.md").read_text() in printed
    assert [r["finished"] for r in read(out)[:4]] == [r["finished"] for r in rows]
    assert read(out)[:4] == rows
    toml.write_text(SMALL.replace("[0, 1]", "[0, 1, 2]") + '[[method]]\nname = "cgls"\n', encoding="utf-8")
    assert main([*command, "--dry-run"]) == 0
    assert "18 cells, 8 done, 0 failed, 10 to compute" in capsys.readouterr().out


def test_a_failing_cell_is_a_row(restless: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = [MethodCall("restless", {"mood": mood, "samples": 3}) for mood in ("raise", "diverge", "work")]
    made = sweep(methods=methods)
    rows = list(run(made, tmp_path))
    assert [r["status"] for r in rows] == ["failed", "failed", "done"]
    assert (rows[0]["error_type"], rows[0]["error"]) == ("ZeroDivisionError", "as planned\nin two lines")
    assert rows[1]["error_type"] == "FloatingPointError" and "NaN or infinite" in rows[1]["error"]
    assert rows[0]["psnr"] is None and rows[2]["samples"] == 3 and rows[2]["calibration"] > 0
    assert [stable(r) for r in read(tmp_path)] == [stable(r) for r in rows]
    assert "0, 1 failed" in table(rows)
    assert list(run(made, tmp_path)) == []
    again = plan(made, tmp_path, retry_failed=True)
    assert (again.done, again.failed, len(again.todo)) == (1, 2, 2)
    plugins.BUILT_IN["methods"]["restless"] = f"{__name__}:Mended"
    assert [r["status"] for r in run(made, tmp_path, retry_failed=True)] == ["done", "done"]
    assert len(read(tmp_path)) == 3 and {r["status"] for r in read(tmp_path)} == {"done"}


class Mended(Restless):
    """It works now."""

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        return torch.zeros(self.samples, *problem.A.in_shape)


def test_filters(toml: Path) -> None:
    made = read_sweep(toml)

    def count(*only: str) -> int:
        return len(plan(made, toml.with_name("none"), only=only).cells)

    assert count("method=fbp") == 4 and count("method=fbp", "method=sirt") == 8
    assert count("n_views=9", "seed=0") == 2 and count("operator.n_views=5") == 4
    assert count("arc_degrees=180") == 8 and count("noise.relative=1e-2") == 8
    for text, words in (
        ("method", "written key=value"),
        ("n_view=3", "Did you mean 'n_views'"),
        ("n_views=3", "no cell has it; operator.n_views is one of 5, 9"),
        ("weights=strip", "is one of operator.weights, simulate.weights: write which"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            count(text)


def test_images_on_request(tmp_path: Path, restless: None) -> None:
    methods = [MethodCall("fbp"), MethodCall("restless", {"mood": "work", "samples": 2})]
    rows = list(run(sweep(methods=methods, images=True), tmp_path))
    for row, names in zip(rows, (["mean_hu", "truth_hu"], ["mean_hu", "std_hu", "truth_hu"]), strict=True):
        with h5py.File(tmp_path / row["images"]) as file:
            assert sorted(file) == names and file["mean_hu"].shape == (16, 16)
            error = np.asarray(file["mean_hu"], np.float64) - np.asarray(file["truth_hu"], np.float64)
            assert np.sqrt(np.mean(error**2)) == pytest.approx(row["rmse_hu"], rel=1e-4)


def test_the_prior_is_loaded_once_and_its_evaluations_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scoreinv.priors import shipped

    loaded: list[Path] = []
    real = shipped.load_prior
    monkeypatch.setattr(shipped, "load_prior", lambda path: loaded.append(path) or real(path))
    shipped._loaded.cache_clear()
    settings = {"samples": 2, "n_levels": 2, "draw_levels": 1}
    rows = list(run(sweep(methods=[MethodCall("proximal", settings)], seeds=(0, 1)), tmp_path))
    assert len(loaded) == 1 and [r["evaluations"] for r in rows] == [4, 4]
    assert rows[0]["prior"] == "ct-256" and rows[0]["psnr"] != rows[1]["psnr"]
    assert rows[0]["peak_memory_mib"] > 50 and rows[0]["seconds"] > 0
    assert re.fullmatch(r"[0-9a-f]{12}", rows[0]["versions.sources"])
    assert rows[0]["commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", rows[0]["commit"])
    assert rows[0]["versions.torch"] == torch.__version__ and rows[0]["machine.threads"] == torch.get_num_threads()


def test_gradients_are_counted_beside_evaluations(tmp_path: Path) -> None:
    """DPS goes back through every evaluation, the default through none; tables have the column where it matters."""
    methods = [MethodCall("proximal", {"samples": 1, "n_levels": 2}), MethodCall("dps", {"samples": 1, "n_levels": 3})]
    rows = list(run(sweep(methods=methods), tmp_path))
    assert [r["status"] for r in rows] == ["done", "done"] and (rows[0]["evaluations"], rows[0]["gradients"]) == (2, 0)
    assert rows[1]["gradients"] == rows[1]["evaluations"] == 3
    assert "| gradients |" in table(rows) and "| gradients |" not in table(rows[:1])


def test_table_averages_over_images_and_seeds() -> None:
    rows: list[dict[str, Any]] = []
    common: dict[str, Any] = {
        "problem": "p",
        "operator": "o",
        "image.shape": [1],
        "status": "done",
        "prior": None,
        "prior_sha256": None,
    }
    figures = dict.fromkeys(("ssim", "rmse_hu", "chi2", "calibration", "coverage_90", "evaluations", "seconds"))
    for method, image, psnr in (("a", "x", 20.0), ("b", "x", 10.0), ("a", "y", 31.0)):
        rows.append({**common, **figures, "method": method, "label": method, "image": image, "psnr": psnr})
    rows.append({**rows[0], "operator.n_views": 3, "problem": "q", "psnr": 1.5})
    text = table(rows, "T")
    assert text.startswith("# T\n") and "Means over 2 images" in text
    assert "| a | 2 | 25.50 |" in text and "| b | 1 | 10.00 |" in text
    assert text.index("## p") < text.index("| b |") < text.index("## q") < text.index("| a | 1 | 1.50 |")


def test_settings_are_finite() -> None:
    with pytest.raises(ArgumentError, match="longest should be a finite number, got inf"):
        resolved("pigdm", plugins.get("methods", "pigdm"), {"longest": float("inf")}, automatic=["prior"])


# TOML


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("n_views = [5, 9]", "n_view = [5, 9]"), 10, "has no argument 'n_view'. Did you mean 'n_views'?"),
        (("n_views = [5, 9]", "n_views = [5, '9']"), 10, "n_views should be int, got '9'"),
        (("n_views = [5, 9]", "n_views = 9"), 10, "sweep.n_views should be a list of values"),
        (("sweep.n_views = [5, 9]", "sweep = 3"), 10, "an axis is written sweep.KEY"),
        (("sweep.n_views = [5, 9]", "n_views = 0"), 9, "n_views >= 1"),
        (("sweep.n_views", "n_views = 3\nsweep.n_views"), 10, "exclude each other"),
        (("sweep.n_views = [5, 9]", "arc_degrees = '9'"), 10, "number of degrees"),
        (("parallel_beam_ct", "paralel_beam_ct"), 9, "Did you mean 'parallel_beam_ct'?"),
        (("parallel_beam_ct", "grayscale"), 10, "has no argument 'n_views'"),
        (("weights =", "weigths ="), 11, "has no field 'weigths'. Did you mean 'weights'?"),
        (("refine = 2", "refine = 0"), 11, "refine should be a whole number"),
        (("simulate = {", "simulates = {"), 11, "has no argument 'simulates'"),
        (("relative", "relativ"), 14, "Did you mean 'relative'?"),
        (("0.01", "-0.01"), 14, "must not be negative"),
        (("relative = 0.01", "relative = 0.01\nphotons = 10"), 15, "either relative or photons"),
        (('"sirt"', '"sirtt"'), 20, "Did you mean 'sirt'?"),
        (("iterations = 5", "iterations = 'many'"), 21, "iterations should be int"),
        (("iterations = 5", "iteration = 5"), 21, "Did you mean 'iterations'?"),
        (("iterations = 5", "iterations = 0"), 20, "at least 1"),
        (("ellipses", "elipses"), 5, "phantom should be 'ellipses' or 'shepp_logan', got 'elipses'. Did you mean 'ellipses'?"),
        (("size = 32", "sise = 32"), 6, "Did you mean 'size'?"),
        (('phantom = "ellipses"', ""), 4, "truth needs file = ... or phantom"),
        (("seeds = [0, 1]", "seeds = [0, '1']"), 2, "seeds should be a list of int"),
        (("seeds = [0, 1]", "seed = [0, 1]"), 2, "Did you mean 'seeds'?"),
        (("seeds = [0, 1]", "images = 1"), 2, "images should be bool"),
        (("[truth]", "[thruth]"), 4, "Did you mean 'truth'?"),
        (("seeds = [0, 1]", "seeds = [0, 1"), 4, "is no TOML"),
        (('"sirt"\niterations = 5', '"proximal"\nprior = "x"'), 21, "a sweep has a list of priors"),
    ],
)  # fmt: skip
def test_bad_input_is_named_with_its_line(toml: Path, change: tuple[str, str], line: int, words: str) -> None:
    assert change[0] in SMALL
    toml.write_text(SMALL.replace(*change), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_sweep(toml)
    assert f"small.toml:{line}:" in str(error.value) or f"line {line}" in str(error.value)


def test_bad_priors_are_named_with_their_line(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text('priors = ["ct-265"]\n' + SMALL.replace('"fbp"', '"proximal"'), encoding="utf-8")
    assert main(["bench", str(toml)]) == 2
    assert "small.toml:1: no prior is named 'ct-265'" in capsys.readouterr().err
    toml.write_text('priors = ["none.safetensors"]\n' + SMALL.replace('"fbp"', '"proximal"'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"small.toml:1: .*none.safetensors"):
        read_sweep(toml)
    assert main(["bench", str(toml.with_name("absent.toml"))]) == 2


def test_every_key_may_be_an_axis(toml: Path) -> None:
    text = SMALL.replace('name = "fbp"', 'sweep.name = ["fbp", "cgls"]').replace("size = 32", "sweep.size = [16, 32]")
    text = text.replace("relative = 0.01", "sweep.photons = [100, 1e4]").replace(
        "simulate = { refine = 2, weights", "sweep.simulate = [{}, { refine = 2 }] #"
    )
    toml.write_text(text, encoding="utf-8")
    found = read_sweep(toml).cells
    assert len(found) == 2 * (2 * 2) * 2 * 3 * 2
    assert {c.noise["photons"] for c in found} == {100, 1e4} and {c.image["shape"][0] for c in found} == {16, 32}


def test_the_documented_sweeps_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that need no data, in full; the others with files that are found in the next test."""
    assert len(read_sweep(ROOT / "benchmarks" / "example.toml").cells) == 40
    assert len(read_sweep(ROOT / "benchmarks" / "speed.toml").cells) == 3 * 3 * 11
    monkeypatch.delenv("SCOREINV_DATA", raising=False)
    with pytest.raises(ValueError, match=r"paper.toml:\d+: .*set SCOREINV_DATA"):
        read_sweep(ROOT / "benchmarks" / "paper.toml")


def test_the_protocols_with_data(data_folder: Path, tmp_path: Path) -> None:
    cells = {
        name: read_sweep(ROOT / "benchmarks" / f"{name}.toml").cells
        for name in ("paper", "views", "dose", "limited_angle", "generalisation")
    }
    assert {name: len(c) for name, c in cells.items()} == {
        "paper": 14 * 2 * 14, "views": 14 * 6 * 3, "dose": 14 * 2 * 4 * 3, "limited_angle": 14 * 6 * 3,
        "generalisation": (14 + 3) * 3 * 2 * 7,
    }  # fmt: skip
    patients = {c.image["patient"]: c.image["fine"] for c in cells["paper"]}
    assert len(patients) == 14 and sum(fine is not None for fine in patients.values()) == 5
    example = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "benchmarking.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "example.toml").write_text(example[0], encoding="utf-8")
    assert len(read_sweep(tmp_path / "example.toml").cells) == (2 + 2) * 3 * 3 * (2 + 2) * 2


def test_the_documented_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(code, "benchmarking.md", "exec"), {})  # noqa: S102 (our own document)
    assert "| fista_tv(max_iterations=20) | 2 |" in capsys.readouterr().out


def test_the_columns_are_documented(tmp_path: Path) -> None:
    (row,) = run(sweep(), tmp_path)
    text = str(read.__doc__)
    missing = [k for k in row if "." not in k and not re.search(rf"\b{k}\b", text)]
    assert missing == []
    parts = {k.partition(".")[0] for k in row if "." in k}
    assert parts <= {"image", "operator", "simulate", "noise", "method", "versions", "machine"}
