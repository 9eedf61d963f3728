"""Calibrated intervals: the factor is the smallest that holds, it holds for new patients, and it is used where it applies."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from skimage.filters import gaussian

from scoreinv import configure
from scoreinv.calibrate import calibrate
from scoreinv.calibration import (
    FLOOR_HU,
    Calibration,
    Case,
    Conditions,
    calibrated,
    check_enough,
    conformal_factor,
    find,
    read_calibrations,
    refusal,
    unfit,
    write_calibrations,
)
from scoreinv.files.reconstruction import Reconstruction
from scoreinv.presets import preset_named
from scoreinv.report import judgement

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
    noise_free = dataclasses.replace(c, conditions=dataclasses.replace(CONDITIONS, relative_noise=0.0))
    asked = dataclasses.replace(CONDITIONS, relative_noise=0.0, in_view=0.12)
    words = (
        "the nearest calibration was measured with views that see 100% of the disc inscribed in the image and not 12%"
    )
    assert refusal([c, noise_free], asked) == words
    assert "a noise of 0.005 of the mean of the data and not 0, views that see 100%" in refusal([c], asked)
    asked = dataclasses.replace(CONDITIONS, n_views=60, arc=1 / 3)
    assert refusal([c], asked).endswith("23 views and not 60, views within 100% of a whole scan's turn and not 33%")
    assert refusal([c], dataclasses.replace(asked, prior="def")) == "" == refusal([c], CONDITIONS) == refusal([], asked)


def test_files_that_say_nothing_of_the_detector_were_made_with_whole_ones() -> None:
    assert all(c.conditions.in_view == 1 and c.residual is None for c in read_calibrations())


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
            assert "--method proximal --set n_levels=2 --set relaxation=1.5 --set draw_levels=1`" in printed
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
