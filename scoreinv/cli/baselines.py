"""The command `train-baseline`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scoreinv.cli.options import add_operator, add_training_run, check_device, operator_arguments


def add_train_baseline(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "train-baseline",
        help="train the network of a learned baseline",
        description="Trains the network of a learned baseline (conditional_score, fbp_unet, learned_gradient, learned_primal_dual, neumann, sin_4c_prn) from "
        "data simulated of CT images in Hounsfield units. A run goes on where the last one in the same folder stopped, also after kill -9. "
        "Use the result with scoreinv reconstruct --method NAME --set weights=FOLDER/NAME.safetensors.",
    )
    p.add_argument("method", metavar="METHOD", help="whose network")
    p.add_argument("data", nargs="+", type=Path, help="files or folders of training images")
    p.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="state, log, plot and the finished weights"
    )
    p.add_argument(
        "--start", metavar="WEIGHTS", help="begin with these weights of the method: shipped, or a .safetensors file"
    )
    p.add_argument("--validation", nargs="+", type=Path, default=[], help="images of other patients")
    add_operator(p)
    p.add_argument(
        "--noise", type=float, nargs="+", metavar="R", help="standard deviations over the mean of the data (0 0.005)"
    )
    add_training_run(p, 4000)
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="other training settings: batch_size, side, lr ...",
    )
    p.add_argument(
        "--network", action="append", default=[], metavar="KEY=VALUE", help="network settings: widths=[32,64] ..."
    )
    p.set_defaults(run=_train_baseline)
    return p


def _train_baseline(a: argparse.Namespace) -> None:
    from scoreinv.baselines.run import train_baseline
    from scoreinv.configure import parse_settings

    check_device(a.device)
    settings: dict[str, Any] = {"seed": a.seed, "bfloat16": a.bfloat16}
    settings |= {k: v for k, v in (("steps", a.steps), ("noise", a.noise)) if v is not None}
    print(
        train_baseline(
            a.method, a.data, a.out, validation=a.validation, operator=a.operator, arguments=operator_arguments(a),
            training=settings | parse_settings(a.set), network=parse_settings(a.network), hours=a.hours,
            checkpoint_minutes=a.checkpoint_minutes, validate_every=a.validate_every, device=a.device, start=a.start,
        )
    )  # fmt: skip
