"""The table of methods against exact posteriors: exact draws pass, others do not, and nothing is computed twice."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch

from scoreinv import configure, plugins
from scoreinv.cli import main
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior
from scoreinv.priors.references import Reference, few_view_ct, four_modes, twenty_five_modes, two_modes
from scoreinv.problem import Problem
from scoreinv.verification import report, table
from scoreinv.verification.cases import FEWER, LEVELS, METHODS, Entry, cases
from scoreinv.verification.laws import effective_coordinates
from scoreinv.verification.measures import directions
from scoreinv.verification.prior import shared
from scoreinv.verification.run import Case, measured, row_and_null_space, verify

DOCS = Path(__file__).parents[1] / "docs"
CASE = Case("four modes", "In the plane.", four_modes(), fixed=True, n_problems=100, n_draws=64)
SMALL_CT = Case("small CT", "", few_view_ct(torch.Generator().manual_seed(0), size=8, views=4), n_problems=60)


def exact_draws(case: Case, seed: int = 0) -> torch.Tensor:
    """(draws, problems, *image_shape) for the exam of that seed."""
    rng, (_, laws) = torch.Generator().manual_seed(5 + seed), case.exam(seed)
    draws = torch.stack([laws.draw(j, case.n_draws, rng) for j in range(len(laws))], dim=1)
    return draws.reshape(case.n_draws, len(laws), *case.reference.A.in_shape)


def test_exact_draws_have_the_figures_of_exact_draws() -> None:
    for case in (CASE, SMALL_CT, Case("two modes", "", two_modes(torch.Generator().manual_seed(1)), n_problems=60)):
        draws = exact_draws(case)
        f = measured(case, draws)
        assert abs(f.mean_error) < 0.02 and f.rank_p > 0.001
        assert [f.variance, f.variance_range, f.variance_null, f.wasserstein] == pytest.approx([1] * 4, abs=0.15)
        assert [f.coverage_50, f.coverage_90, f.coverage_95] == pytest.approx([0.5, 0.9, 0.95], abs=0.06)
        for level, covered, error in ((0.5, f.coverage_50, f.error_50), (0.9, f.coverage_90, f.error_90)):
            assert 0 < error < 0.05 and abs(covered - level) < 4 * error
        narrow = measured(case, draws.mean(0) + 0.5 * (draws - draws.mean(0)))
        assert narrow.variance == pytest.approx(f.variance / 4, rel=1e-3)
        assert narrow.rank_p < min(0.02, f.rank_p)
        assert narrow.coverage_90 < f.coverage_90 - 3 * f.error_90


def test_posteriors_of_many_problems_are_those_of_each() -> None:
    for case in (SMALL_CT, Case("two modes", "", two_modes(torch.Generator().manual_seed(1)), n_problems=3), CASE):
        problem, laws = case.exam(0)
        r = case.reference
        for j in (0, 2):
            law = r.prior.posterior(Problem(r.A, problem.y[j].double(), r.noise_std))
            torch.testing.assert_close(laws.means[j], law.mean.flatten(), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(laws.first(3).covariances[min(j, len(laws.covariances) - 1)], law.covariance)
            draws = laws.draw(j, 4000, torch.Generator().manual_seed(0))
            error = (draws.mean(0) - laws.means[j]) / law.covariance.diagonal().sqrt()
            assert error.abs().max() < 5 / 4000**0.5


def test_directions_of_a_subspace() -> None:
    """Components along them are independent; they do not hang on the basis, and all grow with the brightness."""
    covariance, (seen, unseen) = SMALL_CT.exam(0)[1].covariances[0], SMALL_CT.spaces
    turned = torch.linalg.qr(torch.randn(seen.shape[1], seen.shape[1], dtype=torch.float64)).Q
    for basis in (seen, unseen, seen @ turned):
        for cov, expected in ((covariance, covariance), (None, torch.eye(64, dtype=torch.float64))):
            w = directions(basis, 5, torch.Generator().manual_seed(0), cov)
            torch.testing.assert_close(w.T @ expected @ w, torch.eye(5, dtype=torch.float64), atol=1e-8, rtol=0)
            torch.testing.assert_close(basis @ (basis.T @ w), w)
            assert (w.sum(0) > 0).all()
    one, other = (directions(b, 3, torch.Generator().manual_seed(0), covariance) for b in (seen, seen @ turned))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    assert directions(four_modes().A.H(torch.ones(1, 1)).double().reshape(2, 1), 2, torch.Generator()).shape == (2, 1)


def test_ranks_tell_a_wrong_range_from_a_wide_null_space() -> None:
    """Draws that are exact but where the data see something: ranks along directions of the whole space would hardly notice."""
    for case, few in ((next(c for c in cases() if c.name == "two modes, d = 16"), 48), (SMALL_CT, 20)):
        for_exact = [measured(case, exact_draws(case, seed)[:, :few], seed).rank_p for seed in range(12)]
        assert sum(p > 0.02 for p in for_exact) >= 11 and sum(p > 0.3 for p in for_exact) >= 6
        draws = exact_draws(case)[:, :few]
        seen = case.spaces[0]
        part = ((draws - draws.mean(0)).flatten(2) @ seen @ seen.T).reshape(draws.shape)
        for factor in (0.3, 3.0):
            assert measured(case, draws + (factor - 1) * part).rank_p < 0.01
    shift = 0.7 * SMALL_CT.exam(0)[1].covariances[0].diagonal().sqrt().reshape(8, 8)
    assert measured(SMALL_CT, exact_draws(SMALL_CT)[:, :20] + shift).rank_p < 1e-3


def test_the_median_of_two_is_between_them() -> None:
    """Exact draws but for the spread of one of two problems."""
    few = Case("four modes", "", four_modes(), fixed=True, n_problems=2, n_draws=400)
    draws = exact_draws(few)
    draws[:, 1] = draws[:, 1].mean(0) + 2 * (draws[:, 1] - draws[:, 1].mean(0))
    assert measured(few, draws).variance == pytest.approx((1 + 4) / 2, rel=0.15)


def test_problems_do_not_hang_on_the_signs_of_eigenvectors() -> None:
    one, other = (few_view_ct(torch.Generator().manual_seed(0), size=8, views=4).prior for _ in range(2))
    assert isinstance(one, GaussianPrior) and isinstance(other, GaussianPrior)
    values, vectors, ends = one._eigen
    vars(other)["_eigen"] = values, vectors * torch.where(torch.arange(64) % 2 == 0, 1, -1), ends
    first, second = (p.draw(3, torch.Generator().manual_seed(1)) for p in (one, other))
    torch.testing.assert_close(first, second)


def test_effective_coordinates() -> None:
    """16 independent coordinates are worth 16; those of a smooth image less than its pixels."""
    rng = torch.Generator().manual_seed(0)
    r = two_modes(rng)
    white = GaussianPrior(torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64))
    independent = Case("white", "", Reference(white, r.A, r.noise_std, r.y), n_problems=2)
    worth = [effective_coordinates(c.exam(0)[1], 39, 0.9, rng, trials=2000) for c in (independent, SMALL_CT)]
    assert worth[0] == pytest.approx(16, rel=0.15) and 4 < worth[1] < 58


def test_the_fast_prior_is_the_prior() -> None:
    rng = torch.Generator().manual_seed(0)
    for r in (four_modes(), twenty_five_modes(rng), SMALL_CT.reference):
        prior, x = shared(r.prior), 3 * torch.randn(5, *r.prior.mean.shape, generator=rng, dtype=torch.float64)
        for sigma in (torch.tensor(0.01), torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0])):
            torch.testing.assert_close(prior(x, sigma), r.prior(x, sigma), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(prior(x.float(), sigma).double(), r.prior(x, sigma), rtol=1e-4, atol=1e-5)
    different = GaussianMixturePrior(torch.ones(2), torch.zeros(2, 3), torch.stack([torch.eye(3), 2 * torch.eye(3)]))
    with pytest.raises(ValueError, match="expected components of one covariance"):
        shared(different)


def test_cheap_methods_get_more_problems() -> None:
    case = dataclasses.replace(CASE, n_problems=2, most_problems=8)
    assert [case.how_many(e) for e in (2001, 600, 300, 200, 100, 6)] == [2, 2, 4, 6, 8, 8]
    assert verify(dataclasses.replace(case, n_draws=39), "proximal", {}).problems == 8
    assert CASE.how_many(6) == 100
    assert len(case.exam(0)[0].y) == len(case.exam(0)[1]) == 8


def test_known_numbers_of_the_four_modes() -> None:
    """A method of the table on the published example: mmps finds both modes and the stated variance."""
    f = verify(dataclasses.replace(CASE, n_problems=40), "mmps", {"n_levels": 60})
    assert f.variance_null == pytest.approx(1, abs=0.1) and f.variance_range == pytest.approx(1, abs=0.25)
    assert f.evaluations == 60 and f.seconds > 0


def test_row_and_null_space() -> None:
    seen, unseen = row_and_null_space(four_modes().A)
    torch.testing.assert_close(seen.abs(), torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    torch.testing.assert_close(unseen.abs(), torch.tensor([[0.0], [1.0]], dtype=torch.float64))


def test_a_table_is_filled_in_and_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = dataclasses.replace(CASE, n_problems=2, most_problems=4, n_draws=39)
    monkeypatch.setattr(table, "cases", lambda: [few])
    arguments = ["verify", "--out", str(tmp_path), "--cases", "four modes", "--methods", "proximal", "tmpd", "--quiet"]
    assert main(arguments) == 0
    rows = report.read(tmp_path / "verification.csv")
    assert [(r["method"], r["problems"]) for r in rows] == [("proximal", "4"), ("proximal", "4"), ("tmpd", "4")]
    text = (tmp_path / "verification.md").read_text()
    assert "In the plane. 2 to 4 problems, 39 draws each." in text
    (line,) = [line for line in text.splitlines() if line.startswith("| tmpd | 4 |")]
    assert len(re.findall(r"\d ± \d\.\d\d", line)) == 3  # coverages with their errors
    assert text.index("| tmpd |") < text.index("| proximal |")  # the less wrong one first
    assert "| trust=1.0, sigma_min=0.01, draw_levels=200, draw_sigma=64.0 |" in text
    assert (tmp_path / "verification.png").read_bytes().startswith(b"\x89PNG")

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(table, "verify", never)
    assert main(arguments) == 0 and report.read(tmp_path / "verification.csv") == rows
    with pytest.raises(AssertionError, match="computed again"):
        main([*arguments, "--seed", "1"])  # another seed's rows are not these


def test_a_method_that_fails_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "METHODS", (Entry("tds", {"particles": 3}),))
    with pytest.warns(UserWarning, match="tds on four modes"), pytest.raises(ValueError, match="no rows yet"):
        table.verification_table(tmp_path, methods=["tds"], only=["four modes"])


def test_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, name in (("--methods", "magic"), ("--cases", "five modes")):
        assert main(["verify", "--out", str(tmp_path), option, name]) == 2
        assert f"of the table is named {name!r}." in capsys.readouterr().err


def test_the_unit_of_a_case_does_not_matter() -> None:
    """Settings are in units of the images' standard deviation: a case seven times as large has the same figures."""
    r, k = four_modes(), 7.0
    assert isinstance(r.prior, GaussianMixturePrior)
    prior = GaussianMixturePrior(r.prior.weights, k * r.prior.means, k**2 * r.prior.covariances)
    larger = Reference(prior, r.A, k * r.noise_std, k * r.y)
    few = dataclasses.replace(CASE, n_problems=4, n_draws=40)
    assert few.unit == pytest.approx((2.5**2 + 0.35**2) ** 0.5)
    for method, settings in (("daps", {"ode_steps": 1, "prior_std": 1.0}), ("pigdm", {"data_std": 1.0})):
        one, other = (verify(dataclasses.replace(few, reference=x), method, settings) for x in (r, larger))
        for name, value in dataclasses.asdict(one).items():
            if name != "seconds":
                assert getattr(other, name) == pytest.approx(value, rel=1e-2, abs=1e-3), (method, name)


