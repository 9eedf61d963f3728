"""The score network: a compact time-conditional U-Net inside EDM preconditioning.

    D(x, σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ), pixel size, position)

    c_skip = σ_d² / (σ² + σ_d²)        c_out   = σ σ_d / √(σ² + σ_d²)
    c_in   = 1 / √(σ² + σ_d²)          c_noise = ¼ ln min(σ, 80)

(Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
arXiv:2206.00364, table 1.) 80 is their highest level: training hardly meets others, beside such noise c_in x is the noise whatever
the level, and F as well; a network that was told of a level it never met would answer with anything, and other libraries' schedules
go up to 157 (DDPM) or 1000. Images are in u = HU / 1000: air -1, water 0, bone up to about +2, metal +3.

The size of a pixel is told beside the noise level, so that one network serves heads and bodies; it may be unknown. Two
input channels tell where in the field of view a pixel lies (Hu et al., PaDIS, 2024, arXiv:2406.10211), so that a large
image can be denoised tile by tile.

The U-Net works on blocks of pixels (pixel-unshuffle), which makes a 256 x 256 evaluation several times cheaper than one
at full resolution: what is lost in the first layer is carried around the network by c_skip x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scoreinv.priors.blocks import BLOCKS, Attention, Embedding, start_at_unit_variance, start_at_zero

HIGHEST = 80.0
"""The highest noise level that the network is told of."""
WHOLE = (-1.0, -1.0, 1.0, 1.0)
"""The box of an image that is not part of a larger one: top, left, bottom, right in units of half the field of view."""


@dataclass(frozen=True)
class UNetConfig:
    """The network's constructor arguments, stored beside its weights.

    Attributes:
        channels: image channels (1 for CT).
        widths: channels of each level; level k works at 1 / (unshuffle * 2**k) of the image's resolution.
        blocks: blocks a level, in the encoder and in the decoder.
        block: kind of block, see `priors.blocks`.
        unshuffle: side of the pixel block that becomes the channels of the first level.
        attention: levels with self-attention, counted from the finest (0).
        embedding: width of the embedding of noise level and pixel size.
        sigma_data: standard deviation of the training images, in their own unit.
    """

    channels: int = 1
    widths: tuple[int, ...] = (96, 128, 160, 192)
    blocks: int = 1
    block: str = "plain"
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
        if self.block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {self.block!r}")
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


class UNet(nn.Module):
    """F(x; c_noise, pixel size, position): encoder, bottleneck with attention, decoder with skip connections."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        widths, emb, block = config.widths, config.embedding, BLOCKS[config.block]
        n_block = config.unshuffle**2
        self.embed = Embedding(emb)
        self.stem = nn.Conv2d((config.channels + 2) * n_block, widths[0], 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for k, w in enumerate(widths):
            self.encoder.append(nn.ModuleList([block(w, w, emb) for _ in range(config.blocks)]))
            self.decoder.append(nn.ModuleList([block(2 * w if i == 0 else w, w, emb) for i in range(config.blocks)]))
            if k + 1 < len(widths):
                self.down.append(nn.Conv2d(w, widths[k + 1], 3, stride=2, padding=1))
                self.up.append(nn.Conv2d(widths[k + 1], w, 3, padding=1))
        self.attention = nn.ModuleDict({str(k): Attention(widths[k]) for k in config.attention})
        last = nn.Conv2d(widths[0], config.channels * n_block, 3, padding=1)
        norm = nn.GroupNorm(widths[0] // 16, widths[0]) if config.block == "residual" else nn.Identity()
        self.head = nn.Sequential(norm, nn.SiLU(), last)
        for part in (self.embed, self.stem, self.down, self.up):
            part.apply(start_at_unit_variance)
        with torch.no_grad():  # positions come in once training asks for them; at first they would drown the image
            self.stem.weight[:, config.channels * n_block :] = 0
        start_at_zero(last)

    def forward(self, x: Tensor, c_noise: Tensor, pixel_mm: Tensor, box: Tensor) -> Tensor:
        """x (batch, channels, H, W) with H and W multiples of `config.multiple`; the others (batch,), (batch,), (batch, 4)."""
        return self.through(self.entered(x, box), self.embed(c_noise, pixel_mm), self.attended)

    def entered(self, x: Tensor, box: Tensor) -> Tensor:
        """The first layer's features of x and its place, at the resolution of the finest level."""
        x = torch.cat([x, positions(box, x.shape[-2], x.shape[-1]).to(x)], dim=1)
        h: Tensor = self.stem(F.pixel_unshuffle(x, self.config.unshuffle))
        return h

    def through(self, h: Tensor, e: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """From the first layer's features and the embedding (batch, `config.embedding`) to F; `attend` sees each level once."""
        skips = []
        for k, blocks in enumerate(self.encoder):
            if k:
                h = self.down[k - 1](h)
            for block in cast("nn.ModuleList", blocks):
                h = self._through(block, h, e)
            skips.append(h)
            h = attend(k, h)
        for k in reversed(range(len(self.decoder))):
            if k + 1 < len(self.decoder):
                h = self.up[k](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = torch.cat([h, skips[k]], dim=1)
            for block in cast("nn.ModuleList", self.decoder[k]):
                h = self._through(block, h, e)
        return F.pixel_shuffle(self.head(h), self.config.unshuffle)

    def attended(self, k: int, h: Tensor) -> Tensor:
        """Features of level k of the encoder after attention, where that level has any."""
        return cast("Tensor", self.attention[str(k)](h)) if str(k) in self.attention else h

    def _through(self, block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
        """A block's output; with `recompute` what lies inside is not kept for the gradient but computed again."""
        if self.recompute and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(block, h, e, use_reentrant=False))
        return cast("Tensor", block(h, e))


def positions(box: Tensor, height: int, width: int) -> Tensor:
    """Row and column of every pixel's centre in units of half the field of view.

    Args:
        box: (batch, 4): top, left, bottom, right edge of each image.
        height: rows of an image.
        width: columns.

    Returns:
        (batch, 2, height, width).
    """
    rows = (torch.arange(height, device=box.device) + 0.5) / height
    columns = (torch.arange(width, device=box.device) + 0.5) / width
    top, left, bottom, right = (edge[:, None, None] for edge in box.unbind(1))
    r = (top + (bottom - top) * rows[None, :, None]).expand(-1, height, width)
    c = (left + (right - left) * columns[None, None, :]).expand(-1, height, width)
    return torch.stack([r, c], dim=1)


class EDMDenoiser(nn.Module):
    """D(x, σ) by the U-Net with EDM preconditioning: the prior's coordinate is x = x₀ + σ n, in u = HU / 1000."""

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or UNetConfig()
        self.unet = UNet(self.config)

    def forward(
        self, x: Tensor, sigma: Tensor, pixel_mm: Tensor | float | None = None, box: Tensor | None = None
    ) -> Tensor:
        """The mean of x₀ given x = x₀ + σ n.

        Args:
            x: (batch, channels, H, W), H and W multiples of `config.multiple` (`priors.NetworkPrior` pads others).
            sigma: standard deviation of the noise, a scalar or (batch,), in the unit of x.
            pixel_mm: side of a pixel [mm], a scalar or (batch,); None or NaN where it is unknown.
            box: (batch, 4), which part of the field of view x is (see `positions`); None for all of it.

        Returns:
            D(x, σ), shaped like x, in x's dtype.
        """
        return preconditioned(self.unet, self.config.sigma_data, x, sigma, pixel_mm, box)


def preconditioned(
    network: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], sigma_data: float, x: Tensor, sigma: Tensor,
    pixel_mm: Tensor | float | None, box: Tensor | None,
) -> Tensor:  # fmt: skip
    """D(x, σ) of a network F(c_in x, c_noise, pixel size, box), the formula of the module's head; arguments as `EDMDenoiser`'s."""
    n, sd = x.shape[0], sigma_data
    sigma = sigma.to(x).reshape(-1, 1, 1, 1).expand(n, 1, 1, 1)
    size = torch.as_tensor(math.nan if pixel_mm is None else pixel_mm, dtype=x.dtype, device=x.device).expand(n)
    where = x.new_tensor(WHOLE).expand(n, 4) if box is None else box.to(x)
    norm = (sigma**2 + sd**2).sqrt()
    raw = network(x / norm, sigma.flatten().clamp(1e-6, HIGHEST).log() / 4, size, where)
    out: Tensor = (sd / norm) ** 2 * x + sigma * sd / norm * raw.to(x.dtype)
    return out
