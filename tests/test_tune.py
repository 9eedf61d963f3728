"""`scoreinv tune`: it finds a constant that is known in closed form, goes on where it stopped, and says what is missing."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import itertools
import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from scoreinv import configure, metrics, plugins
from scoreinv.cli import main
from scoreinv.files.reconstruction import read_reconstruction
from scoreinv.files.scan import Scan
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.shipped import identity
from scoreinv.problem import Problem
from scoreinv.ranges import RANGES, Range, parse_ranges, ranges_of
from scoreinv.reconstruction import reconstruct
from scoreinv.simulation import simulate_scan
from scoreinv.tune import read_tuned, save, tune, tuned_settings


class Shrunk:
    """A method with a known best constant: (1 + (share - 0.3)) times the truth, and draws of the standard deviation `spread`."""

    def __init__(self, share: float = 0.6, spread: float = 0.0, samples: int = 1) -> None:
        if share > 0.9:
            raise ValueError(f"Shrunk: share must not exceed 0.9, got {share}")
        self.share, self.spread, self.samples = share, spread, samples

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        image = (0.7 + self.share) * torch.as_tensor(problem.truth)
        noise = torch.randn(self.samples, *image.shape, generator=rng)
        return image + self.spread * 0.0193 * noise


@pytest.fixture
def optuna() -> Any:
    return pytest.importorskip("optuna", reason="needs the extra `tune`")


@pytest.fixture
def shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["methods"], "shrunk", f"{__name__}:Shrunk")
    monkeypatch.setattr("scoreinv.solving._to", lambda problem, device: problem)  # keeps the truth


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three patients of 16 x 16 pixels."""
    hu = np.random.default_rng(0).normal(0, 100, (3, 4, 4)).repeat(4, axis=1).repeat(4, axis=2).astype(np.int16)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["hu"], file["patient"], file["pixel_mm"] = hu, ["a", "b", "c"], np.full(3, 2.0)
    return tmp_path / "v.h5"


def search(data: Path, trials: int, journal: str = "j", **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"ranges": {"share": Range(0.0, 1.0)}, "relative_noise": 0.01} | more
    return tune([data], "shrunk", trials=trials, arguments={"n_views": 6}, storage=data.with_name(journal), **options)


def test_finds_the_best_constant(optuna: Any, shrunk: None, data: Path) -> None:
    found = search(data, 25)
    assert found["share"] == pytest.approx(0.3, abs=0.05)
    assert found["tuned"] == ["share"] and found["relative_noise"] == 0.01
    source = found["provenance"]
    assert source["patients"] == ["a", "b", "c"] and source["arguments"] == {"n_views": 6} and source["prior"] is None
    assert found["psnr"] > source["untuned"] + 3
    assert found["grid"][0] == [{"share": 0.6}, source["untuned"]]
    assert max(value for _, value in found["grid"]) == found["psnr"]
    assert source["trials"] == len(found["grid"]) < 25  # those above 0.9 were refused
    assert len(source["images"]) == 64 and {"scoreinv", "torch", "optuna"} <= set(source["version"])


def test_no_constants_where_the_own_are_better(optuna: Any, shrunk: None, data: Path, tmp_path: Path) -> None:
    """The best share is 0.3, the method's own 0.6, which the range leaves out; the spread of 0 cannot be beaten."""
    found = search(data, 4, ranges={"spread": Range(0.5, 1.0)})
    assert found["tuned"] == [] and "spread" not in found and len(found["grid"]) == 4
    assert found["psnr"] == found["provenance"]["untuned"] > max(value for _, value in found["grid"])
    save(tmp_path / "t.json", "shrunk", found)
    np.save(tmp_path / "x.npy", np.zeros((16, 16), np.int16))
    scan = simulate_scan(tmp_path / "x.npy", "parallel_beam_ct", {"n_views": 6}, pixel_mm=2.0, relative_noise=0.01)
    assert tuned_settings(tmp_path / "t.json", dataclasses.replace(scan, noise_known=True)) == ("shrunk", {})


def test_the_command_says_that_the_own_constants_are_kept(
    optuna: Any, shrunk: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "tune",
        "shrunk",
        str(data),
        "--views",
        "6",
        "--noise",
        "0.01",
        "--trials",
        "2",
        "--range",
        "spread=0.5:1",
    ]
    assert main([*command, "--out", str(tmp_path / "t.json")]) == 0
    assert "its own constants are kept" in capsys.readouterr().out


