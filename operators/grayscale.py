"""Grey values of a colour image: the luminance of Rec. ITU-R BT.709, Y = 0.2126 R + 0.7152 G + 0.0722 B."""

from __future__ import annotations

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
        shape = tuple(int(n) for n in self.image_shape)
        if len(shape) != 3 or shape[0] != 3 or min(shape) < 1:
            raise ValueError(f"Grayscale: image_shape must be (3, H, W), got {shape}")
        object.__setattr__(self, "image_shape", shape)

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.image_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (1, *self.image_shape[1:])

    def _forward(self, x: Tensor) -> Tensor:
        return (_weights(x) * x).sum(dim=-3, keepdim=True)

    def _adjoint(self, y: Tensor) -> Tensor:
        return _weights(y) * y


def _weights(like: Tensor) -> Tensor:
    return torch.tensor(REC_709, dtype=like.dtype, device=like.device)[:, None, None]
