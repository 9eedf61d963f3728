"""NCSN++, DDPM++ and DDPM (Song et al. 2021, arXiv:2011.13456, appendix H), with the parameters' names and order of
github.com/yang-song/score_sde_pytorch. One U-Net has all of them: DDPM is NCSN++ without what `_DDPM` switches off.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreinv.priors.adapters.score_sde_layers import (
    Activation,
    Attention,
    Block,
    Combine,
    Downsample,
    Fourier,
    Kernel,
    Upsample,
    conv3,
    double,
    halve,
    positional_features,
)

_ACTIVATIONS: dict[str, Activation] = {
    "swish": F.silu,
    "elu": F.elu,
    "relu": F.relu,
    "lrelu": functools.partial(F.leaky_relu, negative_slope=0.2),
}

_DDPM: dict[str, Any] = {
    "resblock_type": "ddpm",
    "embedding_type": "positional",
    "fir": False,
    "skip_rescale": False,
    "progressive": "none",
    "progressive_input": "none",
}


@dataclass(frozen=True, kw_only=True)
class ScoreSDEConfig:
    """What matters for inference of a configuration there (`training`, `data` and `model` in one), by its names.

    The defaults are those of configs/ve/cifar10_ncsnpp_continuous.py. With the name "ddpm", entries that this older model
    does not have are set to what it does.

    Raises:
        ValueError: a word that is none of the choices, or a fir_kernel of odd length.
    """

    name: Literal["ncsnpp", "ddpm"] = "ncsnpp"
    sde: Literal["vesde", "vpsde", "subvpsde"] = "vesde"
    continuous: bool = True
    image_size: int = 32
    num_channels: int = 3
    centered: bool = False
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    beta_min: float = 0.1
    beta_max: float = 20.0
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    resamp_with_conv: bool = True
    conditional: bool = True
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    embedding_type: Literal["fourier", "positional"] = "fourier"
    scale_by_sigma: bool = True
    resblock_type: Literal["biggan", "ddpm"] = "biggan"
    fir: bool = True
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    progressive_combine: Literal["sum", "cat"] = "sum"

    def __post_init__(self) -> None:
        for key, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, key) not in get_args(kind):
                raise ValueError(
                    f"ScoreSDEConfig: {key} is one of {', '.join(get_args(kind))}, got {getattr(self, key)!r}"
                )
        if len(self.fir_kernel) % 2:
            raise ValueError(f"ScoreSDEConfig: fir_kernel must have an even length, got {self.fir_kernel}")
        for key, value in _DDPM.items() if self.name == "ddpm" else ():
            object.__setattr__(self, key, value)

    @property
    def sigmas(self) -> Tensor:
        """The levels of the discrete variance-exploding model, (num_scales,), decreasing, in float64."""
        ends = math.log(self.sigma_max), math.log(self.sigma_min)
        return torch.linspace(*ends, self.num_scales, dtype=torch.float64).exp()

    @property
    def kernel(self) -> Kernel:
        """The filter of changes of resolution."""
        return self.fir_kernel if self.fir else None

    def widths(self) -> list[int]:
        """Channels of each level, the finest first."""
        return [self.nf * m for m in self.ch_mult]

    def attends(self, level: int) -> bool:
        """Whether a level has attention after its blocks."""
        return self.image_size // 2**level in self.attn_resolutions

    def groups(self, channels: int) -> int:
        """Groups of a normalisation."""
        return 32 if self.name == "ddpm" else min(channels // 4, 32)


class NCSNpp(nn.Module):
    """The network; `all_modules` is one list, built and used up in the same order."""

    sigmas: Tensor

    def __init__(self, config: ScoreSDEConfig) -> None:
        super().__init__()
        self.config, self.act = config, _ACTIVATIONS[config.nonlinearity]
        self.residual_scale = math.sqrt(0.5) if config.skip_rescale else 1.0
        self.register_buffer("sigmas", config.sigmas)
        encoder, skips = self._encoder()
        self.all_modules = nn.ModuleList(
            [*self._embedding(), *encoder, *self._middle(skips[-1]), *self._decoder(skips)]
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """x (batch, C, H, W), H and W multiples of 2**(levels - 1); label (batch,): σ for Fourier features, else a time."""
        modules = iter(self.all_modules)
        embedding = self._embed(label, modules)
        skips = self._encode(x if self.config.centered else 2 * x - 1, embedding, modules)
        h = next(modules)(skips[-1], embedding)
        h = next(modules)(h)
        h = next(modules)(h, embedding)
        out = self._decode(h, skips, embedding, modules)
        if self.config.scale_by_sigma:
            used = label if self.config.embedding_type == "fourier" else self.sigmas[label.long()]
            out = out / used.to(out)[:, None, None, None]
        return out

    # The modules, in order

    def _embedding(self) -> Iterator[nn.Module]:
        c = self.config
        if c.embedding_type == "fourier":
            yield Fourier(c.nf)
        if c.conditional:
            yield nn.Linear(2 * c.nf if c.embedding_type == "fourier" else c.nf, 4 * c.nf)
            yield nn.Linear(4 * c.nf, 4 * c.nf)

    def _encoder(self) -> tuple[list[nn.Module], list[int]]:
        """The modules down to the coarsest level, and the channels of what each step leaves for the decoder."""
        c, widths = self.config, self.config.widths()
        modules: list[nn.Module] = [conv3(c.num_channels, c.nf)]
        skips, pyramid = [c.nf], c.num_channels
        for level, width in enumerate(widths):
            for _ in range(c.num_res_blocks):
                modules += [self._block(skips[-1], width), *self._attention(level, width)]
                skips.append(width)
            if level + 1 < len(widths):
                modules.append(self._resampling(width, down=True))
                joined = width
                if c.progressive_input == "input_skip":
                    modules.append(Combine(pyramid, width, c.progressive_combine))
                    joined = 2 * width if c.progressive_combine == "cat" else width
                elif c.progressive_input == "residual":
                    modules.append(Downsample(pyramid, width, c.kernel, with_conv=True))
                    pyramid = width
                skips.append(joined)
        return modules, skips

    def _middle(self, n: int) -> Iterator[nn.Module]:
        yield self._block(n, n)
        yield Attention(n, self.config.groups(n), self.residual_scale)
        yield self._block(n, n)

    def _decoder(self, skips: list[int]) -> Iterator[nn.Module]:
        c, widths = self.config, self.config.widths()
        skips, n, pyramid = list(skips), skips[-1], 0
        for level in reversed(range(len(widths))):
            for _ in range(c.num_res_blocks + 1):
                yield self._block(n + skips.pop(), widths[level])
                n = widths[level]
            yield from self._attention(level, n)
            if c.progressive == "output_skip":
                yield from self._head(n, c.num_channels)
            elif c.progressive == "residual":
                yield from self._head(n, n) if not pyramid else [Upsample(pyramid, n, c.kernel, with_conv=True)]
                pyramid = n
            if level > 0:
                yield self._resampling(n, down=False)
        if c.progressive != "output_skip":
            yield from self._head(n, c.num_channels)

    def _block(self, n_in: int, n_out: int, resample: Any = None) -> Block:
        c = self.config
        return Block(
            n_in,
            n_out,
            embedding=4 * c.nf,
            groups=c.groups,
            act=self.act,
            residual_scale=self.residual_scale,
            biggan=c.resblock_type == "biggan",
            resample=resample,
        )

    def _attention(self, level: int, n: int) -> list[nn.Module]:
        return [Attention(n, self.config.groups(n), self.residual_scale)] if self.config.attends(level) else []

    def _resampling(self, n: int, *, down: bool) -> nn.Module:
        c = self.config
        if c.resblock_type == "ddpm":
            return (Downsample if down else Upsample)(n, n, c.kernel, c.resamp_with_conv)
        return self._block(n, n, resample=self._halve if down else self._double)

    def _head(self, n_in: int, n_out: int) -> list[nn.Module]:
        return [nn.GroupNorm(self.config.groups(n_in), n_in, eps=1e-6), conv3(n_in, n_out)]

    # Their use

    def _embed(self, label: Tensor, modules: Iterator[nn.Module]) -> Tensor | None:
        c = self.config
        if c.embedding_type == "fourier":
            features: Tensor = next(modules)(label.log())
        else:
            features = positional_features(label.float(), c.nf)
        if not c.conditional:
            return None
        embedding: Tensor = next(modules)(features.to(next(self.parameters()).dtype))
        embedding = next(modules)(self.act(embedding))
        return embedding

    def _encode(self, x: Tensor, embedding: Tensor | None, modules: Iterator[nn.Module]) -> list[Tensor]:
        c, pyramid = self.config, x
        skips = [next(modules)(x)]
        for level in range(len(c.ch_mult)):
            for _ in range(c.num_res_blocks):
                h = next(modules)(skips[-1], embedding)
                skips.append(next(modules)(h) if c.attends(level) else h)
            if level + 1 < len(c.ch_mult):
                h = next(modules)(skips[-1], embedding)
                if c.progressive_input == "input_skip":
                    pyramid = self._halve(pyramid)
                    h = next(modules)(pyramid, h)
                elif c.progressive_input == "residual":
                    h = pyramid = (next(modules)(pyramid) + h) * self.residual_scale
                skips.append(h)
        return skips

    def _decode(self, h: Tensor, skips: list[Tensor], embedding: Tensor | None, modules: Iterator[nn.Module]) -> Tensor:
        c = self.config
        pyramid: Tensor | None = None
        for level in reversed(range(len(c.ch_mult))):
            for _ in range(c.num_res_blocks + 1):
                h = next(modules)(torch.cat([h, skips.pop()], dim=1), embedding)
            if c.attends(level):
                h = next(modules)(h)
            if c.progressive == "output_skip":
                part = self._apply_head(h, modules)
                pyramid = part if pyramid is None else self._double(pyramid) + part
            elif c.progressive == "residual" and pyramid is None:
                pyramid = self._apply_head(h, modules)
            elif c.progressive == "residual":
                h = pyramid = (next(modules)(pyramid) + h) * self.residual_scale
            if level > 0:
                h = next(modules)(h, embedding)
        return pyramid if c.progressive == "output_skip" and pyramid is not None else self._apply_head(h, modules)

    def _apply_head(self, h: Tensor, modules: Iterator[nn.Module]) -> Tensor:
        out: Tensor = self.act(next(modules)(h))
        out = next(modules)(out)
        return out

    def _halve(self, x: Tensor) -> Tensor:
        return halve(x, self.config.kernel)

    def _double(self, x: Tensor) -> Tensor:
        return double(x, self.config.kernel)
