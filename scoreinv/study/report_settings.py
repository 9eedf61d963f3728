"""What it takes to repeat a sweep: its TOML file, every resolved argument, and what computed the rows."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same code, before it came into the standard library
    import tomli as tomllib

Row = Mapping[str, Any]
TOML = "sweep.toml"
"""A copy of the sweep's file, in the folder of its rows."""
PARTS = {
    "Methods": ("method", ("label", "method", "prior", "prior_sha256")),
    "Operators": ("operator", ("operator",)),
    "Data": ("simulate", ()),
    "Noises": ("noise", ()),
    "Images": ("image", ("image",)),
    "Computed on": ("machine", ("device",)),
    "Computed by": ("versions", ("commit",)),
}
"""Titles, with the part of a row and single columns that belong there."""


def settings(rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    """`title` and `toml` of the sweep (empty and None where it has no file), and for each of `PARTS` all different sets of arguments."""
    path = folder / TOML
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    finished = sorted(str(row["finished"]) for row in rows if row["finished"])
    return {
        "title": _title(text), "toml": text, "parts": {name: _different(rows, *part) for name, part in PARTS.items()},
        "seeds": sorted({row["seed"] for row in rows}), "first": finished[0] if finished else None,
        "last": finished[-1] if finished else None,
    }  # fmt: skip


def failures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows that failed."""
    columns = ("label", "problem", "image", "seed", "error_type", "error")
    return [{k: row[k] for k in columns} for row in rows if row["status"] != "done"]


def csv_text(rows: Sequence[Row]) -> str:
    """All rows with all their columns."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _different(rows: Sequence[Row], part: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Arguments without those that are None, with the number of rows that have them."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = {k: row[k] for k in columns} | {
            k.partition(".")[2]: v for k, v in row.items() if k.startswith(f"{part}.")
        }
        own = {k: v for k, v in own.items() if v is not None}
        if own:
            found.setdefault(json.dumps(own, sort_keys=True, default=str), {**own, "rows": 0})["rows"] += 1
    return list(found.values())


def _title(text: str | None) -> str:
    """Of the sweep, without the rest being checked."""
    try:
        return str(tomllib.loads(text or "").get("title", ""))
    except tomllib.TOMLDecodeError:
        return ""
