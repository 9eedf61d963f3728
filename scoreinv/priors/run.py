"""A training run from files to a finished prior: what `scoreinv train` does."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scoreinv import configure, progress
from scoreinv.files.images import read_image_set
from scoreinv.files.versions import versions
from scoreinv.pictures import training_plot
from scoreinv.priors.checkpoint import load_prior, save_prior
from scoreinv.priors.crops import ImageSet
from scoreinv.priors.denoiser import pad_to_multiple
from scoreinv.priors.network import UNetConfig
from scoreinv.priors.parallel import is_main, processes
from scoreinv.priors.shipped import prior_path
from scoreinv.priors.training import TrainConfig, Trainer, train
from scoreinv.priors.validation import VALIDATION_SIGMAS, Slice, denoising_psnr, read_log

TRAINING_SLICES = 8
"""Training patients whose middle slices are denoised beside the validation slices, so that learning by heart shows."""


def train_prior(
    data: Sequence[Path],
    folder: Path,
    *,
    validation: Sequence[Path] = (),
    start: str | Path | None = None,
    training: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
    hours: float | None = None,
    checkpoint_minutes: float = 3.0,
    validate_every: int = 500,
    device: str = "cpu",
) -> Path:
    """Train, or go on training, a prior in a folder.

    Args:
        data: files or folders of training images [HU].
        folder: `state.safetensors`, `log.csv`, `log.png`, and `prior.safetensors` with its cards `prior.json`, `prior.md`.
        validation: images of other patients; one slice a patient is used.
        start: a prior (a shipped one's name, or a file) to start from, with its network; a run that goes on does not look at it.
        training: settings of `TrainConfig`; a run that goes on may change them.
        network: settings of `UNetConfig`; a run that goes on keeps its own.
        hours: stop after so much time in this call.
        checkpoint_minutes: time between two saved states.
        validate_every: steps between validations.
        device: where to train; under `accelerate launch` it chooses.

    Returns:
        The path of the prior.

    Raises:
        ValueError, OSError: images or settings are not what is expected, or patients are in both sets.
    """
    config = configure.call("training", TrainConfig, training or {})
    if start is not None and network:
        raise ValueError(f"the network is that of {start}; leave its settings {sorted(network)} out")
    given, card = load_prior(prior_path(start)) if start is not None else (None, {})
    shape = given.config if given else configure.call("network", UNetConfig, network or {})
    folder.mkdir(parents=True, exist_ok=True)
    images, held_out = read_sets(data, validation)
    _say_sizes(images, config.crop)
    trainer = Trainer(shape, config, images, processes=processes(device))
    if given:
        trainer.go_on_from(given.state_dict(), card)
    steps = train(
        trainer,
        folder,
        validation=validation_slices(held_out, shape.multiple) if held_out else [],
        training=validation_slices(images, shape.multiple)[:TRAINING_SLICES],
        hours=hours or math.inf,
        checkpoint_minutes=checkpoint_minutes,
        validate_every=validate_every,
    )
    bar = progress.track(steps, "training", config.steps) if is_main() else steps
    try:
        for row in bar:
            if hasattr(bar, "set_postfix"):
                bar.set_postfix(
                    loss=f"{row['loss']:.3f}", lr=f"{row['lr']:.1e}", im_s=f"{row['images_per_second']:.1f}"
                )
            if "train_psnr_0.1" in row:
                training_plot(folder / "log.png", read_log(folder / "log.csv"))
    finally:
        if trainer.step and trainer.processes.main:
            _export(trainer, folder, images, held_out)
    trainer.processes.finish()
    return folder / "prior.safetensors"


def read_sets(data: Sequence[Path], validation: Sequence[Path]) -> tuple[ImageSet, ImageSet | None]:
    """Training images, and validation images if any.

    Raises:
        ValueError, OSError: images are not what is expected, or patients are in both sets.
    """
    images = read_image_set(data)
    held_out = read_image_set(validation) if validation else None
    shared = set(images.patients) & set(held_out.patients if held_out else ())
    if shared:
        raise ValueError(
            f"patients {sorted(shared)[:3]} are in the training and in the validation images; split by patient"
        )
    return images, held_out


def _say_sizes(images: ImageSet, crop: int) -> None:
    """Images may differ in size; what comes of it should not be a surprise."""
    sizes = Counter(image.shape for image in images.images)
    small = sum(n for shape, n in sizes.items() if min(shape) < crop)
    if len(sizes) > 1:
        shown = ", ".join(f"{n} of {h} x {w}" for (h, w), n in sizes.most_common(4))
        warnings.warn(f"the training images differ in size ({shown}); crops are taken from each as it is", stacklevel=3)
    if small:
        warnings.warn(
            f"{small} images are smaller than the crops of {crop} pixels and get air around them", stacklevel=3
        )


def validation_slices(images: ImageSet, multiple: int) -> list[Slice]:
    """The middle slice of each patient, cropped to sides that the network takes; reflected to them where it is too small."""
    out = []
    for i in images.one_per_patient():
        u = torch.from_numpy(images.images[i]).float() / 1000
        h, w = (max(side // multiple, 1) * multiple for side in u.shape)
        out.append(Slice(pad_to_multiple(u[None, :h, :w], multiple)[0], images.side_mm(i)))
    return out


def _export(trainer: Trainer, folder: Path, images: ImageSet, held_out: ImageSet | None) -> None:
    """Write the averaged weights with a card that says where they come from."""
    checks = validation_slices(held_out, trainer.model.config.multiple) if held_out else []
    best = trainer.best_average(checks)
    psnr = denoising_psnr(best, checks) if checks else []
    card = {
        "unit": "u = HU / 1000, never clipped above; values below -1000 HU set to -1000",
        **trainer.spent(),
        "average": f"decay {trainer.config.ema[trainer.averages.index(best)]}, the best of {trainer.config.ema} on the validation slices",
        "training": asdict(trainer.config),
        "data": {
            "images": len(images), "patients": images.n_patients,
            "validation_patients": held_out.n_patients if held_out else 0,
        },
        "validation_psnr_db": {f"{s:g}": round(p, 3) for s, p in zip(VALIDATION_SIGMAS, psnr, strict=False)},
        "validation_psnr_convention": "u clipped to [-1, 1], range 2; key: standard deviation of the noise in u; "
        "mean over the middle slices of the validation patients",
        "history": trainer.history,
        "versions": versions(),
    }  # fmt: skip
    given = folder / "card.json"
    if given.is_file():
        card |= json.loads(given.read_text(encoding="utf-8"))
    save_prior(best, folder / "prior.safetensors", card)
