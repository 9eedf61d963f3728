"""Images in: CT slices in Hounsfield units, training sets, colour pictures.

Slices lie as a radiologist sees them (and as DICOM stores axial CT): rows from anterior to posterior, columns from the
patient's right to the left, slices from feet to head. Values below -1000 HU (scanner padding) become -1000.
"""

from __future__ import annotations

import math
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreinv.files import dicom, hdf5
from scoreinv.priors.crops import AIR_HU, ImageSet

DISPLAY_WINDOW_HU = (-1000.0, 1000.0)
"""What 0 and 255 of an 8-bit gray picture stand for."""

PIXEL_MM = (0.02, 10.0)
"""Sides of pixels [mm] that are believed, from small animals to whole bodies at low resolution."""

NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".tif", ".tiff", ".npy")


@dataclass(frozen=True, eq=False)
class CTImages:
    """Slices of one patient.

    Attributes:
        hu: (slices, H, W) float32 [HU], at least -1000.
        pixel_mm: side of a pixel [mm].
        patient: name from the file's metadata, or the name of the file.
    """

    hu: np.ndarray
    pixel_mm: float
    patient: str


def read_image(path: str | os.PathLike[str], pixel_mm: float | None = None, *, index: int | None = None) -> CTImages:
    """Read CT slices from DICOM (a file or the folder of one series), NIfTI, HDF5, .npy, TIFF or PNG.

    The kind of number says what it means: signed integers and floats are Hounsfield units; 8-bit gray is the display
    window of -1000 to 1000 HU; 16-bit unsigned integers are refused, because nothing says where their zero lies.

    Args:
        path: where they are.
        pixel_mm: side of a pixel [mm]; needed for .npy, TIFF and PNG, checked against the file elsewhere.
        index: take this slice alone; negative counts from the end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not what is expected, or pixels are not square, or their size is unknown or contradicts
            `pixel_mm`.
    """
    path = Path(path)
    if pixel_mm is not None and not pixel_mm > 0:
        raise ValueError(f"pixel_mm must be positive, got {pixel_mm}")
    reader = _reader(path)
    hu, found, patient = reader(path) if reader is not _read_hdf5 else _read_hdf5(path, index)
    if index is not None and reader is not _read_hdf5:
        hu = hu[_checked_index(path, index, len(hu))][None]
    side = found if found is not None else pixel_mm
    if side is None:
        raise ValueError(
            f"{path}: this kind of file does not say how large a pixel is; give pixel_mm, --pixel-mm on the command line"
        )
    if found is not None and pixel_mm is not None and abs(found / pixel_mm - 1) > 1e-3:
        raise ValueError(
            f"{path}: pixels are {found:g} mm by the file and {pixel_mm:g} mm by pixel_mm; leave pixel_mm out"
        )
    return CTImages(_clean(path, hu), float(side), patient)


def warn_unless_hu(path: str | os.PathLike[str], hu: np.ndarray) -> None:
    """Warn of values that are hardly Hounsfield units: nothing below water, nothing of bone."""
    low, high = float(hu.min()), float(hu.max())
    if low >= 0 and 0 < high <= 255:
        warnings.warn(
            f"{path}: values lie between {low:g} and {high:g} and are taken as HU (air is -1000, water 0); gray values, normalised images and "
            "attenuation must be converted first",
            stacklevel=2,
        )


def read_picture(path: str | os.PathLike[str]) -> Tensor:
    """Read a colour picture (PNG, JPEG, TIFF); gray ones get three equal channels, transparency is dropped.

    Returns:
        (3, H, W) float32 in [0, 1].
    """
    path = hdf5.existing_file(path)
    with _opened_picture(path) as picture:
        if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
            raise ValueError(f"{path}: has {picture.mode} pixels, expected 8 bits a channel; convert it to RGB first")
        rgb = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))


def read_image_set(paths: Sequence[str | os.PathLike[str]]) -> ImageSet:
    """Training images from many places.

    Args:
        paths: HDF5 files (`hu` (slices, H, W) and `patient`), NIfTI, .npy, TIFF and PNG files, DICOM files, and
            folders, which are searched through for DICOM series and NIfTI files.

    Returns:
        int16 images; patients as the metadata name them, otherwise as the files are named.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a path holds no images, or images that cannot be used.
    """
    images: list[np.ndarray] = []
    patients: list[str] = []
    sides: list[float] = []
    for path in map(Path, paths):
        for slices, names, pixel_mm in _training_images(path):
            _check_training(path, slices, pixel_mm)
            images += list(slices)
            patients += names
            sides += pixel_mm
    if not images:
        raise ValueError(f"found no images in {', '.join(map(str, paths)) or 'an empty list of paths'}")
    return ImageSet(images, patients, sides)


