"""The command `tune`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scoreinv.cli.options import add_operator, add_prior, check_device, operator_arguments

UNITS = {"psnr": "dB", "calibration": "HU (CRPS)"}


def add_tune(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "tune",
        help="find the constants of a method on patients",
        description="Simulates scans of the middle slice of every patient, searches for the constants of a method that reconstruct them "
        "best (by Optuna: pip install 'scoreinv[tune]'), and writes them with how they were found. `scoreinv reconstruct --tuned` "
        "takes them. The same command with more trials goes on where the last one stopped.",
    )
    p.add_argument("method", help="see `scoreinv list`")
    p.add_argument("data", nargs="+", type=Path, help="CT images of patients that the prior was not trained on")
    p.add_argument("--out", type=Path, required=True, metavar="TUNED.json", help="file to write, or to add to")
    add_operator(p)
    p.add_argument(
        "--noise", type=float, nargs="+", default=[0.005], metavar="R",
        help="standard deviation over the mean of the data; a search for each (%(default)s)",
    )  # fmt: skip
    p.add_argument("--trials", type=int, default=30, metavar="N", help="settings to try (%(default)s)")
    p.add_argument(
        "--range", action="append", default=[], metavar="KEY=LOW:HIGH[:log]",
        help="where to search for a setting, instead of the method's own list",
    )  # fmt: skip
    p.add_argument(
        "--objective", choices=["psnr", "calibration"], default="psnr",
        help="PSNR of the mean of the draws, or the CRPS of the draws, which wants them calibrated (%(default)s)",
    )  # fmt: skip
    p.add_argument("--patients", type=int, metavar="N", help="the first so many only")
    p.add_argument("--samples", type=int, metavar="M", help="draws an image")
    add_prior(p)
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings to keep fixed")
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the search (%(default)s)")
    p.set_defaults(run=_tune)
    return p


def _tune(a: argparse.Namespace) -> None:
    from scoreinv.configure import parse_settings
    from scoreinv.files.reconstruction import check_writable
    from scoreinv.ranges import parse_ranges
    from scoreinv.tune import read_tuned, save, tune

    check_device(a.device)
    check_writable(a.out)
    if a.out.suffix == ".journal":
        raise ValueError(
            f"--out {a.out}: the trials are kept under this name; give the constants another, such as {a.out.with_suffix('.json')}"
        )
    if a.out.exists():
        read_tuned(a.out)  # another kind of file is not written over
    for noise in a.noise:
        found = tune(
            a.data, a.method, relative_noise=noise, trials=a.trials, storage=a.out.with_suffix(".journal"), operator=a.operator,
            arguments=operator_arguments(a), ranges=parse_ranges(a.method, a.range) or None, objective=a.objective,
            patients=a.patients, samples=a.samples, prior=a.prior, settings=parse_settings(a.set), seed=a.seed, device=a.device,
        )  # fmt: skip
        save(a.out, a.method, found)
        constants = ", ".join(f"{key} {found[key]:.4g}" for key in found["tuned"])
        own, trials = found["provenance"]["untuned"], found["provenance"]["trials"]
        value = f"{found[a.objective]:.4g} {UNITS[a.objective]}"
        words = (
            f"{constants}: {value}, with its own constants {own:.4g}"
            if constants
            else f"its own constants are kept, {value}: none of {trials} trials is better"
        )
        print(f"{a.out}: {a.method} at {100 * noise:g} % noise: {words}")
