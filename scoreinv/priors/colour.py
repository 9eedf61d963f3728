"""Priors of colour images: networks on images of any size, other coordinates of colour, and an exact one.

The exact prior is Gaussian with a covariance that is a product of channels and pixels,

    Cov(x_ip, x_jq) = C_ij exp(−|p − q|² / 2 ℓ²)                                                                     (1)

with p and q pixels, so that neighbours are alike and red, green and blue of one pixel go together as C says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.linop import LinearOperator
from scoreinv.priors.denoiser import Denoiser, pad_to_multiple, scale_of
from scoreinv.priors.exact import GaussianPrior

CHANNELS = ((1.0, 0.8, 0.6), (0.8, 1.0, 0.8), (0.6, 0.8, 1.0))
"""C of `gaussian_colours`: red and blue have less in common than each with green."""


@dataclass(frozen=True, eq=False)
class Padded:
    """A network that takes sides of a certain multiple only, on images of any size: reflected at the bottom and right, then cropped.

    Attributes:
        denoiser: D of images (batch, C, H, W) or (batch, H, W).
        multiple: that sides must be of [pixels].
        chunk: images evaluated at once; the result does not depend on it.
    """

    denoiser: Denoiser
    multiple: int
    chunk: int = 4

    def __post_init__(self) -> None:
        if min(self.multiple, self.chunk) < 1:
            raise ValueError(f"Padded: expected multiple and chunk of at least 1, got {self.multiple} and {self.chunk}")

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        images = pad_to_multiple(x.float(), self.multiple)
        sigmas = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        parts = zip(*(torch.split(t, self.chunk) for t in (images, sigmas)), strict=True)
        return torch.cat([self.denoiser(*part) for part in parts])[..., :height, :width].to(x.dtype)


@dataclass(frozen=True, eq=False)
class Rotated:
    """A prior in other coordinates c = Q x, Q orthogonal: Q D(Qᵀ c, σ), since white noise is white in both.

    Attributes:
        denoiser: D.
        transform: Q, such as `operators.grayscale.ColourTransform`.
    """

    denoiser: Denoiser
    transform: LinearOperator

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.transform(self.denoiser(self.transform.H(x), sigma))

    @property
    def scale(self) -> float:
        return scale_of(self.denoiser)


def gaussian_colours(
    height: int,
    width: int,
    *,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: float = 0.5,
    length: float = 2.0,
) -> GaussianPrior:
    """The exact prior (1) of colour images (3, height, width), in float64.

    Args:
        height, width: few: the matrix has 3 · height · width rows, see `scoreinv.priors.exact`.
        mean: of red, green and blue, the same in every pixel.
        std: of every number.
        length: ℓ [pixels].

    Raises:
        ValueError: a size, std or length is not positive.
    """
    if min(height, width) < 1 or not (std > 0 and length > 0):
        raise ValueError(
            f"gaussian_colours: expected positive height, width, std and length, got {height}, {width}, {std} and {length}"
        )
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    near = torch.exp(-(torch.cdist(pixels, pixels) ** 2) / (2 * length**2))
    covariance = std**2 * torch.kron(torch.tensor(CHANNELS, dtype=torch.float64), near)
    return GaussianPrior(torch.tensor(mean, dtype=torch.float64)[:, None, None].expand(3, height, width), covariance)
