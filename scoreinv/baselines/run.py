"""A learned baseline from files to finished weights: what `scoreinv train-baseline` does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreinv import configure, progress
from scoreinv.arguments import as_tuple
from scoreinv.baselines.learned import geometry, load_network, network_class, save_network, weights_path
from scoreinv.baselines.supervised import SupervisedConfig, SupervisedRun, fitted, reconstruction_psnr, train
from scoreinv.files.versions import versions
from scoreinv.pictures import RECONSTRUCTION, training_plot
from scoreinv.priors.crops import ImageSet
from scoreinv.priors.parallel import Processes
from scoreinv.priors.run import TRAINING_SLICES, read_sets
from scoreinv.priors.validation import read_log


def train_baseline(
    name: str,
    data: Sequence[Path],
    folder: Path,
    *,
    validation: Sequence[Path] = (),
    operator: str = "parallel_beam_ct",
    arguments: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
    hours: float | None = None,
    checkpoint_minutes: float = 3.0,
    validate_every: int = 500,
    device: str = "cpu",
    start: str | Path | None = None,
) -> Path:
    """Train, or go on training, the network of a learned baseline in a folder.

    Args:
        name: of the method.
        data: files or folders of training images [HU].
        folder: `state.safetensors`, `log.csv`, `log.png`, and `<name>.safetensors` with its cards.
        validation: images of other patients; one slice a patient is used.
        operator: registered name.
        arguments: see `configure.operator_for_image`; pixels are given the median size of the training images, on which results do
            not depend where detector cells are as wide as pixels.
        training: settings of `SupervisedConfig`; a run that goes on may change them.
        network: settings of the method's network; a run that goes on must have the same.
        hours: stop after so much time in this call.
        checkpoint_minutes: time between two saved states.
        validate_every: steps between validations.
        device: where to train.
        start: weights to start from, with their network: a file, or "shipped"; a run that goes on does not look at it.

    Returns:
        The path of the weights.

    Raises:
        ValueError, OSError: no such method, images or settings are not what is expected, or patients are in both sets.
    """
    network_class(name)
    if start is not None and network:
        raise ValueError(f"the network is that of {start}; leave its settings {sorted(network)} out")
    given, card = (
        load_network(name, weights_path(name, None if start == "shipped" else str(start)))
        if start is not None
        else (None, {})
    )
    config = configure.call("training", SupervisedConfig, training or {})
    settings = given.settings if given else {k: as_tuple(v) for k, v in (network or {}).items()}
    images, held_out = read_sets(data, validation)
    sizes = [side for side in images.pixel_mm if side > 0]
    pixel_mm = float(np.median(sizes)) if sizes else 1.0
    A = configure.operator_for_image(operator, (config.side, config.side), pixel_mm, arguments or {})
    configure.call(f"network of {name!r}", network_class(name), settings)  # unknown settings in one sentence
    run = SupervisedRun(name, settings, config, images, A, processes=Processes(torch.device(device)))
    if given:
        run.go_on_from(given.state_dict(), card)
    checks = _slices(held_out, config.side, device)
    folder.mkdir(parents=True, exist_ok=True)
    steps = train(
        run, folder, validation=checks, training=_slices(images, config.side, device)[:TRAINING_SLICES],
        hours=hours or math.inf, checkpoint_minutes=checkpoint_minutes, validate_every=validate_every,
    )  # fmt: skip
    bar = progress.track(steps, "training", config.steps)
    try:
        for row in bar:
            if hasattr(bar, "set_postfix"):
                bar.set_postfix(
                    loss=f"{row['loss']:.2g}", lr=f"{row['lr']:.1e}", im_s=f"{row['images_per_second']:.1f}"
                )
            if any(key.startswith("train_psnr") for key in row):
                training_plot(folder / "log.png", read_log(folder / "log.csv"), RECONSTRUCTION)
    finally:
        if run.step:
            _export(
                run, folder, images, held_out, checks, {"operator": operator, **(arguments or {}), "pixel_mm": pixel_mm}
            )
    return folder / f"{name}.safetensors"


def _slices(images: ImageSet | None, side: int, device: str) -> list[Tensor]:
    """The middle slice of each patient, as v."""
    return [fitted(images.images[i], side).to(device) for i in images.one_per_patient()] if images else []


def _export(
    run: SupervisedRun, folder: Path, images: ImageSet, held_out: ImageSet | None, checks: list[Tensor], operator: dict[str, Any]
) -> None:  # fmt: skip
    """Write the averaged weights with a card that says where they come from."""
    best, levels = run.best_average(checks), run.config.noise
    found = reconstruction_psnr(best, run.problem, checks, levels) if checks else []
    card = {
        "description": f"Network of the method {run.name}, trained by `scoreinv train-baseline`.",
        "unit": "v = 1 + HU / 1000; see scoreinv.baselines.learned",
        **run.spent(),
        "average": f"decay {run.config.ema[run.averages.index(best)]}",
        "geometry": geometry(run.problem.A),
        "operator": operator,
        "training": asdict(run.config),
        "data": {
            "images": len(images), "patients": images.n_patients,
            "validation_patients": held_out.n_patients if held_out else 0,
        },
        "reconstruction_psnr_db": {f"{r:g}": round(p, 3) for r, p in zip(levels, found, strict=False)},
        "reconstruction_psnr_convention": "window of -1000 to 1000 HU, range 1; key: noise relative to the mean of the data; mean "
        "over the middle slices of the validation patients",
        "history": run.history,
        "versions": versions(),
    }  # fmt: skip
    save_network(run.name, best, folder / f"{run.name}.safetensors", card)
