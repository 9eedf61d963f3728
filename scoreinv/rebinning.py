"""Helical projections to parallel beams of single slices, so that a clinical scan is a scan file.

Coordinates as in `scoreinv.operators.ct`: x right and y up in the image, z along the axis. The focal centre of the detector is at
ρ₀ (sin φ₀, cos φ₀), above the image at φ₀ = 0 and clockwise from there; the focal spot S at the radius ρ₀ + Δρ, the angle φ₀ + Δφ and
the height z₀ + Δz. Column c of the detector lies at the fan angle γ = (c − X) w / d₀ (on a flat detector atan of it) as seen from the focal
centre, row r at the height z₀ + (r − Y) h. A ray from S to the element P, of length L in the plane, is the line (θ, s) there,

    (sin θ, −cos θ) = (P − S) / L,    s = S · (cos θ, sin θ)                                                         (1)

and passes its point nearest to the axis at the distance ℓ = −S · (P − S) / L from S. The slice at height z takes the ray whose nearest
point lies in it, and shortens it to its length in the plane:

    height of P = z_S + (z − z_S) L / ℓ,    p ← p L / √(L² + (height of P − z_S)²)                                    (2)

This is the single-slice rebinning of Noo, Defrise, Clackdoyle ("Single-slice rebinning method for helical cone-beam CT", Physics in
Medicine and Biology 44, 1999, doi:10.1088/0031-9155/44/2/019), of which (2) are the equations 2 and 1, to parallel beams instead of a
fan: a focal spot that flies is then only another place of S. It is exact for objects that do not change along z; elsewhere it blurs
along z as much as the cone opens. Linear interpolation between rows, views and columns; where several turns or both ends of a line see it,
their weighted mean, weights falling to zero towards the first and the last row.

The views of every place of the focal spot (of even and odd views where it rests) are rebinned by themselves. Their mean is the data,
their differences tell its noise, as a function of the line integral. Neighbouring cells share measured ones, so this noise is a
little correlated.

The files do not say in which direction columns and rows are counted. Seen from both its ends a line has one integral: of the
four readings the one is taken for which that holds best.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scoreinv import plugins
from scoreinv.files.ct_pd import Projections, read_projections
from scoreinv.files.scan import Scan
from scoreinv.files.versions import package_version
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.units import MU_WATER_PER_MM

FEATHER = 0.25
"""Share of the rows, at either edge, over which weights fall to zero."""
FINE = 4
"""Samples of a cell of the parallel detector, which is their mean."""
BINS = 24
"""Of line integrals, for the noise in each."""
READINGS = ((1, -1), (1, 1), (-1, -1), (-1, 1))
"""Directions of columns and rows; the first where the data do not tell, columns as odl/contrib/datasets/ct/mayo.py has them."""
NO_WORSE = 1.1
TRIAL_VIEWS = 24
"""Directions on which readings are compared."""


@dataclass(frozen=True, eq=False)
class Spot:
    """The views with the focal spot in one place, seen in a frame that turns with them.

    Attributes:
        phi: (views,) angle of the focal centre, monotone [rad].
        z: (views,) height of the focal spot [mm].
        data: (views, columns, rows) line integrals.
        tau: (columns,) θ + φ₀ of each column's ray [rad].
        s: (columns,) distance from the axis [mm].
        length: (columns,) L [mm].
        near: (columns,) ℓ [mm].
        rise: height of the focal centre over the spot [mm].
        rows: height of a row [mm], negative where rows are counted downwards, and the central row from 0.
    """

    phi: np.ndarray
    z: np.ndarray
    data: np.ndarray
    tau: np.ndarray
    s: np.ndarray
    length: np.ndarray
    near: np.ndarray
    rise: float
    rows: tuple[float, float]

    def seen(self, theta: float, z: float) -> tuple[np.ndarray, np.ndarray]:
        """Integrals along the rays of a direction, one a column, and their weights, 0 where no row sees them: (columns,) each."""
        total, weights = np.zeros_like(self.s), np.zeros_like(self.s)
        low, high = float(self.phi.min()), float(self.phi.max())
        wanted = self.tau - theta
        order = np.argsort(self.phi)
        first = math.ceil((low - wanted.max()) / (2 * math.pi))
        last = math.floor((high - wanted.min()) / (2 * math.pi))
        for turn in range(first, last + 1):
            at = np.interp(wanted + 2 * math.pi * turn, self.phi[order], np.arange(len(order)), left=-1.0, right=-1.0)
            inside = at >= 0
            below = np.clip(np.floor(at).astype(int), 0, len(order) - 2)
            share = at - below
            for i, w in ((order[below], 1 - share), (order[below + 1], share)):
                value, weight = self._row(i, z)
                weight = np.where(inside, weight * w, 0.0)
                total, weights = total + weight * value, weights + weight
        return np.divide(total, weights, out=np.zeros_like(total), where=weights > 0), weights

    def _row(self, views: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
        """(2) for one view a column: the shortened integral, and the weight of the row it comes from."""
        climb = (z - self.z[views]) * self.length / self.near
        height, centre = self.rows
        n = self.data.shape[2]
        row = centre + (climb - self.rise) / height
        below = np.clip(np.floor(row).astype(int), 0, max(0, n - 2))
        share = np.clip(row - below, 0.0, 1.0)
        columns = np.arange(len(self.s))
        value = (1 - share) * self.data[views, columns, below] + share * self.data[
            views, columns, np.minimum(below + 1, n - 1)
        ]
        edge = np.minimum(row + 0.5, n - 0.5 - row) / max(1.0, FEATHER * n)
        return value * self.length / np.hypot(self.length, climb), np.clip(edge, 0.0, 1.0)


def spots(p: Projections, which: np.ndarray, data: np.ndarray, reading: tuple[int, int]) -> list[Spot]:
    """The views `which` of a series, in at least two groups, with columns and rows counted in these directions.

    Args:
        p: the series.
        which: numbers of neighbouring views.
        data: their line integrals, (n, columns, rows).
        reading: one of `READINGS`.
    """
    n = max(2, len(p.spots))
    return [_spot(p, which[which % n == k], data[which % n == k], reading) for k in range(n)]


def _spot(p: Projections, which: np.ndarray, data: np.ndarray, reading: tuple[int, int]) -> Spot:
    along, up = reading
    view = p.views[int(which[0])]
    numbers, (dphi, dz, drho) = view.numbers, p.spots[int(which[0]) % len(p.spots)]
    rho, far = numbers["rho"], numbers["detector"]
    columns = (np.arange(view.shape[0]) + 1 - view.centre[0]) * numbers["column_mm"] / far
    if p.detector == "FLAT":  # of the same distance at its centre
        across, deep = far * columns, np.full_like(columns, far)
    else:
        across, deep = far * np.sin(columns), far * np.cos(columns)
    # In the frame where φ₀ = 0: the focal centre is at (0, ρ₀), looks along (0, -1), columns grow along (-1, 0).
    element = np.stack([-along * across, rho - deep], axis=1)
    radius = rho + drho
    source = np.array([radius * math.sin(dphi), radius * math.cos(dphi)])
    ray = element - source
    length = np.hypot(*ray.T)
    direction = ray / length[:, None]
    theta = np.arctan2(direction[:, 0], -direction[:, 1])
    s = source[0] * np.cos(theta) + source[1] * np.sin(theta)
    return Spot(
        p.column("phi")[which], p.column("z")[which] + dz, data, theta, s, length, -(direction @ source), -dz,
        (up * numbers["row_mm"], view.centre[1] - 1),
    )  # fmt: skip


def reach_mm(p: Projections) -> float:
    """How far from the height of a view slices may lie that it sees on all its columns."""
    view = p.views[0]
    rows = view.shape[1] * view.numbers["row_mm"] / 2
    return rows * view.numbers["rho"] / view.numbers["detector"]


def heights(p: Projections) -> tuple[float, float]:
    """Lowest and highest slice that lines of all directions are seen of [mm]: at an end of the spiral the two views of a line that runs at
    the edge of the fan are half a turn and that fan angle apart, and the detector reaches out a little.

    Raises:
        ValueError: views are missing, or the pitch is too large for any slice.
    """
    p.check_steps()
    phi, z, view = p.column("phi"), p.column("z"), p.views[0]
    columns = np.array([1, view.shape[0]]) - view.centre[0]
    edge = float(np.abs(columns).max()) * view.numbers["column_mm"] / view.numbers["detector"]
    edge = math.atan(edge) if p.detector == "FLAT" else edge
    turns = abs(float(phi[-1] - phi[0])) / (2 * math.pi)
    low, high = sorted((float(z[0]), float(z[-1])))
    feed = (high - low) / turns if turns > 0 else 0.0
    if turns < 0.5 + edge / math.pi:
        return high, low  # no slice
    apart, reach = feed * (0.5 + edge / math.pi), reach_mm(p) * math.cos(edge)
    if apart > 2 * reach:
        raise ValueError(
            f"{view.path.parent}: the pitch is too large: views of a line at the edge of the fan are {apart:.1f} mm apart, and the detector "
            f"sees {2 * reach:.1f} mm there"
        )
    inset = max(0.0, apart - 0.9 * reach)
    return low + inset, high - inset


def rebin(
    folder: Path, z_mm: Sequence[float] | None = None, *, n_views: int = 23, start: float = 0.0, size: int = 256
) -> Scan:
    """Parallel views of some slices of a helical scan.

    Args:
        folder: of DICOM-CT-PD files, one series.
        z_mm: heights of the slices, in the files' coordinate, put in ascending order; by default the middle one alone.
        n_views: views, evenly over half a turn.
        start: angle of the first one [rad].
        size: pixels along each side of the image, the disc that all views see; cells of the detector are as wide.

    Returns:
        Data (slices, views, cells), or (views, cells) of one slice; the noise that was found, the heights, and `info` with how.

    Raises:
        FileNotFoundError, ValueError: see `read_projections`; or a slice is not seen from all sides.
    """
    if n_views < 1 or size < 8:
        raise ValueError(f"rebin: expected n_views >= 1 and size >= 8, got {n_views} and {size}")
    p = read_projections(folder)
    low, high = heights(p)
    if low > high:
        raise ValueError(f"{folder}: its {len(p.views)} views are fewer than one whole slice needs")
    levels = [float(low + high) / 2] if z_mm is None else sorted(float(z) for z in z_mm)
    independent = len(p.views) * math.pi / abs(float(np.ptp(p.column("phi")))) / max(2, len(p.spots))
    if n_views > independent:
        warnings.warn(
            f"{folder}: of {n_views} views in half a turn about {independent:.0f} are independent, the others lie between the same measured ones; "
            "the noise is stated for so many independent ones",
            stacklevel=2,
        )
    for z in levels:
        if not low - 1e-6 <= z <= high + 1e-6:
            raise ValueError(
                f"{folder}: has no whole slice at {z:g} mm; slices from {low:.1f} to {high:.1f} mm are seen from all sides"
            )
    z_views, margin = p.column("z"), 1.5 * reach_mm(p)
    reading: tuple[int, int] | None = None
    found, better = [], (1.0, 1.0)
    for z in levels:
        which = np.flatnonzero(np.abs(z_views - z) <= margin)
        if len(which) < 8:
            raise ValueError(f"{folder}: only {len(which)} views are near the slice at {z:g} mm")
        data = p.pixels(which)
        if reading is None:
            reading, better = find_reading(p, which, data, z)
        found.append(parallel(spots(p, which, data, reading), z, n_views, start, size, str(folder)))
    assert reading is not None
    y, noise, cell_mm = (np.stack([f[0] for f in found]), np.stack([f[1] for f in found]), found[0][2])
    noise = noise * max(1.0, n_views / independent) ** 0.5
    angles = tuple(start + math.pi * k / n_views for k in range(n_views))
    operator = plugins.get("operators", "parallel_beam_ct")((size, size), angles, size, cell_mm, cell_mm)
    info = {
        "created_by": f"scoreinv {package_version()} rebin", "source": folder.name, "patient": p.patient,
        "rebinned": "single-slice, from helical cone-beam projections to parallel beams", "focal_spots": len(p.spots),
        "columns_reversed": reading[0] != READINGS[0][0], "rows_reversed": reading[1] != READINGS[0][1],
        "other_columns_error": float(f"{better[0]:.3g}"), "other_rows_error": float(f"{better[1]:.3g}"),
    }  # fmt: skip
    if len(levels) == 1:
        y, noise = y[0], noise[0]
    one = Problem(operator, torch.from_numpy(y.astype(np.float32)), torch.from_numpy(noise.astype(np.float32)))
    return Scan(one, p.mu_water_per_mm or MU_WATER_PER_MM, info, z_mm=tuple(levels))


def parallel(
    groups: Sequence[Spot], z: float, n_views: int, start: float, size: int, name: str = ""
) -> tuple[np.ndarray, np.ndarray, float]:
    """Parallel views of one slice.

    Args:
        groups: of `spots`.
        z: height of the slice [mm].
        n_views, start, size: see `rebin`.
        name: of what it is made from, for messages.

    Returns:
        Line integrals (n_views, size), the standard deviation of their noise, and the width of a cell [mm].

    Raises:
        ValueError: a line is not seen.
    """
    reach = min(min(float(g.s.max()), -float(g.s.min())) for g in groups)  # what both ends of a line see
    cell_mm = 2 * reach / size
    fine = (np.arange(FINE * size) + 0.5) * cell_mm / FINE - reach
    each = [np.zeros((n_views, size)) for _ in groups]
    for k in track(range(n_views), "rebin", n_views):
        theta = start + math.pi * k / n_views
        for g, out in zip(groups, each, strict=True):
            there, back = (_on_grid(g, angle, z, fine) for angle in (theta, theta + math.pi))
            value, weight = there[0] * there[1] + (back[0] * back[1])[::-1], there[1] + back[1][::-1]
            if (weight <= 0).any():
                off = float(np.abs(fine[weight <= 0]).min())
                raise ValueError(
                    f"{name}: at {z:g} mm no view sees lines {off:.0f} mm from the axis at {math.degrees(theta):.1f} degrees: the pitch is "
                    "too large for this slice, or it lies too near to an end of the scan"
                )
            out[k] = (value / weight).reshape(size, FINE).mean(axis=1)
    y = np.mean(each, axis=0)
    return y, noise_of(np.stack(each)), cell_mm


def _on_grid(g: Spot, theta: float, z: float, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integrals and weights of a direction at some distances from the axis; beyond the outermost ray, air that is seen a little."""
    value, weight = g.seen(theta, z)
    order = np.argsort(g.s)
    s, value, weight = g.s[order], value[order], weight[order]
    known = weight > 0
    if not known.any():
        return np.zeros_like(grid), np.zeros_like(grid)
    w = np.interp(grid, s, weight, left=0.0, right=0.0)
    return np.interp(grid, s[known], value[known]), w


