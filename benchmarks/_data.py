"""The images that benchmarks run on: the middle slice of every validation patient."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch


class Slice(NamedTuple):
    """An image and where it comes from."""

    patient: str
    pixel_mm: float
    hu: torch.Tensor


def middle_slices(path: Path) -> list[Slice]:
    """One slice a patient, in the order of the file."""
    with h5py.File(path, "r") as file:
        names = [name.decode() for name in file["patient"][:]]
        chosen = [[i for i, n in enumerate(names) if n == patient] for patient in dict.fromkeys(names)]
        middle = [index[len(index) // 2] for index in chosen]
        return [
            Slice(names[i], float(file["pixel_mm"][i]), torch.from_numpy(file["hu"][i].astype(np.float32)))
            for i in middle
        ]


def slices(path: Path) -> list[Slice]:
    """One slice a patient, in the order of their names."""
    return sorted(middle_slices(path), key=lambda s: s.patient)
