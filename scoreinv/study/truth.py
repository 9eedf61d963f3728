"""The true images of a sweep: of patients in a file, or phantoms, which need no data.

A record (a plain dict) identifies an image; `load` makes the image from it, anywhere. `finer` gives the same image on a grid
`refine` times as fine, from which data without an inverse crime are simulated:

    phantom   sampled on the finer grid
    file      block means of a stored image that is fine enough: one in the file `fine` whose block means are the image (to 2 HU), or
              the original, where `size` has made it coarser
    else      linear interpolation L x, corrected to keep the means: L x + R (x − M L x), with M the means of blocks of refine x refine
              pixels and R their repetition, so that M of it is x
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scoreinv.arguments import ArgumentError, check, plain
from scoreinv.files.images import read_image_set
from scoreinv.phantoms import Ellipse, random_ellipses, rasterise, shepp_logan
from scoreinv.plugins import did_you_mean
from scoreinv.priors.crops import ImageSet
from scoreinv.units import hu_from_mu

DATA = "SCOREINV_DATA"
SUBPIXELS = 4
"""A pixel of a phantom is the mean of so many samples in each direction."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class ImageFile:
    """CT images of patients.

    Attributes:
        file: as `scoreinv.files.images.read_image_set` reads them; may start with $SCOREINV_DATA.
        patients: their names, or how many of them in the order of their names; None for all.
        slices: "middle", "all", or their numbers within each patient.
        size: side to which they are reduced by block means [pixels]; None leaves them as they are.
        fine: a file of the same slices on a finer grid, for the patients that it has.
    """

    file: str
    patients: int | tuple[str, ...] | None = None
    slices: Literal["middle", "all"] | tuple[int, ...] = "middle"
    size: int | None = None
    fine: str | None = None

    def __post_init__(self) -> None:
        check_fields("truth", self)
        for key, values in (("patients", self.patients), ("slices", self.slices)):
            if not isinstance(values, int | None) and not len(values):
                raise ArgumentError(f"{key}: expected at least one, got {values!r}", key)

    @property
    def label(self) -> str:
        """As tables call it."""
        return Path(self.file).stem + ("" if self.size is None else f" at {self.size} x {self.size}")

    def records(self) -> list[dict[str, Any]]:
        """One for each image, patient by patient.

        Raises:
            ArgumentError: there is no such patient or slice, a pixel's side is unknown, or the size does not divide the images.
            ValueError, OSError: a file cannot be read.
        """
        data = _read(self.file)
        fine = None if self.fine is None else _read(self.fine)
        records = []
        for patient in chosen_patients(self.file, self.patients, sorted(set(data.patients))):
            own = [i for i, name in enumerate(data.patients) if name == patient]
            for k in slice_numbers(self.file, self.slices, patient, len(own)):
                image, side = data.images[own[k]], data.side_mm(own[k])
                if not side > 0:
                    raise ArgumentError(f"{self.file}: patient {patient}: add the side of a pixel to the file", "file")
                size = self.size or image.shape[0]
                if size < 1 or image.shape[0] % size or (self.size and image.shape[0] != image.shape[1]):
                    raise ArgumentError(f"size {size} does not divide images of {image.shape}", "size")
                found = None if fine is None else _finer_slice(fine, patient, image)
                records.append(
                    {
                        "source": self.file, "fine_source": self.fine, "patient": patient, "slice": k, "size": self.size,
                        "shape": [n // (image.shape[0] // size) for n in image.shape],
                        "pixel_mm": float(f"{side * image.shape[0] / size:.9g}"), "sha256": checksum(image),
                        "fine": None if fine is None or found is None else checksum(fine.images[found]),
                    }
                )  # fmt: skip
        return records


def check_fields(what: str, part: Any) -> None:
    """The fields of a frozen dataclass as plain numbers, once their types have been found to be right.

    Raises:
        ArgumentError: they are not.
    """
    given = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    check(what, type(part), given)
    for key, value in given.items():
        new = plain(value)
        object.__setattr__(part, key, tuple(new) if isinstance(new, list) else new)


def chosen_patients(file: str, asked: int | Sequence[str] | None, known: Sequence[str]) -> Sequence[str]:
    """Those of a file that are asked for: by name, the first so many, or all.

    Raises:
        ArgumentError: there is no such patient.
    """
    if asked is None or isinstance(asked, int):
        if asked is not None and asked < 1:
            raise ArgumentError(f"patients: expected at least 1, got {asked}", "patients")
        return known[:asked]
    for name in asked:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ArgumentError(f"{file} has no patient {name!r}.{hint} It has: {', '.join(known)}", "patients")
    return asked


def slice_numbers(file: str, asked: str | Sequence[int], patient: str, n: int) -> Sequence[int]:
    """Those of a patient's n slices that are asked for: "middle", "all", or their numbers.

    Raises:
        ArgumentError: there is no such slice.
    """
    if isinstance(asked, str):
        return [n // 2] if asked == "middle" else range(n)
    bad = [k for k in asked if not 0 <= int(k) < n]
    if bad:
        raise ArgumentError(f"{file}: patient {patient} has slices 0 to {n - 1}, not {bad[0]}", "slices")
    return [int(k) for k in asked]


@dataclass(frozen=True)
class Phantoms:
    """Images of ellipses.

    Attributes:
        phantom: "ellipses" (random ones, a different image for every number) or "shepp_logan".
        count: images, of the numbers 0 to count - 1.
        size: side [pixels].
        width_mm: side [mm].
    """

    phantom: Literal["ellipses", "shepp_logan"]
    count: int = 1
    size: int = 128
    width_mm: float = 350.0

    def __post_init__(self) -> None:
        check_fields("truth", self)
        if self.count < 1 or self.size < 1 or not self.width_mm > 0:
            raise ArgumentError(f"phantoms: count, size and width_mm must be positive, got {self}")
        if self.phantom == "shepp_logan" and self.count != 1:
            raise ArgumentError(f"there is one Shepp-Logan phantom, count is {self.count}", "count")

    @property
    def label(self) -> str:
        """As tables call them."""
        wide = "" if self.width_mm == 350.0 else f" of {self.width_mm:g} mm"
        return f"{self.phantom} at {self.size} x {self.size}{wide}"

    def records(self) -> list[dict[str, Any]]:
        """One for each image."""
        own = {"phantom": self.phantom, "width_mm": self.width_mm, "pixel_mm": self.width_mm / self.size}
        return [{**own, "number": k, "shape": [self.size, self.size]} for k in range(self.count)]


def name_of(record: Record) -> str:
    """Such as "P002, slice 12" or "ellipses 0"."""
    if "phantom" in record:
        return f"{record['phantom']} {record['number']}"
    return f"{record['patient']}, slice {record['slice']}"


def load(record: Record) -> Tensor:
    """The image (H, W), float32 [HU].

    Raises:
        ValueError, OSError: the file cannot be read, or has changed.
    """
    if "phantom" in record:
        return finer(record, 1)
    return _means(_original(record), tuple(record["shape"]))


def finer(record: Record, refine: int) -> Tensor:
    """The image on a grid `refine` times as fine, (refine H, refine W), float32 [HU]; see the module's head."""
    height, width = (n * refine for n in record["shape"])
    if "phantom" in record:
        mu = rasterise(
            _ellipses(record), (height, width), record["pixel_mm"] / refine, subpixels=-(-SUBPIXELS // refine)
        )
        return hu_from_mu(mu).float()
    for image in _stored(record):
        if image.shape[0] >= height and image.shape[0] % height == 0:
            return _means(image, (height, width))
    x = load(record)
    smooth = F.interpolate(x[None, None], scale_factor=refine, mode="bilinear", align_corners=False)[0, 0]
    missing = x - _means(smooth, (x.shape[0], x.shape[1]))
    return smooth + missing.repeat_interleave(refine, 0).repeat_interleave(refine, 1)


def located(path: str) -> Path:
    """A path whose $SCOREINV_DATA is filled in.

    Raises:
        ValueError: the variable is not set.
    """
    for written in (f"${DATA}", f"${{{DATA}}}"):
        if path.startswith(written):
            folder = os.environ.get(DATA)
            if not folder:
                raise ValueError(f"{path}: needs real data: set {DATA} to the folder that holds them")
            return Path(folder + path.removeprefix(written))
    return Path(path)


def _ellipses(record: Record) -> tuple[Ellipse, ...]:
    if record["phantom"] == "shepp_logan":
        return shepp_logan(record["width_mm"])
    return random_ellipses(torch.Generator().manual_seed(record["number"]), width_mm=record["width_mm"])


def _original(record: Record) -> Tensor:
    """As the file has it, (H, W) [HU]."""
    data = _read(record["source"])
    own = [i for i, name in enumerate(data.patients) if name == record["patient"]]
    image = data.images[own[record["slice"]]] if record["slice"] < len(own) else np.zeros((0, 0), np.int16)
    if checksum(image) != record["sha256"]:
        raise ValueError(f"{record['source']}: {name_of(record)} is not the image that it was")
    return torch.from_numpy(image).float()


def _stored(record: Record) -> list[Tensor]:
    """Images that may be finer than the record's, the finest first."""
    original = _original(record)
    if record["fine"] is None:
        return [original]
    fine = _read(record["fine_source"])
    found = _finer_slice(fine, record["patient"], original.numpy())
    if found is None or checksum(fine.images[found]) != record["fine"]:
        raise ValueError(f"{record['fine_source']}: {name_of(record)} is not the image that it was")
    return [torch.from_numpy(fine.images[found]).float(), original]


def _finer_slice(fine: ImageSet, patient: str, image: np.ndarray) -> int | None:
    """The index of the patient's slice whose block means are the image, to the rounding of its values."""
    height, width = image.shape
    for i, name in enumerate(fine.patients):
        h, w = fine.images[i].shape
        if name == patient and h > height and h % height == 0 and w * height == h * width:
            means = _means(torch.from_numpy(fine.images[i]).float(), (height, width))
            if float((means - torch.from_numpy(image).float()).abs().max()) <= 2:
                return i
    return None


def _means(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Block means, (H, W) -> shape."""
    factor = image.shape[0] // shape[0]
    return F.avg_pool2d(image[None], factor)[0] if factor > 1 else image


def checksum(image: np.ndarray) -> str:
    """SHA-256 of an array's shape, type and values."""
    return hashlib.sha256(f"{image.shape} {image.dtype}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _read(path: str) -> ImageSet:
    found = located(path)
    return _read_once(found, found.stat().st_mtime_ns if found.exists() else 0)


@functools.lru_cache(maxsize=4)
def _read_once(path: Path, changed: int) -> ImageSet:
    return read_image_set([path])