def noise_of(each: np.ndarray) -> np.ndarray:
    """Standard deviation of the noise of a mean over groups (groups, ...), (...): the robust spread of their differences among data of
    about the same line integral."""
    n, mean = len(each), each.mean(axis=0)
    spread = np.stack([np.abs(a - b) for a, b in itertools.combinations(each, 2)])
    edges = np.quantile(mean, np.linspace(0, 1, BINS + 1))
    at = np.clip(np.searchsorted(edges, mean, side="right") - 1, 0, BINS - 1)
    of_bin = np.array([np.median(spread[:, at == b]) if (at == b).any() else np.nan for b in range(BINS)])
    centres = np.array([np.median(mean[at == b]) if (at == b).any() else np.nan for b in range(BINS)])
    known = np.isfinite(of_bin)
    x, logs = centres[known], np.log(np.maximum(of_bin[known], 1e-6))
    log_std = np.interp(mean, x, logs)
    if len(x) > 1 and x[-1] > x[-2]:  # beyond the last bin as between the last two: noise grows to the largest integral
        log_std = log_std + np.clip(mean - x[-1], 0, None) * max(0.0, (logs[-1] - logs[-2]) / (x[-1] - x[-2]))
    return np.asarray(np.exp(log_std) * 1.4826 / math.sqrt(2 * n))


