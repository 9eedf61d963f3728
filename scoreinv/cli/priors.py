"""Commands on priors: `train`, `sample`, `score`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scoreinv.cli.options import add_class, add_prior, add_training_run, check_device, class_options


def add_train(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "train", help="train a score prior", description="Trains a prior on CT images in Hounsfield units (HDF5 with `hu` and `patient`, "
        "DICOM series, NIfTI). A run goes on where the last one in the same folder stopped, also after kill -9.",
    )  # fmt: skip
    p.add_argument("data", nargs="+", type=Path, help="files or folders of training images")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="state, log, plot and the finished prior")
    p.add_argument("--validation", nargs="+", type=Path, default=[], help="images of other patients")
    p.add_argument(
        "--start", metavar="NAME", help="begin with the weights of this prior: a shipped one or a .safetensors file"
    )
    p.add_argument(
        "--latent",
        type=Path,
        metavar="FILE",
        help="train a prior of the latents of this autoencoder (train-autoencoder)",
    )
    add_training_run(p, 20000)
    p.add_argument("--compile", action="store_true", help="torch.compile the network")
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="other training settings: batch_size, crop, lr, ema ...",
    )
    p.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="network settings: widths=[32,64], attention=[1] ...",
    )
    p.set_defaults(run=_train)
    return p


def _train(a: argparse.Namespace) -> None:
    from scoreinv import configure
    from scoreinv.priors.latent_run import train_latent_prior
    from scoreinv.priors.parallel import is_main
    from scoreinv.priors.run import train_prior

    check_device(a.device)
    settings: dict[str, Any] = {"seed": a.seed, "bfloat16": a.bfloat16, "compile": a.compile}
    if a.steps is not None:
        settings["steps"] = a.steps
    settings |= configure.parse_settings(a.set)
    common: dict[str, Any] = {
        "validation": a.validation, "training": settings, "network": configure.parse_settings(a.network), "hours": a.hours,
        "checkpoint_minutes": a.checkpoint_minutes, "validate_every": a.validate_every, "device": a.device,
    }  # fmt: skip
    if a.latent is None:
        prior = train_prior(a.data, a.out, start=a.start, **common)
    elif a.start is not None:
        raise ValueError("--start and --latent exclude each other: a prior of latents starts from scratch")
    else:
        prior = train_latent_prior(a.data, a.out, a.latent, **common)
    if is_main():
        print(prior)


def add_sample(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "sample",
        help="draw images from a prior",
        description="Draws images from a prior into a contact sheet: does it know anatomy, or texture only? With --training each "
        "stands above the training image most like it: does it make up images, or remember them?",
    )
    p.add_argument("--out", type=Path, required=True, metavar="SHEET.png", help="picture to write")
    add_prior(p)
    add_class(p)
    p.add_argument("--samples", type=int, default=8, metavar="N", help="how many (%(default)s)")
    p.add_argument("--side", type=int, default=256, metavar="PIXELS", help="of an image (%(default)s)")
    p.add_argument("--pixel-mm", type=float, help="side of a pixel [mm] to draw images for")
    p.add_argument("--training", nargs="+", type=Path, default=[], metavar="FILE", help="images it was trained on")
    p.add_argument("--validation", nargs="+", type=Path, default=[], metavar="FILE", help="images of other patients")
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    p.set_defaults(run=_sample)
    return p


def _sample(a: argparse.Namespace) -> None:
    from scoreinv.files.reconstruction import check_writable
    from scoreinv.prior_samples import sample_prior

    check_device(a.device)
    check_writable(a.out)
    print(
        sample_prior(
            a.out, prior=a.prior, n=a.samples, side=a.side, pixel_mm=a.pixel_mm, training=a.training,
            validation=a.validation, seed=a.seed, device=a.device, of_class=class_options(a),
        )
    )  # fmt: skip


def add_score(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "score",
        help="say how usual an image is under a prior",
        description="An anomaly score for a CT image: how much worse than usual the prior denoises it, where in it, and its likelihood "
        "in bits per pixel by the probability flow, which takes tens of evaluations of the network and as many gradients "
        "(about half a minute for 256 x 256; --draws 0 leaves it out).",
    )
    p.add_argument("image", type=Path, help="the image, or the folder of one DICOM series")
    p.add_argument(
        "--slice", type=int, metavar="K", help="of a series or volume: this slice alone; negative counts from the end"
    )
    p.add_argument("--pixel-mm", type=float, help="side of a pixel [mm], for files that do not state it")
    add_prior(p)
    p.add_argument(
        "--reference", nargs="+", type=Path, default=[], metavar="FILE", help="slices of patients that the prior does not "
        "know, to say among how many the image stands out",
    )  # fmt: skip
    p.add_argument("--picture", type=Path, metavar="PICTURE.png", help="also draw where the image is unusual")
    p.add_argument(
        "--draws", type=int, default=1, metavar="N", help="random projections of the likelihood; 0: none (%(default)s)"
    )
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    p.set_defaults(run=_score)
    return p


def _score(a: argparse.Namespace) -> None:
    from scoreinv.files.reconstruction import check_writable
    from scoreinv.image_score import score_image

    check_device(a.device)
    if a.picture is not None:
        check_writable(a.picture)
    print(
        score_image(
            a.image, prior=a.prior, index=a.slice, pixel_mm=a.pixel_mm, reference=a.reference, draws=a.draws,
            seed=a.seed, picture=a.picture, device=a.device,
        )
    )  # fmt: skip
