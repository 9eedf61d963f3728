"""Helical scans of ellipsoids, exact, as files of DICOM-CT-PD."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

INTERCEPT = -0.25
"""Of stored values: noise in air is below 0."""


@dataclass(frozen=True)
class Ellipsoid:
    """One of constant attenuation, turned about the z axis; infinite along z where its half axis is."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    angle: float
    mu: float

    def integral(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Along lines from a point (3,) to others (..., 3)."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        a, b = ((turn @ (v - np.array(self.centre))[..., None])[..., 0] / np.array(self.axes) for v in (source, target))
        d = b - a
        A, B, C = (d * d).sum(-1), (a * d).sum(-1), (a * a).sum(-1) - 1
        inside = np.clip(B * B - A * C, 0, None)
        return self.mu * 2 * np.sqrt(inside) / A * np.linalg.norm(target - source, axis=-1)

    def slice_at(self, z: float) -> Ellipsoid:
        """The infinite cylinder that looks the same at height z."""
        rest = 1 - ((z - self.centre[2]) / self.axes[2]) ** 2
        shrunk = float(np.sqrt(max(rest, 1e-12)))
        return Ellipsoid(self.centre, (self.axes[0] * shrunk, self.axes[1] * shrunk, np.inf), self.angle, self.mu)


@dataclass(frozen=True)
class Helix:
    """A small clinical scanner."""

    columns: int = 90
    rows: int = 16
    column_mm: float = 10.0
    row_mm: float = 4.0
    rho: float = 600.0
    detector: float = 1050.0
    centre: tuple[float, float] = (45.75, 8.5)
    views_a_turn: int = 160
    turns: float = 2.5
    feed_mm: float = 24.0
    spots: Sequence[tuple[float, float, float]] = field(default=((0.0, 0.0, 0.0),))
    """(Δφ [rad], Δz [mm], Δρ [mm]), one after the other."""
    along: int = 1
    up: int = -1
    sense: int = 1
    flat: bool = False
    phi_start: float = 0.4

    def view(self, k: int) -> tuple[float, float, tuple[float, float, float], np.ndarray, np.ndarray]:
        """φ₀, z₀, the shifts, the focal spot (3,) and the elements (columns, rows, 3)."""
        phi = self.phi_start + self.sense * 2 * np.pi * k / self.views_a_turn
        z = self.feed_mm * (k / self.views_a_turn - self.turns / 2)
        dphi, dz, drho = self.spots[k % len(self.spots)]
        spot = np.array([(self.rho + drho) * np.sin(phi + dphi), (self.rho + drho) * np.cos(phi + dphi), z + dz])
        u = self.along * (np.arange(1, self.columns + 1) - self.centre[0]) * self.column_mm
        v = self.up * (np.arange(1, self.rows + 1) - self.centre[1]) * self.row_mm
        across, deep = (u, np.full_like(u, self.detector)) if self.flat else (
            self.detector * np.sin(u / self.detector), self.detector * np.cos(u / self.detector)
        )  # fmt: skip
        focal, back, side = (
            self.rho * np.array([np.sin(phi), np.cos(phi)]), -np.array([np.sin(phi), np.cos(phi)]), np.array([-np.cos(phi), np.sin(phi)])
        )  # fmt: skip
        plane = focal + deep[:, None] * back + across[:, None] * side
        elements = np.concatenate(
            [np.repeat(plane[:, None], len(v), 1), np.broadcast_to((z + v)[None, :, None], (len(u), len(v), 1))], -1
        )
        return float(phi), float(z), (dphi, dz, drho), spot, elements

    def scan(self, objects: Sequence[Ellipsoid], photons: float | None = None, seed: int = 0) -> list[np.ndarray]:
        """Line integrals of every view, (columns, rows)."""
        rng, out = np.random.default_rng(seed), []
        for k in range(int(self.views_a_turn * self.turns)):
            _, _, _, spot, elements = self.view(k)
            p = np.sum([o.integral(spot, elements) for o in objects], axis=0)
            if photons is not None:
                p = -np.log(np.maximum(rng.poisson(photons * np.exp(-p)), 0.5) / photons)
            out.append(p)
        return out

    def write(self, folder: Path, data: Sequence[np.ndarray], *, implicit: bool = False, **changed: Any) -> Path:
        """One file a view, named against their order; private tags as bytes where the files are implicit."""
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        folder.mkdir(parents=True, exist_ok=True)
        slope = (1.0001 * max(float(p.max()) for p in data) - INTERCEPT) / 65535
        for k, p in enumerate(data):
            phi, z, (dphi, dz, drho), _, _ = self.view(k)
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"1.2.{k + 1}"
            meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            path = folder / f"{len(data) - k:05d}.dcm"
            ds = FileDataset(
                str(path), {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=implicit, is_little_endian=True
            )
            ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = CTImageStorage, f"1.2.{k + 1}", "1.2.9"
            ds.PatientID, ds.Modality, ds.InstanceNumber = "L001", "CT", k + 1
            ds.Rows, ds.Columns = self.columns, self.rows
            ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.BitsAllocated = 1, "MONOCHROME2", 16
            ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 0
            ds.RescaleSlope, ds.RescaleIntercept = f"{slope:.10g}", str(INTERCEPT)
            ds.PixelData = np.clip(np.rint((p - INTERCEPT) / float(ds.RescaleSlope)), 0, 65535).astype("<u2").tobytes()
            numbers = {
                0x70291002: self.column_mm, 0x70291006: self.row_mm, 0x70311001: np.angle(np.exp(1j * phi)), 0x70311002: z,
                0x70311003: self.rho, 0x70311031: self.detector, 0x7033100B: dphi, 0x7033100C: dz, 0x7033100D: drho,
            }  # fmt: skip
            private: dict[int, tuple[str, Any]] = {tag: ("FL", float(value)) for tag, value in numbers.items()}
            private[0x70291010], private[0x70291011] = ("US", self.rows), ("US", self.columns)
            private[0x70311033] = ("FL", list(self.centre))
            private[0x7029100B] = ("CS", "FLAT" if self.flat else "CYLINDRICAL")
            private[0x70411001] = ("DS", "0.0192")
            for name, value in changed.items():
                private[int(name.removeprefix("tag_"), 16)] = value
            for tag, (vr, value) in private.items():
                if value is None:
                    continue
                if implicit and vr in ("FL", "US"):
                    several = value if isinstance(value, list) else [value]
                    value, vr = struct.pack(f"<{len(several)}{'f' if vr == 'FL' else 'H'}", *several), "UN"
                ds.add_new(tag, vr, value)
            ds.save_as(path)
        return folder


BODY = (
    Ellipsoid((10.0, -5.0, 0.0), (150.0, 105.0, np.inf), 0.2, 0.0192),
    Ellipsoid((-50.0, 20.0, 0.0), (40.0, 25.0, np.inf), -0.6, 0.006),
    Ellipsoid((60.0, -30.0, 0.0), (18.0, 30.0, np.inf), 0.9, -0.012),
)
"""Cylinders without symmetry."""
