"""Calibrated intervals: the factor is the smallest that holds, it holds for new patients, and it is used where it applies."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from skimage.filters import gaussian

from scoreinv import configure
from scoreinv.calibrate import Patient, calibrate
from scoreinv.calibration import (
    FLOOR_HU,
    Calibration,
    Case,
    calibrated,
    check_enough,
    conformal_factor,
    find,
    read_calibrations,
    refusal,
    unfit,
    write_calibrations,
)
from scoreinv.conditions import Conditions, geometry_of, joined
from scoreinv.files.images import read_image_set
from scoreinv.files.reconstruction import Reconstruction
from scoreinv.files.scan import Scan
from scoreinv.operators import FanBeamCT, Masking, ParallelBeamCT, equispaced_angles
from scoreinv.presets import preset_named
from scoreinv.report import judgement
from scoreinv.simulation import patient_scan
from scoreinv.units import hu_from_mu

CONDITIONS = Conditions("ParallelBeamCT", "proximal", 4, "abc", 23, 0.005, {"n_levels": 30, "sigma_max": None})


def patients(n: int, seed: int, too_narrow: float = 3.0) -> list[Case]:
    """Patients whose errors are normal with `too_narrow` times the standard deviation that the draws claim."""
    rng = torch.Generator().manual_seed(seed)
    cases = []
    for _ in range(n):
        std = 20 + 30 * torch.rand(40, 40, generator=rng)
        severity = 0.8 + 0.4 * torch.rand((), generator=rng)
        error = too_narrow * severity * (std**2 + FLOOR_HU**2).sqrt() * torch.randn(40, 40, generator=rng)
        mean = torch.zeros(40, 40)
        mean[:10] = -1000  # air, where nothing is asked
        cases.append(Case(mean, std, mean + error))
    return cases


def test_the_factor_is_the_smallest_that_satisfies_the_bound() -> None:
    scores = [case.scores() for case in patients(14, 0)]
    q = conformal_factor(scores, 0.9)

    def bound(q: float) -> float:
        return (sum(float((s > q).double().mean()) for s in scores) + 1) / 15

    assert bound(q) <= 0.1 + 1e-6 < bound(0.999 * q)


def test_coverage_of_new_patients_is_at_least_the_level() -> None:
    """On average over patients that took no part; and the factor undoes that the draws are three times too narrow."""
    found = calibrated(patients(30, 0), CONDITIONS, 0.9)
    covered = [float((case.scores() <= found.factor).double().mean()) for case in patients(300, 1)]
    assert sum(covered) / len(covered) >= 0.9
    assert found.coverage_before == pytest.approx(math.erf(1.645 / 3 / math.sqrt(2)), abs=0.05)
    assert 3 * 1.5 < found.factor < 3 * 2.6 and found.coverage_after >= 0.9 >= found.coverage_before
    assert found.coverage_least <= found.coverage_after


def test_too_few_patients() -> None:
    with pytest.raises(ValueError, match=r"a level of 0\.9 needs at least 9 patients, got 8"):
        conformal_factor([torch.ones(3)] * 8, 0.9)
    with pytest.raises(ValueError, match="at least 10 patients, got 9"):
        calibrated(patients(9, 0), CONDITIONS, 0.9)  # one is left out in turn


def test_an_image_without_tissue_is_refused() -> None:
    air = torch.full((8, 8), -1000.0)
    with pytest.raises(
        ValueError, match=r"1 of 13 images have no tissue \(nothing above -900 HU\), the first is number 12"
    ):
        calibrated([*patients(12, 0), Case(air, torch.full((8, 8), 20.0), air)], CONDITIONS, 0.9)


def test_half_width_is_the_formula() -> None:
    c = Calibration(CONDITIONS, 0.9, 2.0, 5.0, 14, 0.5, 0.9, 0.8)
    std = torch.tensor([[0.0, 0.0193 * 0.012]])
    torch.testing.assert_close(c.half_width(std, 0.0193), 2 * 0.0193 * torch.tensor([[0.005, 0.013]]))


def test_the_variance_is_pooled_over_neighbours(rng: torch.Generator) -> None:
    """Of a member of a batch alone; a level variance stays as it is."""
    c = Calibration(CONDITIONS, 0.9, 1.0, 0.0, 14, 0.5, 0.9, 0.8, pooled_pixels=1.0)
    std = torch.rand(3, 12, 14, generator=rng)
    pooled = c.half_width(std, 0.0193)
    expected = torch.from_numpy(gaussian((std[1] ** 2).numpy(), 1.0, mode="reflect"))
    torch.testing.assert_close(pooled[1] ** 2, expected)
    torch.testing.assert_close(c.half_width(std[1], 0.0193), pooled[1])
    level = torch.full((5, 6), 0.3)
    torch.testing.assert_close(c.half_width(level, 0.0193), level)


@pytest.mark.parametrize(
    ("changes", "holds"),
    [({}, True), ({"n_views": 30}, True), ({"n_views": 60}, False), ({"relative_noise": 0.0}, False), ({"samples": 8}, False),
     ({"relative_noise": 0.007}, True), ({"operator": "FanBeamCT"}, False), ({"prior": "def"}, False), ({"method": "dds"}, False),
     ({"arc": 0.95}, True), ({"arc": 1 / 3}, False), ({"in_view": 0.95}, True), ({"in_view": 0.12}, False),
     ({"settings": {"n_levels": 30.0, "sigma_max": None}}, True), ({"settings": {"n_levels": 20, "sigma_max": None}}, False),
     ({"settings": {"n_levels": 30, "sigma_max": 3}}, False), ({"settings": {"n_levels": 30, "sigma_max": None, "x": 1}}, False)],
)  # fmt: skip
def test_a_calibration_is_for_scans_alike(changes: dict[str, object], holds: bool) -> None:
    c = Calibration(CONDITIONS, 0.9, 2.0, 5.0, 14, 0.5, 0.9, 0.8)
    asked = dataclasses.replace(CONDITIONS, **changes)  # type: ignore[arg-type]
    assert find([c], asked) == (c if holds else None)


def test_settings_that_are_in_the_way() -> None:
    """Those of the nearest calibration that is alike in all else, and none where there is no such one."""
    c = Calibration(CONDITIONS, 0.9, 2.0, 5.0, 14, 0.5, 0.9, 0.8)
    nearer = dataclasses.replace(c, conditions=dataclasses.replace(CONDITIONS, samples=8))
    asked = dataclasses.replace(CONDITIONS, samples=8, settings={"n_levels": 20, "sigma_max": None})
    assert unfit([c], asked) == {"samples": (4, 8), "n_levels": (30, 20)}
    assert unfit([c, nearer], asked) == {"n_levels": (30, 20)}
    assert unfit([c], CONDITIONS) == {} == unfit([c], dataclasses.replace(asked, n_views=60)) == unfit([], asked)


def test_why_none_holds() -> None:
    """What the nearest of the same method and prior differs in; nothing where there is none, or where settings alone differ."""
    c = Calibration(CONDITIONS, 0.9, 2.0, 5.0, 14, 0.5, 0.9, 0.8)
    noise_free = dataclasses.replace(c, conditions=dataclasses.replace(CONDITIONS, relative_noise=0.0), residual=0.0003)
    asked = dataclasses.replace(CONDITIONS, relative_noise=0.0, in_view=0.12)
    words = (
        "the nearest calibration was measured with views that see 100% of the disc inscribed in the image and not 12%"
    )
    assert refusal([c, noise_free], asked) == words
    assert "a noise of 0.005 of the mean of the data and not 0, views that see 100%" in refusal([c], asked)
    asked = dataclasses.replace(CONDITIONS, n_views=60, arc=1 / 3)
    assert refusal([c], asked).endswith("23 views and not 60, views within 100% of a whole scan's turn and not 33%")
    assert refusal([c], CONDITIONS) == refusal([], asked) == ""
    for field, said in (("prior", "this prior"), ("method", "method def"), ("operator", "def")):
        assert refusal([c], dataclasses.replace(asked, **{field: "def"})) == f"none was measured with {said}"


def test_files_that_say_nothing_of_the_detector_were_made_with_whole_ones(tmp_path: Path) -> None:
    entry = dataclasses.asdict(Calibration(CONDITIONS, 0.9, 2.0, 5.0, 14, 0.5, 0.9, 0.8))
    for optional in ("in_view", "arc", "pixel_mm", "image_side", "cell_pixels"):
        del entry["conditions"][optional]
    for optional in ("residual", "provenance", "chi2", "pooled_pixels"):
        del entry[optional]
    (tmp_path / "old.json").write_text(json.dumps([entry]))
    (old,) = read_calibrations(tmp_path / "old.json")
    assert old.conditions.in_view == 1 and old.residual is None and old.provenance is None
    sized = dataclasses.replace(CONDITIONS, pixel_mm=(2.0, 2.0))
    assert find([old], CONDITIONS) == old and find([old], sized) is None
    assert refusal([old], sized).endswith("pixels of unstated size and not 2 mm")


def test_the_shipped_ones_are_of_the_defaults_and_files_without_settings_too(tmp_path: Path) -> None:
    """A default that changes has to be calibrated again."""
    shipped = read_calibrations()
    assert shipped and {c.conditions.method for c in shipped} == {"proximal"}
    own = configure.default_settings("proximal")
    draws = (own.pop("samples"), preset_named("calibrated").settings["samples"])
    assert {c.conditions.samples for c in shipped} == set(draws) and all(c.conditions.settings == own for c in shipped)
    entries = [dataclasses.asdict(c) for c in shipped]
    for entry in entries:
        del entry["conditions"]["settings"]
    (tmp_path / "old.json").write_text(json.dumps(entries))
    assert read_calibrations(tmp_path / "old.json") == shipped


def test_files_of_calibrations(tmp_path: Path) -> None:
    c = Calibration(CONDITIONS, 0.9, 2.0, 5.0, 14, 0.5, 0.9, 0.8)
    write_calibrations(tmp_path / "c.json", [c])
    assert read_calibrations(tmp_path / "c.json") == [c]
    for text in ('[{"factor": 2}]', "{}", "3"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: holds no calibrations"):
            read_calibrations(tmp_path / "bad.json")
    assert isinstance(read_calibrations(), list)


def test_a_noise_free_calibration_knows_what_its_draws_leave_of_the_data(tmp_path: Path) -> None:
    """Their relative residual; of one that does not, the report says on which data it was measured."""
    hu = np.random.default_rng(0).normal(0, 100, (10, 4, 4)).repeat(4, axis=1).repeat(4, axis=2).astype(np.int16)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["hu"], file["patient"], file["pixel_mm"] = hu, [f"p{k}" for k in range(10)], np.full(10, 2.0)
    short = {"n_levels": 2, "draw_levels": 1}
    found = calibrate([tmp_path / "v.h5"], "parallel_beam_ct", {"n_views": 6}, relative_noise=0.0, settings=short)
    assert found.chi2 == 1.0 and found.residual is not None and 0 < found.residual < 0.2
    write_calibrations(tmp_path / "c.json", [found])
    assert read_calibrations(tmp_path / "c.json") == [found]
    x = torch.full((1, 8, 8), 0.02)
    for residual, said in ((found.residual, False), (None, True)):
        settings = {"calibration": dataclasses.asdict(dataclasses.replace(found, residual=residual)), "noise_std": 0.0}
        words = judgement(Reconstruction(x, None, settings, 0, 2.0, 0.0193, half_width=torch.full((8, 8), 0.001)))
        assert ("measured on data of the operator itself" in words) == said


@pytest.mark.parametrize("samples", [4, 16])
def test_the_shipped_ones_for_noise_free_data_know_their_residual(samples: int) -> None:
    """Of the default's four draws and of --calibrated's; without one they would hold for nothing."""
    (found,) = (c for c in read_calibrations() if c.conditions.samples == samples and c.conditions.relative_noise == 0)
    assert found.residual is not None and 1e-5 < found.residual < 1e-3 and found.provenance is not None


def test_noise_free_ones_without_residual_hold_for_nothing() -> None:
    """They cannot tell data of another origin, and say so; with a residual they hold."""
    exact = dataclasses.replace(CONDITIONS, relative_noise=0.0)
    old = Calibration(exact, 0.9, 2.0, 5.0, 14, 0.5, 0.9, 0.8)
    asked = dataclasses.replace(exact, settings={})
    assert find([old], exact) is None and unfit([old], asked) == {}
    words = "the nearest calibration was measured with noise-free data before residuals were kept (measure anew)"
    assert refusal([old], exact) == words == refusal([old], asked)
    new = dataclasses.replace(old, residual=0.0003)
    assert find([old, new], exact) == new and refusal([old, new], exact) == ""


SIZED = dataclasses.replace(CONDITIONS, pixel_mm=(1.0, 2.0), image_side=(256, 256), cell_pixels=(1.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, ""), ({"pixel_mm": (0.7, 0.7)}, ""), ({"pixel_mm": (2.9, 2.9)}, ""), ({"image_side": (200, 200)}, ""), ({"cell_pixels": (1.4, 1.4)}, ""),
     ({"pixel_mm": (0.1, 0.1)}, "pixels of 1 to 2 mm and not 0.1 mm"), ({"pixel_mm": (22.0, 22.0)}, "pixels of 1 to 2 mm and not 22 mm"),
     ({"image_side": (16, 16)}, "images of 256 pixels a side and not 16 pixels a side"), ({"image_side": (512, 512)}, "not 512 pixels a side"),
     ({"cell_pixels": (26.0, 26.0)}, "detector cells of 1 pixels and not 26 pixels"), ({"cell_pixels": (0.5, 0.5)}, "not 0.5 pixels"),
     ({"pixel_mm": None}, "pixels of 1 to 2 mm and not unstated size")],
)  # fmt: skip
def test_a_calibration_is_for_pixels_images_and_cells_of_about_the_same_size(
    changes: dict[str, object], words: str
) -> None:
    c = Calibration(SIZED, 0.9, 2.0, 5.0, 14, 0.5, 0.9, 0.8)
    asked = dataclasses.replace(SIZED, **changes)  # type: ignore[arg-type]
    assert (find([c], asked) == c) == (words == "") and refusal([c], asked).endswith(words)


def test_sizes_of_an_operator() -> None:
    """Those of the finding that the shipped calibrations held for: few coarse cells, and tiny images."""
    angles = equispaced_angles(23)
    (c, *_) = read_calibrations()
    found = {}
    for name, A in {
        "alike": ParallelBeamCT((256, 256), angles, 363, 1.4, 1.4),
        "coarse": ParallelBeamCT((256, 256), angles, 10, 1.4, 36.0),
        "tiny": ParallelBeamCT((16, 16), angles, 23, 22.0, 22.0),
    }.items():
        found[name] = dataclasses.replace(c.conditions, **geometry_of(A))
    assert find([c], found["alike"]) == c
    assert refusal([c], found["coarse"]).endswith("measured with detector cells of 1 pixels and not 25.7 pixels")
    assert "pixels of 0.977 to 1.95 mm and not 22 mm, images of 256 pixels a side and not 16" in refusal(
        [c], found["tiny"]
    )
    fan = FanBeamCT.for_image((64, 64), 2.0, source_origin_mm=500.0, origin_detector_mm=500.0, detector_mm=8.0)
    assert geometry_of(fan)["cell_pixels"] == (2.0, 2.0)  # 8 mm, magnified twice, on pixels of 2 mm
    masked = geometry_of(Masking(torch.ones(8, 6)))
    assert masked["pixel_mm"] is None is masked["cell_pixels"] and masked["image_side"] == (6, 6)


def test_those_of_several_patients_reach_from_the_least_to_the_largest() -> None:
    own = [
        dataclasses.replace(SIZED, pixel_mm=(p, p), in_view=share) for p, share in ((1.5, 1.0), (0.8, 0.9), (2.0, 0.95))
    ]
    assert joined(own) == dataclasses.replace(SIZED, pixel_mm=(0.8, 2.0), in_view=0.95)
    assert joined([CONDITIONS, CONDITIONS]) == CONDITIONS


def test_the_nearest_is_taken_of_ninety_per_cent_if_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scoreinv.cli import main

    def of(level: float = 0.9, factor: float = 2.0, **changes: Any) -> Calibration:
        return Calibration(dataclasses.replace(CONDITIONS, **changes), level, factor, 5.0, 14, 0.5, 0.9, 0.8)

    asked = dataclasses.replace(CONDITIONS, n_views=28, relative_noise=0.006)
    near, far, noisier = of(n_views=27), of(n_views=20), of(n_views=27, relative_noise=0.0085)
    for known in ([near, far, noisier], [noisier, far, near]):
        assert find(known, asked) == near
    assert find([of(), of(factor=3.0)], asked) == of(factor=3.0)  # the last made
    assert find([of(0.5), of(), of(0.95, n_views=28, relative_noise=0.006)], asked) == of()
    assert find([of(0.5), of(0.8)], asked) == of(0.8)
    write_calibrations(tmp_path / "c.json", [of(0.5), of()])
    assert read_calibrations(tmp_path / "c.json", 0.5) == [of(0.5)]
    with pytest.raises(ValueError, match=r"c\.json: has no intervals of level 0\.8, its levels: 0\.5, 0\.9"):
        read_calibrations(tmp_path / "c.json", 0.8)
    command = ["reconstruct", str(tmp_path / "scan.h5"), "--calibration", str(tmp_path / "c.json"), "--level", "0.8"]
    assert main(command) == 2 and "no intervals of level 0.8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("factor", "2", "factor should be float, got '2'"), ("factor", math.nan, "factor should be a number, got nan"),
     ("factor", -1.0, "factor should be finite and not negative"), ("factor", math.inf, "factor should be finite"),
     ("level", 7.0, "level should be a share between 0 and 1, got 7.0"), ("patients", 0, "patients should be at least 1"),
     ("patients", 2.5, "patients should be int"), ("coverage_least", 1.5, "coverage_least should be a share"), ("chi2", None, "chi2 should be float"),
     ("residual", -1.0, "residual should be None or finite"), ("provenance", 3, "provenance should be None or an object"), ("fctor", 2.0, "has no field 'fctor'"),
     ("conditions.n_views", "23", "n_views should be int, got '23'"), ("conditions.n_views", 0, "n_views should be at least 1"),
     ("conditions.relative_noise", -0.1, "relative_noise should be finite"), ("conditions.settings", [], "settings should be an object"),
     ("conditions.arc", 1.2, "arc should be a share"), ("conditions.pixel_mm", [2.0, 1.0], "pixel_mm should be None or two ends"),
     ("conditions.pixel_mm", 2.0, "pixel_mm should be"), ("conditions.x", 2.0, "has no field 'x'"), ("conditions", 3, "entry 1")],
)  # fmt: skip
def test_files_are_checked(
    tmp_path: Path, field: str, value: object, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is reconstructed; the message names file, entry and field."""
    from scoreinv.cli import main

    entries = [dataclasses.asdict(Calibration(SIZED, 0.9, 2.0, 5.0, 14, 0.5, 0.9, 0.8)) for _ in range(2)]
    owner, _, name = field.rpartition(".")
    (entries[1][owner] if owner else entries[1])[name] = value
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"bad\.json: holds no calibrations \(entry 1: ") as caught:
        read_calibrations(path)
    assert words in str(caught.value)
    for command in (["reconstruct", str(tmp_path / "none.h5"), "--calibration", str(path)], ["info", str(path)]):
        assert main(command) == 2 and words in capsys.readouterr().err


