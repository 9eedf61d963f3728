"""Grey values of a colour image: the luminance of Rec. ITU-R BT.709, Y = 0.2126 R + 0.7152 G + 0.0722 B.

And orthonormal coordinates of colour, of which luminance is the first up to a factor:

    c = Q (R, G, B)ᵀ,   Qᵀ Q = I,   first row w / ‖w‖,   so that   c₀ = Y / ‖w‖ for the weights w of Y                (1)

White noise stays white noise in them, and an image whose grey values are known is one with a channel of three known: colourisation
is imputation (Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2021, arXiv:2011.13456, appendix I.3). The paper's transform has
w = (1, 1, 1), the mean of the channels; here w is that of Rec. 709 unless others are given. Q is the reflection that exchanges the first
axis and w / ‖w‖ (Householder 1958, doi:10.1145/320941.320947), Q = I − 2 v vᵀ / ‖v‖² with v = w / ‖w‖ − e₀, its own inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoreinv.linop import LinearOperator

REC_709 = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True)
class Grayscale(LinearOperator):
    """(*batch, 3, H, W) linear RGB -> (*batch, 1, H, W) luminance with the weights of Rec. 709.

    Attributes:
        image_shape: (3, H, W).
        channels: colour channels of the images, for those who read pictures for it.

    Raises:
        ValueError: the shape is not one of three channels.
    """

    channels: ClassVar[int] = 3

    image_shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", _checked("Grayscale", self.image_shape))

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.image_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (1, *self.image_shape[1:])

    def coordinates(self) -> ColourTransform:
        """The coordinates (1) of the same images, whose first channel is the luminance over `ColourTransform.length`."""
        return ColourTransform(self.image_shape)

    def _forward(self, x: Tensor) -> Tensor:
        return (_weights(x) * x).sum(dim=-3, keepdim=True)

    def _adjoint(self, y: Tensor) -> Tensor:
        return _weights(y) * y


@dataclass(frozen=True)
class ColourTransform(LinearOperator):
    """(*batch, 3, H, W) RGB -> (*batch, 3, H, W) the coordinates (1) of the module's head; `.H` is the way back.

    Attributes:
        image_shape: (3, H, W).
        weights: w, of the grey value in red, green and blue; (1, 1, 1) for the paper's.

    Raises:
        ValueError: the shape is not one of three channels, or the weights are not three finite numbers, not all zero.
    """

    channels: ClassVar[int] = 3

    image_shape: tuple[int, int, int]
    weights: tuple[float, float, float] = REC_709

    def __post_init__(self) -> None:
        weights = tuple(float(w) for w in self.weights)
        if len(weights) != 3 or not 0 < sum(w * w for w in weights) < math.inf:
            raise ValueError(f"ColourTransform: weights must be three finite numbers, not all zero, got {self.weights}")
        object.__setattr__(self, "image_shape", _checked("ColourTransform", self.image_shape))
        object.__setattr__(self, "weights", weights)

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.image_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.image_shape

    @property
    def length(self) -> float:
        """‖w‖: the grey value is this times the first coordinate."""
        return math.sqrt(sum(w * w for w in self.weights))

    @property
    def matrix(self) -> Tensor:
        """Q, (3, 3) in float64."""
        first = torch.tensor(self.weights, dtype=torch.float64) / self.length
        v = first - torch.eye(3, dtype=torch.float64)[0]
        size = (v @ v).clamp(min=torch.finfo(torch.float64).tiny)  # w along the first axis: Q = I
        return torch.eye(3, dtype=torch.float64) - 2 / size * v[:, None] * v

    def _forward(self, x: Tensor) -> Tensor:
        return (self.matrix.to(x) @ x.flatten(-2)).reshape(x.shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        return (self.matrix.T.to(y) @ y.flatten(-2)).reshape(y.shape)


def _checked(name: str, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(int(n) for n in image_shape)
    if len(shape) != 3 or shape[0] != 3 or min(shape) < 1:
        raise ValueError(f"{name}: image_shape must be (3, H, W), got {shape}")
    return shape


def _weights(like: Tensor) -> Tensor:
    return torch.tensor(REC_709, dtype=like.dtype, device=like.device)[:, None, None]
