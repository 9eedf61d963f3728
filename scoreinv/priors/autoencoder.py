"""A KL autoencoder: images to latents of fewer numbers and back, so that diffusion can work on the latents.

    q(z | u) = N(m(u), diag e^ℓ(u)),    z = m + e^(ℓ/2) ε,    û = dec(z)
    KL       = ½ Σ (m² + e^ℓ − 1 − ℓ)                              from q to N(0, I)                               (1)
    L        = mean |u − û|^p + β KL / d,    p = 1 or 2,  d the number of pixels                                   (2)

(Kingma, Welling 2014, arXiv:1312.6114; Rombach, Blattmann, Lorenz, Esser, Ommer 2022, arXiv:2112.10752, section 3.1, whose loss has a
perceptual and an adversarial part beside; without them textures that the latents do not hold come back blurred, not made up.)
Images are u = HU / 1000. With p = 2 and β = 2 s², (2) is −(2 s² / d) times the evidence lower bound of the model z ~ N(0, I),
u = dec(z) + s n, but for a constant. One draw of what that bound is the mean of is

    w(z) = ln p(u | z) + ln p(z) − ln q(z | u) <= ln p(u) on average, with equality for every z where q is p(z | u)          (3)

The network is convolutional and has no normalisation layers: a latent pixel depends on the image near it and on nothing else, so that a
network trained on crops serves images of any size. Without `widths` it is one linear map of factor x factor blocks each way, whose
optimum for p = 2 is the probabilistic principal component analysis of blocks (Tipping, Bishop 1999, doi:10.1111/1467-9868.00196;
Lucas et al. 2019, arXiv:1911.02469).

Latents are shifted and scaled to mean 0 and standard deviation 1 in each channel, so that one set of noise levels serves all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scoreinv.files.atomic import replacing
from scoreinv.priors.blocks import start_at_unit_variance, start_at_zero
from scoreinv.priors.checkpoint import checked_card, write_cards

FORM = "scoreinv-autoencoder-1"
LOG_VARIANCES = (-30.0, 20.0)
"""Where ℓ is cut off, so that neither e^ℓ nor its logarithm runs away."""
FIRST_LOG_VARIANCE = -6.0
"""ℓ before training: little noise beside latents of about unit variance."""


class Autoencoder(Protocol):
    """Images to latents and back, ours or another library's."""

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of one image; raises ValueError for images that it does not take."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """(batch, *image_shape) -> the mean of their latents, (batch, *latent_shape), of about unit standard deviation."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """(batch, *latent_shape) -> (batch, *image_shape), differentiable."""
        ...


@dataclass(frozen=True)
class AutoencoderConfig:
    """The network's constructor arguments, stored beside its weights.

    Attributes:
        factor: image pixels along the side of a latent pixel: 2, 4, 8 or 16.
        latent_channels: numbers a latent pixel; factor² / latent_channels is how many times fewer there are than pixels.
        widths: channels at each resolution, the finest first, one more than factor has powers of two; () is the linear map.
        blocks: residual blocks at each resolution, in the encoder and in the decoder.
    """

    factor: int = 4
    latent_channels: int = 4
    widths: tuple[int, ...] = (32, 64, 96)
    blocks: int = 1

    def __post_init__(self) -> None:
        if self.factor not in (2, 4, 8, 16):
            raise ValueError(f"factor must be 2, 4, 8 or 16, got {self.factor}")
        levels = int(math.log2(self.factor)) + 1
        if self.widths and (len(self.widths) != levels or min(self.widths) < 1):
            raise ValueError(
                f"factor {self.factor} has {levels} resolutions, so it needs {levels} positive widths (or none: a linear map), "
                f"got {self.widths}"
            )
        if self.latent_channels < 1 or self.blocks < 1:
            raise ValueError(
                f"latent_channels and blocks must be at least 1, got {self.latent_channels} and {self.blocks}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """Build from the plain values of a JSON card; unknown keys raise TypeError."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """The plain values that `from_dict` takes."""
        return asdict(self)


class Block(nn.Module):
    """x + conv(SiLU(conv(x))), 3 x 3; the identity before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.apply(start_at_unit_variance)
        start_at_zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.silu(self.conv1(x)))
        return out


