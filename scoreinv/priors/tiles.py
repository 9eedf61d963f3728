"""A large image as overlapping tiles: cut, denoised one by one, and blended.

Every pixel is a weighted mean of the tiles that hold it, with weights that fall linearly to the tiles' inner edges, so that
no seams show. A tile is told its place in the image (Hu et al., PaDIS, 2024, arXiv:2406.10211, there with tiles that do
not overlap and move from call to call).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 0.25
"""Least share of a tile's side that it has in common with its neighbour."""


@dataclass(frozen=True)
class Tiles:
    """Where the tiles of an image lie.

    Attributes:
        height, width: of the image [pixels].
        size: rows and columns of a tile.
        tops, lefts: first rows and columns of the tiles, whose number is len(tops) * len(lefts).
    """

    height: int
    width: int
    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def covering(cls, height: int, width: int, side: int) -> Tiles:
        """The fewest tiles of at most side x side pixels that cover an image with the least overlap."""
        size = (min(side, height), min(side, width))
        return cls(height, width, size, _starts(height, size[0]), _starts(width, size[1]))

    def corners(self) -> list[tuple[int, int]]:
        """First row and column of every tile, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    def cut(self, x: Tensor) -> Tensor:
        """(batch, height, width) -> (tiles * batch, *size), tile by tile."""
        h, w = self.size
        return torch.cat([x[:, top : top + h, left : left + w] for top, left in self.corners()])

    def labels(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels (batch,) of the images -> those of the tiles (tiles * batch,), and their boxes (tiles * batch, 4)."""
        h, w = self.size
        edges = [(2 * t / self.height, 2 * c / self.width, 2 * (t + h) / self.height, 2 * (c + w) / self.width) for t, c in self.corners()]  # fmt: skip
        boxes = sigma.new_tensor(edges) - 1
        return sigma.repeat(len(edges)), boxes.repeat_interleave(len(sigma), dim=0)

    def blended(self, tiles: Tensor) -> Tensor:
        """(tiles * batch, *size) -> (batch, height, width)."""
        corners, (h, w) = self.corners(), self.size
        parts = tiles.reshape(len(corners), -1, h, w)
        out = parts.new_zeros(parts.shape[1], self.height, self.width)
        total = parts.new_zeros(self.height, self.width)
        for part, (top, left) in zip(parts, corners, strict=True):
            rows = _ramp(top, h, self.height, self.tops).to(parts)
            columns = _ramp(left, w, self.width, self.lefts).to(parts)
            weight = rows[:, None] * columns
            out[:, top : top + h, left : left + w] += weight * part
            total[top : top + h, left : left + w] += weight
        return out / total


def _starts(length: int, side: int) -> tuple[int, ...]:
    """First pixels of the tiles along one axis, spread evenly."""
    if side >= length:
        return (0,)
    n = math.ceil((length - side) / (side * (1 - OVERLAP))) + 1
    return tuple(round(k * (length - side) / (n - 1)) for k in range(n))


def _ramp(start: int, side: int, length: int, starts: tuple[int, ...]) -> Tensor:
    """Weights along one axis: 1 inside, falling linearly over the overlap where there is a neighbour."""
    overlap = side - max((b - a for a, b in itertools.pairwise(starts)), default=side)
    position = torch.arange(side, dtype=torch.float64) + 0.5
    up = position / overlap if start > 0 else torch.ones(side)
    down = (side - position) / overlap if start + side < length else torch.ones(side)
    return torch.minimum(up, down).clamp(max=1)
