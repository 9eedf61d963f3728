"""The command line: parse, call the library, print. Angles are in degrees here, in radians in the library."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from scoreinv.cli import baselines, bench, convert, editing, latents, priors, report, scans, trust, tune

COMMANDS = (
    scans.add_demo, scans.add_simulate, convert.add_rebin, scans.add_reconstruct, priors.add_train, priors.add_sample, priors.add_score,
    editing.add_edit,
    latents.add_train_autoencoder, baselines.add_train_baseline,
    trust.add_calibrate, tune.add_tune, bench.add_bench, report.add_report, trust.add_verify, convert.add_export, scans.add_info, scans.add_list,
)  # fmt: skip
"""Each adds the parser of one command."""

EXAMPLES = """examples:
  scoreinv demo
  scoreinv simulate slice.dcm --operator parallel_beam_ct --views 23 --noise 0.005 --out scan.h5
  scoreinv reconstruct scan.h5 --samples 8 --picture recon.png
  scoreinv export scan.recon.h5 --out mean.nii.gz
  scoreinv reconstruct synchrotron.h5 --detector-mm 0.0065 --binning 2
  scoreinv train images.h5 --validation others.h5 --out runs/first --hours 2
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    try:
        arguments = parser().parse_args(argv)
        warnings.showwarning = _warn  # type: ignore[assignment]
        from scoreinv import progress

        with progress.quiet() if arguments.quiet else contextlib.nullcontext():
            arguments.run(arguments)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"scoreinv: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scoreinv: interrupted; no file is left half-written", file=sys.stderr)
        return 130
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if not issubclass(category, (DeprecationWarning, FutureWarning)):
        print(f"scoreinv: warning: {' '.join(str(message).split())}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = _Parser(
        prog="scoreinv", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Medical-imaging inverse problems with score-based priors: from a projection file to a reconstruction.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        command = add(commands)
        command.add_argument("--quiet", action="store_true", help="no progress bars, results only")
    return top


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, as all errors are told; `--help` has the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help explains)\n")


def _version() -> str:
    from scoreinv.files.versions import package_version

    return f"scoreinv {package_version()}"
