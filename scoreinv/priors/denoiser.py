"""The one interface of all priors: D(x, σ) = E[x₀ | x = x₀ + σ n], and the adapters that bring others to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from scoreinv.priors.network import WHOLE, EDMDenoiser
from scoreinv.priors.tiles import Tiles


class Denoiser(Protocol):
    """A prior, or a posterior made from one: both are the mean of x₀ given x = x₀ + σ n."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (batch, *image_shape), sigma a scalar or (batch,) in the unit of x; the result is shaped like x."""
        ...


def checked(images: Tensor, x: Tensor, maker: object = None) -> Tensor:
    """What a denoiser, or a step with it, made of x; its maker is for the message.

    Raises:
        ValueError: it is not shaped like x. With one member in the batch torch would make something of it without a word.
    """
    if not isinstance(images, Tensor) or images.shape != x.shape:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        who = "this one" if maker is None else name_of(maker)
        raise ValueError(
            f"a prior must return images shaped like what it is given, {tuple(x.shape)}; {who} made {got} of it"
        )
    return images


def name_of(denoiser: object) -> str:
    """What a denoiser is called in messages: the name of a function, or of a type."""
    while isinstance(denoiser, Counted):
        denoiser = denoiser.denoiser
    return str(getattr(denoiser, "__name__", type(denoiser).__name__))


@dataclass(frozen=True, eq=False)
class Rescaled:
    """A denoiser of u, used on x = shift + scale u: noise levels are given in the unit of x.

    For CT, shift = scale = μ_water turns a prior of u = HU / 1000 into one of attenuation in 1/mm.
    """

    denoiser: Denoiser
    shift: float
    scale: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.shift + self.scale * self.denoiser((x - self.shift) / self.scale, sigma / self.scale)

    def posed(self, k: int) -> Denoiser:
        """The same prior in its k-th pose."""
        return Rescaled(posed(self.denoiser, k), self.shift, self.scale)