def _conv(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1)
    start_at_unit_variance(layer)
    return layer


def _encoder(c: AutoencoderConfig) -> nn.Sequential:
    """(n, 1, H, W) -> m and ℓ, (n, 2 latent_channels, H / factor, W / factor); ℓ is FIRST_LOG_VARIANCE at first."""
    if c.widths:
        layers: list[nn.Module] = [_conv(1, c.widths[0])]
        for k, w in enumerate(c.widths):
            layers += [Block(w) for _ in range(c.blocks)]
            if k + 1 < len(c.widths):
                layers.append(_conv(w, c.widths[k + 1], stride=2))
        last = _conv(c.widths[-1], 2 * c.latent_channels)
        layers += [nn.SiLU(), last]
    else:
        last = nn.Conv2d(1, 2 * c.latent_channels, c.factor, stride=c.factor)
        start_at_unit_variance(last)
        layers = [last]
    with torch.no_grad():
        last.weight[c.latent_channels :] = 0
        cast("Tensor", last.bias)[c.latent_channels :] = FIRST_LOG_VARIANCE
    return nn.Sequential(*layers)


def _decoder(c: AutoencoderConfig) -> nn.Sequential:
    """(n, latent_channels, h, w) -> (n, 1, factor h, factor w)."""
    if not c.widths:
        return nn.Sequential(nn.ConvTranspose2d(c.latent_channels, 1, c.factor, stride=c.factor))
    layers: list[nn.Module] = [_conv(c.latent_channels, c.widths[-1])]
    for k in reversed(range(len(c.widths))):
        layers += [Block(c.widths[k]) for _ in range(c.blocks)]
        if k:
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), _conv(c.widths[k], c.widths[k - 1])]
    return nn.Sequential(*layers, nn.SiLU(), _conv(c.widths[0], 1))


