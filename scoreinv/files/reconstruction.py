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

from scoreinv import metrics, trust
from scoreinv.files import hdf5
from scoreinv.files.atomic import replacing
from scoreinv.files.versions import package_version, versions
from scoreinv.units import hu_from_mu

FORMAT = "scoreinv-reconstruction-1"
LEVEL = 0.9
"""Of intervals that are not calibrated."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Draws from the posterior, or one image, with their settings.

    Attributes:
        samples: (M, *slices, H, W) [1/mm].
        chi2: ‖A mean − y‖² / (m σ²) of each image, () or (slices,); well above 1 where the mean does not fit the data
            to the noise; below 1 for the mean of good draws, which fits better than each. None where the noise is unknown.
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
            how, and its level). None where no calibration holds; `interval` is always there.
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

    @property
    def interval(self) -> Tensor | None:
        """Half the width of an interval around the mean, (*slices, H, W) [1/mm]: `half_width` where a calibration holds, else Student's of
        90 % of the draws (`metrics.half_width_of_normal`), which is as good as they are; None for a single sample."""
        if self.half_width is not None or len(self.samples) < 2:
            return self.half_width
        return metrics.half_width_of_normal(self.samples, LEVEL)

    @property
    def level(self) -> float:
        """Of `interval`."""
        return LEVEL if self.half_width is None else float(self.settings.get("calibration", {}).get("level", LEVEL))

    @property
    def support(self) -> Tensor | None:
        """Share of each pixel's neighbourhood that the data determine (`trust.support_map`), (*slices, H, W); None where no prior was used."""
        return None if self.measured is None else trust.support_map(self.measured, self.mean)

    @property
    def noise(self) -> str:
        """Where the noise that the misfit was judged by comes from, a word of `trust.standing`."""
        if self.settings.get("noise_std") in (0, [0, 0]):
            return "absent"
        if self.settings.get("noise_raised", 1.0) > 1:
            return "raised"
        return "estimated" if self.settings.get("noise_estimated") else "stated"

    @property
    def misfit(self) -> Tensor | None:
        """That of a draw (`trust.of_a_draw`), of a single sample its own, () or (slices,)."""
        if self.chi2 is None or self.chi2_samples is None or len(self.samples) == 1:
            return self.chi2
        power = 2 if self.noise == "absent" else 1  # the relative residual is a root
        method = str(self.settings.get("method"))
        return trust.of_a_draw(method, self.chi2**power, self.chi2_samples**power) ** (1 / power)

    @property
    def standing(self) -> float:
        """That of the draws by their misfit (`trust.standing`), the mean over slices; NaN for a single sample."""
        if self.misfit is None or len(self.samples) == 1:
            return math.nan
        return trust.standing(float(self.misfit.mean()), *self._data(), noise=self.noise)

    @property
    def verdict(self) -> str:
        """What the misfit says of the draws, in words; of a single image only where it is far off."""
        if self.misfit is None:
            return ""
        misfit, single, exact = float(self.misfit.mean()), len(self.samples) == 1, self.noise == "absent"
        if single and misfit <= (trust.RESIDUAL if exact else trust.HOPELESS):
            return ""
        what, figure = "image" if single else "draws", "relative residual" if exact else "chi^2"
        return f"{what}: {figure} {misfit:.3g}, {trust.verdict(misfit, *self._data(), noise=self.noise)}"

    def _data(self) -> tuple[int, float]:
        """How many data an image has, and the mean of 1 / N̂ where they are photons."""
        n_data = int(self.settings.get("n_data") or math.prod(self.settings.get("data_shape", [1])))
        return n_data, float(self.settings.get("inverse_photons") or 0.0)


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
        "verdict": r.verdict or None,
    }
    images = {
        "samples": r.samples, "mean": r.mean, "std": r.std, "mean_hu": r.mean_hu, "truth": r.truth, "fbp": r.fbp,
        "measured": r.measured, "half_width": r.interval, "support": r.support,
    }  # fmt: skip
    unit = "of the operator" if r.mu_water_per_mm is None else "1/mm"
    units = {"chi2": "1", "chi2_samples": "1", "support": "1", "mean_hu": "HU"}
    more: dict[str, dict[str, Any]] = {
        "half_width": {"calibrated": r.half_width is not None, "level": r.level},
        "support": {"window_pixels": trust.WINDOW},
    }
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update({k: v for k, v in attributes.items() if v is not None})
        for name, misfit in (("chi2", r.chi2), ("chi2_samples", r.chi2_samples)):
            if misfit is not None:
                file.create_dataset(name, data=misfit.detach().cpu().numpy())
        for name, image in images.items():
            if image is not None:
                file.create_dataset(name, data=_numpy(image), compression="gzip", shuffle=True)
        for name, stored in file.items():
            stored.attrs.update({"units": units.get(name, unit)} | more.get(name, {}))


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
        if stored["half_width"] is not None and not file["half_width"].attrs.get("calibrated", True):
            stored["half_width"] = None  # follows from the samples
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
