"""A training run from files to a finished prior: what `scoreinv train` does."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scoreinv import configure, progress
from scoreinv.files.images import read_image_set
from scoreinv.files.versions import versions
from scoreinv.pictures import training_plot
from scoreinv.priors.checkpoint import save_prior
from scoreinv.priors.crops import ImageSet
from scoreinv.priors.denoiser import pad_to_multiple
from scoreinv.priors.network import UNetConfig
from scoreinv.priors.training import VALIDATION_SIGMAS, TrainConfig, Trainer, read_log, train


def train_prior(
    data: Sequence[Path],
    folder: Path,
    *,
    validation: Sequence[Path] = (),
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
        folder: `state.safetensors`, `log.csv`, `log.png`, and `prior.safetensors` with its card `prior.json`.
        validation: images of other patients; one slice a patient is used.
        training: settings of `TrainConfig`; a run that goes on may change them.
        network: settings of `UNetConfig`; a run that goes on keeps its own.
        hours: stop after so much time in this call.
        checkpoint_minutes: time between two saved states.
        validate_every: steps between validations.
        device: where to train.

    Returns:
        The path of the prior.

    Raises:
        ValueError, OSError: images or settings are not what is expected, or patients are in both sets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = read_image_set(data)
    held_out = read_image_set(validation) if validation else None
    shared = set(images.patients) & set(held_out.patients if held_out else ())
    if shared:
        raise ValueError(
            f"patients {sorted(shared)[:3]} are in the training and in the validation images; split by patient"
        )
    config = configure.call("training", TrainConfig, training or {})
    shape = configure.call("network", UNetConfig, _tuples(network or {}))
    trainer = Trainer(shape, config, images, device=device)
    checks = _validation(held_out, shape.multiple, device)
    steps = train(
        trainer,
        folder,
        validation=checks,
        hours=hours or math.inf,
        checkpoint_minutes=checkpoint_minutes,
        validate_every=validate_every,
    )
    bar = progress.track(steps, "training", config.steps)
    try:
        for row in bar:
            if hasattr(bar, "set_postfix"):
                bar.set_postfix(loss=f"{row['loss']:.3f}")
            if "psnr_0.1" in row:
                training_plot(folder / "log.png", read_log(folder / "log.csv"))
    finally:
        if trainer.step:
            _export(trainer, folder, images, held_out)
    return folder / "prior.safetensors"


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _validation(images: ImageSet | None, multiple: int, device: str) -> list[torch.Tensor]:
    """One slice a patient in u, cropped to sides that the network takes; reflected to them where it is too small."""
    out = []
    for i in images.one_per_patient() if images else ():
        u = torch.from_numpy(images.images[i]).float().to(device) / 1000  # type: ignore[union-attr]
        h, w = (max(side // multiple, 1) * multiple for side in u.shape)
        out.append(pad_to_multiple(u[None, :h, :w], multiple)[0])
    return out


def _export(trainer: Trainer, folder: Path, images: ImageSet, held_out: ImageSet | None) -> None:
    """Write the averaged weights with a card that says where they come from."""
    rows = [r for r in read_log(folder / "log.csv") if r.get(f"psnr_{VALIDATION_SIGMAS[0]:g}")]
    card = {
        "unit": "u = HU / 1000, never clipped above; values below -1000 HU set to -1000",
        "steps": trainer.step,
        "hours": round(trainer.seconds / 3600, 3),
        "training": asdict(trainer.config),
        "data": {
            "images": len(images), "patients": images.n_patients,
            "validation_patients": held_out.n_patients if held_out else 0,
        },
        "validation_psnr_db": {k.removeprefix("psnr_"): float(v) for k, v in rows[-1].items() if k.startswith("psnr_")} if rows else {},
        "validation_psnr_convention": "u clipped to [-1, 1], range 2; key: standard deviation of the noise in u",
        "versions": versions(),
    }  # fmt: skip
    given = folder / "card.json"
    if given.is_file():
        card |= json.loads(given.read_text(encoding="utf-8"))
    save_prior(trainer.average, folder / "prior.safetensors", card)