def test_cases_are_sound() -> None:
    for case in cases():
        assert case.n_draws >= 39 and case.about.endswith(".") and math.prod(case.reference.A.in_shape) <= 1024
        widest = float(torch.linalg.eigvalsh(case.reference.prior.covariance.double())[-1]) ** 0.5
        narrowest = float(torch.linalg.eigvalsh(case.reference.posterior.covariance.double())[0]) ** 0.5
        assert LEVELS["sigma_max"] * case.unit > 5 * widest and LEVELS["sigma_min"] * case.unit < narrowest


def test_all_posterior_methods_are_in_the_table() -> None:
    samplers = {
        m for m in plugins.BUILT_IN["methods"] if configure.needs_prior(m) and configure.has_setting(m, "samples")
    }
    assert {entry.method for entry in METHODS} == samplers
    known = cases()
    assert all(any(entry.fits(case.reference.A) for case in known) for entry in METHODS)
    for method, of in FEWER.items():
        used = {entry.settings["n_levels"] for entry in METHODS if entry.method == method}
        assert used == {int(of.split(" of ")[0])}


# The committed table


def committed() -> dict[tuple[str, str, str], dict[str, float]]:
    rows = table.current(report.read(DOCS / "verification.csv"), seed=0)
    return {(r["case"], r["method"], r["settings"]): {k: float(r[k]) for k in report.NUMBERS} for r in rows}


