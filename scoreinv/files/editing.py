"""Images to edit and edited ones, from files to the unit of a prior and back.

    CT                        values are HU,            u = HU / 1000
    gray pictures, 8 bits     0 to 255 are HU,          u = HU / 1000   (-1000 HU is black, 1000 HU white)
    colour pictures           values p are in [0, 1],   u = 2 p − 1

so that black is -1 and white 1, as networks for pictures have it. Photographs are turned as their camera says (EXIF).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreinv import plugins
from scoreinv.files.atomic import replacing
from scoreinv.files.hdf5 import existing_file
from scoreinv.files.images import DISPLAY_WINDOW_HU, PICTURES, read_image, warn_unless_hu
from scoreinv.files.reconstruction import Reconstruction, write_reconstruction
from scoreinv.pictures import write_png_gray
from scoreinv.units import MU_WATER_PER_MM, mu_from_hu

PHOTOGRAPHS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")
RESULTS = (".h5", ".npy", ".png", ".tif", ".tiff")
"""What edited images are written to."""

_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16S")
"""Pillow's modes of one value a pixel and more than 8 bits."""


@dataclasses.dataclass(frozen=True, eq=False)
class Canvas:
    """An image to edit.

    Attributes:
        values: (H, W) [HU], or (3, H, W) in [0, 1].
        pixel_mm: side of a pixel [mm], where known.
    """

    values: Tensor
    pixel_mm: float | None = None

    @property
    def colour(self) -> bool:
        """Whether values are of red, green and blue."""
        return self.values.ndim == 3

    @property
    def u(self) -> Tensor:
        """The image in the prior's unit."""
        return 2 * self.values - 1 if self.colour else self.values / 1000

    def valued(self, u: Tensor) -> Tensor:
        """Images in the prior's unit, (..., H, W) or (..., 3, H, W), as values."""
        return (u + 1) / 2 if self.colour else 1000 * u


def read_gray(
    path: Path, *, pixel_mm: float | None = None, index: int | None = None, photograph: bool = False
) -> Canvas:
    """An image of one value a pixel: CT as `read_image` reads it, or a picture whose red, green and blue are equal.

    Args:
        path: of the image.
        pixel_mm: side of a pixel [mm]; may stay unknown for pictures and .npy.
        index: of a series or volume: this slice.
        photograph: 16-bit unsigned pictures are black to white, from 0 to 65535, and not refused.

    Raises:
        FileNotFoundError, ValueError: see `read_image`; or there are several slices, or the picture is in colour.
    """
    if path.suffix.lower() in PHOTOGRAPHS and not path.is_dir():
        pixels = _pixels(path)
        if pixels.ndim == 3 and (pixels != pixels[..., :1]).any():
            raise ValueError(
                f"{path}: is a colour picture, where a gray one is expected; convert it to gray, or give a prior of colour images "
                "with --prior"
            )
        if pixels.ndim == 3 or pixels.dtype == np.uint8 or (photograph and pixels.dtype == np.uint16):
            gray = _unit_interval(pixels if pixels.ndim == 2 else pixels[..., 0])
            low, high = DISPLAY_WINDOW_HU
            return Canvas(torch.from_numpy(low + (high - low) * gray), pixel_mm)
    sized = path.suffix.lower() not in PICTURES or path.is_dir()
    ct = read_image(path, pixel_mm if sized else pixel_mm or 1.0, index=index)
    if len(ct.hu) != 1:
        raise ValueError(f"{path}: holds {len(ct.hu)} slices; choose one with --slice")
    warn_unless_hu(path, ct.hu)
    return Canvas(torch.from_numpy(ct.hu[0]), ct.pixel_mm if sized else pixel_mm)


def read_colour(path: Path) -> Canvas:
    """A colour picture of 8 bits a channel, or 16 in TIFF.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture, or a gray one.
    """
    if path.suffix.lower() not in PHOTOGRAPHS or path.is_dir():
        raise ValueError(f"{path}: the prior is of colour images, so a picture is expected: {', '.join(PHOTOGRAPHS)}")
    pixels = _pixels(path)
    if pixels.ndim != 3:
        raise ValueError(
            f"{path}: is a gray picture, and the prior is of colour images; convert it to RGB, give a prior of gray images, or "
            "colourise it: scoreinv edit colourise"
        )
    return Canvas(torch.from_numpy(np.ascontiguousarray(_unit_interval(pixels).transpose(2, 0, 1))))


def read_mask(path: Path, shape: Sequence[int]) -> Tensor:
    """Where a mask is white (of an .npy: not 0), (H, W) bool.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture, or of another shape.
    """
    if path.suffix.lower() == ".npy":
        existing_file(path)
        try:
            white = np.load(path, allow_pickle=False) != 0
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as .npy: {str(error).splitlines()[0][:120]}") from error
    else:
        pixels = _unit_interval(_pixels(path))
        white = (pixels if pixels.ndim == 2 else pixels.mean(axis=-1)) > 0.5
    if white.shape != tuple(shape):
        raise ValueError(
            f"{path}: the mask has the shape {white.shape}, the image {tuple(shape)} (rows, columns); draw it on the image itself"
        )
    return torch.from_numpy(white)


