"""A classifier of noisy images, p(c | x, σ) of x = x₀ + σ n: what classifier guidance follows the gradient of.

The encoder of the score network with its blocks and attention (`priors.blocks`), told the noise level as there, then the mean
over the pixels and one linear layer. (Dhariwal, Nichol 2021, arXiv:2105.05233, sec. 4, where attention takes the place of the
mean; they train it as here, on images with noise of random levels.) Its training is `conditional_training.ClassifierRun`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreinv.priors.blocks import BLOCKS, Attention, Embedding, start_at_unit_variance, start_at_zero
from scoreinv.priors.conditional import read_network, write_network
from scoreinv.priors.denoiser import pad_to_multiple
from scoreinv.priors.network import UNetConfig

FORMAT = "scoreinv-classifier-1"

Classify = Callable[[Tensor, Tensor], Tensor]
"""(x (batch, *image_shape), sigma a scalar or (batch,)) -> ln p(c | x, σ), (batch, classes)."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Constructor arguments of a classifier.

    Attributes:
        network: of the encoder; what concerns the decoder alone has no effect.
        n_classes: how many classes there are.
    """

    network: UNetConfig
    n_classes: int

    def __post_init__(self) -> None:
        if self.n_classes < 2:
            raise ValueError(f"ClassifierConfig: expected n_classes of at least 2, got {self.n_classes}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassifierConfig:
        """Build from the plain values of a JSON card; unknown keys raise TypeError."""
        return cls(**{**values, "network": UNetConfig.from_dict(values["network"])})

    def to_dict(self) -> dict[str, Any]:
        """The plain values that `from_dict` takes."""
        return {"network": self.network.to_dict(), "n_classes": self.n_classes}


class Classifier(nn.Module):
    """ln p(c | x, σ) by a network; all classes alike before training."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config, network = config, config.network
        widths, emb, block = network.widths, network.embedding, BLOCKS[network.block]
        self.embed = Embedding(emb)
        self.stem = nn.Conv2d(network.channels * network.unshuffle**2, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList([nn.ModuleList([block(w, w, emb) for _ in range(network.blocks)]) for w in widths])
        self.down = nn.ModuleList([nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths)])
        self.attention = nn.ModuleDict({str(k): Attention(widths[k]) for k in network.attention})
        self.norm, self.head = nn.GroupNorm(widths[-1] // 16, widths[-1]), nn.Linear(widths[-1], config.n_classes)
        for part in (self.embed, self.stem, self.down):
            part.apply(start_at_unit_variance)
        start_at_zero(self.head)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The logarithms of the classes' probabilities.

        Args:
            x: (batch, channels, H, W), or (batch, H, W) for one channel; of any size, padded by reflection.
            sigma: standard deviation of the noise in x, a scalar or (batch,), in the unit of x.

        Returns:
            (batch, n_classes), in x's dtype.
        """
        network = self.config.network
        if x.ndim not in (3, 4):
            raise ValueError(f"Classifier: expected images (batch, H, W) or (batch, C, H, W), got {tuple(x.shape)}")
        channels = 1 if x.ndim == 3 else x.shape[1]
        if channels != network.channels:
            raise ValueError(f"Classifier: is for images of {network.channels} channel(s), got {tuple(x.shape)}")
        images = pad_to_multiple(x.float(), network.multiple)
        images = images.reshape(len(x), channels, *images.shape[-2:])
        level = torch.as_tensor(sigma).to(images).reshape(-1).expand(len(x))
        norm = (level**2 + network.sigma_data**2).sqrt()[:, None, None, None]
        e = self.embed(level.clamp(min=1e-6).log() / 4, torch.full_like(level, math.nan))
        h = self.stem(F.pixel_unshuffle(images / norm, network.unshuffle))
        for k, blocks in enumerate(self.blocks):
            h = self.down[k - 1](h) if k else h
            for block in cast("nn.ModuleList", blocks):
                h = block(h, e)
            h = self.attention[str(k)](h) if str(k) in self.attention else h
        logits: Tensor = self.head(F.silu(self.norm(h)).mean((-1, -2)))
        return logits.log_softmax(dim=1).to(x.dtype)


def save_classifier(model: Classifier, path: str | Path, card: Mapping[str, Any]) -> None:
    """Write a classifier's weights (.safetensors, float16) and its cards; see `priors.checkpoint`."""
    write_network(model, Path(path), {"network": model.config.to_dict(), **card}, FORMAT)


def load_classifier(path: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """Read what `save_classifier` wrote, in float32 and evaluation mode, without gradients; raises as `checkpoint.load_prior`."""
    return read_network(
        Path(path), FORMAT, "a classifier", lambda network: Classifier(ClassifierConfig.from_dict(network))
    )
