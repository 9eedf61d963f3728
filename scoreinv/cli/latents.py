"""The command `train-autoencoder`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scoreinv.cli.options import add_training_run, check_device


def add_train_autoencoder(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "train-autoencoder",
        help="train the autoencoder of a latent prior",
        description="Trains a KL autoencoder on CT images in Hounsfield units. A run goes on where the last one in the same folder "
        "stopped, also after kill -9. Then train a prior of its latents with scoreinv train --latent FOLDER/autoencoder.safetensors.",
    )
    p.add_argument("data", nargs="+", type=Path, help="files or folders of training images")
    p.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="state, log, plot and the finished autoencoder"
    )
    p.add_argument("--validation", nargs="+", type=Path, default=[], help="images of other patients")
    add_training_run(p, 20000)
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="other training settings: crop, kl, power, lr ...",
    )
    p.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="network settings: factor=8, latent_channels=4, widths=[32,64,96,128] ...",
    )
    p.set_defaults(run=_train_autoencoder)
    return p


def _train_autoencoder(a: argparse.Namespace) -> None:
    from scoreinv.configure import parse_settings
    from scoreinv.priors.latent_run import train_autoencoder
    from scoreinv.priors.parallel import is_main

    check_device(a.device)
    settings: dict[str, Any] = {"seed": a.seed, "bfloat16": a.bfloat16}
    if a.steps is not None:
        settings["steps"] = a.steps
    autoencoder = train_autoencoder(
        a.data, a.out, validation=a.validation, training=settings | parse_settings(a.set), network=parse_settings(a.network),
        hours=a.hours, checkpoint_minutes=a.checkpoint_minutes, validate_every=a.validate_every, device=a.device,
    )  # fmt: skip
    if is_main():
        print(autoencoder)
