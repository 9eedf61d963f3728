"""The whole table: every method on every case, resumable; what `scoreinv verify` does."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scoreinv import configure
from scoreinv.arguments import plain
from scoreinv.files.atomic import replacing
from scoreinv.plugins import did_you_mean
from scoreinv.progress import track
from scoreinv.verification import report
from scoreinv.verification.cases import METHODS, PREFACE, Entry, cases
from scoreinv.verification.run import Case, verify

NAME = "verification"
EDITION = 3
"""To be raised when problems or measures change: rows of earlier ones do not count."""


def verification_table(
    folder: Path, *, methods: Sequence[str] = (), only: Sequence[str] = (), seed: int = 0
) -> list[Path]:
    """Fill in what is missing of the table in a folder: verification.csv, .md and .png.

    Rows that are there are not computed again, whatever stopped the run that made them, unless a default of their method, the seed or the
    `EDITION` has changed: those stay in the CSV and leave the table. A method that fails on a case is warned about and left out of its table.

    Args:
        folder: where the table is.
        methods: their names; all of the table by default.
        only: names of cases; all by default.
        seed: of problems and draws.

    Returns:
        The files written.

    Raises:
        ValueError: no such case, or no such method in the table.
    """
    known = cases()
    _check("case", only, [c.name for c in known])
    _check("method", methods, sorted({entry.method for entry in METHODS}))
    rows = folder / f"{NAME}.csv"
    done = {tuple(r[k] for k in report.KEYS) for r in report.read(rows)}
    for case, entry, key in track(list(_missing(known, methods, only, seed, done)), "verify"):
        try:
            figures = verify(case, entry.method, entry.all_settings, seed)
        except (ArithmeticError, ValueError, RuntimeError) as error:
            warnings.warn(f"{entry.method} on {case.name}: {error}", stacklevel=2)
            continue
        report.append(rows, key, figures)
    table = current(report.read(rows), seed)
    with replacing(folder / f"{NAME}.md") as temporary:
        temporary.write_text(report.markdown(table, known, PREFACE), encoding="utf-8")
    report.picture(folder / f"{NAME}.png", table, known)
    return [folder / f"{NAME}.{kind}" for kind in ("csv", "md", "png")]


def written(settings: Mapping[str, Any]) -> str:
    """Settings as they stand in the table."""
    return ", ".join(f"{k}={json.dumps(v)}" for k, v in settings.items())


def made(entry: Entry, seed: int) -> str:
    """A checksum of all settings, defaults included, the seed and the edition: rows that were made with others do not count."""
    settings = configure.default_settings(entry.method) | plain(entry.all_settings)
    return hashlib.sha256(json.dumps([settings, seed, EDITION], sort_keys=True).encode()).hexdigest()[:8]


def current(rows: Sequence[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The rows of a file that the entries of today would make."""
    known = {(e.method, written(e.settings), made(e, seed)) for e in METHODS}
    return [r for r in rows if (r["method"], r["settings"], r["made"]) in known]


def _missing(
    known: list[Case], methods: Sequence[str], only: Sequence[str], seed: int, done: set[tuple[str, ...]]
) -> Iterator[tuple[Case, Entry, tuple[str, str, str, str]]]:
    for case in known:
        for entry in METHODS:
            asked = (not methods or entry.method in methods) and (not only or case.name in only)
            key = (case.name, entry.method, written(entry.settings), made(entry, seed))
            if asked and key not in done and entry.fits(case.reference.A):
                yield case, entry, key


def _check(what: str, given: Sequence[str], known: list[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"no {what} of the table is named {unknown[0]!r}.{hint} Known: {', '.join(map(repr, known))}")
