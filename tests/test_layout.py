"""The house as a whole: who imports whom, what a wheel holds, what the README names, what `import scoreinv` costs."""

from __future__ import annotations

import argparse
import ast
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scoreinv
from scoreinv import cli

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    ("linop", "progress", "streams", "units", "plugins", "files.atomic", "files.versions", "files.hdf5"),
    ("problem", "testing", "sampling.processes", "arguments"),
    ("metrics", "noise", "phantoms", "solvers", "sampling.discrete"),
    ("misfit", "trust", "conditions"),
    ("pictures",),
    ("contact_sheet", "edit_picture", "score_picture", "priors"),
    ("sampling",),
    ("baselines",),
    ("posterior", "configure", "ranges", "solving"),
    ("files", "calibration", "presets"),
    ("plausibility",),
    (
        "priors.run",
        "prior_samples",
        "image_score",
        "editing",
        "reconstruction",
        "simulation",
        "rebinning",
        "verification",
    ),
    ("report", "calibrate", "tune", "study", "volume", "baselines.run", "priors.latent_run"),
    ("demo", "info"),
    ("cli",),
    ("__main__", "__init__"),
]
"""A module imports from lower floors and from its own room; the longest name that fits says where it lives."""


def modules() -> dict[str, Path]:
    """All modules of scoreinv but the operators, by their name without "scoreinv."."""
    folder = ROOT / "scoreinv"
    paths = [p for p in folder.rglob("*.py") if "operators" not in p.relative_to(folder).parts]
    names = {".".join(p.relative_to(folder).with_suffix("").parts): p for p in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of scoreinv that a file imports anywhere in it, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith("scoreinv."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            source = node.module or ""
            if source == "scoreinv":
                yield from (a.name for a in node.names)
            elif source.startswith("scoreinv."):
                inside = source.removeprefix("scoreinv.")
                for a in node.names:
                    yield f"{inside}.{a.name}" if f"{inside}.{a.name}" in known else inside


def home(module: str) -> tuple[int, str]:
    """Floor and room of a module."""
    rooms = [(len(room), floor, room) for floor, rooms in enumerate(FLOORS) for room in rooms]
    fits = [r for r in rooms if module == r[2] or module.startswith(f"{r[2]}.")]
    assert fits, f"scoreinv.{module} has no floor: add it to FLOORS"
    _, floor, room = max(fits)
    return floor, room


def test_imports_point_down() -> None:
    known = modules()
    wrong = []
    for name, path in known.items():
        if name == "__init__":
            continue  # imports for type checkers only
        for target in imports(path, known):
            (floor, room), (floor_below, room_below) = home(name), home(target)
            if floor_below > floor or (floor_below == floor and room != room_below):
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_imports_have_no_circles() -> None:
    known = modules()
    graph = {name: set(imports(path, known)) for name, path in known.items() if name != "__init__"}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(graph)


def test_operators_are_reached_by_name_only() -> None:
    """Operators import the library; the library knows them by their registered names."""
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (scoreinv\.operators|operators)\b", text, re.MULTILINE), name
    for path in (ROOT / "operators").glob("*.py"):
        used = {t.split(".")[0] for t in imports(path, {})} - {"operators"}
        assert used <= {"linop", "units"}, f"operators/{path.name} imports {used}"


def test_operators_are_linked_into_the_package() -> None:
    link = ROOT / "scoreinv" / "operators"
    assert link.is_symlink() and os.readlink(link) == "../operators"


def test_packages_are_the_folders_with_code() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    walk = os.walk(ROOT / "scoreinv", followlinks=True)
    folders = [Path(folder) for folder, _, files in walk if "__init__.py" in files]
    assert settings["packages"] == sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)
    assert settings["package-dir"] == {"scoreinv.operators": "operators"}


def test_version_is_that_of_the_project() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert scoreinv.__version__ == version("scoreinv")
    except PackageNotFoundError:
        assert scoreinv.__version__ == "unknown"


def test_files_can_be_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): n
        for folder in ("scoreinv", "operators")
        for path in (ROOT / folder).rglob("*.py")
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}


def test_no_paths_of_somebodys_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    personal = re.compile(r"(?<![\w.~-])/(?:home|root|Users|work)/")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if not path.is_file() or path.suffix in (".png", ".safetensors", ".h5"):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [f"{name}: {match.group()}" for match in personal.finditer(text)]
    assert found == []


# The public API


def test_api_is_sorted_and_complete() -> None:
    assert scoreinv.__all__ == sorted(set(scoreinv.__all__))
    assert set(scoreinv.__all__) <= set(dir(scoreinv))
    for name in scoreinv.__all__:
        assert getattr(scoreinv, name) is not None
    with pytest.raises(AttributeError, match="module 'scoreinv' has no attribute 'reconstuct'"):
        scoreinv.reconstuct  # noqa: B018


def test_api_is_the_same_for_type_checkers() -> None:
    """What is imported for them, what is loaded at first use and `__all__` are three lists of one thing."""
    tree = ast.parse((ROOT / "scoreinv" / "__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    for_checkers = {a.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert for_checkers == {name: f"scoreinv.{module}" for name, module in scoreinv._HOME_OF.items()}
    assert {*for_checkers, "__version__"} == set(scoreinv.__all__)


def test_no_module_hides_a_public_name() -> None:
    """Importing scoreinv.x sets the attribute x of the package, whatever it was before."""
    assert set(scoreinv.__all__) & {name.partition(".")[0] for name in modules()} == set()


def python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_is_light() -> None:
    heavy = ["torch", "numpy", "scipy", "matplotlib", "astra", "pydicom", "nibabel", "h5py", "skimage"]
    code = f"import sys, scoreinv, scoreinv.cli; scoreinv.cli.parser(); print([m for m in {heavy} if m in sys.modules])"
    assert python(code) == "[]"
    used = ["matplotlib", "astra", "pydicom", "nibabel", "skimage"]
    code = f"import sys, scoreinv; scoreinv.reconstruct; print([m for m in {used} if m in sys.modules])"
    assert python(code) == "[]"


# What the README says


def commands() -> dict[str, argparse.ArgumentParser]:
    for action in cli.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the command line has no commands")


@pytest.mark.parametrize("command", sorted(commands()))
def test_readme_names_every_command_and_option(command: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"scoreinv {command}" in text
    options = {o for action in commands()[command]._actions for o in action.option_strings if o.startswith("--")}
    missing = [o for o in sorted(options - {"--help"}) if not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", text)]
    assert missing == []
