"""The CT priors that ship with the package, by name, and their fitting to attenuation in 1/mm."""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from scoreinv.priors.checkpoint import load_prior
from scoreinv.priors.classes import ClassPrior, knows_classes
from scoreinv.priors.conditional import ConditionalDenoiser, load_conditional
from scoreinv.priors.denoiser import NetworkPrior, Rescaled
from scoreinv.priors.latent import LatentPrior, is_latent, load_latent_prior
from scoreinv.priors.network import EDMDenoiser
from scoreinv.units import MU_WATER_PER_MM

DEFAULT = "ct-256"


def shipped() -> list[str]:
    """Names of the priors that come with the package."""
    return sorted(p.stem for p in _folder().glob("*.safetensors"))


def prior_path(prior: str | Path | None = None) -> Path:
    """The file of a prior: the default one, a shipped one by its name, or any other by its path.

    Raises:
        FileNotFoundError: it is neither.
    """
    if prior is None or str(prior) in shipped():
        return _folder() / f"{prior or DEFAULT}.safetensors"
    if not Path(prior).suffix and not Path(prior).exists():
        raise FileNotFoundError(
            f"no prior is named {str(prior)!r}; shipped: {', '.join(shipped())}; or give a .safetensors file"
        )
    return Path(prior)


def _folder() -> Path:
    return Path(str(files("scoreinv.priors.weights")))


def _changed(path: Path) -> int:
    """When a file was last written, so that weights that were trained anew are loaded anew."""
    return path.stat().st_mtime_ns if path.is_file() else 0


@functools.lru_cache(maxsize=4)
def _loaded(path: Path, changed: int, device: str) -> tuple[EDMDenoiser, dict[str, Any]]:
    model, card = load_prior(path)
    return model.to(device).to(memory_format=torch.channels_last), card  # type: ignore[call-overload]


def load_network(path: str | Path | None = None, device: str = "cpu") -> EDMDenoiser:
    """The network of a prior, by default of the shipped one.

    Raises:
        FileNotFoundError, ValueError: see `load_prior`.
    """
    found = prior_path(path)
    return _loaded(found, _changed(found), device)[0]


@functools.lru_cache(maxsize=4)
def _loaded_conditional(path: Path, changed: int, device: str) -> tuple[ConditionalDenoiser, dict[str, Any]]:
    model, card = load_conditional(path)
    return model.to(device), card


def class_prior(path: Path, *, pixel_mm: float | None = None, device: str = "cpu") -> ClassPrior:
    """A network that was trained with classes, from a .safetensors file; arguments as for `ct_prior`.

    Raises:
        FileNotFoundError, ValueError: see `load_conditional`, or the network has no classes.
    """
    return ClassPrior(_loaded_conditional(path, _changed(path), device)[0], pixel_mm)


@functools.lru_cache(maxsize=4)
def _loaded_latent(path: Path, changed: int, pixel_mm: float | None, device: str) -> tuple[LatentPrior, dict[str, Any]]:
    return load_latent_prior(path, pixel_mm=pixel_mm, device=device)


def image_prior(
    path: str | Path | None = None, *, pixel_mm: float | None = None, device: str = "cpu"
) -> NetworkPrior | LatentPrior | ClassPrior:
    """A prior of CT images in u = HU / 1000, of their latents, or one that knows classes, as its card says; arguments as for `ct_prior`."""
    found = prior_path(path)
    if is_latent(found):
        return _loaded_latent(found, _changed(found), pixel_mm, device)[0]
    if knows_classes(found):
        return class_prior(found, pixel_mm=pixel_mm, device=device)
    return NetworkPrior(load_network(path, device), pixel_mm)


def ct_prior(
    path: str | Path | None = None,
    *,
    mu_water_per_mm: float = MU_WATER_PER_MM,
    pixel_mm: float | None = None,
    device: str = "cpu",
) -> Rescaled:
    """A prior of CT images in attenuation [1/mm].

    Args:
        path: a shipped prior's name, or a .safetensors file whose network works in u = HU / 1000 or on latents of such images; by
            default "ct-256".
        mu_water_per_mm: attenuation of water, which u = 0 stands for [1/mm].
        pixel_mm: side of a pixel [mm]; None where it is unknown.
        device: where the weights go.

    Raises:
        FileNotFoundError, ValueError: see `load_prior`.
    """
    return Rescaled(image_prior(path, pixel_mm=pixel_mm, device=device), mu_water_per_mm, mu_water_per_mm)


def prior_card(path: str | Path | None = None) -> dict[str, Any]:
    """What is known about a prior (see `priors.checkpoint.save_prior`), and its `name`."""
    found = prior_path(path)
    if is_latent(found):
        card = _loaded_latent(found, _changed(found), None, "cpu")[1]
    elif knows_classes(found):
        card = _loaded_conditional(found, _changed(found), "cpu")[1]
    else:
        card = _loaded(found, _changed(found), "cpu")[1]
    return {"name": found.stem, **card}


def identity(path: str | Path | None = None) -> dict[str, str]:
    """What identifies a prior in a result: its name and the checksum of its weights."""
    card = prior_card(path)
    return {"name": card["name"], "sha256": card["sha256"]}
