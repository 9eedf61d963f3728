"""The layers of NCSN++ and DDPM++ (Song et al. 2021, arXiv:2011.13456, appendix H), for inference.

The attributes have the names of github.com/yang-song/score_sde_pytorch and their order, so that its checkpoints fit: the
order is that in which its moving averages are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
Kernel = Sequence[float] | None
"""A separable low-pass filter of even length for resampling; None for pixel averages and repeats."""


def halve(x: Tensor, kernel: Kernel) -> Tensor:
    """x (batch, C, H, W) filtered, zero outside, every second pixel kept: (batch, C, H / 2, W / 2)."""
    if kernel is None:
        return F.avg_pool2d(x, 2)
    return _filtered(x, kernel, padding=len(kernel) // 2 - 1, stride=2)


def double(x: Tensor, kernel: Kernel) -> Tensor:
    """Zeros put between the pixels of x (batch, C, H, W), then filtered: (batch, C, 2 H, 2 W). 4 `halve`ᵀ."""
    if kernel is None:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    weight = 4 * _outer(kernel, x).expand(x.shape[1], 1, -1, -1)
    return F.conv_transpose2d(x, weight, stride=2, padding=len(kernel) // 2 - 1, groups=x.shape[1])


def _filtered(x: Tensor, kernel: Sequence[float], *, padding: int, stride: int = 1) -> Tensor:
    weight = _outer(kernel, x).flip(-2, -1).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])


def _outer(kernel: Sequence[float], x: Tensor) -> Tensor:
    """The filter in two dimensions, with sum 1."""
    k = torch.tensor(kernel, dtype=x.dtype, device=x.device)
    return torch.outer(k, k) / k.sum() ** 2


def fourier_features(values: Tensor, frequencies: Tensor) -> Tensor:
    """sin and cos of 2 π f v for v (batch,) and f (n,): (batch, 2 n) (Tancik et al. 2020, arXiv:2006.10739)."""
    phase = 2 * math.pi * values[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def positional_features(values: Tensor, n: int) -> Tensor:
    """sin and cos at n // 2 frequencies from 1 down to 1/10000, (batch, n) (Vaswani et al. 2017, arXiv:1706.03762)."""
    half = n // 2
    exponents = torch.arange(half, dtype=values.dtype, device=values.device) / (half - 1)
    phase = values[:, None] * 10000.0**-exponents
    return F.pad(torch.cat([phase.sin(), phase.cos()], dim=1), (0, n % 2))


class Fourier(nn.Module):
    """`fourier_features` at fixed random frequencies."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros(n), requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        return fourier_features(values, self.W)


class PixelLinear(nn.Module):
    """A linear map of each pixel's channels, the weight stored as (in, out)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros(n_in, n_out))
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W.T[:, :, None, None], self.b)


def conv3(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1)


class Attention(nn.Module):
    """Self-attention over all pixels, one head."""

    def __init__(self, n: int, groups: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.GroupNorm_0 = nn.GroupNorm(groups, n, eps=1e-6)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (PixelLinear(n, n) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (m(h).flatten(2).transpose(1, 2) for m in (self.NIN_0, self.NIN_1, self.NIN_2))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = (x + self.NIN_3(h)) * self.residual_scale
        return out


class Block(nn.Module):
    """Two normalised convolutions, the embedding of the noise level added between them, and a path around them.

    Attributes:
        resample: applied to both paths after the first normalisation (BigGAN, Brock et al. 2019, arXiv:1809.11096).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        embedding: int,
        groups: Callable[[int], int],
        act: Activation,
        residual_scale: float,
        biggan: bool,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.act, self.residual_scale, self.resample = act, residual_scale, resample
        self.GroupNorm_0 = nn.GroupNorm(groups(n_in), n_in, eps=1e-6)
        self.Conv_0 = conv3(n_in, n_out)
        self.Dense_0 = nn.Linear(embedding, n_out)
        self.GroupNorm_1 = nn.GroupNorm(groups(n_out), n_out, eps=1e-6)
        self.Conv_1 = conv3(n_out, n_out)
        self.shortcut = "Conv_2" if biggan else "NIN_0"
        if n_in != n_out or resample is not None:
            self.add_module(self.shortcut, nn.Conv2d(n_in, n_out, 1) if biggan else PixelLinear(n_in, n_out))

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.act(self.GroupNorm_0(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.Conv_0(h)
        if embedding is not None:
            h = h + self.Dense_0(self.act(embedding))[:, :, None, None]
        h = self.Conv_1(self.act(self.GroupNorm_1(h)))
        if self.shortcut in self._modules:
            x = getattr(self, self.shortcut)(x)
        out: Tensor = (x + h) * self.residual_scale
        return out


class Downsample(nn.Module):
    """(batch, C, H, W) to half the sides, with a convolution if asked for, before which the filter comes."""

    def __init__(self, n_in: int, n_out: int, kernel: Kernel, with_conv: bool) -> None:
        super().__init__()
        self.kernel, self.with_conv = kernel, with_conv
        if with_conv:
            self.add_module("Conv_0" if kernel is None else "Conv2d_0", nn.Conv2d(n_in, n_out, 3, stride=2))

    def forward(self, x: Tensor, _embedding: Tensor | None = None) -> Tensor:
        if not self.with_conv:
            return halve(x, self.kernel)
        padded = F.pad(x, (0, 1, 0, 1))
        x = padded if self.kernel is None else _filtered(x, self.kernel, padding=len(self.kernel) // 2)
        out: Tensor = next(self.children())(x)
        return out


class Upsample(nn.Module):
    """(batch, C, H, W) to twice the sides, with a convolution if asked for, after which the filter comes."""

    def __init__(self, n_in: int, n_out: int, kernel: Kernel, with_conv: bool) -> None:
        super().__init__()
        self.kernel, self.with_conv = kernel, with_conv
        if with_conv:
            self.add_module("Conv_0" if kernel is None else "Conv2d_0", conv3(n_in, n_out))

    def forward(self, x: Tensor, _embedding: Tensor | None = None) -> Tensor:
        if not self.with_conv:
            return double(x, self.kernel)
        conv = next(self.children())
        if self.kernel is None:
            out: Tensor = conv(double(x, None))
            return out
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        sparse = F.conv_transpose2d(x, conv.weight.flip(-2, -1).transpose(0, 1), stride=2)  # zeros between, then conv
        return 4 * _filtered(sparse, self.kernel, padding=len(self.kernel) // 2 - 1) + conv.bias[:, None, None]


class Combine(nn.Module):
    """A smaller copy of the input joins the features of its level, by sum or as channels of its own."""

    def __init__(self, n_in: int, n_out: int, method: str) -> None:
        super().__init__()
        self.method = method
        self.Conv_0 = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x = self.Conv_0(x)
        return torch.cat([x, h], dim=1) if self.method == "cat" else x + h
