"""The table of methods against exact posteriors: exact draws pass, others do not, and nothing is computed twice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from scoreinv.cli import main
from scoreinv.priors.references import four_modes, two_modes
from scoreinv.verification import report, table
from scoreinv.verification.cases import METHODS, cases
from scoreinv.verification.run import Case, measured, row_and_null_space, verify

CASE = Case("four modes", "In the plane.", four_modes(), fixed=True, n_problems=200, n_draws=64)


def test_exact_draws_have_the_figures_of_exact_draws() -> None:
    rng = torch.Generator().manual_seed(0)
    for case in (CASE, Case("two modes", "", two_modes(torch.Generator().manual_seed(1)), n_problems=60)):
        problem = case.problems(rng)
        prior, A, std = case.reference.prior, case.reference.A, case.reference.noise_std
        laws = [prior.posterior(type(problem)(A, y, std)) for y in problem.y.double()]
        draws = torch.stack([law.draw(case.n_draws, rng) for law in laws], dim=1)
        f = measured(case, problem, draws, rng)
        assert abs(f.mean_error) < 0.02 and f.rank_p > 0.001
        assert [f.variance, f.variance_range, f.variance_null, f.wasserstein] == pytest.approx([1] * 4, abs=0.15)
        assert [f.coverage_50, f.coverage_90, f.coverage_95] == pytest.approx([0.5, 0.9, 0.95], abs=0.06)
        narrow = measured(case, problem, draws.mean(0) + 0.5 * (draws - draws.mean(0)), rng)
        assert narrow.variance == pytest.approx(f.variance / 4, rel=1e-3) and narrow.coverage_90 < f.coverage_90


def test_known_numbers_of_the_four_modes() -> None:
    """A method of the table on the published example: mmps finds both modes and the stated variance."""
    f = verify(CASE, "mmps", {"n_levels": 60})
    assert f.variance_null == pytest.approx(1, abs=0.1) and f.variance_range == pytest.approx(1, abs=0.25)
    assert f.evaluations == 60 and f.seconds > 0


def test_row_and_null_space() -> None:
    seen, unseen = row_and_null_space(four_modes().A)
    torch.testing.assert_close(seen.abs(), torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    torch.testing.assert_close(unseen.abs(), torch.tensor([[0.0], [1.0]], dtype=torch.float64))


def test_a_table_is_filled_in_and_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["verify", "--out", str(tmp_path), "--cases", "four modes", "--methods", "proximal", "tmpd", "--quiet"]
    assert main(arguments) == 0
    rows = report.read(tmp_path / "verification.csv")
    assert [r["method"] for r in rows] == ["proximal", "tmpd"]
    text = (tmp_path / "verification.md").read_text()
    assert text.index("| tmpd |") < text.index("| proximal |")  # the nearer one first
    assert (tmp_path / "verification.png").read_bytes().startswith(b"\x89PNG")

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(table, "verify", never)
    assert main(arguments) == 0 and report.read(tmp_path / "verification.csv") == rows


def test_a_method_that_fails_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "tds", {"particles": 3})
    with pytest.warns(UserWarning, match="tds on four modes"), pytest.raises(ValueError, match="no rows yet"):
        table.verification_table(tmp_path, methods=["tds"], only=["four modes"])


def test_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, name in (("--methods", "magic"), ("--cases", "five modes")):
        assert main(["verify", "--out", str(tmp_path), option, name]) == 2
        assert f"of the table is named {name!r}; known: " in capsys.readouterr().err


def test_cases_are_sound() -> None:
    for case in cases():
        assert case.n_draws >= 39 and case.about.endswith(".") and math.prod(case.reference.A.in_shape) <= 1024
