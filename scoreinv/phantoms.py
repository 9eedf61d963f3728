"""Phantoms made of ellipses, with exact line integrals: an independent reference for every projector.

The line through point o with unit direction d has the normal n = (d_y, -d_x) and the distance s = (o - c) · n from an
ellipse's centre c. With half axes a, b, turned anticlockwise by α, and φ the angle of n,

    r² = a² cos²(φ - α) + b² sin²(φ - α),    integral = 2 a b √(r² - s²) / r²  times the ellipse's value, where |s| < r

(Kak and Slaney, Principles of computerized tomographic imaging, 1988, section 3.1).

Axes are those of the CT operators: x right, y up, the image's centre is the origin, row 0 is on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from scoreinv.units import MU_WATER_PER_MM

# Modified contrast of Toft (1996), table B.1: value, half axes, centre, angle in degrees, for a phantom on [-1, 1]².
_SHEPP_LOGAN = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)


@dataclass(frozen=True)
class Ellipse:
    """A homogeneous ellipse, added to whatever it overlaps.

    Attributes:
        centre_mm: (x, y).
        axes_mm: half axes (a, b); a lies along x before turning.
        angle: by which it is turned anticlockwise [rad].
        value: its attenuation [1/mm].

    Raises:
        ValueError: a half axis is not positive.
    """

    centre_mm: tuple[float, float]
    axes_mm: tuple[float, float]
    angle: float = 0.0
    value: float = MU_WATER_PER_MM

    def __post_init__(self) -> None:
        if not min(self.axes_mm) > 0:
            raise ValueError(f"Ellipse: both half axes must be positive, got {self.axes_mm}")


class HasRays(Protocol):
    """A geometry that can say where its rays run: the CT operators."""

    def rays(self) -> tuple[Tensor, Tensor]:
        """A point on every ray [mm] and its unit direction, both (views, detectors, 2)."""
        ...


def shepp_logan(width_mm: float, value: float = MU_WATER_PER_MM) -> tuple[Ellipse, ...]:
    """The Shepp-Logan head with Toft's contrasts: 10 ellipses in a square of that width; `value` is the skull's."""
    half = width_mm / 2
    return tuple(
        Ellipse((x * half, y * half), (a * half, b * half), math.radians(degrees), contrast * value)
        for contrast, a, b, x, y, degrees in _SHEPP_LOGAN
    )


def random_ellipses(
    rng: Generator, *, width_mm: float, n_ellipses: int = 12, value: float = MU_WATER_PER_MM
) -> tuple[Ellipse, ...]:
    """A large ellipse with smaller ones of random place, size, angle and contrast; all stay in the disc of that width.

    Args:
        rng: source of the randomness.
        width_mm: diameter of the disc.
        n_ellipses: the number, the large one included.
        value: attenuation of the large one [1/mm]; the others add between -0.5 and 0.5 times this.
    """
    if n_ellipses < 1 or not width_mm > 0:
        raise ValueError(f"random_ellipses: expected n_ellipses >= 1 and width_mm > 0, got {n_ellipses} and {width_mm}")
    half = width_mm / 2
    u = torch.rand(n_ellipses, 6, generator=rng, dtype=torch.float64).tolist()
    ellipses = [
        Ellipse((0.0, 0.0), (half * (0.7 + 0.2 * u[0][0]), half * (0.7 + 0.2 * u[0][1])), math.pi * u[0][2], value)
    ]
    for distance, direction, a, b, angle, contrast in u[1:]:
        r, phi = 0.55 * half * math.sqrt(distance), 2 * math.pi * direction
        axes = (half * (0.03 + 0.17 * a), half * (0.03 + 0.17 * b))
        ellipses.append(
            Ellipse((r * math.cos(phi), r * math.sin(phi)), axes, math.pi * angle, (contrast - 0.5) * value)
        )
    return tuple(ellipses)


def rasterise(
    ellipses: Sequence[Ellipse], image_shape: tuple[int, int], pixel_mm: float = 1.0, *, subpixels: int = 8
) -> Tensor:
    """Pixel means of a phantom, each from subpixels² samples.

    Returns:
        (H, W), float64, in 1/mm.
    """
    if subpixels < 1:
        raise ValueError(f"rasterise: subpixels must be at least 1, got {subpixels}")
    height, width = (n * subpixels for n in image_shape)
    step = pixel_mm / subpixels
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * step
    y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64))[:, None] * step
    total = torch.zeros(height, width, dtype=torch.float64)
    for e in ellipses:
        columns, rows = (_near(t, c, max(e.axes_mm)) for t, c in ((x, e.centre_mm[0]), (y[:, 0], e.centre_mm[1])))
        dx, dy = x[columns] - e.centre_mm[0], y[rows] - e.centre_mm[1]
        along = (dx * math.cos(e.angle) + dy * math.sin(e.angle)) / e.axes_mm[0]
        across = (dy * math.cos(e.angle) - dx * math.sin(e.angle)) / e.axes_mm[1]
        total[rows, columns] += e.value * (along**2 + across**2 <= 1)
    return total.reshape(image_shape[0], subpixels, image_shape[1], subpixels).mean(dim=(1, 3))


def _near(positions: Tensor, centre: float, reach: float) -> slice:
    """The part of ascending or descending positions that is no further from a centre than that."""
    (found,) = ((positions - centre).abs() <= reach).nonzero(as_tuple=True)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0)


def line_integrals(ellipses: Sequence[Ellipse], A: HasRays) -> Tensor:
    """The exact sinogram of a phantom along the rays of an operator through the centres of its cells.

    Returns:
        (views, detectors), float64, dimensionless.
    """
    origin, direction = A.rays()
    normal = torch.stack([direction[..., 1], -direction[..., 0]], dim=-1)
    phi = torch.atan2(normal[..., 1], normal[..., 0])
    total = torch.zeros(origin.shape[:-1], dtype=torch.float64)
    for e in ellipses:
        s = ((origin - torch.tensor(e.centre_mm, dtype=torch.float64)) * normal).sum(dim=-1)
        a, b = e.axes_mm
        r2 = (a * (phi - e.angle).cos()) ** 2 + (b * (phi - e.angle).sin()) ** 2
        total += e.value * 2 * a * b * (r2 - s**2).clamp(min=0).sqrt() / r2
    return total
