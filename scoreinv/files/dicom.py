"""CT slices from DICOM, by pydicom: rescaled to Hounsfield units and sorted along the axis of the series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Series = tuple[np.ndarray, float, str]
"""Values (slices, H, W) [HU], side of a pixel [mm], patient."""


def read_series(path: Path) -> Series:
    """One DICOM file, or the one CT series that a folder holds (other modalities and localizers are passed over).

    Raises:
        ValueError: there is no CT image, there is more than one series, or slices do not fit together.
    """
    if not path.is_dir():
        return _series(path, [_header(path, stop_before_pixels=False)])
    groups = _groups(path)
    if len(groups) != 1:
        counts = ", ".join(f"{where.name} ({len(headers)} slices)" for where, headers in groups)
        what = f"holds {len(groups)} CT series: {counts}" if groups else "holds no CT images in DICOM"
        raise ValueError(f"{path}: {what}; give the folder of one series or one file")
    return _series(*groups[0])


def all_series(folder: Path) -> list[tuple[Path, Series]]:
    """Every CT series below a folder, each with the place that it was found in."""
    return [(where, _series(where, headers)) for where, headers in _groups(folder)]


def _groups(folder: Path) -> list[tuple[Path, list[Any]]]:
    """Headers of the CT images below a folder, by series and path; their `filename` leads to the pixels."""
    found: dict[str, list[Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if not _is_dicom(path):
            continue
        header = _header(path, stop_before_pixels=True)
        if header.get("Modality") == "CT" and "LOCALIZER" not in (header.get("ImageType") or ()):
            found.setdefault(str(header.get("SeriesInstanceUID", path.parent)), []).append(header)
    return [(Path(headers[0].filename).parent, headers) for headers in found.values()]


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _header(path: Path, *, stop_before_pixels: bool) -> Any:
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except (pydicom.errors.InvalidDicomError, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as DICOM: {str(error).splitlines()[0][:120]}") from error


def _series(path: Path, headers: list[Any]) -> Series:
    if len(headers) > 1:
        headers = sorted(headers, key=_position)
    first = headers[0]
    if first.get("Modality") != "CT":
        raise ValueError(
            f"{path}: modality is {first.get('Modality', 'missing')}, expected CT (values in Hounsfield units)"
        )
    spacing = first.get("PixelSpacing")
    if spacing is None:
        raise ValueError(
            f"{path}: has no PixelSpacing; enhanced multi-frame CT must be converted to one file a slice first"
        )
    for header in headers:
        if (header.Rows, header.Columns, header.get("PixelSpacing")) != (first.Rows, first.Columns, spacing):
            raise ValueError(
                f"{header.filename}: this slice differs in size or pixel spacing from "
                f"{Path(first.filename).name} of the same series"
            )
    patient = str(first.get("PatientID") or first.get("PatientName") or path.name.split(".")[0])
    return np.stack([_pixels(h) for h in headers]), square_pixel(path, float(spacing[0]), float(spacing[1])), patient


def _position(header: Any) -> float:
    """Distance along the normal of the slices [mm]; the instance number where the file states no position."""
    position, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if position is None or orientation is None:
        return float(header.get("InstanceNumber") or 0)
    row, column = np.array(orientation[:3], dtype=float), np.array(orientation[3:], dtype=float)
    return float(np.cross(row, column) @ np.array(position, dtype=float))


def _pixels(header: Any) -> np.ndarray:
    """Slope * stored + intercept, (H, W) float32 [HU]."""
    path = Path(header.filename)
    data = header if "PixelData" in header else _header(path, stop_before_pixels=False)
    if data.get("RescaleIntercept") is None:
        raise ValueError(f"{path}: has no RescaleIntercept, so its values are not in Hounsfield units")
    try:
        stored = np.asarray(data.pixel_array, dtype=np.float32)
    except Exception as error:  # pydicom's decoders raise whatever they like on damaged or unsupported pixel data
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(f"{path}: its pixels cannot be decoded: {why}") from error
    if stored.ndim != 2:
        raise ValueError(f"{path}: expected one gray slice, got pixels of shape {stored.shape}")
    return stored * np.float32(data.get("RescaleSlope", 1)) + np.float32(data.RescaleIntercept)


def square_pixel(path: Path, row_mm: float, column_mm: float) -> float:
    """The side of a square pixel [mm].

    Raises:
        ValueError: pixels are not square, or have no size.
    """
    if not (row_mm > 0 and column_mm > 0):
        raise ValueError(f"{path}: the size of a pixel should be positive, the file says {row_mm:g} x {column_mm:g} mm")
    if abs(row_mm / column_mm - 1) > 1e-3:
        raise ValueError(
            f"{path}: pixels are {row_mm:g} x {column_mm:g} mm; resample the slices to square pixels first"
        )
    return row_mm
