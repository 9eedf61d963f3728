"""Projections of clinical scanners in DICOM-CT-PD, one file a view.

Chen et al., "Development and validation of an open data format for CT projection data", Medical Physics 42, 2015,
doi:10.1118/1.4935406; tags as in table IV of Moen et al., "Low-dose CT image and projection dataset", Medical Physics 48, 2021,
doi:10.1002/mp.14594. What a view says, in its private tags:

    (7031,1001) φ₀, (7031,1002) z₀, (7031,1003) ρ₀     where the detector's focal centre is: angle, axial, radial
    (7033,100B) Δφ, (7033,100C) Δz, (7033,100D) Δρ      by how much the focal spot is off it (flying focal spot)
    (7031,1031) d₀                                      from the focal centre to the detector
    (7031,1033) (X, Y)                                  column and row, counted from 1, that look through the axis from the focal centre
    (7029,1002), (7029,1006), (7029,1010), (7029,1011)  width of a column and of a row, number of rows and of columns
    (7029,100B)                                         shape of the detector
    (7041,1001)                                         attenuation of water [1/mm]

Pixels are stored column by column: rows of the DICOM image are columns of the detector. Slope and intercept make line integrals of them.
Private tags of implicit files come as bytes; their kind is known from the list above.
"""

from __future__ import annotations

import functools
import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scoreinv.progress import track

FLOATS = {
    "phi": 0x70311001, "z": 0x70311002, "rho": 0x70311003, "dphi": 0x7033100B, "dz": 0x7033100C, "drho": 0x7033100D,
    "detector": 0x70311031, "column_mm": 0x70291002, "row_mm": 0x70291006,
}  # fmt: skip
CENTRE, N_ROWS, N_COLUMNS, SHAPE, WATER = 0x70311033, 0x70291010, 0x70291011, 0x7029100B, 0x70411001
SHIFTS = ("dphi", "dz", "drho")
SHAPES = ("CYLINDRICAL", "FLAT")
SAME = ("detector", "column_mm", "row_mm")
WATER_PER_MM = (0.01, 0.06)
"""From 140 keV down to 30 keV, about."""
STEADY = np.array([5e-5, 0.1, 0.1])
"""By how much a focal spot may move and is still in one place [rad, mm, mm]."""


@dataclass(frozen=True, eq=False)
class View:
    """What one file says.

    Attributes:
        path: of the file.
        numbers: by the names of `FLOATS` [mm, rad].
        centre: (X, Y), from 1.
        shape: (columns, rows) of the detector.
        slope, intercept: of stored values.
        number: of the view in its series.
    """

    path: Path
    numbers: dict[str, float]
    centre: tuple[float, float]
    shape: tuple[int, int]
    slope: float
    intercept: float
    number: int


