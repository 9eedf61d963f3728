"""CT slices of 64 x 64 pixels: of the folder of real data, or scikit-image's pictures in their place."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gallery.setting import Setting, pace
from gallery.training import learnt
from scoreinv import metrics, plugins
from scoreinv.files.images import read_image_set
from scoreinv.priors.crops import ImageSet
from scoreinv.priors.denoiser import NetworkPrior, Rescaled
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.priors.training import TrainConfig, Trainer
from scoreinv.problem import Problem, simulate
from scoreinv.units import MU_WATER_PER_MM, mu_from_hu

SIDE = 64
PIXEL_MM = 3.0
"""Of all images, for the scanner: about that of real slices of this size."""
VIEWS = 23
NOISE = 0.005
PICTURES = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "immunohistochemistry", "rocket")
HELD_OUT = ("camera", "coins", "moon")
NETWORK = UNetConfig(widths=(32, 64, 128), attention=(2,), embedding=128)


@dataclass(frozen=True, eq=False)
class Slices:
    """Training images [HU], one held-out image of each other patient, (n, 64, 64) in u = HU / 1000, and what they are."""

    train: ImageSet
    held_out: Tensor
    what: str


@functools.cache
def slices(setting: Setting) -> Slices:
    """Real slices if the folder is there, shrunk by the mean of blocks; pictures otherwise."""
    if setting.data is not None and (setting.data / "ct" / "train.h5").is_file():
        train, held = (shrunk(read_image_set([setting.data / "ct" / f"{name}.h5"])) for name in ("train", "val"))
        chosen = torch.stack([torch.from_numpy(held.images[i]) for i in held.one_per_patient()])
        what = f"{len(train)} CT slices of {train.n_patients} patients, {len(chosen)} of as many others held out"
        return Slices(train, chosen.float() / 1000, what)
    train, held = pictures(PICTURES), pictures(HELD_OUT)
    chosen = torch.stack([torch.from_numpy(held.images[i]) for i in range(0, len(held), 2)])
    return Slices(
        train,
        chosen.float() / 1000,
        f"{len(train)} pieces of {len(PICTURES)} pictures of scikit-image, {len(HELD_OUT)} others held out",
    )


def shrunk(images: ImageSet) -> ImageSet:
    """The same with sides of 64 pixels."""
    small = []
    for image in images.images:
        k = image.shape[0] // SIDE
        blocks = image[: k * SIDE, : k * SIDE].reshape(SIDE, k, SIDE, k).astype(np.float32)
        small.append(np.rint(blocks.mean((1, 3))).astype(np.int16))
    return ImageSet(small, list(images.patients))


def pictures(names: tuple[str, ...]) -> ImageSet:
    """Pieces of scikit-image's pictures in gray, at half their resolution, as if black were -1000 HU and white 1000."""
    from skimage import color, data

    found, of = [], []
    for name in names:
        picture: Any = getattr(data, name)()
        gray = color.rgb2gray(picture[..., :3]) if picture.ndim == 3 else picture / 255.0
        step = 2 * SIDE
        for top in range(0, gray.shape[0] - step + 1, step):
            for left in range(0, gray.shape[1] - step + 1, step):
                piece = gray[top : top + step, left : left + step].reshape(SIDE, 2, SIDE, 2).mean((1, 3))
                found.append(np.rint(2000 * piece - 1000).astype(np.int16))
                of.append(name)
    return ImageSet(found, of)


def training(steps: int, **changes: Any) -> TrainConfig:
    """Settings of a run on whole slices."""
    given: dict[str, Any] = {
        "batch_size": 4, "crop": SIDE, "whole": SIDE, "whole_fraction": 0.0, "zoom": 0.0, "lr": 1.5e-3, **pace(steps, 0.998),
    }  # fmt: skip
    return TrainConfig(**given | changes)


@functools.cache
def network(setting: Setting) -> EDMDenoiser:
    """The small prior of slices."""
    steps = setting.steps(8000)
    found: EDMDenoiser = learnt(
        Trainer(NETWORK, training(steps), slices(setting).train), setting.work / f"ct-prior-{steps}"
    )
    return found


def prior(setting: Setting) -> NetworkPrior:
    """On images in u = HU / 1000."""
    return NetworkPrior(network(setting), chunk=32)


def in_mm(denoiser: Any) -> Rescaled:
    """A prior on images of attenuation [1/mm]."""
    return Rescaled(denoiser, MU_WATER_PER_MM, MU_WATER_PER_MM)


def scanner() -> Any:
    """Few views of a slice."""
    return plugins.get("operators", "parallel_beam_ct").for_image((SIDE, SIDE), PIXEL_MM, n_views=VIEWS)


def scan(images: Tensor, seed: int = 0) -> Problem:
    """Noisy data of images (n, 64, 64) in u."""
    mu = mu_from_hu(1000 * images.clamp(min=-1))
    return simulate(scanner(), mu, Generator().manual_seed(seed), relative_noise=NOISE)


def psnr(u: Tensor, truth: Tensor) -> float:
    """Mean PSNR [dB] of images in u on the window of -1000 to 1000 HU."""
    found = metrics.psnr(metrics.window(1000 * u), metrics.window(1000 * truth), 1.0)
    return float(torch.as_tensor(found).mean())


def in_u(mu: Tensor) -> Tensor:
    """Attenuation [1/mm] to u."""
    return mu / MU_WATER_PER_MM - 1


def chi2(problem: Problem, x: Tensor) -> float:
    """Mean squared residual of images in 1/mm, in units of the noise; 1 is right."""
    std = torch.as_tensor(problem.noise_std)
    return float(((problem.A(x) - problem.y) / std).square().mean()) if math.isfinite(float(std.max())) else math.nan
