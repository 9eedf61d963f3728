"""Names and what they stand for; and a real plugin in a real wheel, from simulation to reconstruction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreinv import plugins
from scoreinv.files.reconstruction import read_reconstruction
from scoreinv.linop import LinearOperator
from scoreinv.operators.ct import ParallelBeamCT

ROOT = Path(__file__).resolve().parents[1]

BLUR = '''
"""A plugin: blurs rows with a symmetric kernel."""
from dataclasses import dataclass

import torch
from scoreinv.linop import LinearOperator


@dataclass(frozen=True)
class MyBlur(LinearOperator):
    """Blurs the rows of an image, wrapping around."""

    image_shape: tuple[int, int]
    kernel: tuple[float, ...] = (1.0,)

    @property
    def in_shape(self):
        return self.image_shape

    out_shape = in_shape

    def _forward(self, x):
        shifts = range(-(len(self.kernel) // 2), len(self.kernel) // 2 + 1)
        return sum(w * torch.roll(x, s, dims=-1) for w, s in zip(self.kernel, shifts, strict=True))

    def _adjoint(self, y):
        return self._forward(y)
'''
FILES = {
    # The class is defined in a module of its own and imported into the package, as most packages do.
    "my_package/__init__.py": "from my_package.blur import MyBlur\n",
    "my_package/blur.py": BLUR,
    "my_package-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n",
    "my_package-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "my_package-1.0.dist-info/entry_points.txt": (
        "[scoreinv.operators]\nmy_blur = my_package:MyBlur\nbroken = my_package.nothing:Nothing\n"
    ),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the plugin's wheel to."""
    folder = tmp_path_factory.mktemp("plugin")
    wheel = folder / "my_package-1.0-py3-none-any.whl"
    record = "".join(f"{name},,\n" for name in [*FILES, "my_package-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(wheel, "w") as file:
        for name, text in {**FILES, "my_package-1.0.dist-info/RECORD": record}.items():
            file.writestr(name, text)
    target = folder / "installed"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    return target


DRIVER = """
import contextlib, io, json, sys
from scoreinv.cli import main
results = []
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    results.append([code, out.getvalue(), err.getvalue()])
json.dump(results, sys.stdout)
"""
"""Runs commands one after the other in one process, which spares the time to start Python for each."""


def python(installed: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """A Python of its own in which the plugin is installed."""
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, input=text, capture_output=True, text=True, timeout=600)


def commands(installed: Path, *lines: list[str | Path]) -> list[list[Any]]:
    """Exit code, output and errors of each command."""
    done = python(installed, "-c", DRIVER, text=json.dumps([list(map(str, line)) for line in lines]))
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_installed_plugins_are_listed(installed: Path) -> None:
    """One that cannot be imported is listed with the reason, and does not keep the others from showing."""
    done = python(installed, "-m", "scoreinv", "list", "operators")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["my_blur"].endswith("Blurs the rows of an image, wrapping around.")
    assert "cannot be imported" in lines["broken"] and "parallel_beam_ct" in lines


def test_a_plugin_from_simulation_to_reconstruction(installed: Path, tmp_path: Path) -> None:
    hu = np.full((16, 16), -1000, np.float32)
    hu[4:12, 5:11] = 50
    image, scan = tmp_path / "image.npy", tmp_path / "scan.h5"
    np.save(image, hu)
    simulate = ["simulate", image, "--pixel-mm", "1", "--operator", "my_blur", "--out", scan, "--noise", "0.001"]
    results = [tmp_path / "cgls.h5", tmp_path / "fista_tv.h5"]
    misspelt, simulated, told, *solved = commands(
        installed,
        [*simulate, "--set", "kernal=[1]"],
        [*simulate, "--set", "kernel=[0.25, 0.5, 0.25]"],
        ["info", scan],
        *(["reconstruct", scan, "--method", path.stem, "--out", path] for path in results),
    )
    assert misspelt[0] == 2 and "Did you mean 'kernel'?" in misspelt[2]
    assert simulated[0] == 0 and "data (16, 16) of my_blur" in simulated[1], simulated
    assert "MyBlur, image_shape 16 x 16, kernel (0.25, 0.5, 0.25)" in told[1] and "truth: stored" in told[1], told
    for path, (code, out, errors) in zip(results, solved, strict=True):
        assert code == 0 and path.stem in out, errors
        result = read_reconstruction(path)
        assert result.truth is not None and result.mean.shape == (16, 16) and result.settings["method"] == path.stem
        assert float((result.mean - result.truth).square().mean().sqrt() / result.truth.max()) < 0.05
    # Without the plugin, the same file says what is missing.
    ((code, _, errors),) = commands(tmp_path, ["info", scan])
    assert code == 2 and "no operator is named 'my_blur'" in errors


def test_built_in_names_stand_for_classes_and_back() -> None:
    for kind, table in plugins.BUILT_IN.items():
        assert list(table) == sorted(table)
        for name, target in table.items():
            cls = plugins.get(kind, name)
            assert isinstance(cls, type) and f"{cls.__module__}:{cls.__qualname__}" == target
            assert plugins.name_of(kind, cls) == name and cls.__doc__
            assert kind != "operators" or issubclass(cls, LinearOperator)


def test_names_are_sorted_and_hold_the_built_in_ones() -> None:
    for kind, table in plugins.BUILT_IN.items():
        assert plugins.names(kind) == sorted(set(plugins.names(kind))) and set(table) <= set(plugins.names(kind))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("operators", "paralel_beam_ct", r"named 'paralel_beam_ct'\. Did you mean 'parallel_beam_ct'\? Known: fan_"),
        ("methods", "song", r"no method is named 'song'"),
        ("methods", "zzzz", r"no method is named 'zzzz'\. Known: cgls"),
        ("operators", "os:system", r"no operator is named 'os:system'"),
    ],
)
def test_unknown_names(kind: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plugins.get(kind, name)


def test_a_class_without_name_cannot_be_written() -> None:
    class Nameless(ParallelBeamCT):
        """Nobody has registered it."""

    for cls in (Nameless, torch.nn.Identity):
        with pytest.raises(ValueError, match=r"no name among the operators: add an entry point .*scoreinv\.operators"):
            plugins.name_of("operators", cls)
    with pytest.raises(ValueError, match="no name among the methods"):
        plugins.name_of("methods", ParallelBeamCT)
