"""A prior on disk: `NAME.safetensors` (weights) beside `NAME.json` (network, training data, licences, figures) and the same
card for people, `NAME.md`.

Nothing in either file is executed: the JSON holds constructor arguments of `UNetConfig` and plain facts.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scoreinv.files.atomic import replacing
from scoreinv.priors.card import markdown
from scoreinv.priors.network import EDMDenoiser, UNetConfig

FORMAT = "scoreinv-prior-1"


def save_prior(model: EDMDenoiser, path: str | Path, card: dict[str, Any], *, half: bool = True) -> None:
    """Write `path` (.safetensors) and its cards; with `half` the weights are stored as float16.

    Raises:
        ValueError: the path does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a prior is written to a .safetensors file, got {path.suffix or 'no suffix'!r}")
    dtype = torch.float16 if half else torch.float32
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary)
    write_cards(path, {"network": model.config.to_dict(), **card})


def write_cards(path: Path, card: dict[str, Any], *, form: str = FORMAT) -> None:
    """Write the cards of the weights that lie at `path`; the checksum in them is that of the weights as they are now."""
    full = {"format": form, **card, "sha256": checksum(path)}
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(path.stem, full), encoding="utf-8")


def load_prior(path: str | Path) -> tuple[EDMDenoiser, dict[str, Any]]:
    """Read weights and card; the network comes back in float32, in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: the weights or the card are missing.
        ValueError: the file is a pickle, is damaged, or was not written by `save_prior`.
    """
    path = Path(path)
    card = checked_card(path)
    try:
        model = EDMDenoiser(UNetConfig.from_dict(card["network"]))
        model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: its card describes no network that these weights fit: {error}") from error
    return model.eval().requires_grad_(False), card


def checked_card(path: Path, *, what: str = "a prior", form: str = FORMAT) -> dict[str, Any]:
    """The card of weights that are whole.

    Args:
        path: of the weights.
        what: they are, for errors.
        form: the card's format.

    Raises:
        FileNotFoundError, ValueError: as `load_prior`.
    """
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: {what} is a .safetensors file with a .json card beside it, got {path.suffix or 'no suffix'!r}; "
            "pickled checkpoints (.pt, .pth, .ckpt, .pkl) can run code when opened and are not read: load yours where "
            "you trust it and write it again with scoreinv.save_prior"
        )
    card_path = path.with_suffix(".json")
    for needed in (path, card_path):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed}: no such file ({what} is NAME.safetensors with NAME.json beside it)")
    card = _read_card(card_path, form)
    if card.get("sha256") != checksum(path):
        raise ValueError(
            f"{path}: checksum differs from its card's; the file is damaged or the two do not belong together"
        )
    return card


def card_format(path: Path) -> str | None:
    """What the card of weights says it is, unchecked; None where there is no card that can be read."""
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = card.get("format") if isinstance(card, dict) else None
    return found if isinstance(found, str) else None


def _read_card(path: Path, form: str) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON text: {error}") from error
    found = card.get("format") if isinstance(card, dict) else type(card).__name__
    if found != form:
        raise ValueError(f"{path}: expected format {form!r}, got {found!r}")
    return dict(card)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