class KLAutoencoder(nn.Module):
    """The autoencoder of the module's head: `encode` and `decode` work on standardised latents, all else on those of (1)."""

    shift: Tensor
    scale: Tensor
    residual: Tensor

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AutoencoderConfig()
        self.encoder, self.decoder = _encoder(self.config), _decoder(self.config)
        self.register_buffer("shift", torch.zeros(self.config.latent_channels))
        self.register_buffer("scale", torch.ones(self.config.latent_channels))
        self.register_buffer("residual", torch.zeros(()))

    @property
    def residual_std(self) -> float:
        """Root mean square of u − dec(m(u)), what the latents do not hold, as `standardise` found it; 0 where unknown."""
        return float(self.residual)

    def posterior(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """m and ℓ of images (n, 1, H, W), each (n, latent_channels, H / factor, W / factor)."""
        mean, log_variance = self.encoder(u).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """û of one draw, m and ℓ; u (n, 1, H, W), ε shaped like the latents."""
        mean, log_variance = self.posterior(u)
        return self.decoder(mean + (log_variance / 2).exp() * noise), mean, log_variance

    def standardised(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | u) for standardised z; u (n, 1, H, W)."""
        mean, log_variance = self.posterior(u)
        shift, scale = self.shift[:, None, None], self.scale[:, None, None]
        return (mean - shift) / scale, (log_variance / 2).exp() / scale

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of the latents of one image.

        Raises:
            ValueError: it has no two sides, or one is no multiple of the factor.
        """
        f = self.config.factor
        if len(image_shape) != 2 or any(side < 1 or side % f for side in image_shape):
            nearest = tuple(max(1, round(side / f)) * f for side in image_shape)
            raise ValueError(
                f"the autoencoder takes images (H, W) whose sides are multiples of {f}, got {tuple(image_shape)}; "
                f"crop or pad them, such as to {nearest[-2:]}"
            )
        return self.config.latent_channels, image_shape[0] // f, image_shape[1] // f

    def encode(self, x: Tensor) -> Tensor:
        """The standardised means of images (batch, H, W): (batch, *latent_shape), in x's dtype."""
        self.latent_shape(tuple(x.shape[1:]))
        return self.standardised(x[:, None].to(self.shift.dtype))[0].to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Images (batch, H, W) of standardised latents, in z's dtype."""
        own = z.to(self.shift.dtype) * self.scale[:, None, None] + self.shift[:, None, None]
        images: Tensor = self.decoder(own)
        return images[:, 0].to(z.dtype)

    @torch.no_grad()
    def standardise(self, images: Sequence[Tensor]) -> None:
        """Find the shift and scale that give latents of these images mean 0 and standard deviation 1, and the residual.

        Args:
            images: (n, 1, H, W) each; of a draw z of q, so that the variance of q counts.
        """
        means, squares, residuals = [], [], []
        for u in images:
            mean, log_variance = self.posterior(u)
            means.append(mean.double().mean((0, 2, 3)))
            squares.append((mean.double() ** 2 + log_variance.double().exp()).mean((0, 2, 3)))
            residuals.append((u - self.decoder(mean)).double().square().mean())
        mean = torch.stack(means).mean(0)
        variance = torch.stack(squares).mean(0) - mean**2
        self.shift.copy_(mean)
        self.scale.copy_(variance.clamp(min=1e-12).sqrt())
        self.residual.copy_(torch.stack(residuals).mean().sqrt())


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Eq. (1) of every member [nats]: two of (n, *shape) -> (n,)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


def autoencoding_error(
    u: Tensor, decoded: Tensor, mean: Tensor, log_variance: Tensor, *, power: int, weight: float
) -> Tensor:
    """Eq. (2) of every member, (n,), with the weight β; u and decoded (n, 1, H, W)."""
    error = (u - decoded).abs() if power == 1 else (u - decoded) ** 2
    return error.flatten(1).mean(1) + weight * kl_divergence(mean, log_variance) / u[0].numel()


def log_weights(model: KLAutoencoder, u: Tensor, noise: Tensor, noise_std: float) -> Tensor:
    """w of eq. (3) of every member [nats], (n,), with s = noise_std: their mean is the evidence lower bound.

    Args:
        model: the autoencoder.
        u: (n, 1, H, W).
        noise: ε, shaped like the latents.
        noise_std: s.
    """
    decoded, mean, log_variance = model(u, noise)
    z = mean + (log_variance / 2).exp() * noise
    likelihood = -0.5 * ((u - decoded) / noise_std) ** 2 - math.log(noise_std * math.sqrt(2 * math.pi))
    ratio = 0.5 * (noise**2 + log_variance - z**2)
    out: Tensor = likelihood.flatten(1).sum(1) + ratio.flatten(1).sum(1)
    return out


def save_autoencoder(model: KLAutoencoder, path: str | Path, card: Mapping[str, Any]) -> None:
    """Write `path` (.safetensors, float32) and its cards (`priors.checkpoint`).

    Raises:
        ValueError: the path does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: an autoencoder is written to a .safetensors file, got {path.suffix or 'no suffix'!r}"
        )
    with replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, temporary)
    write_cards(path, {"network": model.config.to_dict(), **card}, form=FORM)


def load_autoencoder(path: str | Path) -> tuple[KLAutoencoder, dict[str, Any]]:
    """Read weights and card; the network comes back in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: the weights or the card are missing.
        ValueError: the file is a pickle, is damaged, or is no autoencoder.
    """
    path = Path(path)
    card = checked_card(path, what="an autoencoder", form=FORM)
    try:
        model = KLAutoencoder(AutoencoderConfig.from_dict(card["network"]))
        model.load_state_dict(load_file(path))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: its card describes no autoencoder that these weights fit: {error}") from error
    return model.eval().requires_grad_(False), card