def test_what_is_made_is_checked() -> None:
    with pytest.raises(ValueError, match="factor should be finite and not negative, got -1"):
        Calibration(CONDITIONS, 0.9, -1.0, 5.0, 14, 0.5, 0.9, 0.8)
    wrong: Any = "23"
    with pytest.raises(ValueError, match="n_views should be int"):
        Calibration(dataclasses.replace(CONDITIONS, n_views=wrong), 0.9, 1.0, 5.0, 14, 0.5, 0.9, 0.8)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Patients of pixels of several sizes in v.h5, whose draws cost nothing; the seeds that were asked for."""
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["hu"] = np.random.default_rng(0).normal(0, 100, (10, 16, 16)).astype(np.int16)
        file["patient"], file["pixel_mm"] = [f"p{k}" for k in range(10)], np.linspace(1, 2, 10)
    asked: list[int] = []

    def drawn(scan: Scan, method: str, *, seed: int, **_: object) -> Patient:
        asked.append(seed)
        problem, truth = scan.problem, hu_from_mu(torch.as_tensor(scan.problem.truth))
        noise = float(torch.as_tensor(problem.noise_std) / problem.y.abs().mean())
        own = dataclasses.replace(
            CONDITIONS, n_views=problem.A.out_shape[0], relative_noise=noise, **geometry_of(problem.A)
        )
        error = 30 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
        return Patient(Case(truth + error, torch.full_like(truth, 20.0), truth), 1.0, problem.A.n_data, own)

    monkeypatch.setattr("scoreinv.calibrate._reconstructed", drawn)
    return asked


def test_another_seed_takes_the_place_of_the_first(tmp_path: Path, quick: list[int]) -> None:
    """The noise that was asked for is kept, not what the noisy data say of it; other noise and levels stand beside it."""
    how: dict[str, Any] = {"relative_noise": 0.01, "level": 0.9}
    changed: list[dict[str, Any]] = [{}, {"seed": 3}, {"relative_noise": 0.02}, {"level": 0.5}]
    for changes in changed:
        found = calibrate(
            [tmp_path / "v.h5"], "parallel_beam_ct", {"n_views": 6}, out=tmp_path / "c.json", **how | changes
        )
        assert found in read_calibrations(tmp_path / "c.json")
    known = read_calibrations(tmp_path / "c.json")
    assert [(c.conditions.relative_noise, c.level) for c in known] == [(0.01, 0.9), (0.02, 0.9), (0.01, 0.5)]
    assert known[0].provenance is not None and known[0].provenance["seed"] == 3
    assert known[0].conditions.pixel_mm == (1.0, 2.0) and known[0].conditions.image_side == (16, 16)


def test_says_how_it_was_made(tmp_path: Path, quick: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    from scoreinv.cli import main

    command = ["calibrate", str(tmp_path / "v.h5"), "--views", "6", "--seed", "5", "--out", str(tmp_path / "c.json")]
    assert main(command) == 0
    (found,) = read_calibrations(tmp_path / "c.json")
    source = found.provenance
    assert source is not None and source["files"] == ["v.h5"] and source["seed"] == 5
    assert source["operator"] == "parallel_beam_ct" and source["arguments"]["n_views"] == 6
    assert source["version"].keys() >= {"scoreinv", "torch"} and len(source["date"]) == 10
    data = read_image_set([tmp_path / "v.h5"])
    assert source["images"] == data.checksum(range(10)) != data.checksum(range(9))
    capsys.readouterr()
    assert main(["info", str(tmp_path / "c.json")]) == 0
    told = capsys.readouterr().out
    assert "pixels of 1 to 2 mm, images of 16 pixels a side, detector cells of 1 pixels: 90% intervals" in told
    assert f"; of v.h5 ({source['images'][:8]}), seed 5, {source['date']}" in told


def test_goes_on_after_an_interruption(tmp_path: Path, quick: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the patients that were finished, to the same calibration; what belongs to other settings is left alone."""

    def run(out: str, **how: Any) -> Calibration:
        how = {"relative_noise": 0.01} | how
        return calibrate([tmp_path / "v.h5"], "parallel_beam_ct", {"n_views": 6}, out=tmp_path / out, **how)

    whole = run("whole.json")
    real = patient_scan

    def stops(*args: Any, **how: Any) -> Scan:
        if args[1] == 4:
            raise KeyboardInterrupt
        return real(*args, **how)

    with monkeypatch.context() as m:
        m.setattr("scoreinv.calibrate.patient_scan", stops)
        for seed in (0, 7):
            with pytest.raises(KeyboardInterrupt):
                run("c.json", seed=seed)
    assert not (tmp_path / "c.json").exists() and len(list((tmp_path / "c.journal").iterdir())) == 8
    quick.clear()
    assert run("c.json") == whole and quick == [4, 5, 6, 7, 8, 9]
    assert read_calibrations(tmp_path / "c.json") == [whole]
    assert len(list((tmp_path / "c.journal").iterdir())) == 4  # of seed 7
    quick.clear()
    run("c.json", seed=7)
    assert len(quick) == 6 and not (tmp_path / "c.journal").exists()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no calibrations"):
        run("other.json")
    assert len(quick) == 6  # before anything is computed


