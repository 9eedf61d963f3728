"""The README is true: its Python runs, its commands and settings exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from scoreinv import plugins
from scoreinv.cli import parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for k, code in enumerate(blocks("python")):
        (tmp_path / f"readme_block_{k}.py").write_text(code, encoding="utf-8")
        importlib.import_module(f"readme_block_{k}")
    assert "torch.Size([64, 64])" in capsys.readouterr().out


def test_commands_parse() -> None:
    commands = [
        line.split("#")[0].split()[1:]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("scoreinv")
    ]
    shown = {
        "simulate",
        "reconstruct",
        "rebin",
        "export",
        "train",
        "sample",
        "score",
        "tune",
        "bench",
        "report",
        "calibrate",
        "verify",
        "info",
        "list",
    }
    assert {c[0] for c in commands} == shown
    for command in commands:
        parser().parse_args(command)


@pytest.mark.parametrize("kind", ["operators", "methods"])
def test_every_name_is_in_the_tables(kind: str) -> None:
    missing = [name for name in plugins.BUILT_IN[kind] if f"`{name}`" not in README]
    assert not missing


def test_continuous_integration_runs_the_second_line() -> None:
    (line,) = [line for line in README.splitlines() if line.startswith("python3 ") and "pytest" in line]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in script and "pytest" in line


def test_pictures_exist() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
