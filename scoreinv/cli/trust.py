"""Commands on trust: `calibrate`, `verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scoreinv.cli.options import add_operator, add_prior, check_device, operator_arguments


def add_calibrate(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "calibrate",
        help="make the intervals of reconstructions hold",
        description="Simulates and reconstructs the middle slice of every patient, measures how often the truth lies within the draws' "
        "spread, and writes the factor that makes it so. `scoreinv reconstruct --calibration` applies it to scans alike. "
        "The same command goes on where it was stopped.",
    )
    p.add_argument("data", nargs="+", type=Path, help="CT images of patients that the prior was not trained on")
    p.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="calibrations to write, or to add to")
    add_operator(p)
    p.add_argument(
        "--noise",
        type=float,
        default=0.005,
        metavar="R",
        help="standard deviation over the mean of the data (%(default)s)",
    )
    p.add_argument("--level", type=float, default=0.9, help="of the intervals (%(default)s)")
    p.add_argument("--method", default="proximal", metavar="NAME", help="that draws (%(default)s)")
    p.add_argument("--samples", type=int, metavar="M", help="draws an image")
    add_prior(p)
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the method")
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    p.set_defaults(run=_calibrate)
    return p


def _calibrate(a: argparse.Namespace) -> None:
    from scoreinv import configure
    from scoreinv.calibrate import calibrate
    from scoreinv.files.reconstruction import check_writable

    check_device(a.device)
    check_writable(a.out)
    found = calibrate(
        a.data, a.operator, operator_arguments(a), relative_noise=a.noise, level=a.level, method=a.method, samples=a.samples,
        prior=a.prior, settings=configure.parse_settings(a.set), seed=a.seed, device=a.device, out=a.out,
    )  # fmt: skip
    print(
        f"{a.out}: factor {found.factor:.2f} for intervals of {found.level:.0%}; the draws alone hold {found.coverage_before:.0%} of the "
        f"tissue of {found.patients} patients, with it {found.coverage_after:.0%} of each left out (least {found.coverage_least:.0%})"
    )


def add_verify(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="hold the posterior methods against exact posteriors",
        description="Runs posterior methods on problems whose posterior is known in closed form and writes the table of their errors "
        "(verification.csv, .md and .png). Rows that are there are not computed again.",
    )
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the table is")
    p.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="these alone (all)")
    p.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="these alone (all)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    p.set_defaults(run=_verify)
    return p


def _verify(a: argparse.Namespace) -> None:
    from scoreinv.verification.table import verification_table

    a.out.mkdir(parents=True, exist_ok=True)
    for path in verification_table(a.out, methods=a.methods, only=a.cases, seed=a.seed):
        print(path)