def test_the_report_says_why_no_calibration_holds() -> None:
    refused = Reconstruction(torch.rand(4, 8, 8), None, {"calibration_refused": "the nearest was of 23 views"}, 0)
    assert "not calibrated for such scans (the nearest was of 23 views), the draws' spread" in judgement(refused)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, 90.0, -0.1])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(ValueError, match=r"expected a share between 0 and 1, such as 0\.9"):
        check_enough(100, level)


def test_from_patients_to_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way on small images: calibrate, then reconstruct a scan that the calibration holds for, and what it does not hold for."""
    from scoreinv.cli import main
    from scoreinv.files.reconstruction import read_reconstruction

    rng = np.random.default_rng(0)
    hu = rng.normal(0, 100, (10, 4, 4)).repeat(8, axis=1).repeat(8, axis=2).astype(np.int16)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["hu"], file["patient"], file["pixel_mm"] = hu, [f"p{k}" for k in range(10)], np.full(10, 2.0)
    short = {"n_levels": 2, "draw_levels": 1}
    settings = {**configure.default_settings("proximal", without=("samples",)), **short}
    with pytest.warns(UserWarning, match=r"these draws do not fit their data, chi\^2 is "):
        found = calibrate([tmp_path / "v.h5"], "parallel_beam_ct", {"n_views": 12}, relative_noise=0.01, settings=short)
    assert found.patients == 10 and found.factor > 0 and found.conditions.n_views == 12
    assert found.conditions.settings == settings and found.conditions.samples == 4
    write_calibrations(tmp_path / "c.json", [found])
    np.save(tmp_path / "x.npy", hu[0])
    other = ["--set", "relaxation=1.5"]
    for views, more, holds in ((12, [], True), (40, [], False), (12, other, False)):
        scan = str(tmp_path / f"{views}.h5")
        simulate = ["simulate", str(tmp_path / "x.npy"), "--pixel-mm", "2", "--noise", "0.01", "--views", str(views)]
        assert main([*simulate, "--out", scan]) == 0
        sets = ["--set", "n_levels=2", "--set", "draw_levels=1", "--calibration", str(tmp_path / "c.json")]
        capsys.readouterr()
        assert main(["reconstruct", scan, *sets, *more, "--out", str(tmp_path / "r.h5")]) == 0
        printed = capsys.readouterr().out
        result = read_reconstruction(tmp_path / "r.h5")
        assert (result.half_width is not None) == holds
        assert ("measured with other settings (relaxation 1.9 and not 1.5) and is not applied" in printed) == bool(more)
        if more:
            assert "--method proximal --samples 4 --set n_levels=2 --set relaxation=1.5 --set draw_levels=1`" in printed
            assert result.settings["calibration_unfit"] == {"relaxation": [1.9, 1.5]}
        if holds:
            std, width = torch.as_tensor(result.std), torch.as_tensor(result.half_width)
            torch.testing.assert_close(width, found.half_width(std, 0.0193), rtol=1e-3, atol=1e-7)
            assert result.settings["calibration"]["factor"] == pytest.approx(found.factor)
            worse = dataclasses.replace(found, chi2=0.5 * float(torch.as_tensor(result.chi2_samples).mean()))
            write_calibrations(tmp_path / "worse.json", [worse])
            assert (
                main(["reconstruct", scan, *sets[:-1], str(tmp_path / "worse.json"), "--out", str(tmp_path / "w.h5")])
                == 0
            )
            assert (
                read_reconstruction(tmp_path / "w.h5").half_width is None
            )  # it fits the data worse than those patients did
