"""Computing a sweep into a folder: what is there is skipped, what fails is noted, what is interrupted goes on."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreinv.plugins import did_you_mean
from scoreinv.study.computing import Context, Row, compute
from scoreinv.study.store import FIGURES, flat_cell, opened, statuses
from scoreinv.study.sweep import Cell, Sweep

Mapper = Callable[[Callable[[Cell], Row], Sequence[Cell]], Iterable[Row]]
"""(function, cells) -> rows, in any order: `map`, or what sends cells to other machines."""


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        cells: all that were asked for.
        done, failed: how many of them have a row of that status.
        todo: those to be computed now.
    """

    cells: Sequence[Cell]
    done: int
    failed: int
    todo: Sequence[Cell]


def plan(
    sweep: Sweep,
    folder: Path,
    *,
    only: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
) -> Plan:
    """What `run` with these arguments would do; nothing is written.

    Args:
        sweep: the product.
        folder: of its rows, which need not exist.
        only: "column=value" texts, with the columns of `study.read` or what follows their dot; cells must match one value of each column.
        limit: compute no more cells than this.
        retry_failed: compute cells again that have failed.

    Raises:
        ValueError: an argument is not what is expected.
    """
    return _plan(sweep, statuses(folder), only, limit, retry_failed)


def run(
    sweep: Sweep,
    folder: Path,
    *,
    only: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    device: str = "cpu",
    mapper: Mapper = map,
) -> Iterator[dict[str, Any]]:
    """Compute what is missing; each row is in the store before it is yielded, as `study.read` gives it.

    Args:
        sweep, folder, only, limit, retry_failed: see `plan`.
        device: where to compute.
        mapper: what applies `compute` to cells.

    Raises:
        ValueError: an argument is not what is expected, or another process computes into the folder.
        OSError: a row cannot be written; those before it are safe.
    """
    sweep.cells  # noqa: B018 (bad input shows before the folder is made)
    with opened(folder) as store:
        todo = _plan(sweep, store.statuses(), only, limit, retry_failed).todo
        for row in mapper(functools.partial(compute, context=Context(device, sweep.images, sweep.lpips)), todo):
            yield store.add(row)


def _plan(sweep: Sweep, known: Mapping[str, str], only: Sequence[str], limit: int | None, retry_failed: bool) -> Plan:
    if limit is not None and limit < 0:
        raise ValueError(f"--limit: expected a number of cells, got {limit}")
    cells = chosen(sweep.cells, only)
    status = [known.get(cell.key) for cell in cells]
    todo = [c for c, s in zip(cells, status, strict=True) if s is None or (s == "failed" and retry_failed)]
    return Plan(cells, status.count("done"), status.count("failed"), todo[:limit])


def chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that match filters, see `plan`.

    Raises:
        ValueError: no "=", an unknown or ambiguous column, or values that no cell has.
    """
    if not only:
        return list(cells)
    wanted: dict[str, list[str]] = {}
    for text in only:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"--only is written key=value, got {text!r}")
        wanted.setdefault(key, []).append(value)
    rows = [flat_cell(cell) for cell in cells]
    kept = list(zip(cells, rows, strict=True))
    for key, values in wanted.items():
        column = _column(key, rows)
        for value in values:
            if not any(_is(row.get(column), value, key) for row in rows):
                have = dict.fromkeys(str(row.get(column)) for row in rows)
                raise ValueError(f"--only {key}={value}: no cell has it; {column} is one of {', '.join(have)}")
        kept = [(c, row) for c, row in kept if any(_is(row.get(column), value, key) for value in values)]
    if not kept:
        raise ValueError(f"--only {' --only '.join(only)}: no cell has all of these")
    return [cell for cell, _ in kept]


def _column(key: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The column of that name, or the one whose name ends with it after a dot."""
    columns = dict.fromkeys(k for row in rows for k in row if k not in FIGURES and k not in ("key", "status"))
    name = key.removesuffix("_degrees")
    found = [c for c in (key, name) if c in columns][:1] or [c for c in columns if c.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"--only {key}: is one of {', '.join(found)}: write which")
    short = [c.rpartition(".")[2] for c in columns]
    raise ValueError(f"--only {key}: there is no such column.{did_you_mean(key, [*columns, *short])}")


def _is(value: Any, text: str, key: str) -> bool:
    """Whether a column's value is written so; angles in degrees where the key says so."""
    if str(value) == text:
        return True
    try:
        other = json.loads(text)
    except json.JSONDecodeError:
        return False
    if key.endswith("_degrees") and isinstance(other, int | float):
        other = math.radians(other)
    if isinstance(value, int | float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-9)
    return bool(value == other)
