"""Sweeps and reports that would mislead: weights and images that change, names that are shared, filters, what only looks checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scoreinv.arguments import ArgumentError
from scoreinv.baselines.learned import weights_path
from scoreinv.cli import main
from scoreinv.priors.checkpoint import checksum
from scoreinv.study import (
    ImageFile,
    MethodCall,
    Noise,
    OperatorCall,
    Phantoms,
    Sweep,
    plan,
    read,
    read_sweep,
    run,
    table,
)
from scoreinv.study.report import content
from scoreinv.study.report_statistics import mean_interval, paired, problems
from scoreinv.study.tables import current

SIZE = 16


def sweep(**change: Any) -> Sweep:
    parts: dict[str, Any] = {
        "truths": [Phantoms("ellipses", size=SIZE)], "operators": [OperatorCall("parallel_beam_ct", {"n_views": 9})],
        "methods": [MethodCall("fbp")],
    }  # fmt: skip
    return Sweep(**{**parts, **change})


def images(path: Path, patients: dict[str, int], seed: int = 0, slices: int = 1) -> Path:
    """CT of noise, some patients, pixels of 5 mm."""
    rng = np.random.default_rng(seed)
    names = [name for name in patients for _ in range(slices)]
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["hu"] = rng.integers(-1000, 500, (len(names), SIZE, SIZE)).astype(np.int16)
        file["patient"] = names
        file["pixel_mm"] = np.full(len(names), 5.0)
    return path


def toml(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


BASE = '[truth]\nphantom = "ellipses"\nsize = 16\n[operator]\nname = "parallel_beam_ct"\nn_views = 9\n'

# Weights


def test_other_weights_under_the_same_name_are_other_cells(tmp_path: Path) -> None:
    shipped, own = weights_path("fbp_unet", None), tmp_path / "sub" / "w.safetensors"
    path = toml(tmp_path / "sub" / "w.toml", BASE + '[[method]]\nname = "fbp_unet"\nweights = "w.safetensors"\n')
    card = json.loads(shipped.with_suffix(".json").read_text())
    keys = []
    for factor in (1.0, 0.5, 1.0):
        save_file({k: (v * factor if v.is_floating_point() else v) for k, v in load_file(shipped).items()}, own)
        own.with_suffix(".json").write_text(json.dumps({**card, "sha256": checksum(own)}))
        keys.append(read_sweep(path).cells[0].key)  # beside the TOML, wherever the command is given
    assert keys[0] == keys[2] != keys[1]
    with pytest.warns(UserWarning, match="trained"):  # at another geometry
        row = next(run(read_sweep(path), tmp_path / "store"))
    assert row["status"] == "done" and row["weights_sha256"] == checksum(own) and row["evaluations"] is None
    own.unlink()
    with pytest.raises(ValueError, match=r"w\.toml:9: .*no such file"):
        read_sweep(path)


def test_a_report_says_what_is_not_there_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = toml(tmp_path / "sub" / "w.toml", BASE + '[[method]]\nsweep.name = ["fbp", "sirt", "cgls"]\n')
    command = ["bench", str(path), "--out", str(tmp_path / "store"), "--quiet"]
    for some, words in ((["--limit", "1"], "without a row yet: 2."), ([], "")):
        assert main([*command, *some]) == 0
        assert main(["report", str(tmp_path / "store")]) == 0
        said = (tmp_path / "store" / "report.md").read_text()
        assert words in said and ("without a row" in said) == bool(words)
    (tmp_path / "store" / "sweep.toml").unlink()
    assert main(["report", str(tmp_path / "stroe")]) == 2
    assert "stroe: no such folder; expected the --out" in capsys.readouterr().err
    assert content(tmp_path / "store")["absent"] is None


def test_priors_are_looked_at_though_no_method_takes_one(tmp_path: Path) -> None:
    path = toml(tmp_path / "p.toml", 'priors = ["ct-265"]\n' + BASE + '[[method]]\nname = "fbp"\n')
    with pytest.raises(ValueError, match=r"p\.toml:1: .*ct-265"):
        read_sweep(path)


# Images


def test_images_that_have_changed_are_not_averaged_with_what_they_were(tmp_path: Path) -> None:
    path, store = tmp_path / "val.h5", tmp_path / "store"
    methods = [MethodCall("fbp"), MethodCall("sirt")]
    images(path, {"P1": 1, "P2": 1})
    list(run(sweep(truths=[ImageFile(str(path))], methods=methods), store))
    images(path, {"P1": 1, "P2": 1}, seed=1)
    list(run(sweep(truths=[ImageFile(str(path))], methods=methods), store, only=["method=sirt"]))
    rows, outdated = current(read(store))
    assert outdated == 4 and {(r["method"], r["image"]) for r in rows} == {
        ("sirt", "P1, slice 0"),
        ("sirt", "P2, slice 0"),
    }
    assert "4 rows of images that have changed since are left out." in table(read(store))
    assert main(["report", str(store), "--out", str(tmp_path / "r.html")]) == 0
    assert "4 rows of images that have changed since are left out." in (tmp_path / "r.md").read_text()


def test_data_that_have_moved_are_one_problem(tmp_path: Path) -> None:
    store, patients = tmp_path / "store", {f"P{k}": 1 for k in range(4)}
    for folder, n in (("a", 2), ("b", 4)):
        path = images(tmp_path / folder / "val.h5", patients)
        list(run(sweep(truths=[ImageFile(str(path), patients=n)]), store))
    (problem,) = problems(read(store))
    assert problem["methods"][0]["n"] == 4 and table(read(store)).count("## ") == 1


def test_files_of_one_name_in_a_sweep_are_told_apart(tmp_path: Path) -> None:
    truths = [ImageFile(str(images(tmp_path / s / "val.h5", {s: 1}))) for s in ("one", "two")]
    list(run(sweep(truths=truths), tmp_path / "store"))
    assert [p["problem"].split(",")[0] for p in problems(read(tmp_path / "store"))] == ["one/val", "two/val"]


def test_phantoms_of_other_widths_have_other_names(tmp_path: Path) -> None:
    list(run(sweep(truths=[Phantoms("ellipses", size=SIZE, width_mm=w) for w in (200.0, 350.0)]), tmp_path / "store"))
    assert len({p["short"] for p in problems(read(tmp_path / "store"))}) == 2


def test_what_changes_nothing_makes_no_new_cells(tmp_path: Path) -> None:
    path = str(images(tmp_path / "val.h5", {"P1": 1}))
    fine = str(images(tmp_path / "fine.h5", {"P1": 1}))

    def key(simulate: dict[str, Any], **truth: Any) -> str:
        operators = [OperatorCall("parallel_beam_ct", {"n_views": 9}, simulate)]
        return sweep(truths=[ImageFile(path, **truth)], operators=operators).cells[0].key

    plain = key({})
    assert plain == key({"refine": 1}) == key({"weights": "linear"}) == key({}, fine=fine)
    assert plain != key({"weights": "strip"}) and plain != key({"refine": 2})


# Statistics


def test_differences_are_of_the_slices_that_both_methods_have(tmp_path: Path) -> None:
    path, store = images(tmp_path / "val.h5", {f"P{k}": 1 for k in range(3)}, slices=2), tmp_path / "store"
    both = sweep(truths=[ImageFile(str(path), slices="all")], methods=[MethodCall("fbp"), MethodCall("sirt")])
    list(run(both, store, only=["method=fbp"]))
    list(run(both, store, only=["method=sirt", "slice=0"]))
    rows = read(store)
    fbp, sirt = ([r for r in rows if r["method"] == name] for name in ("fbp", "sirt"))
    one, other = paired(sirt, fbp, "psnr")
    first = {r["image.patient"]: r["psnr"] for r in fbp if r["image.slice"] == 0}
    assert other == pytest.approx(first) and set(one) == set(first)
    (problem,) = problems(rows, "fbp")
    difference = problem["methods"][1]["tests"]["psnr"]["difference"]["mean"]
    assert difference == pytest.approx(np.mean([one[p] - first[p] for p in first]))


def test_intervals_end_where_figures_do() -> None:
    assert mean_interval([1.0, 0.97, 0.9], least=0.0, most=1.0)["high"] == 1.0
    assert mean_interval([1.0, 0.97, 0.9])["high"] == pytest.approx(1.0841, abs=1e-3)


def test_the_baseline_is_named_as_the_report_names_it(tmp_path: Path) -> None:
    methods = [MethodCall("sirt", {"iterations": n}) for n in (2, 3)]
    list(run(sweep(methods=methods), tmp_path / "store"))
    for name in ("sirt(iterations=2)", "sirt(iterations=3)"):
        assert problems(read(tmp_path / "store"), name)[0]["baseline"] == name


# The Python form


def test_numbers_of_numpy_and_generators(tmp_path: Path) -> None:
    made = sweep(
        truths=[Phantoms("ellipses", size=np.int64(SIZE))],  # type: ignore[arg-type]
        operators=(
            OperatorCall("parallel_beam_ct", {"n_views": n}, {"refine": np.int64(2)}) for n in np.array([9, 12])
        ),
        seeds=np.arange(2), noises=[Noise(photons=p) for p in np.array([1000, 4096])],
    )  # fmt: skip
    rows = list(run(made, tmp_path / "store"))
    assert len(rows) == 8 and {r["status"] for r in rows} == {"done"}
    plain = sweep(
        operators=[OperatorCall("parallel_beam_ct", {"n_views": 9}, {"refine": 2})], noises=[Noise(photons=1000.0)]
    )
    assert plan(plain, tmp_path / "store").done == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Phantoms("shepp-logan"), "phantom should be 'ellipses' or 'shepp_logan', got 'shepp-logan'. Did you mean"),
        (lambda: ImageFile("val.h5", slices="midle"), "slices should be 'middle' or 'all' or .*'midle'"),
        (lambda: ImageFile("val.h5", patients=()), "patients: expected at least one"),
        (lambda: ImageFile("val.h5", slices=()), "slices: expected at least one"),
        (lambda: sweep(seeds=[1.0]), "seeds should be whole numbers, got 1.0"),
        (lambda: OperatorCall("parallel_beam_ct", {"n_views": 9, "arc": 180}), "180 are more than two turns: write arc_degrees"),
        (lambda: OperatorCall("parallel_beam_ct", {"n_views": 9, "arc_degrees": True}), "should be a number of degrees"),
        (
            lambda: sweep(operators=[OperatorCall("parallel_beam_ct", {"n_views": 9}, {"n_detectors": 20})]).cells,
            r"the data would be \(9, 20\)",
        ),
    ],
)  # fmt: skip
def test_parts_that_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        make()


# Filters


def test_filters_are_about_cells(tmp_path: Path) -> None:
    operators = [OperatorCall("parallel_beam_ct", {"n_views": 9, "arc_degrees": a}) for a in (120, 180)]
    methods = [MethodCall("dds", {"samples": n, "n_levels": 2}) for n in (2, 4)]
    both = sweep(operators=operators, methods=[*methods, MethodCall("sirt")], priors=["ct-256-fast"])

    def chosen(*only: str) -> int:
        return len(plan(both, tmp_path / "none", only=only).cells)

    assert chosen("samples=4") == 2 and chosen("operator.arc_degrees=120") == chosen("arc_degrees=120") == 3
    assert chosen(f"arc={math.radians(120)}") == 3
    for only, words in (
        (["psnr=30"], "there is no such column"),
        (["method=sirt", "samples=4"], "no cell has all of these"),
    ):
        with pytest.raises(ValueError, match=words):
            chosen(*only)


# Files


def test_the_copy_is_of_the_sweep_that_was_given_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    for title, more in (("one", ""), ("two", "images = true\n")):
        path = toml(tmp_path / "s.toml", f'title = "{title}"\n{more}{BASE}[[method]]\nname = "fbp"\n')
        assert main(["bench", str(path), "--out", str(store), "--quiet"]) == 0
    assert "1 rows were computed without their images and stay as they are" in capsys.readouterr().out
    assert (store / "sweep.toml").read_text() == path.read_text()
    for out, words in (("none/y.html", "does not exist"), ("folder.html", "is a folder")):
        (tmp_path / "folder.html").mkdir(exist_ok=True)
        assert main(["report", str(store), "--out", str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert words in error and "/." not in error.replace(str(tmp_path), "")


def test_seeds_make_other_noise_and_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    rows = list(run(sweep(noises=[Noise(relative=0.05)], seeds=[0, 1]), tmp_path / "store"))
    assert rows[0]["psnr"] != rows[1]["psnr"] and torch.equal(before, torch.random.get_rng_state())
