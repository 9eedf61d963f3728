"""Training images in memory and the random crops drawn from them.

Images are Hounsfield units in int16, u = HU / 1000 when drawn. A patient with n slices weighs √n in all, so that one
long series neither dominates nor counts like a single slice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scoreinv.priors.network import WHOLE

AIR_HU = -1000
ZOOM = (0.5, 1.25)
"""Range of factors by which the size of a pixel is changed: to that of original 512 x 512 slices and a little coarser."""
UNKNOWN, ALONE = 0.15, 0.2
"""Share of crops whose pixel size is not told, and of those that pass for a whole field of view."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """HU images with the patient that each belongs to.

    Attributes:
        images: 2-D int16 arrays [HU], of any sizes.
        patients: one name an image.
        pixel_mm: side of a pixel [mm], one an image, NaN where unknown; () if none is known.
    """

    images: Sequence[np.ndarray]
    patients: Sequence[str]
    pixel_mm: Sequence[float] = ()

    def __post_init__(self) -> None:
        if len(self.images) == 0 or len(self.images) != len(self.patients):
            raise ValueError(
                f"ImageSet needs at least one image and one patient name an image, "
                f"got {len(self.images)} images and {len(self.patients)} names"
            )
        if len(self.pixel_mm) not in (0, len(self.images)):
            raise ValueError(f"ImageSet: {len(self.images)} images, but {len(self.pixel_mm)} pixel sizes")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def n_patients(self) -> int:
        return len(set(self.patients))

    def weights(self) -> np.ndarray:
        """Probability of each image."""
        _, inverse, counts = np.unique(np.asarray(self.patients), return_inverse=True, return_counts=True)
        w = 1 / np.sqrt(counts[inverse])
        return np.asarray(w / w.sum())

    def one_per_patient(self) -> list[int]:
        """The index of each patient's middle image."""
        names = np.asarray(self.patients)
        return [int(i[len(i) // 2]) for i in (np.flatnonzero(names == p) for p in sorted(set(self.patients)))]

    def side_mm(self, i: int) -> float:
        """Side of a pixel of image i [mm], NaN where it is unknown."""
        return float(self.pixel_mm[i]) if len(self.pixel_mm) else math.nan

    def checksum(self, which: Iterable[int]) -> str:
        """SHA-256 of these images and the sides of their pixels."""
        found = hashlib.sha256()
        for i in which:
            found.update(f"{self.images[i].shape} {self.side_mm(i):.6g}".encode())
            found.update(self.images[i].tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Crops:
    """A batch of training images.

    Attributes:
        u: (n, 1, side, side) in u = HU / 1000, float32.
        pixel_mm: (n,) side of a pixel [mm], NaN where the network is not told.
        box: (n, 4) which part of its field of view each shows, see `priors.network.positions`.
    """

    u: Tensor
    pixel_mm: Tensor
    box: Tensor


def draw_crops(
    data: ImageSet, cumulative: np.ndarray, rng: np.random.Generator, n: int, side: int, *, zoom: float = 0.0
) -> Crops:
    """n random crops of side x side pixels, flipped at random in both directions; images that are smaller get air.

    Args:
        data: where they come from.
        cumulative: cumulative sum of `data.weights()`.
        rng: source of all randomness.
        n: how many.
        side: [pixels].
        zoom: share of crops that are resampled to pixels of another size, by a factor within ZOOM.
    """
    u = torch.empty(n, 1, side, side)
    pixel_mm, box = torch.empty(n), torch.empty(n, 4)
    for k, i in enumerate(np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right")):
        image = data.images[int(i)]
        factor = _factor(rng, zoom, min(image.shape) / side)
        taken = max(1, round(side * factor))
        crop, box[k] = _window(image, rng, taken)
        values = torch.from_numpy(crop).float()[None, None] / 1000
        if taken != side:
            values = F.interpolate(values, size=(side, side), mode="bicubic", antialias=True).clamp(min=AIR_HU / 1000)
        u[k] = values[0]
        pixel_mm[k] = math.nan if rng.random() < UNKNOWN else data.side_mm(int(i)) * taken / side
        if rng.random() < ALONE:
            box[k] = torch.tensor(WHOLE)
    return Crops(u, pixel_mm, box)


def _factor(rng: np.random.Generator, zoom: float, largest: float) -> float:
    """How many source pixels become one pixel of the crop."""
    if rng.random() >= zoom:
        return 1.0
    low, high = ZOOM[0], max(min(ZOOM[1], largest), ZOOM[0])
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _window(image: np.ndarray, rng: np.random.Generator, side: int) -> tuple[np.ndarray, Tensor]:
    """A flipped window of an image with air around it where it is too small, and its place in the flipped image."""
    flip = rng.integers(2, size=2) * -2 + 1
    image = image[:: flip[0], :: flip[1]]
    h, w = min(side, image.shape[0]), min(side, image.shape[1])
    top, left = int(rng.integers(image.shape[0] - h + 1)), int(rng.integers(image.shape[1] - w + 1))
    out = np.full((side, side), AIR_HU, dtype=np.int16)
    out[:h, :w] = image[top : top + h, left : left + w]
    rows, columns = max(image.shape[0], side), max(image.shape[1], side)
    edges = (2 * top / rows, 2 * left / columns, 2 * (top + side) / rows, 2 * (left + side) / columns)
    return out, torch.tensor(edges) - 1
