"""Priors on disk: they come back as they were written, and whatever is wrong with the files is said in a ValueError."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from scoreinv.priors import shipped
from scoreinv.priors.checkpoint import FORMAT, checksum, load_prior, save_prior, write_cards
from scoreinv.priors.network import EDMDenoiser, UNetConfig

CONFIG = UNetConfig(widths=(16, 32), attention=(), embedding=16, sigma_data=0.4)


@pytest.fixture
def model(rng: Generator) -> EDMDenoiser:
    network = EDMDenoiser(CONFIG)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=rng))
    return network


@pytest.fixture
def path(model: EDMDenoiser, tmp_path: Path) -> Path:
    save_prior(model, tmp_path / "prior.safetensors", {"data": "noise", "steps": 7})
    return tmp_path / "prior.safetensors"


def test_weights_that_were_trained_anew_are_loaded_anew(path: Path, model: EDMDenoiser) -> None:
    x, sigma = torch.ones(1, 1, 16, 16), torch.ones(1)
    one, first = shipped.load_network(path)(x, sigma), shipped.identity(path)["sha256"]
    assert shipped.load_network(path) is shipped.load_network(path)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    save_prior(model, path, {"data": "noise", "steps": 9})
    assert shipped.identity(path)["sha256"] != first and not torch.allclose(shipped.load_network(path)(x, sigma), one)


def edit_card(path: Path, **changes: Any) -> None:
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in (card | changes).items() if v is not None}))


@pytest.mark.parametrize(("half", "tolerance"), [(True, 2**-11), (False, 0.0)])
def test_round_trip(model: EDMDenoiser, tmp_path: Path, half: bool, tolerance: float, rng: Generator) -> None:
    """float16 keeps eleven bits: a relative error of 2^-11 (and 2^-25 below its smallest normal number)."""
    path = tmp_path / "prior.safetensors"
    save_prior(model, path, {"data": {"patients": 3}}, half=half)
    again, card = load_prior(path)
    assert again.config == CONFIG and card["data"] == {"patients": 3} and card["sha256"] == checksum(path)
    for (name, p), (name_again, q) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == name_again and q.dtype == torch.float32
        torch.testing.assert_close(q, p, rtol=tolerance, atol=2**-25 if half else 0.0)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    x = torch.randn(1, 1, 8, 8, generator=rng)
    sigma = torch.tensor(0.3)
    torch.testing.assert_close(again(x, sigma), model(x, sigma).detach(), atol=5e-3 if half else 0, rtol=0)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"prior.{kind}" for kind in ("safetensors", "json", "md")
    }  # no temporary files are left


def test_a_card_shows_all_that_it_holds(path: Path) -> None:
    """Tables and pictures under their own names; new cards of weights that stay keep their checksum."""
    card = load_prior(path)[1]
    search = [{"candidate": "plain", "gflop": 6.2}, {"candidate": "gated", "gflop": 4.4}]
    write_cards(path, card | {"architecture_search": search, "pictures": {"Samples": "sheet.png"}})
    text = path.with_suffix(".md").read_text()
    assert "## Architecture search\n\n| candidate | gflop |" in text and "| gated | 4.4 |" in text
    assert "![Samples](sheet.png)" in text
    assert load_prior(path)[1]["sha256"] == card["sha256"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pkl", ""])
def test_pickles_are_refused_with_a_way_out(tmp_path: Path, suffix: str) -> None:
    trap = tmp_path / f"prior{suffix}"
    trap.write_bytes(pickle.dumps(_Trap(tmp_path)))
    trap.with_suffix(".json").write_text("{}")
    with pytest.raises(ValueError, match=r"can run code.*scoreinv\.save_prior"):
        load_prior(trap)
    trap.rename(tmp_path / "renamed.safetensors")
    card = {"format": FORMAT, "network": CONFIG.to_dict(), "sha256": checksum(tmp_path / "renamed.safetensors")}
    (tmp_path / "renamed.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="no network that these weights fit"):
        load_prior(tmp_path / "renamed.safetensors")
    assert not (tmp_path / "code-ran").exists()


class _Trap:
    """A pickle that, once loaded, leaves a file behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.folder / "code-ran",)


def test_the_trap_works(tmp_path: Path) -> None:
    """So that the test above can fail."""
    pickle.loads(pickle.dumps(_Trap(tmp_path)))  # noqa: S301
    assert (tmp_path / "code-ran").exists()


def test_writing_elsewhere_than_safetensors_is_refused(model: EDMDenoiser, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.safetensors file, got '\.pt'"):
        save_prior(model, tmp_path / "prior.pt", {})


def test_missing_files(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors: no such file"):
        load_prior(path.with_name("nothing.safetensors"))
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"prior\.json: no such file"):
        load_prior(path)


def test_damage_is_noticed(path: Path) -> None:
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-1] ^= 1
    for bad in (bytes(flipped), good[:-100], b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="checksum differs"):
            load_prior(path)
        edit_card(path, sha256=checksum(path))
        if bad != bytes(flipped):  # a card made for the damaged file: safetensors itself notices
            with pytest.raises(ValueError, match="weights fit"):
                load_prior(path)
        path.write_bytes(good)
        edit_card(path, sha256=checksum(path))
    load_prior(path)
    edit_card(path, sha256=None)
    with pytest.raises(ValueError, match="checksum differs"):
        load_prior(path)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({**CONFIG.to_dict(), "code": "import os"}, "unexpected keyword argument 'code'"),
        ({**CONFIG.to_dict(), "widths": [16, 48]}, "size mismatch"),
        ({**CONFIG.to_dict(), "widths": "wide"}, "weights fit"),
        ({**CONFIG.to_dict(), "attention": [5]}, "between 0 and 1"),
        ("unet", "weights fit"),
    ],
)
def test_impossible_cards(path: Path, network: Any, words: str) -> None:
    edit_card(path, network=network)
    with pytest.raises(ValueError, match=words):
        load_prior(path)


def test_cards_of_other_kinds(path: Path) -> None:
    edit_card(path, format="scoreinv-prior-9")
    with pytest.raises(ValueError, match="expected format 'scoreinv-prior-1', got 'scoreinv-prior-9'"):
        load_prior(path)
    for text in ("[1, 2]", "{", ""):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(ValueError, match=r"prior\.json: (is no JSON|expected format)"):
            load_prior(path)
