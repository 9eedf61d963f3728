"""The gallery: every part runs, every system of the table has a file, a test, a figure and a picture, and what is there is not made again."""

from __future__ import annotations

import ast
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

pytest.importorskip("sklearn", reason="needs scikit-learn for its digits")

from gallery import ct, digits, measures, plane, plane_langevin, plane_losses, processes  # noqa: E402
from gallery.digits_words import LONGEST, WORDS, spelled  # noqa: E402
from gallery.run import MISSING, PARTS, chains, clock, main, readme, run_parts  # noqa: E402
from gallery.setting import Outcome, Setting  # noqa: E402
from gallery.systems import GROUPS, SYSTEMS  # noqa: E402
from gallery.training import LabelledUNet, PlaneConfig, PlaneNetwork  # noqa: E402

QUICK = 0.01
"""Minutes of the budget."""


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The smallest budget, with scikit-image's pictures in place of CT."""
    folder = tmp_path_factory.mktemp("gallery")
    return Setting(folder / "out", folder / "work", QUICK)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_measures_and_shows_its_systems(part: str, setting: Setting) -> None:
    assert run_parts(setting, [part]) == [part]
    found = json.loads((setting.out / f"{part}.json").read_text(encoding="utf-8"))
    for system in SYSTEMS:
        if system.part == part:
            assert any(c.isdigit() for c in found["figures"][system.name]), system.name
            picture = (setting.out / f"{system.picture}.png").read_bytes()
            assert picture.startswith(b"\x89PNG") and len(picture) > 1000
    # what is there is not made again, unless more may be spent on it
    before = (setting.out / f"{part}.json").stat().st_mtime_ns
    assert run_parts(setting, [part]) == []
    assert (setting.out / f"{part}.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_files_and_tests_of_the_table_exist(system: object) -> None:
    file, test = system.file, system.test  # type: ignore[attr-defined]
    assert (ROOT / file).is_file()
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_names_are_unique() -> None:
    names = [s.name for s in SYSTEMS]
    assert len(set(names)) == len(names) > 50


def test_a_larger_budget_is_spent_and_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def part(setting: Setting) -> Outcome:
        calls.append(setting.minutes)
        if len(calls) == 3:
            raise RuntimeError("stopped")
        return Outcome({s.name: "1" for s in SYSTEMS if s.part == "colours"} if len(calls) < 4 else {})

    monkeypatch.setattr("gallery.run.part_named", lambda name: part)
    for minutes, ran in ((1.0, True), (0.5, False), (2.0, True), (2.0, False)):
        assert run_parts(Setting(tmp_path, tmp_path, minutes), ["colours"]) == (["colours"] if ran else [])
    with pytest.raises(RuntimeError):
        run_parts(Setting(tmp_path, tmp_path, 3.0), ["colours"])
    assert json.loads((tmp_path / "colours.json").read_text())["minutes"] == 2.0
    with pytest.raises(ValueError, match="colourisation"):
        run_parts(Setting(tmp_path, tmp_path, 3.0), ["colours"])


def test_the_page_has_a_row_for_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCOREINV_DATA", raising=False)
    out = tmp_path / "out"
    main(["--quick", "--only", "processes", "--out", str(out), "--work", str(tmp_path / "work")])
    page = (out / "README.md").read_text(encoding="utf-8")
    assert page == readme(Setting(out, tmp_path, QUICK))
    rows = [line for line in page.splitlines() if line.startswith("|") and "](../../tests/" in line]
    assert len(rows) == len(SYSTEMS) and sum(MISSING in row for row in rows) == len(SYSTEMS) - len(
        GROUPS["Forward processes"]
    )
    with pytest.raises(SystemExit):
        main(["--minutes", "0", "--out", str(out)])


def test_chains_hold_every_part_once_and_in_order() -> None:
    found = chains(PARTS)
    assert sorted(part for chain in found for part in chain) == sorted(PARTS) and len(found) >= 4
    for chain in found:
        assert len({part.split("_")[0] for part in chain}) == 1
        assert chain == [part for part in PARTS if part in chain]
    minutes = {"digits_a": 3.0, "digits_b": 4.0, "digits_c": 1.0, "plane_a": 2.0, "plane_b": 1.0, "ct_a": 9.0}
    assert clock(minutes, 1) == 20 and clock(minutes, 2) == 12 and clock(minutes, 3) == 9


def test_two_processes_share_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCOREINV_DATA", raising=False)
    out = tmp_path / "out"
    which = ["--only", "processes", "plane_losses", "--out", str(out), "--work", str(tmp_path / "work")]
    main(["--quick", *which, "--jobs", "2"])
    assert {p.stem for p in out.glob("*.json")} == {"processes", "plane_losses"}
    assert "by the clock for the command's 2 processes" in (out / "README.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["--quick", *which, "--jobs", "0"])


def test_the_page_that_is_committed_is_complete() -> None:
    folder = ROOT / "docs" / "gallery"
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert MISSING not in page
    for system in SYSTEMS:
        assert (folder / f"{system.picture}.png").is_file(), system.picture
        assert json.loads((folder / f"{system.part}.json").read_text(encoding="utf-8"))["figures"][system.name] in page


# What measures


def test_distances_of_gaussians() -> None:
    """Fréchet's is exact for the moments given; the sliced one tends to E (a · θ)² for a shift a."""
    rng = Generator().manual_seed(0)
    a = torch.randn(400, 3, generator=rng, dtype=torch.float64)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T)).T)
    shift, stretch = (
        torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
    )
    expected = float(shift.square().sum() + (stretch - 1).square().sum())
    assert measures.frechet(a, a * stretch + shift) == pytest.approx(expected, rel=1e-9)
    assert measures.sliced_wasserstein(a, a + shift, directions=5000) == pytest.approx(math.sqrt(5.25 / 3), rel=0.02)
    assert measures.sliced_wasserstein(a, a[torch.randperm(400, generator=rng)]) == 0
    with pytest.raises(ValueError, match="one shape"):
        measures.sliced_wasserstein(a, a[1:])


