"""The parts of the score network: embeddings, three kinds of blocks, attention.

A block takes x (batch, n_in, H, W) and the embedding (batch, n) of noise level and pixel size to (batch, n_out, H, W),
and is the identity (or a 1 x 1 convolution, where the width changes) before training.

    residual   normalise, SiLU, 3 x 3, normalise, scale and shift by the embedding, SiLU, 3 x 3 (Dhariwal, Nichol 2021,
               arXiv:2105.05233)
    plain      3 x 3, scale and shift, SiLU, 3 x 3: the same without normalisation, as denoisers have it (Zhang et al. 2021,
               DRUNet, arXiv:2008.13751)
    gated      1 x 1, depthwise 3 x 3, scale and shift, gate, channel attention, 1 x 1; then 1 x 1, gate, 1 x 1 (Chen et al.
               2022, NAFNet, arXiv:2204.04676, without its layer normalisation)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def start_at_unit_variance(module: nn.Module) -> None:
    """Weights of variance 1 / (inputs), no biases: a layer keeps the size of its input, with or without normalisation."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def start_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    """A layer that gives nothing at first, so that training starts from the identity around it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FourierFeatures(nn.Module):
    """cos and sin of a number at frequencies in geometric progression (Tancik et al. 2020, arXiv:2006.10739)."""

    frequencies: Tensor

    def __init__(self, n_frequencies: int, lowest: float = 0.5, highest: float = 32.0) -> None:
        super().__init__()
        ratio = torch.linspace(math.log(lowest), math.log(highest), n_frequencies)
        self.register_buffer("frequencies", ratio.exp(), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        phase = value[:, None] * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class Embedding(nn.Module):
    """What a block is told: the noise level, and beside it the size of a pixel, which may be unknown."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.noise = nn.Sequential(FourierFeatures(32), nn.Linear(64, width))
        self.pixel = nn.Sequential(FourierFeatures(16, highest=8.0), nn.Linear(32, width))
        self.unknown_pixel = nn.Parameter(torch.zeros(width))
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, c_noise: Tensor, pixel_mm: Tensor, also: Tensor | None = None) -> Tensor:
        """c_noise (batch,), pixel_mm (batch,), NaN where unknown, and what else is told (batch, width) -> (batch, width)."""
        known = pixel_mm.isfinite()
        pixel = self.pixel(torch.where(known, pixel_mm, 1.0).log())
        told = self.noise(c_noise) + torch.where(known[:, None], pixel, self.unknown_pixel)
        mixed: Tensor = self.mix(told if also is None else told + also)
        return mixed


class Residual(nn.Module):
    """The `residual` block of the module's head."""

    def __init__(self, n_in: int, n_out: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(n_in // 16, n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(n_out // 16, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * n_out)
        self.skip = _skip(n_in, n_out)
        self.apply(start_at_unit_variance)
        start_at_zero(self.conv2)
        start_at_zero(self.modulation)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(_modulated(self.norm2(h), self.modulation(embedding))))
        out: Tensor = (self.skip(x) + h) * math.sqrt(0.5)
        return out


class Plain(nn.Module):
    """The `plain` block of the module's head."""

    def __init__(self, n_in: int, n_out: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * n_out)
        self.skip = _skip(n_in, n_out)
        self.apply(start_at_unit_variance)
        start_at_zero(self.conv2)
        start_at_zero(self.modulation)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(_modulated(self.conv1(x), self.modulation(embedding)))
        out: Tensor = self.skip(x) + self.conv2(h)
        return out


class Gated(nn.Module):
    """The `gated` block of the module's head."""

    def __init__(self, n_in: int, n_out: int, embedding: int) -> None:
        super().__init__()
        self.skip = _skip(n_in, n_out)
        self.widen = nn.Conv2d(n_out, 2 * n_out, 1)
        self.depthwise = nn.Conv2d(2 * n_out, 2 * n_out, 3, padding=1, groups=2 * n_out)
        self.modulation = nn.Linear(embedding, 4 * n_out)
        self.channels = nn.Conv2d(n_out, n_out, 1)
        self.narrow = nn.Conv2d(n_out, n_out, 1)
        self.widen2 = nn.Conv2d(n_out, 2 * n_out, 1)
        self.narrow2 = nn.Conv2d(n_out, n_out, 1)
        self.apply(start_at_unit_variance)
        for layer in (self.modulation, self.narrow, self.narrow2):
            start_at_zero(layer)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.skip(x)
        h = _gate(_modulated(self.depthwise(self.widen(x)), self.modulation(embedding)))
        x = x + self.narrow(h * self.channels(h.mean((-1, -2), keepdim=True)))
        out: Tensor = x + self.narrow2(_gate(self.widen2(x)))
        return out


BLOCKS: dict[str, type[Residual] | type[Plain] | type[Gated]] = {
    "residual": Residual,
    "plain": Plain,
    "gated": Gated,
}


def _skip(n_in: int, n_out: int) -> nn.Module:
    return nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()


def _modulated(h: Tensor, modulation: Tensor) -> Tensor:
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    return h * (1 + scale) + shift


def _gate(h: Tensor) -> Tensor:
    a, b = h.chunk(2, dim=1)
    return a * b


class Attention(nn.Module):
    """Multi-head self-attention over the pixels of a coarse level."""

    def __init__(self, width: int, head: int = 64) -> None:
        super().__init__()
        self.n_heads = width // head
        self.norm = nn.GroupNorm(width // 16, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.apply(start_at_unit_variance)
        start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.n_heads, c // self.n_heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        a = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.out(a.transpose(-1, -2).reshape(b, c, h, w))
        return x + mixed