def test_a_search_that_was_interrupted_ends_as_if_it_had_not_been(optuna: Any, shrunk: None, data: Path) -> None:
    whole = search(data, 14, "whole")
    search(data, 5, "parts")
    assert search(data, 14, "parts") == whole
    assert search(data, 14, "parts", seed=1)["grid"][1:] != whole["grid"][1:]
    assert search(data, 14, "parts") == whole  # the journal keeps searches of other conditions apart


def test_calibration_rewards_draws_as_wide_as_the_error(optuna: Any, shrunk: None, data: Path) -> None:
    """The image is off by about 0.1 mu_water: CRPS wants draws about as wide, and the PSNR the narrowest."""
    more: dict[str, Any] = {"ranges": {"spread": Range(0.001, 1.0, log=True)}, "samples": 8, "settings": {"share": 0.4}}
    wide = search(data, 25, objective="calibration", **more)
    narrow = search(data, 25, **more)
    assert 0.03 < wide["spread"] < 0.3 and narrow["tuned"] == []  # its own, none
    assert wide["settings"] == {"share": 0.4, "samples": 8} and "psnr" not in wide
    with pytest.raises(ValueError, match="give --samples 4 or more"):
        search(data, 3, objective="calibration", ranges={"spread": Range(0.1, 0.2)})
    with pytest.raises(ValueError, match="'cgls' gave one image: take a method that draws, or --objective psnr"):
        tune([data], "cgls", relative_noise=0.01, trials=1, storage=data.with_name("c"), objective="calibration")