def _check_training(path: Path, slices: np.ndarray, pixel_mm: Sequence[float]) -> None:
    """What would train a prior of something else without a word: gray values for HU, metres for millimetres."""
    low, high = int(slices.min()), int(slices.max())
    if low >= 0 and 0 < high <= 255:
        raise ValueError(
            f"{path}: values lie between {low} and {high}: gray values or a normalised image, not Hounsfield units "
            f"(air is -1000, water 0); convert them first"
        )
    odd = [p for p in pixel_mm if p < PIXEL_MM[0] or p > PIXEL_MM[1]]
    if odd:
        raise ValueError(
            f"{path}: a pixel of {odd[0]:g} mm is not that of a CT image ({PIXEL_MM[0]:g} to {PIXEL_MM[1]:g} mm); "
            "mend pixel_mm in the file, or leave it out"
        )


TrainingImages = tuple[np.ndarray, list[str], list[float]]
"""int16 slices (n, H, W), and for each its patient and the side of its pixels [mm], NaN where unknown."""


def _training_images(path: Path) -> list[TrainingImages]:
    if not path.is_dir() and _reader(path) is _read_hdf5:
        return [_hdf5_set(path)]
    if not path.is_dir() and path.suffix.lower() in PICTURES:
        return [_training_part(path, _read_pixels(path))]
    found: list[tuple[Path, Read]] = []
    if path.is_dir():
        nifti = sorted(p for p in path.rglob("*") if p.name.lower().endswith(NIFTI))
        series = dicom.all_series(path)
        if not nifti and not series:
            raise ValueError(f"{path}: found neither DICOM series nor NIfTI files in this folder")
        found += [(p, _read_nifti(p)) for p in nifti]
        found += series
    else:
        found = [(path, _reader(path)(path))]
    return [_training_part(p, read) for p, read in found]


def _training_part(path: Path, read: Read) -> TrainingImages:
    hu, pixel_mm, patient = read
    return _as_int16(_clean(path, hu)), [patient] * len(hu), [math.nan if pixel_mm is None else pixel_mm] * len(hu)


def _as_int16(hu: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(np.clip(hu, AIR_HU, np.iinfo(np.int16).max)), dtype=np.int16)


Read = tuple[np.ndarray, float | None, str]
"""Values (slices, H, W) [HU], side of a pixel [mm] where known, patient."""


def _reader(path: Path) -> Callable[[Path], Read]:
    """What reads this path, by its content where that is easy to tell and by its name otherwise."""
    if path.is_dir():
        return dicom.read_series
    hdf5.existing_file(path)
    name = path.name.lower()
    if name.endswith(NIFTI):
        return _read_nifti
    if name.endswith(PICTURES):
        return _read_pixels
    with open(path, "rb") as file:
        head = file.read(132)
    if head[:4] == b"\x89HDF":
        return _read_hdf5
    if head[128:] == b"DICM" or name.endswith((".dcm", ".ima")):
        return dicom.read_series
    raise ValueError(
        f"{path}: not a kind of image that is known; expected DICOM, NIfTI (.nii, .nii.gz), HDF5, .npy, .tif or .png"
    )


def _read_nifti(path: Path) -> Read:
    """NIfTI turned to RAS+, then to rows front to back and columns right to left."""
    import nibabel

    try:
        image: Any = nibabel.funcs.as_closest_canonical(nibabel.load(path))  # type: ignore[no-untyped-call]
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read as NIfTI: {str(error).splitlines()[0][:120]}") from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise ValueError(f"{path}: expected one volume (x, y, z), got the shape {values.shape}")
    dx, dy = (float(z) for z in image.header.get_zooms()[:2])
    return values[::-1, ::-1].transpose(2, 1, 0), dicom.square_pixel(path, dy, dx), path.name.split(".")[0]


