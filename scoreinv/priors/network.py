"""The score network: a compact time-conditional U-Net inside EDM preconditioning.

    D(x, σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ))

    c_skip = σ_d² / (σ² + σ_d²)        c_out   = σ σ_d / √(σ² + σ_d²)
    c_in   = 1 / √(σ² + σ_d²)          c_noise = ¼ ln σ

(Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
arXiv:2206.00364, table 1.) Images are in u = HU / 1000: air -1, water 0, bone up to about +2.

The U-Net works on 2 x 2 blocks of pixels (pixel-unshuffle), which makes a 256 x 256 evaluation four times cheaper than
one at full resolution: what is lost in the first layer is carried around the network by c_skip x.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetConfig:
    """The network's constructor arguments, stored beside its weights.

    Attributes:
        channels: image channels (1 for CT).
        widths: channels of each level; level k works at 1 / (unshuffle * 2**k) of the image's resolution.
        blocks: residual blocks a level, in the encoder and in the decoder.
        unshuffle: side of the pixel block that becomes the channels of the first level.
        attention: levels with self-attention, counted from the finest (0).
        embedding: width of the noise-level embedding.
        sigma_data: standard deviation of the training images, in their own unit.
    """

    channels: int = 1
    widths: tuple[int, ...] = (32, 96, 128, 192)
    blocks: int = 1
    unshuffle: int = 2
    attention: tuple[int, ...] = (3,)
    embedding: int = 256
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.widths or any(w < 16 or w % 16 for w in self.widths):
            raise ValueError(f"widths must be multiples of 16, got {self.widths}")
        for k in self.attention:
            if not 0 <= k < len(self.widths) or self.widths[k] < 64 or self.widths[k] % 64:
                raise ValueError(
                    f"attention needs levels between 0 and {len(self.widths) - 1} whose width is a multiple of 64, "
                    f"got level {k} of the widths {self.widths}; attention=[] is a network without"
                )
        if min(self.channels, self.blocks, self.unshuffle, self.embedding) < 1 or not self.sigma_data > 0:
            raise ValueError("channels, blocks, unshuffle and embedding must be at least 1, sigma_data positive")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNetConfig:
        """Build from the plain values of a JSON card; unknown keys raise TypeError."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """The plain values that `from_dict` takes."""
        return asdict(self)

    @property
    def multiple(self) -> int:
        """Image sides are padded to a multiple of this many pixels."""
        return int(self.unshuffle * 2 ** (len(self.widths) - 1))


def _start_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    """A layer that gives nothing at first, so that training starts from the identity around it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FourierFeatures(nn.Module):
    """sin and cos of c_noise at frequencies in geometric progression (Tancik et al. 2020, arXiv:2006.10739)."""

    frequencies: Tensor

    def __init__(self, n_frequencies: int, lowest: float = 0.5, highest: float = 32.0) -> None:
        super().__init__()
        ratio = torch.linspace(math.log(lowest), math.log(highest), n_frequencies)
        self.register_buffer("frequencies", ratio.exp(), persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None] * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions; the noise level scales and shifts the second normalisation (Dhariwal, Nichol 2021)."""

    def __init__(self, n_in: int, n_out: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(n_in // 16, n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(n_out // 16, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * n_out)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        _start_at_zero(self.conv2)
        _start_at_zero(self.modulation)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        out: Tensor = (self.skip(x) + h) * math.sqrt(0.5)
        return out


class Attention(nn.Module):
    """Multi-head self-attention over the pixels of a coarse level."""

    def __init__(self, width: int, head: int = 64) -> None:
        super().__init__()
        self.n_heads = width // head
        self.norm = nn.GroupNorm(width // 16, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        _start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.n_heads, c // self.n_heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        a = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.out(a.transpose(-1, -2).reshape(b, c, h, w))
        return x + mixed


class UNet(nn.Module):
    """F(x; c_noise): encoder, bottleneck with attention, decoder with skip connections."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, emb = config.widths, config.embedding
        n_pixels = config.channels * config.unshuffle**2
        self.embed = nn.Sequential(FourierFeatures(32), nn.Linear(64, emb), nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        self.stem = nn.Conv2d(n_pixels, widths[0], 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for k, w in enumerate(widths):
            self.encoder.append(nn.ModuleList([ResidualBlock(w, w, emb) for _ in range(config.blocks)]))
            self.decoder.append(
                nn.ModuleList([ResidualBlock(2 * w if i == 0 else w, w, emb) for i in range(config.blocks)])
            )
            if k + 1 < len(widths):
                self.down.append(nn.Conv2d(w, widths[k + 1], 3, stride=2, padding=1))
                self.up.append(nn.Conv2d(widths[k + 1], w, 3, padding=1))
        self.attention = nn.ModuleDict({str(k): Attention(widths[k]) for k in config.attention})
        last = nn.Conv2d(widths[0], n_pixels, 3, padding=1)
        self.head = nn.Sequential(nn.GroupNorm(widths[0] // 16, widths[0]), nn.SiLU(), last)
        _start_at_zero(last)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x (batch, channels, H, W) with H and W multiples of `config.multiple`; c_noise (batch,)."""
        e = self.embed(c_noise)
        h = self.stem(F.pixel_unshuffle(x, self.config.unshuffle))
        skips = []
        for k, blocks in enumerate(self.encoder):
            if k:
                h = self.down[k - 1](h)
            for block in cast("nn.ModuleList", blocks):
                h = block(h, e)
            skips.append(h)
            if str(k) in self.attention:
                h = self.attention[str(k)](h)
        for k in reversed(range(len(self.decoder))):
            if k + 1 < len(self.decoder):
                h = self.up[k](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = torch.cat([h, skips[k]], dim=1)
            for block in cast("nn.ModuleList", self.decoder[k]):
                h = block(h, e)
        return F.pixel_shuffle(self.head(h), self.config.unshuffle)


class EDMDenoiser(nn.Module):
    """D(x, σ) by the U-Net with EDM preconditioning: the prior's coordinate is x = x₀ + σ n, in u = HU / 1000."""

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or UNetConfig()
        self.unet = UNet(self.config)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The mean of x₀ given x = x₀ + σ n.

        Args:
            x: (batch, channels, H, W), H and W multiples of `config.multiple` (`priors.NetworkPrior` pads others).
            sigma: standard deviation of the noise, a scalar or (batch,), in the unit of x.

        Returns:
            D(x, σ), shaped like x, in x's dtype.
        """
        sd = self.config.sigma_data
        sigma = sigma.to(x).reshape(-1, 1, 1, 1).expand(x.shape[0], 1, 1, 1)
        norm = (sigma**2 + sd**2).sqrt()
        raw = self.unet(x / norm, sigma.flatten().clamp(min=1e-6).log() / 4)
        out: Tensor = (sd / norm) ** 2 * x + sigma * sd / norm * raw.to(x.dtype)
        return out