def test_the_exact_score_has_no_error() -> None:
    prior = plane.ring()
    for sigma in (0.0, plane_losses.SIGMA):
        assert plane_losses.fisher(lambda x, s=sigma: prior.score(x, torch.tensor(s)).float(), sigma, 200) < 1e-10
        assert plane_losses.fisher(lambda x: 0 * x, sigma, 200) == pytest.approx(1.0)


def test_langevin_draws_from_the_exact_score() -> None:
    """With the exact score they are as near to the data as other data are."""
    prior, n = plane.ring(), 600
    x = plane_losses.langevin(lambda x: prior.score(x, torch.tensor(0.0)), 0.02, n, 300)
    data, other = (prior.draw(n, Generator().manual_seed(k)).float() for k in (9, 10))
    floor = measures.sliced_wasserstein(data, other)
    assert measures.sliced_wasserstein(x, data) < 3 * floor


def test_acceptance_of_an_energy() -> None:
    """An energy has the acceptance of its law: that of the exact prior."""
    prior = plane.ring()
    exact = plane_langevin.EnergyPrior(lambda x: -prior.log_density(x, torch.tensor(0.0)))
    step = plane_langevin.MetropolisLangevin(0.1)
    x = prior.draw(500, Generator().manual_seed(0))
    rate = plane_langevin.acceptance(exact, step, x)
    small = plane_langevin.acceptance(exact, plane_langevin.MetropolisLangevin(1e-4), x)
    assert 0.3 < rate < 0.97 < small


@pytest.mark.parametrize("name", processes.SDES)
def test_simulated_paths_have_the_kernel(name: str) -> None:
    mean, std = processes.simulated(processes.SDES[name], 0.8, 20_000, 1000, 0.7)
    assert mean < 4 / 20_000**0.5 + 0.005 and std < 4 / 40_000**0.5 + 0.01


def test_networks_before_training() -> None:
    """Of the plane a Gaussian, of digits a prediction of 0."""
    x = torch.randn(5, 1, 2, generator=Generator().manual_seed(0))
    torch.testing.assert_close(PlaneNetwork(PlaneConfig(reach=2.0))(x), -x / 4)
    torch.testing.assert_close(PlaneNetwork(PlaneConfig(outputs=1, reach=2.0))(x), x.square().sum((1, 2)) / 8)
    sigma = torch.full((5,), 3.0)
    torch.testing.assert_close(PlaneNetwork(PlaneConfig(levelled=True))(x, sigma), -x / 10)
    images = torch.randn(3, 1, 8, 8, generator=Generator().manual_seed(0))
    for labels, outputs in (("sigma", 1), ("none", 1), (999.0, 2)):
        out = LabelledUNet(digits.NETWORK, labels, outputs)(images, torch.tensor([1.0, 2.0, 3.0]))
        assert out.shape == (3, outputs, 8, 8) and out.abs().max() == 0


def test_names_are_spelled() -> None:
    tokens, mask = spelled(torch.arange(10))
    assert mask.sum(1).tolist() == [len(word) for word in WORDS]
    for k, word in enumerate(WORDS):
        letters = tokens[k, : len(word), :26].argmax(1)
        assert "".join(chr(ord("a") + int(i)) for i in letters) == word
        assert torch.equal(tokens[k, : len(word), 26:], torch.eye(LONGEST)[: len(word)])
        assert tokens[k, len(word) :].abs().sum() == 0


def test_real_slices_are_shrunk_by_the_mean(data_folder: Path, tmp_path: Path) -> None:
    found = ct.slices(Setting(tmp_path, tmp_path, QUICK, data_folder))
    assert found.train.n_patients == 74 and found.held_out.shape == (14, 64, 64)
    assert float(found.held_out.min()) >= -1 and float(found.held_out.max()) < 4


def test_without_data_pictures_serve(tmp_path: Path) -> None:
    found = ct.slices(Setting(tmp_path, tmp_path, QUICK, None))
    assert "scikit-image" in found.what and found.held_out.shape[1:] == (64, 64) and found.held_out.abs().max() <= 1
    assert not set(ct.PICTURES) & set(ct.HELD_OUT)