@dataclass(frozen=True, eq=False)
class NetworkPrior:
    """The network on images (batch, H, W) of any size: padded by reflection to the multiple it needs, then cropped; above a
    size, denoised in overlapping tiles that know their place (see `priors.tiles`).

    Attributes:
        model: the network, with one channel.
        pixel_mm: side of a pixel [mm]; None where it is unknown.
        bfloat16: evaluate in bfloat16 (worth it where the processor has matrix instructions for it).
        chunk: images or tiles evaluated at once; the result does not depend on it.
        largest: side of the largest image that is evaluated whole, and of the tiles of larger ones [pixels]: the memory limit.
    """

    model: EDMDenoiser
    pixel_mm: float | None = None
    bfloat16: bool = False
    chunk: int = 4
    largest: int = 640

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.largest < 4 * self.model.config.multiple:
            least = 4 * self.model.config.multiple
            raise ValueError(
                f"NetworkPrior: expected chunk >= 1 and largest >= {least}, got {self.chunk} and {self.largest}"
            )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"NetworkPrior: expected images (batch, H, W), got shape {tuple(x.shape)}")
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        if max(x.shape[-2:]) <= self.largest:
            return self.network(x, sigma, x.new_tensor(WHOLE).expand(len(x), 4))
        tiles = Tiles.covering(x.shape[-2], x.shape[-1], self.largest)
        return tiles.blended(self.network(tiles.cut(x), *tiles.labels(sigma)))

    def network(self, x: Tensor, sigma: Tensor, box: Tensor) -> Tensor:
        """D of images that lie somewhere in the field of view.

        Args:
            x: (n, H, W).
            sigma: (n,).
            box: (n, 4) top, left, bottom and right of the unpadded images, in units of half the field of view (`network.positions`).
        """
        height, width = x.shape[-2:]
        images = pad_to_multiple(x.float(), self.model.config.multiple)[:, None]
        top, left, bottom, right = box.float().unbind(1)
        bottom = top + (bottom - top) * images.shape[-2] / height
        right = left + (right - left) * images.shape[-1] / width
        boxes = torch.stack([top, left, bottom, right], dim=1)
        parts = []
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            for i, s, b in zip(*(torch.split(t, self.chunk) for t in (images, sigma, boxes)), strict=True):
                parts.append(self.model(i.contiguous(memory_format=torch.channels_last), s, self.pixel_mm, b))
        return torch.cat(parts)[:, 0, :height, :width].to(x.dtype)

    def posed(self, k: int) -> Denoiser:
        """The k-th of 32 poses: flipped and shifted images, which the network was trained to treat alike."""
        return Posed(self, _FLIPS[k % 4], _SHIFTS[k // 4 % 8])


_FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
_SHIFTS = ((0, 0), (0, 1), (1, 0), (1, 1), (3, 2), (2, 3), (7, 5), (4, 6))
"""Rows and columns; the network's coarsest pixel is 16 wide, so these meet its grid in different phases."""


@dataclass(frozen=True, eq=False)
class Posed:
    """D seen in another pose: T⁻¹ D(T x, σ), T a cyclic shift and flips. For a perfect prior of images without a preferred
    place and handedness this is D itself; a network's errors differ from pose to pose, and an iteration that goes through the
    poses averages them out (cycle spinning: Coifman, Donoho 1995, doi:10.1007/978-1-4612-2544-7_9).

    Attributes:
        denoiser: D.
        flips: dimensions to reverse, negative.
        shift: rows and columns to move by.
    """

    denoiser: Denoiser
    flips: tuple[int, ...]
    shift: tuple[int, int]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        rows, columns = self.shift
        turned = x.roll((rows, columns), (-2, -1)).flip(self.flips)
        return self.denoiser(turned, sigma).flip(self.flips).roll((-rows, -columns), (-2, -1))


def posed(prior: Denoiser, k: int) -> Denoiser:
    """A prior in its k-th equivalent pose; priors that know of no poses (no method `posed`) stay as they are."""
    pose = getattr(prior, "posed", None)
    return prior if pose is None else cast("Denoiser", pose(k))


@dataclass(frozen=True, eq=False)
class PoseAverage:
    """The mean of D over its first n poses, at n times the cost: a better denoiser, and with n = 4 one that flips commute with.

    Attributes:
        denoiser: a prior that knows its poses (NetworkPrior, or Rescaled around one).
        n: 4 for all flips, up to 32 with the shifts.

    Raises:
        ValueError: the prior has no poses, or not so many.
    """

    denoiser: Denoiser
    n: int = 4

    def __post_init__(self) -> None:
        if not hasattr(self.denoiser, "posed"):
            raise ValueError(
                f"PoseAverage: {type(self.denoiser).__name__} knows of no poses (it has no method `posed`)"
            )
        if not 1 <= self.n <= 32:
            raise ValueError(f"PoseAverage: expected 1 to 32 poses, got {self.n}")

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        total = posed(self.denoiser, 0)(x, sigma)
        for k in range(1, self.n):
            total = total + posed(self.denoiser, k)(x, sigma)
        return total / self.n


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """x (batch, H, W) with rows and columns reflected (repeated, where there are too few) at the bottom and right."""
    for dim in (-1, -2):
        n = -x.shape[dim] % multiple
        while n:
            take = min(n, x.shape[dim] - 1) or 1
            index = torch.arange(x.shape[dim] - 1 - take, x.shape[dim] - 1, device=x.device).clamp(min=0).flip(0)
            x = torch.cat([x, x.index_select(dim, index)], dim=dim)
            n -= take
    return x


class Counted:
    """A denoiser that counts its use, in images: `n_evaluations`, and `n_gradients` of the passes backwards through it
    (vector-Jacobian products). The two are the honest cost of a method. What it makes of x is `checked` by the way."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.n_evaluations, self.n_gradients = denoiser, 0, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._counted(self.denoiser, x, sigma)

    def _counted(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        self.n_evaluations += x.shape[0]
        out = checked(denoiser(x, sigma), x, denoiser)
        self.watch(out)
        return out

    def watch(self, out: Tensor) -> None:
        """Count a gradient when one goes back through this result (batch, ...)."""
        if out.requires_grad:
            out.register_hook(self._went_back)  # type: ignore[no-untyped-call]

    def _went_back(self, gradient: Tensor) -> None:
        self.n_gradients += gradient.shape[0]

    def posed(self, k: int) -> Denoiser:
        """The same prior in its k-th pose, counted here."""
        inner = posed(self.denoiser, k)

        return lambda x, sigma: self._counted(inner, x, sigma)

    @property
    def scale(self) -> float:
        return scale_of(self.denoiser)


def scale_of(prior: Denoiser) -> float:
    """Size of one unit of the prior's own coordinate in the unit of its images: μ_water for a CT prior, 1 for others."""
    return float(getattr(prior, "scale", 1.0))
