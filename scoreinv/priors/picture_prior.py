"""Any prior of images by its name on disk, gray or of colour: for commands that take pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from scoreinv.priors.adapters.diffusers import load_diffusers
from scoreinv.priors.checkpoint import checksum
from scoreinv.priors.classes import knows_classes
from scoreinv.priors.colour import Padded
from scoreinv.priors.denoiser import Denoiser, NetworkPrior
from scoreinv.priors.shipped import class_prior, identity, load_network, prior_path


@dataclass(frozen=True, eq=False)
class PicturePrior:
    """A prior of images in which black is -1 and white 1 (for CT: u = HU / 1000).

    Attributes:
        denoiser: D, of images (batch, H, W) or (batch, 3, H, W) of any size.
        channels: 1 or 3.
        identity: its name, and the checksum of its weights where they are in one file.
    """

    denoiser: Denoiser
    channels: int
    identity: dict[str, str]


def picture_prior(
    path: str | Path | None = None, *, pixel_mm: float | None = None, device: str = "cpu"
) -> PicturePrior:
    """The prior of that name.

    Args:
        path: a shipped prior's name, a .safetensors file of ours with one channel or three (trained with classes or without), or the folder
            of a pipeline of diffusers with `unet/` and `scheduler/` (nothing is fetched); by default the shipped CT prior.
        pixel_mm: side of a pixel [mm], for priors of CT; None where it is unknown.
        device: where the weights go.

    Raises:
        FileNotFoundError, ValueError: see `load_prior` and `load_diffusers`; or it has neither one channel nor three.
        ImportError: diffusers is not installed.
    """
    if path is not None and Path(path).is_dir():
        return _of_diffusers(Path(path), device)
    found = prior_path(path)
    if knows_classes(found):
        prior = class_prior(found, pixel_mm=pixel_mm, device=device)
        return PicturePrior(prior, _checked(found.stem, prior.model.config.network.channels), identity(path))
    network, known = load_network(path, device), identity(path)
    channels = _checked(known["name"], network.config.channels)
    if channels == 1:
        return PicturePrior(NetworkPrior(network, pixel_mm), 1, known)
    return PicturePrior(Padded(network, network.config.multiple), channels, known)


def _of_diffusers(folder: Path, device: str) -> PicturePrior:
    denoiser = load_diffusers(folder, device)
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    channels = _checked(folder.name, int(config["in_channels"]))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    known = {"name": folder.name, **({"sha256": checksum(weights)} if weights.is_file() else {})}
    return PicturePrior(Padded(denoiser, 2 ** (len(config["block_out_channels"]) - 1)), channels, known)


def _checked(name: str, channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError(f"the prior {name} has {channels} channels; expected 1 (gray) or 3 (red, green, blue)")
    return channels
