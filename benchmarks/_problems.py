"""The CT problems that methods are compared on, at the slices' own resolution or a coarser one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from _data import Slice

from scoreinv.operators import ParallelBeamCT, equispaced_angles
from scoreinv.problem import Problem, simulate, simulate_counts
from scoreinv.units import mu_from_hu


class Setting(NamedTuple):
    """Parallel views spread evenly over an arc, and their noise.

    Attributes:
        title: for headings.
        n_views: number of views.
        arc_degrees: the first view is at 0, the arc's end is left out.
        relative_noise: standard deviation of Gaussian noise over the mean of the data.
        photons: a ray without an object; None for Gaussian noise.
    """

    title: str
    n_views: int
    arc_degrees: float
    relative_noise: float = 0.0
    photons: float | None = None

    def operator(self, shape: tuple[int, int], pixel_mm: float) -> ParallelBeamCT:
        """Cells as wide as a pixel over the image's diagonal."""
        n_detectors = math.ceil(math.sqrt(2) * max(shape))
        angles = equispaced_angles(self.n_views, math.radians(self.arc_degrees))
        return ParallelBeamCT(shape, angles, n_detectors, pixel_mm, pixel_mm)

    def problem(self, image: Slice, seed: int = 0) -> Problem:
        """The slice's data; the operator that makes them is the one that they are reconstructed with."""
        A = self.operator((image.hu.shape[0], image.hu.shape[1]), image.pixel_mm)
        x, rng = mu_from_hu(image.hu), torch.Generator().manual_seed(seed)
        if self.photons is not None:
            return simulate_counts(A, x, rng, photons=self.photons)
        return simulate(A, x, rng, relative_noise=self.relative_noise)


PROBLEMS = {
    "few_view_noise_free": Setting("23 views, noise-free", 23, 180.0),
    "few_view": Setting("23 views, 0.5 % noise", 23, 180.0, relative_noise=0.005),
    "low_dose": Setting("60 views, 4096 photons a ray", 60, 180.0, photons=4096.0),
    "limited_angle": Setting("60 views within 100 degrees, 0.5 % noise", 60, 100.0, relative_noise=0.005),
}


def reduced(image: Slice, size: int) -> Slice:
    """The slice at size x size pixels, each the mean of as many of its own.

    Raises:
        ValueError: its side is no multiple of the size.
    """
    side = image.hu.shape[-1]
    if size < 1 or side % size:
        raise ValueError(f"slices have {side} x {side} pixels: --size must divide that, got {size}")
    factor = side // size
    hu = torch.nn.functional.avg_pool2d(image.hu[None], factor)[0]
    return Slice(image.patient, image.pixel_mm * factor, hu)
