"""Latent priors from files: what `scoreinv train-autoencoder` and `scoreinv train --latent` do."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreinv import configure, progress
from scoreinv.files.atomic import replacing
from scoreinv.files.versions import versions
from scoreinv.pictures import training_plot
from scoreinv.priors.autoencoder import AutoencoderConfig, load_autoencoder, save_autoencoder
from scoreinv.priors.crops import ImageSet
from scoreinv.priors.descent import Run
from scoreinv.priors.latent import AUTOENCODER, save_latent_prior
from scoreinv.priors.latent_training import (
    LATENT_SIGMAS,
    AutoencoderRun,
    AutoencoderTraining,
    LatentTrainer,
    autoencoding_psnr,
    latent_psnr,
    train_autoencoder_run,
    train_latent_run,
)
from scoreinv.priors.network import UNetConfig
from scoreinv.priors.parallel import is_main, processes
from scoreinv.priors.run import TRAINING_SLICES, read_sets, validation_slices
from scoreinv.priors.training import TrainConfig
from scoreinv.priors.validation import Slice, read_log

STANDARD_BATCHES = 64
"""Batches of training crops from which the scale of the latents is taken."""

LATENT_NETWORK: dict[str, Any] = {"widths": (64, 128, 192), "unshuffle": 1, "attention": (2,), "sigma_data": 1.0}
LATENT_TRAINING: dict[str, Any] = {"p_mean": -0.7}
"""What a prior of latents has for defaults where one of images has others: latents are small and of unit standard deviation, twice
that of images, so that ln σ is larger by ln 2."""

AUTOENCODER_PLOT = ("Autoencoder PSNR", "dB of images after encoding and decoding; dotted: training slices", "σ")
LATENT_PLOT = ("Denoising of latents", "dB below their unit variance, at noise σ; dotted: training slices", "σ")


def train_autoencoder(
    data: Sequence[Path], folder: Path, *, validation: Sequence[Path] = (), training: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None, hours: float | None = None, checkpoint_minutes: float = 3.0,
    validate_every: int = 500, device: str = "cpu",
) -> Path:  # fmt: skip
    """Train, or go on training, an autoencoder in a folder.

    Args:
        data: files or folders of training images [HU].
        folder: `state.safetensors`, `log.csv`, `log.png`, and `autoencoder.safetensors` with its cards.
        validation: images of other patients; one slice a patient is used.
        training: settings of `AutoencoderTraining`; a run that goes on may change them.
        network: settings of `AutoencoderConfig`; a run that goes on must have the same.
        hours: stop after so much time in this call.
        checkpoint_minutes: time between two saved states.
        validate_every: steps between validations.
        device: where to train; under `accelerate launch` it chooses.

    Returns:
        The path of the autoencoder.

    Raises:
        ValueError, OSError: images or settings are not what is expected, or patients are in both sets.
    """
    config = configure.call("training", AutoencoderTraining, training or {})
    shape = configure.call("network", AutoencoderConfig, network or {})
    images, held_out = read_sets(data, validation)
    run = AutoencoderRun(shape, config, images, processes=processes(device))
    checks = _on(run, validation_slices(held_out, shape.factor) if held_out else [])
    known = _on(run, validation_slices(images, shape.factor)[:TRAINING_SLICES])
    steps = train_autoencoder_run(
        run, folder, validation=checks, training=known, hours=hours or math.inf, checkpoint_minutes=checkpoint_minutes,
        validate_every=validate_every,
    )  # fmt: skip
    try:
        _follow(run, steps, folder, AUTOENCODER_PLOT)
    finally:
        if run.step and run.processes.main:
            _export_autoencoder(run, folder, checks, _data(images, held_out))
    run.processes.finish()
    return folder / AUTOENCODER


def train_latent_prior(
    data: Sequence[Path], folder: Path, autoencoder: Path, *, validation: Sequence[Path] = (),
    training: Mapping[str, Any] | None = None, network: Mapping[str, Any] | None = None, hours: float | None = None,
    checkpoint_minutes: float = 3.0, validate_every: int = 500, device: str = "cpu",
) -> Path:  # fmt: skip
    """Train, or go on training, a prior of an autoencoder's latents in a folder.

    Args:
        data: as for `train_autoencoder`.
        folder: `state.safetensors`, `log.csv`, `log.png`, `prior.safetensors` with its cards, and a copy of the autoencoder.
        autoencoder: its file.
        validation, hours, checkpoint_minutes, validate_every, device: as for `train_autoencoder`.
        training: settings of `TrainConfig` (crops are of images); p_mean is -0.7 where it is not given.
        network: settings of `UNetConfig`; those of LATENT_NETWORK where they are not given.

    Returns:
        The path of the prior.

    Raises:
        ValueError, OSError: as for `train_autoencoder`, or the folder goes on from another autoencoder.
    """
    coder, its_card = load_autoencoder(autoencoder)
    config = configure.call("training", TrainConfig, {**LATENT_TRAINING, **(training or {})})
    channels = {"channels": coder.config.latent_channels}
    shape = configure.call("network", UNetConfig, {**LATENT_NETWORK, **channels, **(network or {})})
    images, held_out = read_sets(data, validation)
    run = LatentTrainer(shape, config, images, coder, its_card["sha256"], processes=processes(device))
    multiple = coder.config.factor * shape.multiple
    checks = _encoded(run, validation_slices(held_out, multiple) if held_out else [])
    known = _encoded(run, validation_slices(images, multiple)[:TRAINING_SLICES])
    steps = train_latent_run(
        run, folder, validation=checks, training=known, hours=hours or math.inf, checkpoint_minutes=checkpoint_minutes,
        validate_every=validate_every,
    )  # fmt: skip
    try:
        _follow(run, steps, folder, LATENT_PLOT)
    finally:
        if run.step and run.processes.main:
            _copy(autoencoder, folder)
            _export_prior(run, folder, checks, _data(images, held_out))
    run.processes.finish()
    return folder / "prior.safetensors"


def _follow(run: Run, steps: Iterable[dict[str, Any]], folder: Path, words: tuple[str, str, str]) -> None:
    """Go through the steps with a progress bar and a plot."""
    bar = progress.track(steps, "training", run.config.steps) if is_main() else steps
    for row in bar:
        if hasattr(bar, "set_postfix"):
            bar.set_postfix(loss=f"{row['loss']:.3g}", lr=f"{row['lr']:.1e}", im_s=f"{row['images_per_second']:.1f}")
        if any(key.startswith("train_psnr") for key in row):
            training_plot(folder / "log.png", read_log(folder / "log.csv"), words)


def _on(run: AutoencoderRun, slices: Sequence[Slice]) -> list[Slice]:
    return [Slice(s.u.to(run.processes.device), s.pixel_mm) for s in slices]


@torch.no_grad()
def _encoded(run: LatentTrainer, slices: Sequence[Slice]) -> list[Tensor]:
    return [run.autoencoder.encode(s.u[None].to(run.processes.device))[0] for s in slices]


def _copy(autoencoder: Path, folder: Path) -> None:
    """The autoencoder's file and cards, whole, beside the prior."""
    for suffix in (".safetensors", ".json", ".md"):
        source, target = autoencoder.with_suffix(suffix), (folder / AUTOENCODER).with_suffix(suffix)
        if source.is_file() and source.resolve() != target.resolve():
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)