def _read_hdf5(path: Path, index: int | None = None) -> Read:
    """The layout of training sets: `hu` (slices, H, W), `pixel_mm` (one, or one a slice), `patient` (one a slice)."""
    with hdf5.reading(path) as file:
        stored = _hu_dataset(file)
        i = None if index is None else _checked_index(path, index, len(stored))
        hu = stored[()] if i is None else stored[i][None]
        sizes = hdf5.numbers(file, "pixel_mm")
        names = _patients(file, path, len(stored))
    if sizes is not None and sizes.ndim > 0 and i is not None:
        sizes = sizes[i]
    if sizes is not None and np.ptp(sizes) > 1e-3 * np.max(sizes):
        raise ValueError(
            f"{path}: its {len(hu)} slices have pixels of {np.min(sizes):g} to {np.max(sizes):g} mm; "
            f"choose one with index, --slice on the command line"
        )
    if i is None and len(set(names)) > 1:
        raise ValueError(
            f"{path}: holds {len(set(names))} patients; choose one slice with index, --slice on the command line"
        )
    return hu, None if sizes is None else float(np.mean(sizes)), names[i or 0]


def _hdf5_set(path: Path) -> TrainingImages:
    with hdf5.reading(path) as file:
        stored = _hu_dataset(file)
        hu, names, sizes = stored[()], _patients(file, path, len(stored)), hdf5.numbers(file, "pixel_mm")
    sides = np.broadcast_to(math.nan if sizes is None else sizes, len(hu)).tolist()
    if hu.dtype == np.int16:
        return np.maximum(hu, AIR_HU, out=hu), names, sides
    return _as_int16(_clean(path, hu)), names, sides


def _hu_dataset(file: Any) -> Any:
    stored = hdf5.dataset(file, "hu")
    if stored is None or stored.ndim != 3 or stored.dtype.kind not in "if":
        what = "is missing" if stored is None else f"is {stored.dtype} {stored.shape}"
        raise ValueError(
            f"{file.filename}: expected a dataset hu (slices, H, W) of signed integers or floats [HU], it {what}"
        )
    if 0 in stored.shape:
        raise ValueError(f"{file.filename}: hu is empty, its shape is {stored.shape}")
    return stored


def _patients(file: Any, path: Path, n: int) -> list[str]:
    stored = hdf5.dataset(file, "patient")
    if stored is None:
        return [path.stem] * n
    if stored.shape != (n,):
        raise ValueError(f"{path}: patient should hold one name a slice, ({n},), it has the shape {stored.shape}")
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in stored[()]]


def _read_pixels(path: Path) -> Read:
    """.npy, TIFF (of one or more pages) and PNG; what a value means follows from its type."""
    values = _load_npy(path) if path.suffix.lower() == ".npy" else _load_pages(path)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"{path}: expected gray values (H, W) or (slices, H, W), got the shape {values.shape}")
    if values.dtype == np.uint8:
        low, high = DISPLAY_WINDOW_HU
        return low + (high - low) / 255 * values.astype(np.float32), None, path.name.split(".")[0]
    if values.dtype.kind not in "if":
        raise ValueError(
            f"{path}: holds {values.dtype} values, from which Hounsfield units cannot be told; "
            f"save it as int16 or float32 HU in .npy or .tif, or as 8-bit gray for the window of -1000 to 1000 HU"
        )
    return values, None, path.name.split(".")[0]


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as .npy: {str(error).splitlines()[0][:120]}") from error


def _load_pages(path: Path) -> np.ndarray:
    from PIL import ImageSequence

    with _opened_picture(path) as picture:
        modes = {
            "L": np.uint8,
            "F": np.float32,
            "I": np.int32,
            "I;16": np.uint16,
            "I;16B": np.uint16,
            "I;16S": np.int16,
        }
        if picture.mode not in modes:
            raise ValueError(f"{path}: is no gray picture (mode {picture.mode}); expected one value a pixel")
        # A PNG of 16 bits opens as "I" in some versions of Pillow; only TIFF has signed integers.
        unsigned = picture.mode == "I" and picture.format == "PNG"
        pages = [np.asarray(page) for page in ImageSequence.Iterator(picture)]
    if len({page.shape for page in pages}) > 1:
        raise ValueError(f"{path}: its pages have different sizes")
    return np.stack(pages).astype(np.uint16 if unsigned else pages[0].dtype)


def _opened_picture(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(path)
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture: {str(error).splitlines()[0][:120]}") from error
    return picture


def _checked_index(path: Path, index: int, n: int) -> int:
    if not -n <= index < n:
        raise ValueError(f"{path}: has {n} slices, there is no slice {index}")
    return index % n


def _clean(path: Path, hu: np.ndarray) -> np.ndarray:
    hu = np.ascontiguousarray(hu, dtype=np.float32)
    bad = int((~np.isfinite(hu)).sum())
    if bad:
        raise ValueError(f"{path}: {bad} pixels are NaN or infinite; replace them first")
    return np.asarray(np.maximum(hu, AIR_HU))
