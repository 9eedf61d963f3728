"""A prior over the latents of an autoencoder: the denoiser D(z, σ) = E[z₀ | z = z₀ + σ n] and the way from latents to images and back.

    x = dec(z₀) + s n                                                                                             (1)

with s the size of what latents do not hold (Rombach et al. 2022, arXiv:2112.10752). Such a prior denoises no images: methods that work
on latents (`posterior.latent_daps`) ask `latents` for its parts. For them an ordinary prior is one whose latents are the images
themselves, dec(z) = z and s = 0.

On disk a latent prior is NAME.safetensors with its card NAME.json, and `autoencoder.safetensors` with its own card beside them; the card
holds the checksum of the autoencoder, and another one is refused: its latents would mean something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scoreinv.files.atomic import replacing
from scoreinv.priors.autoencoder import Autoencoder, load_autoencoder
from scoreinv.priors.checkpoint import card_format, checked_card, write_cards
from scoreinv.priors.denoiser import Counted, Denoiser, Rescaled, pad_to_multiple, scale_of
from scoreinv.priors.network import EDMDenoiser, UNetConfig

FORM = "scoreinv-latent-prior-1"
AUTOENCODER = "autoencoder.safetensors"
"""Name of the autoencoder's file in the folder of a latent prior."""


@dataclass(frozen=True, eq=False)
class LatentPrior:
    """A denoiser of latents with their autoencoder.

    Attributes:
        denoiser: D of latents (batch, *latent_shape).
        autoencoder: latents and images.
        residual_std: s of eq. (1), in the unit of the images.
    """

    denoiser: Denoiser
    autoencoder: Autoencoder
    residual_std: float = 0.0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Not for images.

        Raises:
            ValueError: always; methods for priors of images come here.
        """
        raise ValueError(
            "this prior is one of latents and denoises no images: take a method that works on latents (latent_daps), or a prior of images"
        )


@dataclass(frozen=True)
class Identity:
    """The autoencoder whose latents are the images."""

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(image_shape)

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True, eq=False)
class RescaledImages:
    """An autoencoder of u, used on images x = shift + scale u.

    For CT, shift = scale = μ_water turns one of u = HU / 1000 into one of attenuation in 1/mm.
    """

    autoencoder: Autoencoder
    shift: float
    scale: float

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.autoencoder.latent_shape(image_shape)

    def encode(self, x: Tensor) -> Tensor:
        return self.autoencoder.encode((x - self.shift) / self.scale)

    def decode(self, z: Tensor) -> Tensor:
        return self.shift + self.scale * self.autoencoder.decode(z)


@dataclass(frozen=True, eq=False)
class _CountedWith:
    """A denoiser whose evaluations are counted where those of the whole prior are."""

    denoiser: Denoiser
    counter: Counted

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.counter._counted(self.denoiser, x, sigma)

    @property
    def scale(self) -> float:
        return scale_of(self.denoiser)


def latents(prior: Denoiser) -> LatentPrior:
    """Any prior as one of latents; one of images has the images for latents."""
    if isinstance(prior, LatentPrior):
        return prior
    if isinstance(prior, Rescaled):
        inner, scale = latents(prior.denoiser), prior.scale
        images = RescaledImages(inner.autoencoder, prior.shift, scale)
        return LatentPrior(inner.denoiser, images, abs(scale) * inner.residual_std)
    if isinstance(prior, Counted):
        inner = latents(prior.denoiser)
        return dataclasses.replace(inner, denoiser=_CountedWith(inner.denoiser, prior))
    return LatentPrior(prior, Identity())


@dataclass(frozen=True, eq=False)
class LatentNetwork:
    """The network as a denoiser of latents (batch, channels, h, w) of any size: padded by reflection, then cropped.

    Attributes:
        model: the network.
        pixel_mm: side of an image pixel [mm]; None where it is unknown.
    """

    model: EDMDenoiser
    pixel_mm: float | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        channels, (h, w) = self.model.config.channels, x.shape[-2:]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"LatentNetwork: expected latents (batch, {channels}, h, w), got shape {tuple(x.shape)}")
        padded = pad_to_multiple(x.float(), self.model.config.multiple)
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
        out: Tensor = self.model(padded, sigma, self.pixel_mm)
        return out[..., :h, :w].to(x.dtype)


def save_latent_prior(model: EDMDenoiser, path: str | Path, card: Mapping[str, Any], autoencoder_sha256: str) -> None:
    """Write `path` (.safetensors, float16) and its cards; the autoencoder itself has to lie beside it.

    Raises:
        ValueError: the path does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a prior is written to a .safetensors file, got {path.suffix or 'no suffix'!r}")
    tensors = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary)
    facts = {"network": model.config.to_dict(), "autoencoder_sha256": autoencoder_sha256, **card}
    write_cards(path, facts, form=FORM)


def load_latent_prior(
    path: str | Path, *, autoencoder: str | Path | None = None, pixel_mm: float | None = None, device: str = "cpu"
) -> tuple[LatentPrior, dict[str, Any]]:
    """The latent prior in a file, on images in u = HU / 1000, and its card.

    Args:
        path: of the latent prior.
        autoencoder: its file; by default `autoencoder.safetensors` in the same folder.
        pixel_mm: side of a pixel [mm]; None where it is unknown.
        device: where the weights go.

    Raises:
        FileNotFoundError: weights, a card or the autoencoder are missing.
        ValueError: a file is damaged, or the autoencoder is not the one that the prior was trained with.
    """
    path = Path(path)
    card = checked_card(path, what="a latent prior", form=FORM)
    beside = Path(autoencoder) if autoencoder is not None else path.with_name(AUTOENCODER)
    coder, its_card = load_autoencoder(beside)
    if its_card["sha256"] != card.get("autoencoder_sha256"):
        raise ValueError(
            f"{path}: was trained on latents of the autoencoder {str(card.get('autoencoder_sha256'))[:12]}, and {beside} is "
            f"{its_card['sha256'][:12]}: put the right one beside it"
        )
    try:
        model = EDMDenoiser(UNetConfig.from_dict(card["network"]))
        model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: its card describes no network that these weights fit: {error}") from error
    if model.config.channels != coder.config.latent_channels:
        raise ValueError(
            f"{path}: its network takes {model.config.channels} channels, the latents have {coder.config.latent_channels}"
        )
    network = LatentNetwork(model.to(device).eval().requires_grad_(False), pixel_mm)
    return LatentPrior(network, coder.to(device), coder.residual_std), card


def is_latent(path: Path) -> bool:
    """Whether the card beside a file says that it is a latent prior."""
    return card_format(path) == FORM