def _data(images: ImageSet, held_out: ImageSet | None) -> dict[str, int]:
    return {
        "images": len(images), "patients": images.n_patients,
        "validation_patients": held_out.n_patients if held_out else 0,
    }  # fmt: skip


def _card(run: Run, folder: Path, best: nn.Module, data: dict[str, int], figures: dict[str, Any]) -> dict[str, Any]:
    """What both cards have; what a `card.json` in the folder says comes last."""
    card = {
        "unit": "u = HU / 1000, never clipped above; values below -1000 HU set to -1000",
        "steps": run.step,
        "hours": round(run.seconds / 3600, 3),
        "average": f"decay {run.config.ema[list(run.averages).index(best)]}",
        "training": asdict(run.config),
        "data": data,
        **figures,
        "history": run.history,
        "versions": versions(),
    }
    given = folder / "card.json"
    return card | (json.loads(given.read_text(encoding="utf-8")) if given.is_file() else {})


def _export_autoencoder(run: AutoencoderRun, folder: Path, checks: list[Slice], data: dict[str, int]) -> None:
    best = run.best_average(checks)
    best.standardise([run.batch(k).u for k in range(STANDARD_BATCHES)])
    figures: dict[str, Any] = {"residual_hu": round(1000 * best.residual_std, 1)}
    if checks:
        figures["autoencoding_psnr_db"] = round(autoencoding_psnr(best, checks), 3)
    description = "KL autoencoder of CT images, trained by `scoreinv train-autoencoder`."
    save_autoencoder(
        best, folder / AUTOENCODER, {"description": description, **_card(run, folder, best, data, figures)}
    )


def _export_prior(run: LatentTrainer, folder: Path, checks: list[Tensor], data: dict[str, int]) -> None:
    best = run.best_latent_average(checks)
    psnr = latent_psnr(best, checks) if checks else []
    figures = {
        "validation_psnr_db": {f"{s:g}": round(p, 3) for s, p in zip(LATENT_SIGMAS, psnr, strict=False)},
        "validation_psnr_convention": "latents of unit variance, range 1; key: standard deviation of the noise in them; mean over the "
        "middle slices of the validation patients",
    }  # fmt: skip
    description = "Prior of an autoencoder's latents, trained by `scoreinv train --latent`."
    card = {"description": description, **_card(run, folder, best, data, figures)}
    save_latent_prior(best, folder / "prior.safetensors", card, run.sha256)
