"""Does a prior make up images, or does it remember them? The training image nearest to each of a few images.

Distances are root-mean-square differences in HU after both images have been shrunk to 64 x 64 pixels and clipped to the
window of -1000 to 1000 HU; the four flips of a training image count as the same. How near is too near is told by images that
cannot have been remembered: slices of other patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scoreinv.priors.crops import ImageSet

SIDE = 64
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True)
class Nearest:
    """The training image that is most like an image.

    Attributes:
        index: its number in the training set.
        flips: dimensions to reverse in it.
        distance_hu: root-mean-square difference [HU].
    """

    index: int
    flips: tuple[int, ...]
    distance_hu: float


def nearest(images: Sequence[Tensor], training: ImageSet) -> list[Nearest]:
    """For each image (H, W) in u = HU / 1000 the nearest of the training images."""
    queries = torch.stack([_shrunk(image) for image in images])
    best = [Nearest(-1, (), float("inf"))] * len(images)
    for i, image in enumerate(training.images):
        small = _shrunk(torch.from_numpy(np.ascontiguousarray(image)).float() / 1000)
        for flips in FLIPS:
            distances = 1000 * (queries - small.flip(flips)).square().mean((-1, -2)).sqrt()
            for k, distance in enumerate(distances.tolist()):
                if distance < best[k].distance_hu:
                    best[k] = Nearest(i, flips, distance)
    return best


def _shrunk(u: Tensor) -> Tensor:
    small: Tensor = F.interpolate(u.clamp(-1, 1)[None, None], size=(SIDE, SIDE), mode="area")[0, 0]
    return small
