"""Masking: keep some pixels of an image, or some rows of a sinogram; the rest reads zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.linop import LinearOperator

_LONGEST_REPR = 64


@dataclass(frozen=True, eq=False, repr=False)
class Masking(LinearOperator):
    """x -> x where measured, 0 elsewhere; its own adjoint, and a projection: applying it twice changes nothing.

    Attributes:
        mask: (*in_shape), true where measured: a bool tensor, array or nested list (0 and 1 will do); kept on the CPU.

    Raises:
        ValueError: the mask is empty or holds anything but 0 and 1.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        mask = torch.as_tensor(self.mask).cpu()
        if mask.numel() == 0 or mask.ndim == 0:
            raise ValueError(f"Masking: the mask must have at least one pixel, got shape {tuple(mask.shape)}")
        if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                "Masking: the mask must be true where measured and false elsewhere, got other values than 0 and 1"
            )
        object.__setattr__(self, "mask", mask.bool().clone())

    @classmethod
    def rows(cls, shape: Sequence[int], rows: Sequence[int]) -> Masking:
        """Keep whole rows (the first axis): the measured views of a sinogram (views, detectors).

        Raises:
            ValueError: a row lies outside the shape.
        """
        rows = [int(r) for r in rows]
        if any(not 0 <= r < shape[0] for r in rows):
            raise ValueError(f"Masking.rows: rows must lie between 0 and {shape[0] - 1}, got {rows}")
        mask = torch.zeros(*shape, dtype=torch.bool)
        mask[rows] = True
        return cls(mask)

    @classmethod
    def for_image(cls, shape: Sequence[int], pixel_mm: float, *, keep: float = 0.5, seed: int = 0) -> Masking:
        """Pixels kept at random: the fraction `keep` of them, the same for the same seed.

        Raises:
            ValueError: keep does not lie in (0, 1].
        """
        if not 0 < keep <= 1:
            raise ValueError(f"Masking: keep must lie in (0, 1], got {keep}")
        return cls(torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < keep)

    @property
    def in_shape(self) -> tuple[int, ...]:
        return tuple(self.mask.shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.in_shape

    @property
    def seen(self) -> Tensor:
        """The mask: what is not measured reads zero, or whatever stands there."""
        return self.mask

    def _forward(self, x: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device), x, torch.zeros((), dtype=x.dtype, device=x.device))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masking) and torch.equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.in_shape, self.mask.numpy().tobytes()))

    def __repr__(self) -> str:
        """An expression that makes the operator anew; only for a large mask of no regular form a short description."""
        if self.mask.numel() <= _LONGEST_REPR:
            return f"Masking({self.mask.int().tolist()})"
        kept = self.mask.flatten(1).all(1) if self.mask.ndim > 1 else self.mask
        rows = kept.nonzero().flatten().tolist()
        if len(rows) <= _LONGEST_REPR and self == Masking.rows(self.in_shape, rows):
            return f"Masking.rows({self.in_shape}, {rows})"
        return f"<Masking of shape {self.in_shape}, {int(self.mask.sum())} of {self.mask.numel()} measured>"