def find_reading(
    p: Projections, which: np.ndarray, data: np.ndarray, z: float
) -> tuple[tuple[int, int], tuple[float, float]]:
    """The reading of columns and rows for which lines have one integral from both their ends, the first of `READINGS` among equals, and by
    how much it is better: the errors with columns and with rows the other way over its own. About 1 where the slice looks the same either
    way, as with rows of an object that does not change along z."""
    errors = {reading: _inconsistency(spots(p, which, data, reading), z) for reading in READINGS}
    best = min(errors.values())
    found = next(reading for reading in READINGS if errors[reading] <= NO_WORSE * best)
    others = [(-found[0], found[1]), (found[0], -found[1])]
    columns, rows = (errors[other] / max(errors[found], 1e-30) for other in others)
    return found, (columns, rows)


def _inconsistency(groups: Sequence[Spot], z: float) -> float:
    """Mean square difference of lines from their two ends."""
    reach = 0.8 * min(min(float(g.s.max()), -float(g.s.min())) for g in groups)
    grid, total, n = np.linspace(-reach, reach, 257), 0.0, 0
    for k in range(TRIAL_VIEWS):
        theta = math.pi * k / TRIAL_VIEWS
        for g in groups:
            (one, w), (other, v) = (_on_grid(g, angle, z, grid) for angle in (theta, theta + math.pi))
            both = (w > 0) & (v[::-1] > 0)
            total += float(np.square(one - other[::-1])[both].sum())
            n += int(both.sum())
    return total / n if n else math.inf
