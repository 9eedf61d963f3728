"""A scan simulated from an image on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreinv import plugins
from scoreinv.configure import operator_for_image
from scoreinv.files.images import read_image, read_picture, warn_unless_hu
from scoreinv.files.scan import Scan
from scoreinv.files.versions import package_version
from scoreinv.priors.crops import ImageSet
from scoreinv.problem import simulate, simulate_counts
from scoreinv.units import MU_WATER_PER_MM, mu_from_hu


def simulate_scan(
    image: Path,
    operator: str,
    arguments: Mapping[str, Any],
    *,
    index: int | None = None,
    pixel_mm: float | None = None,
    relative_noise: float = 0.0,
    photons: float | None = None,
    seed: int = 0,
    mu_water_per_mm: float = MU_WATER_PER_MM,
) -> Scan:
    """Read an image, send it through an operator, add noise.

    Args:
        image: CT in Hounsfield units, or a picture for operators on colour (their class has `channels = 3`).
        operator: registered name.
        arguments: see `configure.operator_for_image`.
        index: of a volume: this slice alone.
        pixel_mm: side of a pixel [mm], where the file does not state it.
        relative_noise: standard deviation of Gaussian noise, relative to the mean of the data.
        photons: instead of it, photons a ray without an object.
        seed: of the noise.
        mu_water_per_mm: attenuation of water [1/mm].

    Raises:
        ValueError, OSError: the image or an argument is not what is expected.
    """
    channels = getattr(plugins.get("operators", operator), "channels", 1)
    x, spacing = _image(image, channels, index, pixel_mm, mu_water_per_mm)
    shape = tuple(x.shape[-2:]) if channels == 1 else tuple(x.shape)
    A = operator_for_image(operator, shape, spacing, arguments)
    rng = torch.Generator().manual_seed(seed)
    if photons is None:
        problem = simulate(A, x, rng, relative_noise=relative_noise)
    else:
        problem = simulate_counts(A, x, rng, photons=photons)
    info = {"image": image.name, "seed": seed, "created_by": f"scoreinv {package_version()} simulate"}
    return Scan(problem, mu_water_per_mm, info, photons)


def patient_scan(
    data: ImageSet, index: int, operator: str, arguments: Mapping[str, Any], *, relative_noise: float, seed: int
) -> Scan:
    """The simulated scan of one image of a set, with the image as its truth.

    Args:
        data: CT images [HU].
        index: of the image.
        operator: registered name.
        arguments: see `configure.operator_for_image`.
        relative_noise: standard deviation of the noise over the mean of the data.
        seed: of the noise.

    Raises:
        ValueError: the side of its pixels is unknown, or an argument is not what is expected.
    """
    hu, side = torch.from_numpy(data.images[index]).float(), data.side_mm(index)
    if not side > 0:
        raise ValueError(f"patient {data.patients[index]}: the side of a pixel is unknown; add pixel_mm to the file")
    A = operator_for_image(operator, tuple(hu.shape), side, arguments)
    return Scan(simulate(A, mu_from_hu(hu), torch.Generator().manual_seed(seed), relative_noise=relative_noise))


def _image(
    path: Path, channels: int, index: int | None, pixel_mm: float | None, mu_water_per_mm: float
) -> tuple[Tensor, float]:
    """(slices, H, W) or (H, W) in 1/mm with the pixel's side, or a picture (3, H, W) in [0, 1] whose pixels are 1 mm."""
    if channels == 3:
        return read_picture(path), pixel_mm or 1.0
    ct = read_image(path, pixel_mm, index=index)
    warn_unless_hu(path, ct.hu)
    hu = torch.from_numpy(ct.hu)
    return mu_from_hu(hu[0] if len(hu) == 1 else hu, mu_water_per_mm), ct.pixel_mm
