"""X-ray transforms in two dimensions: parallel beam, and fan beam with a flat detector.

Axes: images are (*batch, H, W), row 0 on top; x points right, y up, and the rotation axis x = y = 0 is the image's
centre. The centre of pixel (i, j) is x = (j - (W - 1) / 2) p, y = ((H - 1) / 2 - i) p with the pixel size p in mm.
Detector: cell d of n lies at u = (d - (n - 1) / 2) detector_mm + detector_offset_mm along (cos θ, sin θ), seen from the
projection of the rotation axis. A positive offset moves the detector towards growing u; when the axis projects to cell
c (a centre-of-rotation search gives such a number), the offset is ((n - 1) / 2 - c) detector_mm.

Parallel beam: the ray (θ, u) is the line x cos θ + y sin θ = u, run through along (sin θ, -cos θ): at θ = 0 from the
top of the image to its bottom, with detector cell 0 at the left.
Fan beam: at angle θ the source is at R (sin θ, -cos θ) and the cell u at D (-sin θ, cos θ) + u (cos θ, sin θ), where
R = source_origin_mm and D = origin_detector_mm: at θ = 0 the source is below the image. As θ grows both turn
anticlockwise.

A x is the integral of x along the rays: x in 1/mm gives a dimensionless sinogram (*batch, views, detectors).

How it is computed: on the CPU by a sparse matrix of ASTRA's weights, made once for each geometry and shared by equal
operators, and by its exact transpose. Where matrix and transpose would exceed `memory_budget_bytes` (float32; float64
data take as much again and half more), ASTRA's own projectors are used, also matched, but in float32 and one image
after another. On CUDA, float32 data go through ASTRA's GPU projectors without leaving the device; their back-projection
is *not* the exact transpose (they interpolate along the ray going out and on the detector coming back), and they know
one kind of weights, an interpolation of their own. With weights other than the default, float64 data, or an ASTRA
without CUDA, the same matrix as on the CPU is used on the device, where the adjoint is exact. The CUDA paths are not
part of the automatic tests.

Source of the weights: van Aarle et al., Fast and flexible X-ray tomography using the ASTRA toolbox, Opt. Express 24
(2016).
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scoreinv.linop import LinearOperator
from scoreinv.operators import _astra, _checks, _system_matrix
from scoreinv.operators._checks import GeometryWarning, MemoryWarning

__all__ = ["CTOperator", "FanBeamCT", "GeometryWarning", "MemoryWarning", "ParallelBeamCT", "equispaced_angles"]


def equispaced_angles(n_views: int, arc: float = math.pi) -> tuple[float, ...]:
    """n angles [rad] that divide an arc evenly, from 0, the arc's end left out: π for parallel beams, 2π for a full fan
    scan.

    Raises:
        ValueError: n_views is less than 1 or arc is not positive and finite.
    """
    if n_views < 1 or not 0 < arc < math.inf:
        raise ValueError(f"equispaced_angles: expected n_views >= 1 and a positive arc, got {n_views} and {arc}")
    return tuple(arc * k / n_views for k in range(n_views))


class CTOperator(LinearOperator):
    """What the geometries have in common; the attributes are fields of the concrete classes."""

    image_shape: tuple[int, int]
    angles: Sequence[float]
    n_detectors: int
    pixel_mm: float
    detector_mm: float
    detector_offset_mm: float
    weights: str
    memory_budget_bytes: int
    turn: ClassVar[float] = 2 * math.pi
    """After which views repeat or are their own mirror images [rad]."""

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.image_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (len(self.angles), self.n_detectors)

    def covered(self) -> float:
        """Share of a turn within which the views lie, the widest gap between them left out: 1 for views all round."""
        at = sorted(angle % self.turn for angle in self.angles)
        gaps = sorted(b - a for a, b in itertools.pairwise([*at, at[0] + self.turn]))
        return min(1.0, 1 - (gaps[-1] - gaps[len(gaps) // 2]) / self.turn)

    def in_view(self) -> float:
        """Share of the disc inscribed in the image that every view sees: 1 where the detector covers the disc's shadow."""
        reach = self.n_detectors * self.detector_mm / 2 - abs(self.detector_offset_mm)
        diameter = min(self.image_shape) * self.pixel_mm
        return min(1.0, 2 * self._radius_mm(max(0.0, reach)) / diameter) ** 2

    def _radius_mm(self, reach_mm: float) -> float:
        """Of the disc around the axis whose shadow reaches so far on the detector."""
        return reach_mm

    @property
    def detector_positions_mm(self) -> tuple[float, ...]:
        """u of every cell's centre, see the module's head."""
        return tuple(
            (d - (self.n_detectors - 1) / 2) * self.detector_mm + self.detector_offset_mm
            for d in range(self.n_detectors)
        )

    @property
    def matrix_bytes(self) -> int:
        """Estimate of the memory of the sparse matrix with its transpose in float32; making it takes thrice that."""
        entries = {
            "line": 4 / math.pi * self.rays_per_pixel,
            "linear": 1.8 * self.rays_per_pixel,
            "strip": 4 / math.pi * self.rays_per_pixel + 2,
        }
        per_view = self.image_shape[0] * self.image_shape[1] * entries[self.weights]
        return int(per_view * len(self.angles)) * _system_matrix.BYTES_PER_WEIGHT

    @property
    @abc.abstractmethod
    def rays_per_pixel(self) -> float:
        """Pixel size over the detector pitch seen at the rotation axis: how many rays a pixel meets."""

    @property
    @abc.abstractmethod
    def astra_kernel(self) -> str:
        """ASTRA's name of the CPU projector with these weights."""

    @abc.abstractmethod
    def astra_geometry(self) -> dict[str, Any]:
        """ASTRA's description of the projections, in units of one pixel."""

    @abc.abstractmethod
    def rays(self) -> tuple[Tensor, Tensor]:
        """A point on every ray [mm] and its unit direction, both (views, detectors, 2) in float64, as (x, y)."""

    def fbp(self, y: Tensor, window: str = "ramp") -> Tensor:
        """Filtered back-projection of a sinogram, see `scoreinv.operators.fbp`."""
        from scoreinv.operators.fbp import fbp

        return fbp(self, y, window)

    def _forward(self, x: Tensor) -> Tensor:
        return self._apply(x, adjoint=False)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._apply(y, adjoint=True)

    def _apply(self, x: Tensor, *, adjoint: bool) -> Tensor:
        given, wanted = (self.out_shape, self.in_shape) if adjoint else (self.in_shape, self.out_shape)
        batch = x.shape[: x.ndim - 2]
        flat = x.detach().reshape(-1, *given).to(torch.promote_types(x.dtype, torch.float32))
        if flat.shape[0] == 0:
            return x.new_zeros(*batch, *wanted)
        if flat.is_cuda and flat.dtype == torch.float32 and self.weights == type(self).weights and _astra.has_cuda():
            result = _astra.project(self, flat, adjoint=adjoint, kernel="cuda")
        elif self.matrix_bytes <= self.memory_budget_bytes:
            result = _system_matrix.product(self, flat.flatten(1), adjoint=adjoint)
        else:
            result = _astra.project(self, flat.cpu(), adjoint=adjoint, kernel=self.astra_kernel)
        return result.reshape(*batch, *wanted).to(x)

    def _normalise(self) -> None:
        """Plain Python numbers in every field, so that equality, hash and repr mean what they say."""
        name = type(self).__name__
        shape = tuple(int(n) for n in self.image_shape)
        if len(shape) != 2:
            raise ValueError(f"{name}: image_shape must be (H, W), got {shape}")
        object.__setattr__(self, "image_shape", shape)
        object.__setattr__(self, "angles", _checks.angles(name, self.angles))
        object.__setattr__(self, "n_detectors", int(self.n_detectors))
        object.__setattr__(self, "memory_budget_bytes", int(self.memory_budget_bytes))
        for length in [f for f in vars(self) if f.endswith("_mm")]:
            object.__setattr__(self, length, float(getattr(self, length)))
        _checks.positive(
            name, **{k: v for k, v in vars(self).items() if k in ("n_detectors", "pixel_mm", "detector_mm")}
        )
        _checks.positive(name, image_height=shape[0], image_width=shape[1])
        _checks.finite(name, detector_offset_mm=self.detector_offset_mm)

    def _warn(self, repeats_after: float, shadow_mm: float) -> None:
        """Warn of a geometry that is possible but seldom meant."""
        name = type(self).__name__
        _checks.warn_of_degrees(name, self.angles)
        _checks.warn_of_repeats(name, self.angles, repeats_after)
        reach = self.n_detectors * self.detector_mm / 2
        _checks.warn_of_truncation(
            name, (self.detector_offset_mm - reach, self.detector_offset_mm + reach), shadow_mm, self.detector_mm
        )
        if self.matrix_bytes > self.memory_budget_bytes:
            _checks.warn_of_memory(name, self.matrix_bytes, self.memory_budget_bytes)


