"""Reconstruction files: the samples with what is needed to judge and to repeat them (docs/file-formats.md)."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from scoreinv.files import hdf5
from scoreinv.files.atomic import replacing
from scoreinv.files.versions import package_version, versions
from scoreinv.units import hu_from_mu

FORMAT = "scoreinv-reconstruction-1"


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Draws from the posterior, or one image, with their settings.

    Attributes:
        samples: (M, *slices, H, W) [1/mm].
        chi2: ‖A mean − y‖² / (m σ²) of each image, () or (slices,); about 1 when the mean fits the data to the noise;
            None where the noise is unknown.
        settings: method and its arguments; JSON values.
        seed: of the random generator.
        pixel_mm: side of a pixel [mm], where known.
        mu_water_per_mm: what Hounsfield units refer to [1/mm]; None for images that have none.
        truth: (*slices, H, W) [1/mm], where known.
        fbp: (*slices, H, W) [1/mm], filtered back-projection of the same data, for comparison.
        chi2_samples: the same misfit of every sample, (M,) or (M, slices); for draws from the posterior 1 is right.
        measured: (*slices, H, W) [1/mm], the part of the mean that the data determine (`scoreinv.trust`); the rest comes
            from the prior. None where no prior was used.
        half_width: (*slices, H, W) [1/mm]: mean ± half_width is an interval that was calibrated (settings["calibration"] says
            how, and its level). None where no calibration holds.
        versions: of the software that made it.
        z_mm: see `Scan`.
    """

    samples: Tensor
    chi2: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    pixel_mm: float | None = None
    mu_water_per_mm: float | None = None
    truth: Tensor | None = None
    fbp: Tensor | None = None
    chi2_samples: Tensor | None = None
    measured: Tensor | None = None
    half_width: Tensor | None = None
    versions: dict[str, str] = field(default_factory=versions)
    z_mm: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.samples.shape[1:])
        if self.samples.ndim < 3 or len(self.samples) == 0:
            raise ValueError(
                f"Reconstruction: samples should be (M, *slices, H, W) with M >= 1, got {tuple(self.samples.shape)}"
            )
        if self.z_mm is not None and len(self.z_mm) != math.prod(shape[:-2]):
            raise ValueError(
                f"Reconstruction: z_mm has {len(self.z_mm)} heights, there are {math.prod(shape[:-2])} slices"
            )
        for name in ("truth", "fbp", "measured", "half_width"):
            image = getattr(self, name)
            if image is not None and tuple(image.shape) != shape:
                raise ValueError(
                    f"Reconstruction: {name} should have the shape {shape} of one sample, got {tuple(image.shape)}"
                )

    @property
    def mean(self) -> Tensor:
        """Mean of the samples, (*slices, H, W) [1/mm]."""
        return self.samples.mean(dim=0)

    @property
    def std(self) -> Tensor | None:
        """Standard deviation of the samples (divisor M - 1), (*slices, H, W) [1/mm]; None for a single sample."""
        return self.samples.std(dim=0) if len(self.samples) > 1 else None

    @property
    def mean_hu(self) -> Tensor | None:
        """Mean of the samples in Hounsfield units; None where there are none."""
        return None if self.mu_water_per_mm is None else hu_from_mu(self.mean, self.mu_water_per_mm)


def write_reconstruction(path: str | os.PathLike[str], r: Reconstruction) -> None:
    """Write a reconstruction file, whole or not at all.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full.
        TypeError: settings hold something that JSON cannot.
    """
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "version": package_version(),
        "settings": json.dumps(r.settings),
        "versions": json.dumps(r.versions),
        "seed": r.seed,
        "pixel_mm": r.pixel_mm,
        "mu_water_per_mm": r.mu_water_per_mm,
        "z_mm": r.z_mm,
    }
    images = {
        "samples": r.samples, "mean": r.mean, "std": r.std, "mean_hu": r.mean_hu, "truth": r.truth, "fbp": r.fbp,
        "measured": r.measured, "half_width": r.half_width,
    }  # fmt: skip
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update({k: v for k, v in attributes.items() if v is not None})
        for name, misfit in (("chi2", r.chi2), ("chi2_samples", r.chi2_samples)):
            if misfit is not None:
                file.create_dataset(name, data=misfit.detach().cpu().numpy())
        for name, image in images.items():
            if image is not None:
                file.create_dataset(name, data=_numpy(image), compression="gzip", shuffle=True)


def read_reconstruction(path: str | os.PathLike[str]) -> Reconstruction:
    """Read a reconstruction file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another format or incomplete.
    """
    with hdf5.reading(path) as file:
        hdf5.check_format(file, FORMAT)
        names = ("samples", "chi2", "truth", "fbp", "chi2_samples", "measured", "half_width")
        stored = {name: _tensor(hdf5.numbers(file, name)) for name in names}
        samples, seed = stored.pop("samples"), file.attrs.get("seed")
        if samples is None:
            raise ValueError(f"{path}: has no dataset samples (M, *slices, H, W)")
        return Reconstruction(
            samples,
            settings=hdf5.json_object(file, "settings") or {},
            seed=None if seed is None else int(seed),
            pixel_mm=hdf5.number(file, "pixel_mm"),
            mu_water_per_mm=hdf5.number(file, "mu_water_per_mm"),
            versions=hdf5.json_object(file, "versions") or {},
            z_mm=hdf5.heights(file.attrs, path),
            **stored,
        )


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before hours of work whether their result can be written.

    Raises:
        FileNotFoundError: the folder does not exist.
        IsADirectoryError: the path is a folder.
        PermissionError: the folder may not be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"{path}: is a folder; give the name of a file in it, such as {path / 'reconstruction.h5'}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: cannot be written, the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: cannot be written, the folder {path.parent} is not writable")


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float32)


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(np.array(array, dtype=np.float32))
