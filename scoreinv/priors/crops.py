"""Training images in memory and the random crops drawn from them.

Images are Hounsfield units in int16, u = HU / 1000 when drawn. A patient with n slices weighs √n in all, so that one
long series neither dominates nor counts like a single slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

AIR_HU = -1000


@dataclass(frozen=True, eq=False)
class ImageSet:
    """HU images with the patient that each belongs to.

    Attributes:
        images: 2-D int16 arrays [HU], of any sizes.
        patients: one name an image.
    """

    images: Sequence[np.ndarray]
    patients: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.images) == 0 or len(self.images) != len(self.patients):
            raise ValueError(
                f"ImageSet needs at least one image and one patient name an image, "
                f"got {len(self.images)} images and {len(self.patients)} names"
            )

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


def draw_crops(data: ImageSet, cumulative: np.ndarray, rng: np.random.Generator, n: int, side: int) -> Tensor:
    """n random crops of side x side pixels, flipped at random in both directions; images that are smaller get air.

    Args:
        data: where they come from.
        cumulative: cumulative sum of `data.weights()`.
        rng: source of all randomness.
        n: how many.
        side: [pixels].

    Returns:
        (n, 1, side, side) in u = HU / 1000, float32.
    """
    out = np.full((n, side, side), AIR_HU, dtype=np.int16)
    for k, i in enumerate(np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right")):
        image = data.images[int(i)]
        h, w = min(side, image.shape[0]), min(side, image.shape[1])
        top = int(rng.integers(image.shape[0] - h + 1))
        left = int(rng.integers(image.shape[1] - w + 1))
        flip = rng.integers(2, size=2) * -2 + 1
        out[k, :h, :w] = image[top : top + h, left : left + w][:: flip[0], :: flip[1]]
    return torch.from_numpy(out).float()[:, None] / 1000