@dataclass(frozen=True)
class ParallelBeamCT(CTOperator):
    """Parallel-beam X-ray transform (*batch, H, W) -> (*batch, views, detectors); conventions at the module's head.

    Attributes:
        image_shape: (H, W).
        angles: θ of each view [rad], any sequence, array or tensor; kept as a tuple of floats.
        n_detectors: number of detector cells.
        pixel_mm: side of a pixel [mm].
        detector_mm: width of a cell [mm].
        detector_offset_mm: position of the detector's centre relative to the projection of the rotation axis [mm].
        weights: "linear" (Joseph: linear interpolation along the ray), "line" (length of the ray in each pixel) or
            "strip" (area of the cell's strip in each pixel, divided by its width).
        memory_budget_bytes: largest sparse matrix (with its transpose) to hold.

    Raises:
        ValueError: no views, angles not finite, sizes not positive, or unknown weights.

    Warns:
        GeometryWarning: the detector misses part of the object, a view is held twice, or angles look like degrees.
        MemoryWarning: the matrix exceeds the budget.
    """

    turn: ClassVar[float] = math.pi
    image_shape: tuple[int, int]
    angles: Sequence[float]
    n_detectors: int
    pixel_mm: float = 1.0
    detector_mm: float = 1.0
    detector_offset_mm: float = field(default=0.0, kw_only=True)
    weights: str = field(default="linear", kw_only=True)
    memory_budget_bytes: int = field(default=2**31, kw_only=True)

    @classmethod
    def for_image(
        cls, shape: tuple[int, int], pixel_mm: float, *, n_views: int = 23, arc: float = math.pi, start: float = 0.0,
        angles: Sequence[float] | None = None, n_detectors: int | None = None, detector_mm: float | None = None,
        detector_offset_mm: float = 0.0, weights: str = "linear",
    ) -> ParallelBeamCT:  # fmt: skip
        """A scanner for images of a shape: views spread evenly over an arc [rad], cells as wide as a pixel that see all of it."""
        detector_mm = pixel_mm if detector_mm is None else detector_mm
        return cls(
            shape, _views(n_views, arc, start, angles), _enough(math.hypot(*shape) * pixel_mm, detector_offset_mm, detector_mm, n_detectors),
            pixel_mm, detector_mm, detector_offset_mm=detector_offset_mm, weights=weights,
        )  # fmt: skip

    def __post_init__(self) -> None:
        self._normalise()
        _checks.choice("ParallelBeamCT", "weights", self.weights, ("linear", "line", "strip"))
        # Half a turn mirrors the detector: with an offset it measures other lines.
        self._warn(math.pi if self.detector_offset_mm == 0 else 2 * math.pi, min(self.image_shape) / 2 * self.pixel_mm)

    @property
    def rays_per_pixel(self) -> float:
        return self.pixel_mm / self.detector_mm

    @property
    def astra_kernel(self) -> str:
        return self.weights

    def astra_geometry(self) -> dict[str, Any]:
        import astra

        p = self.pixel_mm
        theta = np.array(self.angles)
        u = np.stack([np.cos(theta), np.sin(theta)], axis=1)
        direction = np.stack([np.sin(theta), -np.cos(theta)], axis=1)
        vectors = np.concatenate([direction, self.detector_offset_mm / p * u, self.detector_mm / p * u], axis=1)
        return dict(astra.create_proj_geom("parallel_vec", self.n_detectors, vectors))

    def rays(self) -> tuple[Tensor, Tensor]:
        normal, along = _frame(self)
        return (normal * _positions(self)).expand(*self.out_shape, 2), along.expand(*self.out_shape, 2)


