"""Where the rotation axis of a parallel-beam scan falls on the detector.

The centre of mass of an object that lies wholly in the beam moves on a sinusoid about the axis,
Σ s y(θ, s) / Σ y(θ, s) = c + a cos θ + b sin θ   (the first Helgason-Ludwig condition),
for any angles. An object that is wider than the detector breaks this; two opposite views are then mirror images of each
other about the axis.
"""

from __future__ import annotations

import numpy as np

MASS_TOLERANCE = 0.03
"""Relative standard deviation of the projected mass over the views, below which the object lies wholly in the beam."""

EDGE_TOLERANCE = 0.05
"""Line integrals at either edge of the detector, relative to the largest, below which it is air there."""

OPPOSITE_TOLERANCE = np.deg2rad(1.5)


def find_axis(sinogram: np.ndarray, theta: np.ndarray, what: str = "find_axis") -> float:
    """Column of the rotation axis, counted from 0.

    Args:
        sinogram: (views, bins) line integrals.
        theta: (views,) angles [rad].
        what: the start of error messages.

    Raises:
        ValueError: neither way applies; the centre must be given.
    """
    if len(theta) >= 4 and _wholly_inside(sinogram):
        return _by_centre_of_mass(sinogram, theta)
    pairs = _opposite_views(theta)
    if not pairs:
        raise ValueError(
            f"{what}: the rotation axis cannot be found: the object is wider than the detector or there are fewer "
            f"than 4 views, and no two views are opposite; pass centre, its detector column"
        )
    return _by_opposite_views(sinogram, pairs)


def _wholly_inside(sinogram: np.ndarray) -> bool:
    mass, profile = sinogram.sum(axis=1), sinogram.mean(axis=0)
    edge = max(2, len(profile) // 50)
    at_edges = max(abs(profile[:edge].mean()), abs(profile[-edge:].mean()))
    return bool(
        mass.min() > 0 and mass.std() < MASS_TOLERANCE * mass.mean() and at_edges < EDGE_TOLERANCE * profile.max()
    )


def _by_centre_of_mass(sinogram: np.ndarray, theta: np.ndarray) -> float:
    centre_of_mass = sinogram @ np.arange(sinogram.shape[1]) / sinogram.sum(axis=1)
    basis = np.stack([np.ones_like(theta), np.cos(theta), np.sin(theta)], axis=1)
    return float(np.linalg.lstsq(basis, centre_of_mass, rcond=None)[0][0])


def _opposite_views(theta: np.ndarray, most: int = 16) -> list[tuple[int, int]]:
    """The pairs of views that are nearest to half a turn apart."""
    gap = np.abs(np.angle(np.exp(1j * (theta[:, None] - theta[None] - np.pi))))
    i, j = np.nonzero(np.triu(gap <= OPPOSITE_TOLERANCE))
    order = np.argsort(gap[i, j], kind="stable")[:most]
    return [(int(i[k]), int(j[k])) for k in order]


def _by_opposite_views(sinogram: np.ndarray, pairs: list[tuple[int, int]]) -> float:
    """The c that minimises the mean square of y(θ, s) - y(θ + π, 2 c - s) over the columns that both views see."""
    n = sinogram.shape[1]
    first = sinogram[[i for i, _ in pairs]]
    mirrored = sinogram[[j for _, j in pairs], ::-1]
    shifts = np.arange(-(n // 2), n // 2 + 1)
    errors = np.array([_mismatch(first, mirrored, int(s)) for s in shifts])
    k = int(np.clip(errors.argmin(), 1, len(errors) - 2))
    below, at, above = errors[k - 1 : k + 2]
    curvature = below - 2 * at + above
    fraction = 0.5 * (below - above) / curvature if curvature > 0 else 0.0
    return float((n - 1 + shifts[k] + np.clip(fraction, -1, 1)) / 2)


def _mismatch(first: np.ndarray, mirrored: np.ndarray, shift: int) -> float:
    n = first.shape[1]
    a = first[:, max(0, shift) : n + min(0, shift)]
    b = mirrored[:, max(0, -shift) : n - max(0, shift)]
    return float(np.mean((a - b) ** 2))
