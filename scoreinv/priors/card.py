"""The card of a prior: what it was trained on, how, and how well it denoises; plain values for JSON, Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN_PLACE = ("format", "sha256", "description")


def markdown(name: str, card: Mapping[str, Any]) -> str:
    """A card as Markdown, with whatever of the usual parts it holds in the usual form.

    Args:
        name: of the prior.
        card: plain values, see `priors.checkpoint.save_prior`.
    """
    lines = [f"# {name}", ""]
    if "description" in card:
        lines += [str(card["description"]), ""]
    lines += [f"- {_words(k)}: {v}" for k, v in card.items() if k not in OWN_PLACE and _plain(v)]
    lines += [
        "",
        *_network(_mapping(card, "network")),
        *_data(_mapping(card, "data")),
        *_quality(card),
        *_history(card),
        *_further(card),
    ]
    lines += [f"- {_words(k)}: {v}" for k, v in _mapping(card, "versions").items()]
    return "\n".join([*lines, "", f"SHA-256 of the weights: `{card.get('sha256', 'unknown')}`", ""])


def _mapping(card: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part that should be a mapping; cards that others filled in may hold anything."""
    found = card.get(key)
    return found if isinstance(found, Mapping) else {}


def _words(key: str) -> str:
    return key.replace("_", " ")


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _as_list(value: Any) -> Any:
    """Tuples come back from JSON as lists."""
    return list(value) if isinstance(value, tuple) else value


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    return [_row(*head), _row(*["---"] * len(head)), *(_row(*row) for row in rows), ""]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _rows(rows: list[Mapping[str, Any]]) -> list[str]:
    return _table([_words(k) for k in rows[0]], [list(row.values()) for row in rows])


def _network(values: Mapping[str, Any]) -> list[str]:
    return ["## Network", "", *_table(["setting", "value"], [[_words(k), v] for k, v in values.items()])]


def _data(data: Mapping[str, Any]) -> list[str]:
    lines = ["## Data", ""]
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines.append(f"- {_words(key)}: " + ", ".join(f"{v} {_words(k)}" for k, v in value.items()))
        elif not isinstance(value, list):
            lines.append(f"- {_words(key)}: {value}")
    lines.append("")
    for value in data.values():
        if _is_rows(value):
            lines += _rows(value)
    return lines


def _quality(card: Mapping[str, Any]) -> list[str]:
    psnr = {k: v for k, v in _mapping(card, "validation_psnr_db").items() if isinstance(v, int | float)}
    if not psnr:
        return []
    convention = str(card.get("validation_psnr_convention", ""))
    cells = _table(["σ", *psnr], [["PSNR [dB]", *(f"{v:.2f}" for v in psnr.values())]])
    return ["## Denoising of validation slices", "", convention, "", *cells]


def _history(card: Mapping[str, Any]) -> list[str]:
    """One row for each slice of training, and the settings that differ between them."""
    history = card.get("history")
    if not isinstance(history, list) or not history:
        return []
    settings = [{k: _as_list(v) for k, v in h.get("training", {}).items()} for h in history]
    changing = [k for k in settings[0] if any(s.get(k) != settings[0][k] for s in settings)]
    common = ", ".join(f"{k} {v}" for k, v in settings[0].items() if k not in changing)
    head = ["slice", "steps", "hours", "processes", "started from", *changing]
    rows = [
        [k + 1, f"{h['from_step']} to {h['to_step']}", f"{h['hours']:.2f}", h["processes"], h["start"]]
        + [s.get(key) for key in changing]
        for k, (h, s) in enumerate(zip(history, settings, strict=True))
    ]
    return ["## Training", "", f"In every slice: {common}.", "", *_table(head, rows)]


def _further(card: Mapping[str, Any]) -> list[str]:
    """Whatever other tables and pictures (caption -> file) a card holds, each under its own name."""
    lines = []
    for key, value in card.items():
        if _is_rows(value) and key != "history":
            lines += [f"## {_words(key).capitalize()}", "", *_rows(value)]
    for caption, path in _mapping(card, "pictures").items():
        lines += [f"![{caption}]({path})", "", str(caption), ""]
    return lines