def test_methods_with_a_prior_say_which(optuna: Any, data: Path) -> None:
    """The method's own list of constants, one of which has no number of its own (sigma_max)."""
    short = {"samples": 4, "n_levels": 2, "draw_levels": 4}
    found = tune(
        [data], "proximal", relative_noise=0.0, trials=2, storage=data.with_name("j"), settings=short, patients=1,
        arguments={"n_views": 6}, objective="calibration",
    )  # fmt: skip
    assert found["tuned"] == list(RANGES["proximal"]) and found["tau"] == 0.0
    assert found["provenance"]["prior"] == identity() and found["provenance"]["patients"] == ["a"]
    first, value = found["grid"][0]
    assert first["trust"] == 1.75 and first["relaxation"] == 1.9 and 0.1 <= first["sigma_max"] <= 10
    assert value != found["provenance"]["untuned"]  # that was without any sigma_max


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ranges": {"shaer": Range(0, 1)}}, "Did you mean 'share'"),
        ({"settings": {"share": 0.5}}, "nothing is left to search for"),
        ({"objective": "ssim"}, "known: psnr, calibration"),
        ({"trials": 0}, "at least 1"),
        ({"ranges": {"share": Range(0.95, 1.0)}}, "give other ranges"),
        ({"ranges": None}, "names no constants to tune: give --range"),
    ],
)
def test_bad_input(optuna: Any, shrunk: None, data: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        search(data, **{"trials": 3, **more})


def test_without_optuna_the_extra_is_named(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def absent(name: str, *more: Any) -> Any:
        if name == "optuna":
            raise ModuleNotFoundError("No module named 'optuna'")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", absent)
    out = str(data.with_name("t.json"))
    assert main(["tune", "sirt", str(data), "--noise", "0.01", "--trials", "1", "--out", out]) == 2
    assert "pip install 'scoreinv[tune]'" in capsys.readouterr().err


# From the command line to a reconstruction


def test_tuned_constants_reach_a_reconstruction(
    optuna: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scan = tmp_path / "tuned.json", tmp_path / "scan.h5"
    small = ["--set", "max_iterations=20", "--range", "weight=0.02:20:log", "--patients", "2"]
    command = ["tune", "fista_tv", str(data), "--views", "8", "--noise", "0.002", "0.05", "--trials", "6", *small]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "weight" in printed and "own constants" in printed
    low, high = read_tuned(out)["fista_tv"]
    assert (low["relative_noise"], high["relative_noise"]) == (0.002, 0.05) and low["tau"] < high["tau"]
    np.save(tmp_path / "x.npy", np.zeros((16, 16), np.int16))
    simulate = ["simulate", str(tmp_path / "x.npy"), "--pixel-mm", "2", "--views", "8", "--noise", "0.05"]
    assert main([*simulate, "--out", str(scan)]) == 0
    assert main(["reconstruct", str(scan), "--tuned", str(out), "--out", str(tmp_path / "r.h5")]) == 0
    settings = read_reconstruction(tmp_path / "r.h5").settings
    assert settings["method"] == "fista_tv" and settings["max_iterations"] == 20
    assert settings["weight"] == pytest.approx(high["weight"])
    assert (
        main(["reconstruct", str(scan), "--tuned", str(out), "--set", "weight=0.5", "--out", str(tmp_path / "r.h5")])
        == 0
    )
    assert read_reconstruction(tmp_path / "r.h5").settings["weight"] == 0.5
    capsys.readouterr()
    assert main(["reconstruct", str(scan), "--tuned", str(out), "--method", "sirt"]) == 2
    assert "has nothing for 'sirt': give --method, one of fista_tv" in capsys.readouterr().err


def test_the_record_of_the_nearest_noise_is_taken(tmp_path: Path) -> None:
    rows = [
        {"relative_noise": r, "tau": tau, "tuned": ["weight"], "weight": tau + 0.1, "settings": {"max_iterations": 7}}
        for r, tau in ((0.0, 0.0), (0.005, 0.12))
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"methods": {"fista_tv": rows}}))
    np.save(tmp_path / "x.npy", np.zeros((16, 16), np.int16))

    def settings(noise: float) -> dict[str, Any]:
        scan = simulate_scan(tmp_path / "x.npy", "parallel_beam_ct", {"n_views": 8}, pixel_mm=2.0, relative_noise=noise)
        method, found = tuned_settings(path, scan)
        assert method == "fista_tv"
        reconstruct(scan, method, settings=found)
        return found

    assert settings(0.0) == {"weight": 0.1, "max_iterations": 7}
    with pytest.warns(UserWarning, match="its constants may not suit"):
        assert settings(0.5)["weight"] == pytest.approx(0.22)


def test_the_record_of_the_nearest_scanner_is_taken(tmp_path: Path) -> None:
    """Of the same operator before others, of the nearest number of views before the nearest noise."""
    made = [("parallel_beam_ct", 8, 0.0), ("parallel_beam_ct", 40, 0.12), ("fan_beam_ct", 20, 0.0), ("gone", 20, 0.0)]
    rows = [
        {
            "relative_noise": 0.0, "tau": tau, "tuned": ["weight"], "weight": 0.1 + k, "settings": {},
            "provenance": {"operator": name, "data_shape": [views, 23]},
        }
        for k, (name, views, tau) in enumerate(made)
    ]  # fmt: skip
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"methods": {"fista_tv": rows}}))
    np.save(tmp_path / "x.npy", np.zeros((16, 16), np.int16))

    def weight(operator: str, views: int, **geometry: float) -> float:
        scan = simulate_scan(tmp_path / "x.npy", operator, {"n_views": views, **geometry}, pixel_mm=2.0)
        return float(tuned_settings(path, scan)[1]["weight"])

    assert weight("parallel_beam_ct", 9) == 0.1 and weight("parallel_beam_ct", 11) == 0.1
    with pytest.warns(UserWarning, match="a noise of 0.12"):
        assert weight("parallel_beam_ct", 36) == 1.1
    with pytest.warns(UserWarning, match="8 views, the scan has 16"):
        assert weight("parallel_beam_ct", 16) == 0.1
    assert weight("fan_beam_ct", 20, source_origin_mm=500.0, origin_detector_mm=400.0) == 2.1
    near = [
        rows[0] | {"tau": 9.0, "weight": 7.0, "provenance": {"operator": "parallel_beam_ct", "data_shape": [10, 23]}}
    ]
    path.write_text(json.dumps({"methods": {"fista_tv": [*near, *rows]}}))
    assert weight("parallel_beam_ct", 10) == 0.1  # of similar numbers of views the noise decides
    path.write_text(json.dumps({"methods": {"fista_tv": rows[3:]}}))
    with pytest.warns(UserWarning, match="the operator gone, the scan is of ParallelBeamCT"):
        assert weight("parallel_beam_ct", 20) == 3.1


