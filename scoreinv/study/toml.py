"""Sweeps written as TOML: every table is a call, and any of its arguments may be an axis.

    seeds = [0, 1]

    [truth]
    phantom = "ellipses"
    count = 2

    [operator]
    name = "parallel_beam_ct"
    sweep.n_views = [9, 23, 60]                   # three operators
    simulate = { refine = 2, weights = "strip" }

    [noise]
    sweep.relative = [0.0, 0.005]

    [[method]]
    sweep.name = ["fbp", "cgls"]                  # two methods

    [[method]]
    name = "fista_tv"

A table may be one (`[noise]`) or several (`[[noise]]`). Several axes of a table are multiplied. This is only a reader of
`study.sweep.Sweep`: everything is checked before anything runs, and errors name the line.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from scoreinv.arguments import ArgumentError, resolved
from scoreinv.files.hdf5 import existing_file
from scoreinv.plugins import did_you_mean
from scoreinv.study.lodopab import LoDoPaB
from scoreinv.study.sweep import MethodCall, Noise, OperatorCall, Sweep
from scoreinv.study.truth import ImageFile, Phantoms

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same code, before it came into the standard library
    import tomli as tomllib

TABLES = ("truth", "operator", "noise", "method")
PLAIN = ("title", "seeds", "priors", "images", "lpips")


def read_sweep(path: str | Path) -> Sweep:
    """The sweep of a TOML file, its images found and its operators built once: `cells` is ready.

    Args:
        path: of the file; relative paths in it start from its folder, `$SCOREINV_DATA` is filled in where a file is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML or no sweep, with the number of the line where that can be had.
    """
    path = existing_file(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: is no TOML, but a file of other than text; expected a sweep such as benchmarks/example.toml"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: is no TOML: {error}") from error
    return _Reader(path, content, lines_of(text)).sweep()


class _Reader:
    def __init__(self, path: Path, content: Mapping[str, Any], lines: Mapping[tuple[str, int, str], int]) -> None:
        self.path, self.content, self.lines = path, content, lines
        self.places: dict[int, tuple[str, int]] = {}  # id of a part -> its table

    def sweep(self) -> Sweep:
        for key in self.content:
            if key not in (*TABLES, *PLAIN):
                known = (*TABLES, *PLAIN)
                self._fail(key, 0, None, f"a sweep has no {key!r}.{did_you_mean(key, known)} Known: {', '.join(known)}")
        c = self.content
        priors = [self._beside(p) if str(p).endswith(".safetensors") else p for p in self._list("priors", str)]
        more: dict[str, Any] = {"seeds": self._list("seeds", int), "priors": priors}
        more = {k: tuple(v) for k, v in more.items() if k in c}
        if "noise" in c:
            more["noises"] = self._parts("noise", self._call("noise", Noise))
        for key, kind in (("images", bool), ("lpips", bool), ("title", str)):
            if key in c:
                if not isinstance(c[key], kind):
                    self._fail(key, 0, None, f"{key} should be {kind.__name__}, got {c[key]!r}")
                more[key] = c[key]
        parts: dict[str, Any] = {
            "truths": self._parts("truth", self._truth),
            "operators": self._parts("operator", self._operator),
            "methods": self._parts("method", self._method),
        }
        sweep = Sweep(**parts, **more)
        self.places[id(sweep.priors)] = ("priors", 0)
        try:
            sweep.cells  # noqa: B018 (which reads the images and builds the operators)
        except ArgumentError as error:
            table, index = self.places.get(id(error.owner), (error.key or "", 0))
            self._fail(table, index, error.key or "name", str(error), error)
        return sweep

    def _parts(self, table: str, make: Callable[[dict[str, Any]], Any]) -> list[Any]:
        """What the tables of a name stand for, axes multiplied out."""
        found = self.content.get(table, [])
        found = [found] if isinstance(found, dict) else found
        if not found or not all(isinstance(t, dict) for t in found):
            self._fail(table, 0, None, f"a sweep needs a table [{table}] or several [[{table}]]")
        parts = []
        for index, content in enumerate(found):
            try:
                for arguments in _expanded(table, content):
                    parts.append(make(arguments))
                    self.places[id(parts[-1])] = (table, index)
            except ValueError as error:
                self._fail(table, index, getattr(error, "key", None) or "name", str(error), error)
        return parts

    def _call(self, what: str, cls: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
        def make(arguments: dict[str, Any]) -> Any:
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
            resolved(what, cls, given)
            return cls(**given)

        return make

    def _truth(self, arguments: dict[str, Any]) -> Any:
        if "phantom" in arguments:
            return self._call("truth", Phantoms)(arguments)
        paths = ("file", "fine", "lodopab")
        arguments = {k: self._beside(v) if k in paths and isinstance(v, str) else v for k, v in arguments.items()}
        if "lodopab" in arguments:
            return self._call("truth", LoDoPaB)(arguments)
        if "file" not in arguments:
            raise ArgumentError("truth needs file = ... or phantom = ... or lodopab = ...")
        return self._call("truth", ImageFile)(arguments)

    def _operator(self, arguments: dict[str, Any]) -> OperatorCall:
        name, simulate = _name("operator", arguments), arguments.pop("simulate", {})
        if not isinstance(simulate, dict):
            raise ArgumentError(f"simulate should be a table such as {{ refine = 2 }}, got {simulate!r}", "simulate")
        return OperatorCall(name, arguments, simulate)

    def _method(self, arguments: dict[str, Any]) -> MethodCall:
        name = _name("method", arguments)
        if isinstance(given := arguments.get("weights"), str):
            arguments["weights"] = self._beside(given)
        return MethodCall(name, arguments)

    def _list(self, key: str, kind: type) -> list[Any]:
        values: list[Any] = self.content.get(key, [])
        wrong = (
            [v for v in values if not isinstance(v, kind) or isinstance(v, bool)]
            if isinstance(values, list)
            else [values]
        )
        if wrong or (key in self.content and not values):
            self._fail(key, 0, None, f"{key} should be a list of {kind.__name__}, got {values!r}")
        return values

    def _beside(self, name: str) -> str:
        return name if name.startswith("$") else str(self.path.parent / name)

    def _fail(self, table: str, index: int, key: str | None, words: str, cause: Exception | None = None) -> None:
        line = self.lines.get((table, index, key or "")) or self.lines.get((table, index, ""))
        line = line or self.lines.get(("", 0, table))
        raise ValueError(f"{self.path}{f':{line}' if line else ''}: {words}") from cause


def _name(what: str, arguments: dict[str, Any]) -> str:
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise ArgumentError(f"{what} needs name = ..., see `scoreinv list`", "name")
    return name


def _expanded(table: str, content: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """A table for every combination of the values of its axes.

    Raises:
        ArgumentError: an axis is no list of values, or has its argument beside it.
    """
    fixed = {k: v for k, v in content.items() if k != "sweep"}
    axes = content.get("sweep", {})
    if not isinstance(axes, dict):
        raise ArgumentError(f"{table}: an axis is written sweep.KEY = [values], got sweep = {axes!r}", "sweep")
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ArgumentError(f"{table}: sweep.{key} should be a list of values, got {values!r}", key)
        if key in fixed:
            raise ArgumentError(f"{table}: {key} and sweep.{key} exclude each other: give one of them", key)
    for combination in itertools.product(*axes.values()):
        yield {**fixed, **dict(zip(axes, combination, strict=True))}


_HEADER = re.compile(r"^\s*\[(\[?)\s*([\w-]+)\s*(?:\.\s*([\w.-]+)\s*)?\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([\w-]+(?:\s*\.\s*[\w-]+)*)\s*=")


def lines_of(text: str) -> dict[tuple[str, int, str], int]:
    """Line numbers of (table, which of that name, key); the key "" is the table's header, the table "" the head of the file.

    An axis `sweep.KEY` is found under KEY.
    """
    found: dict[tuple[str, int, str], int] = {}
    counts: dict[str, int] = {}
    table, index, inside = "", 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            several, table, inside = bool(header[1]), header[2], header[3] or ""
            if not inside:
                index = counts.get(table, 0) if several else 0
                counts[table] = index + 1
            found.setdefault((table, index, ""), number)
        elif key := _KEY.match(line):
            parts = [p.strip() for p in f"{inside}.{key[1]}".split(".") if p.strip()]
            name = parts[1] if parts[0] == "sweep" and len(parts) > 1 else parts[0]
            found.setdefault((table, index, name), number)
    return found