def test_the_committed_table_is_that_of_the_code() -> None:
    """Every case and row that the code has, and no other: delete the rows of what has changed and run `scoreinv verify --out docs`."""
    known = cases()
    expected = {
        (case.name, entry.method, table.written(entry.settings))
        for case in known
        for entry in METHODS
        if entry.fits(case.reference.A)
    }
    assert set(committed()) == expected
    text = (DOCS / "verification.md").read_text(encoding="utf-8")
    for name, method, _ in expected:
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        assert f"| {method} |" in section
    for case in known:
        assert f"{case.about} {report.how_many(case)} problems, {case.n_draws} draws each." in text
    for (name, *_), row in committed().items():
        (case,) = [c for c in known if c.name == name]
        assert row["problems"] in {case.how_many(k * row["evaluations"]) for k in (0.9, 1, 1.1)}, (name, row)


@pytest.mark.parametrize(("method", "settings"), [("tmpd", "n_levels=200"), ("proximal", "")])
def test_a_committed_row_is_computed_again(method: str, settings: str) -> None:
    (case,) = [c for c in cases() if c.name == "four modes"]
    (entry,) = [e for e in METHODS if (e.method, table.written(e.settings)) == (method, settings)]
    found, stated = verify(case, method, entry.all_settings), committed()[case.name, method, settings]
    for name in ("mean_error", "variance_range", "variance_null", "wasserstein", "coverage_90", "evaluations"):
        assert getattr(found, name) == pytest.approx(stated[name], rel=0.05, abs=0.02), name


@pytest.mark.parametrize(
    ("method", "settings"), [("daps", "n_levels=200, ode_steps=1, prior_std=1.0"), ("mmps", "n_levels=200")]
)
def test_what_is_advised_for_draws_is_nearly_exact_but_on_25_modes(method: str, settings: str) -> None:
    rows = {case: f for (case, *row), f in committed().items() if row == [method, settings]}
    assert rows.pop("25 modes, d = 8")["variance_range"] > 1.5
    assert rows.pop("25 modes, d = 80")["variance_range"] > 1.5 and len(rows) == 4
    for f in rows.values():
        assert 0.85 < f["variance_range"] < 1.2 and 0.85 < f["variance_null"] < 1.2 and abs(f["mean_error"]) < 0.1


def test_the_advice_names_every_method() -> None:
    text = (DOCS / "choosing-a-method.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", text))
    assert {entry.method for entry in METHODS} <= named


def test_a_table_with_other_columns_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "verification.csv").write_text("case,method,settings,problems\n")
    with pytest.raises(ValueError, match=r"verification\.csv: its columns are not those of this version"):
        table.verification_table(tmp_path)
    assert (tmp_path / "verification.csv").read_text() == "case,method,settings,problems\n"