@dataclass(frozen=True, eq=False)
class Projections:
    """Views in their order, pixels unread.

    Attributes:
        views: of one series.
        detector: CYLINDRICAL or FLAT.
        mu_water_per_mm: None where the files do not state it.
        patient: name, as the files have it.
    """

    views: tuple[View, ...]
    detector: str
    mu_water_per_mm: float | None
    patient: str

    def column(self, name: str) -> np.ndarray:
        """One of the numbers of every view, (views,) float64; angles without jumps."""
        values = np.array([v.numbers[name] for v in self.views], dtype=np.float64)
        return np.unwrap(values) if name == "phi" else values

    def first(self, name: str) -> float:
        """A number that all views share."""
        return self.views[0].numbers[name]

    def check_steps(self) -> None:
        """Raises ValueError where views are missing, there twice, or out of order: angles go on in about equal steps."""
        steps = np.diff(self.column("phi"))
        usual = float(np.median(steps)) if len(steps) else 0.0
        odd = np.flatnonzero((steps * np.sign(usual) < 0.5 * abs(usual)) | (steps * np.sign(usual) > 1.5 * abs(usual)))
        if usual == 0 or len(odd):
            k = int(odd[0]) if len(odd) else 0
            pair = f"{self.views[k].path.name} and {self.views[min(k + 1, len(steps))].path.name}"
            raise ValueError(
                f"{self.views[0].path.parent}: between {pair} the angle goes on by {math.degrees(float(steps[k]) if len(steps) else 0):.3g} "
                f"degrees, usually by {math.degrees(usual):.3g}: views are missing, there twice, or out of order; get the series again"
            )

    @functools.cached_property
    def spots(self) -> tuple[tuple[float, float, float], ...]:
        """The places that the focal spot goes through, view after view: (Δφ, Δz, Δρ) of 1, 2 or 4 of them, medians over their views.
        Warns where they move."""
        shifts = np.stack([self.column(name) for name in SHIFTS], axis=1)
        found = {n: self._places(shifts, n) for n in (1, 2, 4) if n <= len(shifts)}
        moved = {
            n: float((np.abs(shifts - places[np.arange(len(shifts)) % n]) / STEADY).max())
            for n, places in found.items()
        }
        n = next((n for n, m in moved.items() if m <= 1), min(moved, key=lambda n: moved[n]))
        if moved[n] > 1:
            dphi, dz, drho = (float(v) for v in np.abs(shifts - found[n][np.arange(len(shifts)) % n]).max(axis=0))
            warnings.warn(
                f"{self.views[0].path.parent}: the focal spot does not keep to {n} places, but moves by {dphi:.2g} rad, {dz:.2g} mm along the "
                f"axis and {drho:.2g} mm outwards from view to view: their medians are taken",
                stacklevel=2,
            )
        return tuple((float(a), float(b), float(c)) for a, b, c in found[n])

    @staticmethod
    def _places(shifts: np.ndarray, n: int) -> np.ndarray:
        return np.stack([np.median(shifts[k::n], axis=0) for k in range(n)])

    def pixels(self, which: Sequence[int] | np.ndarray) -> np.ndarray:
        """Line integrals of some views, (n, columns, rows) float32.

        Raises:
            ValueError: pixels cannot be read, or have another shape than the header says.
        """
        out = np.empty((len(which), *self.views[0].shape), dtype=np.float32)
        for j, i in enumerate(track(which, "projections", len(which))):
            view = self.views[i]
            stored = bytes(_read(view.path, stop_before_pixels=False).get("PixelData", b""))
            values = np.frombuffer(stored[: len(stored) // 2 * 2], dtype="<u2")
            if values.size != out[j].size:
                raise ValueError(
                    f"{view.path}: holds {values.size} pixels, its header says {view.shape[0]} x {view.shape[1]}"
                )
            out[j] = view.slope * values.reshape(view.shape) + view.intercept
        return out


def is_projections(folder: Path) -> bool:
    """Whether a folder holds DICOM-CT-PD: its first DICOM file has the detector's tags."""
    first = next(iter(_files(folder)), None) if folder.is_dir() else None
    return first is not None and N_COLUMNS in _read(first, stop_before_pixels=True)


def read_projections(folder: Path) -> Projections:
    """The headers of a folder of one series.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no such files, or files of several series, or of a detector that is not understood.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files = _files(folder)
    if not files:
        raise ValueError(f"{folder}: holds no DICOM files")
    views, series, some = [], set(), None
    for path in track(files, "headers", len(files)):
        header = _read(path, stop_before_pixels=True)
        views.append(_view(path, header))
        series.add(str(header.get("SeriesInstanceUID", "")))
        some = some or header  # the others are let go: there may be tens of thousands
    assert some is not None
    if len(series) > 1:
        raise ValueError(f"{folder}: holds {len(series)} series; give the folder of one")
    views.sort(key=lambda v: (v.number, v.path.name))
    first = views[0]
    for v in views:
        for name, theirs, ours in (
            ("shape", v.shape, first.shape),
            ("central element", v.centre, first.centre),
            *((key, v.numbers[key], first.numbers[key]) for key in SAME),
        ):
            if theirs != ours:
                raise ValueError(f"{v.path}: its detector's {name} is {theirs}, that of {first.path.name} {ours}")
    shape = _text(some, SHAPE) or SHAPES[0]
    if shape not in SHAPES:
        raise ValueError(f"{folder}: the detector is {shape}; understood are {' and '.join(SHAPES)}")
    return Projections(tuple(views), shape, _water(folder, _text(some, WATER)), str(some.get("PatientID", "")))


def _water(folder: Path, text: str) -> float | None:
    """Attenuation of water, a text in the files."""
    try:
        found = float(text)
    except ValueError:
        return None
    low, high = WATER_PER_MM
    if low < found < high:
        return found
    warnings.warn(
        f"{folder}: says that water attenuates {text}, expected {low} to {high} per mm: that is left aside",
        stacklevel=3,
    )
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in (".dcm", ".ima"))


def _read(path: Path, *, stop_before_pixels: bool) -> Any:
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except (pydicom.errors.InvalidDicomError, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as DICOM: {str(error).splitlines()[0][:120]}") from error


def _view(path: Path, header: Any) -> View:
    numbers = {name: _number(header, tag) for name, tag in FLOATS.items()}
    counts = [_number(header, tag, whole=True) for tag in (N_COLUMNS, N_ROWS)]
    centre = _pair(header, CENTRE)
    lacking = [name for name, value in numbers.items() if value is None and name not in SHIFTS]
    if lacking or None in counts or centre is None:
        what = ", ".join(
            [
                *lacking,
                *(["size of the detector"] if None in counts else []),
                *(["central element"] if centre is None else []),
            ]
        )
        raise ValueError(f"{path}: is no projection in DICOM-CT-PD, it does not state: {what}")
    known = {name: 0.0 if value is None else value for name, value in numbers.items()}
    columns, rows = (int(n) for n in counts if n is not None)
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    return View(path, known, centre, (columns, rows), slope, intercept, int(header.get("InstanceNumber") or 0))


def _number(header: Any, tag: int, *, whole: bool = False) -> float | None:
    """A private number, whatever pydicom makes of it: a number, a text, or bytes."""
    if tag not in header:
        return None
    value = header[tag].value
    if isinstance(value, bytes):
        if len(value) == (2 if whole else 4):
            return float(struct.unpack("<H" if whole else "<f", value)[0])
        value = value.decode("ascii", "replace").strip("\0 ")
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _pair(header: Any, tag: int) -> tuple[float, float] | None:
    value = header[tag].value if tag in header else None
    if isinstance(value, bytes):
        value = struct.unpack("<2f", value) if len(value) == 8 else None
    if value is None or isinstance(value, str) or len(value) != 2:
        return None
    return float(value[0]), float(value[1])


def _text(header: Any, tag: int) -> str:
    value = header[tag].value if tag in header else ""
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip("\0 ").upper()