@dataclass(frozen=True)
class FanBeamCT(CTOperator):
    """Fan-beam X-ray transform with a flat detector, (*batch, H, W) -> (*batch, views, detectors); see the module's
    head.

    Attributes:
        image_shape: (H, W).
        angles: θ of each view [rad], any sequence, array or tensor; kept as a tuple of floats.
        n_detectors: number of detector cells.
        source_origin_mm: distance of the source from the rotation axis [mm].
        origin_detector_mm: distance of the detector from the rotation axis [mm]; 0 for a virtual detector on the axis.
        pixel_mm: side of a pixel [mm].
        detector_mm: width of a cell [mm], on the detector (not scaled to the axis).
        detector_offset_mm: position of the detector's centre relative to the projection of the rotation axis [mm].
        weights: "line" (length of the ray in each pixel) or "strip" (area of the cell's strip; without offset only).
        memory_budget_bytes: largest sparse matrix (with its transpose) to hold.
        detector: "flat".

    Raises:
        ValueError: as for ParallelBeamCT, or the source is inside the object, or the detector is not "flat".

    Warns:
        GeometryWarning, MemoryWarning: as for ParallelBeamCT.
    """

    image_shape: tuple[int, int]
    angles: Sequence[float]
    n_detectors: int
    source_origin_mm: float
    origin_detector_mm: float
    pixel_mm: float = 1.0
    detector_mm: float = 1.0
    detector_offset_mm: float = field(default=0.0, kw_only=True)
    weights: str = field(default="line", kw_only=True)
    memory_budget_bytes: int = field(default=2**31, kw_only=True)
    detector: str = field(default="flat", kw_only=True)

    @classmethod
    def for_image(
        cls, shape: tuple[int, int], pixel_mm: float, *, source_origin_mm: float, origin_detector_mm: float, n_views: int = 23,
        arc: float = 2 * math.pi, start: float = 0.0, angles: Sequence[float] | None = None, n_detectors: int | None = None,
        detector_mm: float | None = None, detector_offset_mm: float = 0.0, weights: str = "line",
    ) -> FanBeamCT:  # fmt: skip
        """A scanner for images of a shape: views spread evenly over an arc [rad], cells as wide as a magnified pixel that see all of it."""
        magnification = (source_origin_mm + origin_detector_mm) / source_origin_mm if source_origin_mm else math.inf
        detector_mm = pixel_mm * magnification if detector_mm is None else detector_mm
        radius = math.hypot(*shape) / 2 * pixel_mm
        shadow = 2 * magnification * radius / math.sqrt(max(1 - (radius / source_origin_mm) ** 2, 0.01))
        return cls(
            shape, _views(n_views, arc, start, angles), _enough(shadow, detector_offset_mm, detector_mm, n_detectors),
            source_origin_mm, origin_detector_mm, pixel_mm, detector_mm, detector_offset_mm=detector_offset_mm, weights=weights,
        )  # fmt: skip

    def __post_init__(self) -> None:
        self._normalise()
        _checks.choice("FanBeamCT", "detector", self.detector, ("flat",))
        _checks.choice("FanBeamCT", "weights", self.weights, ("line", "strip"))
        _checks.finite("FanBeamCT", source_origin_mm=self.source_origin_mm, origin_detector_mm=self.origin_detector_mm)
        corner = math.hypot(*self.image_shape) / 2 * self.pixel_mm
        if self.source_origin_mm <= corner:
            raise ValueError(
                f"FanBeamCT: the source must stay outside the image, whose corners are {corner:g} mm from the rotation "
                f"axis; got source_origin_mm = {self.source_origin_mm:g}"
            )
        if self.origin_detector_mm < 0:
            raise ValueError(f"FanBeamCT: origin_detector_mm must not be negative, got {self.origin_detector_mm:g}")
        if self.weights == "strip" and self.detector_offset_mm != 0:
            raise ValueError("FanBeamCT: weights='strip' is known without a detector offset only; use weights='line'")
        radius = min(self.image_shape) / 2 * self.pixel_mm
        tangent = radius / math.sqrt(self.source_origin_mm**2 - radius**2)
        self._warn(2 * math.pi, self.source_detector_mm * tangent)

    @property
    def source_detector_mm(self) -> float:
        """Distance of the source from the detector [mm]."""
        return self.source_origin_mm + self.origin_detector_mm

    @property
    def rays_per_pixel(self) -> float:
        return self.pixel_mm / self.detector_mm * self.source_detector_mm / self.source_origin_mm

    def _radius_mm(self, reach_mm: float) -> float:
        return self.source_origin_mm * math.sin(math.atan2(reach_mm, self.source_detector_mm))

    @property
    def astra_kernel(self) -> str:
        return f"{self.weights}_fanflat"

    def astra_geometry(self) -> dict[str, Any]:
        import astra

        p, R, D = self.pixel_mm, self.source_origin_mm, self.origin_detector_mm
        theta = np.array(self.angles)
        if self.weights == "strip":  # ASTRA's strip kernel takes no vectors
            return dict(astra.create_proj_geom("fanflat", self.detector_mm / p, self.n_detectors, theta, R / p, D / p))
        u = np.stack([np.cos(theta), np.sin(theta)], axis=1)
        to_source = np.stack([np.sin(theta), -np.cos(theta)], axis=1)
        centre = -D / p * to_source + self.detector_offset_mm / p * u
        vectors = np.concatenate([R / p * to_source, centre, self.detector_mm / p * u], axis=1)
        return dict(astra.create_proj_geom("fanflat_vec", self.n_detectors, vectors))

    def rays(self) -> tuple[Tensor, Tensor]:
        normal, to_source = _frame(self)
        source = self.source_origin_mm * to_source
        cells = -self.origin_detector_mm * to_source + normal * _positions(self)
        direction = cells - source
        return source.expand(*self.out_shape, 2), direction / direction.norm(dim=-1, keepdim=True)


def _frame(A: CTOperator) -> tuple[Tensor, Tensor]:
    """(cos θ, sin θ) and (sin θ, -cos θ) of every view, (views, 1, 2)."""
    theta = torch.tensor(A.angles, dtype=torch.float64)[:, None]
    cos, sin = theta.cos(), theta.sin()
    return torch.stack([cos, sin], dim=-1), torch.stack([sin, -cos], dim=-1)


def _positions(A: CTOperator) -> Tensor:
    """The detector's cells, (detectors, 1)."""
    return torch.tensor(A.detector_positions_mm, dtype=torch.float64)[:, None]


def _views(n_views: int, arc: float, start: float, angles: Sequence[float] | None) -> Sequence[float]:
    return tuple(start + a for a in equispaced_angles(n_views, arc)) if angles is None else angles


def _enough(shadow_mm: float, offset_mm: float, detector_mm: float, asked: int | None) -> int:
    """So many cells as are asked for, else as cover a shadow, an odd number so that one lies on the axis."""
    if asked is not None:
        return asked
    if not detector_mm > 0:
        raise ValueError(f"detector_mm must be positive, got {detector_mm}")
    return 2 * math.ceil((shadow_mm / 2 + abs(offset_mm)) / detector_mm) + 1
