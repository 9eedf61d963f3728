"""`AutoencoderKL` of Hugging Face diffusers as an autoencoder of latent priors (`priors.autoencoder`, `priors.latent`).

    z = (m(x) − shift_factor) scaling_factor,    x = dec(z / scaling_factor + shift_factor)

as the library's own pipelines have it, so that latents have about unit standard deviation (Rombach et al. 2022, arXiv:2112.10752).
With `adapters.diffusers.diffusers_prior` for the network of latents, conditions bound to it by `functools.partial`, that is a latent
prior: `LatentPrior(diffusers_prior(unet, scheduler), DiffusersAutoencoder(vae))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from scoreinv.priors.adapters.optional import optional
from scoreinv.priors.adapters.parametrisation import fitted


@dataclass(frozen=True, eq=False)
class DiffusersAutoencoder:
    """An `AutoencoderKL`, on images (H, W) where it has one channel and (channels, H, W) where it has more, as it was trained on them.

    Attributes:
        model: the network, in evaluation mode.
    """

    model: Any

    @property
    def factor(self) -> int:
        """Image pixels along the side of a latent pixel."""
        return int(2 ** (len(self.model.config.block_out_channels) - 1))

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of one image.

        Raises:
            ValueError: it has other channels, or a side that is no multiple of the factor.
        """
        channels, f = self.model.config.in_channels, self.factor
        before, sides = image_shape[:-2], image_shape[-2:]
        if before != (() if channels == 1 else (channels,)) or len(sides) != 2 or any(n < 1 or n % f for n in sides):
            expected = "(H, W)" if channels == 1 else f"({channels}, H, W)"
            raise ValueError(
                f"DiffusersAutoencoder: expected images {expected} with sides that are multiples of {f}, got {tuple(image_shape)}"
            )
        return int(self.model.config.latent_channels), sides[0] // f, sides[1] // f

    def encode(self, x: Tensor) -> Tensor:
        """The means of the latents of images (batch, *image_shape), in x's dtype."""
        self.latent_shape(tuple(x.shape[1:]))
        images = fitted(x[:, None] if x.ndim == 3 else x, self.model)
        (law,) = self.model.encode(images, return_dict=False)
        shift, scale = self._place
        return cast("Tensor", (law.mode() - shift) * scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents (batch, *latent_shape), in z's dtype."""
        shift, scale = self._place
        (images,) = self.model.decode(fitted(z / scale + shift, self.model), return_dict=False)
        return cast("Tensor", images[:, 0] if self.model.config.in_channels == 1 else images).to(z.dtype)

    @property
    def _place(self) -> tuple[float, float]:
        """shift_factor, 0 where there is none, and scaling_factor."""
        config = self.model.config
        return float(getattr(config, "shift_factor", None) or 0.0), float(config.scaling_factor)


def load_diffusers_autoencoder(folder: str | Path, device: str = "cpu") -> DiffusersAutoencoder:
    """From a local folder with `config.json` and safetensors, such as `vae/` of a pipeline; nothing is fetched.

    Raises:
        ImportError: diffusers is not installed.
        FileNotFoundError: there is no such folder, or no config.json in it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'}: no such file (an AutoencoderKL's folder has one)")
    library = optional("diffusers")
    model = library.AutoencoderKL.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    return DiffusersAutoencoder(model.to(device).eval().requires_grad_(False))