def write_edited(
    path: str | os.PathLike[str], values: Tensor, canvas: Canvas, settings: dict[str, Any], seed: int
) -> list[Path]:
    """Write edited images: all in one .h5 (`files.reconstruction`), .npy or TIFF, or a PNG each.

    Gray ones are HU, as float32, or in PNG 8 bits from -1000 to 1000 HU. Colour ones are numbers in [0, 1] in .npy and .h5, 16 bits in
    TIFF, 8 bits in PNG; the last two without what cannot be shown (`in_gamut`).

    Args:
        path: where to.
        values: (M, H, W) [HU], or (M, 3, H, W).
        canvas: what they were made of.
        settings: how, for .h5.
        seed: of the randomness.

    Returns:
        The files: of several PNGs NAME-1.png, NAME-2.png ...
    """
    path, suffix = checked_result(path), Path(path).suffix.lower()
    if suffix == ".h5":
        samples = values if canvas.colour else mu_from_hu(values)
        mu_water = None if canvas.colour else MU_WATER_PER_MM
        write_reconstruction(
            path, Reconstruction(samples, None, settings, seed, canvas.pixel_mm, mu_water, versions=_versions())
        )
    elif suffix == ".npy":
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, values.numpy())
    elif suffix == ".png":
        names = [path] if len(values) == 1 else [path.with_stem(f"{path.stem}-{k + 1}") for k in range(len(values))]
        for name, value in zip(names, values, strict=True):
            _write_png(name, value)
        return names
    else:
        _write_tiff(path, values)
    return [path]


def checked_result(path: str | os.PathLike[str]) -> Path:
    """The path of a result.

    Raises:
        ValueError: its suffix names no format that edited images are written in.
    """
    path = Path(path)
    if path.suffix.lower() not in RESULTS:
        raise ValueError(f"--out {path}: expected a name that ends in one of {', '.join(RESULTS)}")
    return path


def in_gamut(rgb: Tensor) -> Tensor:
    """Colours (..., 3, H, W) drawn towards gray of their own luminance until they lie in [0, 1]; luminance beyond that is cut off."""
    luminance = plugins.get("operators", "grayscale")(tuple(rgb.shape[-3:]))
    gray = luminance(rgb).clamp(0, 1)
    colour = rgb - luminance(rgb)
    room = torch.where(colour > 0, 1 - gray, gray) / colour.abs().clamp(min=1e-12)
    shown: Tensor = (gray + room.amin(dim=-3, keepdim=True).clamp(max=1) * colour).clamp(0, 1)
    return shown


def _versions() -> dict[str, str]:
    from scoreinv.files.versions import versions

    return versions()


def _write_png(path: Path, value: Tensor) -> None:
    if value.ndim == 2:
        write_png_gray(path, value)
        return
    from PIL import Image

    pixels = (255 * in_gamut(value)).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _write_tiff(path: Path, values: Tensor) -> None:
    import tifffile

    gray = values.ndim == 3
    pages = values.numpy() if gray else _sixteen_bits(values)
    with replacing(path) as temporary:
        tifffile.imwrite(temporary, pages, photometric="minisblack" if gray else "rgb", metadata=None)


def _sixteen_bits(rgb: Tensor) -> np.ndarray:
    """(M, H, W, 3) uint16."""
    return np.asarray((65535 * in_gamut(rgb)).round().permute(0, 2, 3, 1).contiguous().numpy(), dtype=np.uint16)


def _unit_interval(pixels: np.ndarray) -> np.ndarray:
    """Pixels of whole numbers from 0 to the largest of their type, as float32 in [0, 1]; others as they are."""
    if pixels.dtype.kind != "u":
        return np.asarray(pixels, dtype=np.float32)
    return np.asarray(pixels.astype(np.float64) / np.iinfo(pixels.dtype).max, dtype=np.float32)


def _pixels(path: Path) -> np.ndarray:
    """(H, W) or (H, W, 3) of a picture's first page: uint8, uint16, or the signed or real numbers of a TIFF."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    existing_file(path)
    if path.suffix.lower() in (".tif", ".tiff") and (deep := _deep_colour(path)) is not None:
        return deep
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode in _DEEP:
                values = np.asarray(picture)
                unsigned = picture.mode == "I" and opened.format == "PNG"  # of 16 bits, in some versions of Pillow
                return values.astype(np.uint16) if unsigned else values
            return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture: {str(error).splitlines()[0][:120]}") from error


def _deep_colour(path: Path) -> np.ndarray | None:
    """(H, W, 3) uint16 of a TIFF of 16 bits a channel, of which Pillow keeps 8 or none; None for other files."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            deep = page.dtype == np.uint16 and page.ndim == 3 and page.shape[-1] in (3, 4)
            return np.asarray(page.asarray())[..., :3] if deep else None
    except (tifffile.TiffFileError, ValueError, OSError):
        return None