@pytest.mark.filterwarnings("default")
def test_the_command_compares_the_prior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a slice, and of a volume."""
    scan, path = tmp_path / "scan.h5", tmp_path / "t.json"
    other = record(1.0, prior={"name": "b", "sha256": 64 * "b"})
    save(path, "proximal", other | {"tuned": [], "settings": {"n_levels": 2, "samples": 1}})
    np.save(tmp_path / "x.npy", np.zeros((2, 16, 16), np.int16))
    simulate = ["simulate", str(tmp_path / "x.npy"), "--pixel-mm", "2", "--views", "60", "--noise", "0"]
    assert main([*simulate, "--out", str(scan)]) == 0
    for more in ([], ["--slices", "0"]):
        capsys.readouterr()
        command = ["reconstruct", str(scan), "--tuned", str(path), *more, "--out", str(tmp_path / f"r{len(more)}.h5")]
        assert main(command) == 0
        assert f"the prior b (bbbbbbbb), this is {identity()['sha256'][:8]}" in capsys.readouterr().err


def record(weight: float, objective: str = "psnr", **more: Any) -> dict[str, Any]:
    """Of 60 views, noise-free; `more` belongs to its provenance."""
    made = {"operator": "parallel_beam_ct", "arguments": {"n_views": 60}, "data_shape": [60, 23], "prior": None} | more
    return {
        "relative_noise": 0.0, "tau": 0.0, "tuned": ["weight"], "weight": weight, "settings": {}, objective: 1.0, "provenance": made,
    }  # fmt: skip


@pytest.fixture
def within_100_degrees(tmp_path: Path) -> Scan:
    np.save(tmp_path / "x.npy", np.zeros((16, 16), np.int16))
    return simulate_scan(tmp_path / "x.npy", "parallel_beam_ct", {"n_views": 60, "arc": 1.745}, pixel_mm=2.0)


def test_the_record_of_the_nearest_arc_is_taken(tmp_path: Path, within_100_degrees: Scan) -> None:
    path, limited = tmp_path / "t.json", {"n_views": 60, "arc": 1.745}
    save(path, "fista_tv", record(1.0))
    with pytest.warns(UserWarning, match="within 100% of a whole scan's turn, the scan's are within 56%"):
        assert tuned_settings(path, within_100_degrees)[1]["weight"] == 1.0
    save(path, "fista_tv", record(2.0, arguments=limited))
    save(path, "fista_tv", record(3.0, arguments={"mask": 1}))  # says nothing of an arc
    save(path, "fista_tv", record(4.0))
    assert [r["weight"] for r in read_tuned(path)["fista_tv"]] == [2.0, 3.0, 4.0]
    save(path, "fista_tv", record(5.0, arguments=limited))
    assert tuned_settings(path, within_100_degrees)[1]["weight"] == 5.0


def test_records_of_several_objectives_and_priors_live_side_by_side(tmp_path: Path, within_100_degrees: Scan) -> None:
    path, scan = tmp_path / "t.json", within_100_degrees
    here = {"arguments": {"n_views": 60, "arc": 1.745}}
    a, b = ({"name": name, "sha256": 64 * name} for name in "ab")
    made = (
        record(1.0, prior=a, **here), record(2.0, prior=b, **here), record(3.0, "calibration", prior=b, **here),
        record(4.0, prior=a, **here) | {"settings": {"samples": 8}},
    )  # fmt: skip
    for row in made:
        save(path, "proximal", row)
    save(path, "proximal", record(5.0, prior=a, **here))  # in the place of the first

    def weight(**more: Any) -> float:
        return float(tuned_settings(path, scan, **more)[1]["weight"])

    assert {r["weight"] for r in read_tuned(path)["proximal"]} == {2.0, 3.0, 4.0, 5.0}
    assert weight() == weight(prior_sha256=a["sha256"]) == 5.0 and weight(prior_sha256=b["sha256"]) == 2.0
    assert weight(objective="calibration") == 3.0
    with pytest.warns(UserWarning, match=r"the prior b \(bbbbbbbb\), this is aaaaaaaa"):
        assert weight(objective="calibration", prior_sha256=a["sha256"]) == 3.0
    path.write_text(json.dumps({"methods": {"proximal": [made[2]]}}))
    assert weight() == 3.0
    with pytest.raises(ValueError, match="'proximal' was not tuned for 'psnr'"):
        weight(objective="psnr")


def test_a_small_search_does_not_take_the_place_of_a_large_one(tmp_path: Path, within_100_degrees: Scan) -> None:
    """Of other patients or ranges it is kept beside it, and the larger one is taken; of the same ones more trials are kept."""
    path, here = tmp_path / "t.json", {"arguments": {"n_views": 60, "arc": 1.745}}
    large = {"images": "aa", "patients": list("abcdefgh"), "trials": 100, "ranges": {"weight": [0, 1]}, **here}
    save(path, "fista_tv", record(1.0, **large))
    save(path, "fista_tv", record(2.0, **large | {"images": "b", "patients": ["a"], "trials": 2}))
    save(path, "fista_tv", record(3.0, **large | {"ranges": {"weight": [0, 9]}, "trials": 4}))
    assert [r["weight"] for r in read_tuned(path)["fista_tv"]] == [1.0, 2.0, 3.0]
    assert tuned_settings(path, within_100_degrees)[1]["weight"] == 1.0
    with pytest.warns(UserWarning, match="keeps the record of 100 trials of this search, the new one is of 5"):
        save(path, "fista_tv", record(4.0, **large | {"trials": 5}))
    assert [r["weight"] for r in read_tuned(path)["fista_tv"]] == [1.0, 2.0, 3.0]
    save(path, "fista_tv", record(5.0, **large | {"trials": 200}))
    assert sorted(r["weight"] for r in read_tuned(path)["fista_tv"]) == [2.0, 3.0, 5.0]


def test_constants_are_not_written_over_their_trials(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data.with_name("x.journal")
    assert main(["tune", "sirt", str(data), "--out", str(out)]) == 2
    assert "the trials are kept under this name; give the constants another, such as" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "[]", '{"methods": 3}', '{"methods": {"sirt": [{"tau": 1}]}}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match="holds no tuned constants"):
        read_tuned(tmp_path / "t.json")


# Ranges


@pytest.mark.parametrize("method", sorted(RANGES))
def test_ranges_are_of_settings_and_hold_the_defaults(method: str) -> None:
    parameters = inspect.signature(plugins.get("methods", method)).parameters
    for key, r in ranges_of(method).items():
        own = parameters[key].default
        assert r.low < r.high and (r.low > 0 or not r.log), key
        if own is not None:
            assert r.low <= own <= r.high and r.integer == isinstance(own, int), key


def test_ranges_as_text() -> None:
    found = parse_ranges("proximal", ["trust=1:6:log", "iterations=2:20", "sigma_max=0.1:1"])
    assert found == {
        "trust": Range(1, 6, log=True),
        "iterations": Range(2, 20, integer=True),
        "sigma_max": Range(0.1, 1),
    }
    for text in ("trust", "trust=1", "trust=3:1", "trust=0:1:log", "trust=1:2:lag", "trust=a:b", "=1:2", "trust=1:inf"):
        with pytest.raises(ValueError, match="a range is written key=low:high"):
            parse_ranges("proximal", [text])


# The score


def test_crps_of_normal_draws_is_that_of_the_normal_law(rng: Generator) -> None:
    """s (z (2 Φ(z) − 1) + 2 φ(z) − 1 / √π) at z = (truth − m) / s, whatever the number of draws."""
    m, s = 0.4, 1.7
    for n, truth in ((2, 0.0), (5, 3.0)):
        draws = m + s * torch.randn(n, 1, 300_000, generator=rng)
        found = metrics.crps(draws, torch.full((1, 300_000), truth))
        z = (truth - m) / s
        cdf, density = (1 + math.erf(z / math.sqrt(2))) / 2, math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        exact = s * (z * (2 * cdf - 1) + 2 * density - 1 / math.sqrt(math.pi))
        assert float(found.mean()) == pytest.approx(exact, abs=0.01)
    with pytest.raises(ValueError, match="at least 2 samples"):
        metrics.crps(torch.zeros(1, 2, 2), torch.zeros(2, 2))


@pytest.mark.parametrize("name", sorted(RANGES))
def test_methods_take_the_corners_of_their_ranges(name: str) -> None:
    """A trial that is refused teaches the search nothing."""
    chosen = RANGES[name]
    for corner in itertools.product(*((r.low, r.high) for r in chosen.values())):
        values = {k: int(v) if r.integer else v for (k, r), v in zip(chosen.items(), corner, strict=True)}
        configure.method(name, values, lambda: GaussianPrior(torch.zeros(4, 4), torch.eye(16)))
