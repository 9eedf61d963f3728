"""Options that several commands have."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoreinv.study.cluster import Pool


def check_device(device: str) -> None:
    import torch

    known = ["cpu", "cuda", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    if device not in known:
        raise ValueError(f"--device {device!r}: expected one of {', '.join(known)}")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this torch {torch.__version__} finds no CUDA device; use --device cpu")


def add_prior(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--prior", metavar="NAME", help="a shipped prior (see `scoreinv list`) or a .safetensors file (ct-256)"
    )


def add_operator(p: argparse.ArgumentParser) -> None:
    """What scans are simulated with; `operator_arguments` reads it."""
    p.add_argument("--operator", default="parallel_beam_ct", metavar="NAME", help="see `scoreinv list` (%(default)s)")
    p.add_argument("--views", type=int, help="number of views, of operators that have views (23)")
    p.add_argument(
        "--geometry", action="append", default=[], metavar="KEY=VALUE",
        help="further arguments of the operator, such as arc=1.7453 (radians, 100 degrees)",
    )  # fmt: skip


def operator_arguments(a: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError for what is not KEY=VALUE."""
    from scoreinv.configure import parse_settings

    return ({} if a.views is None else {"n_views": a.views}) | parse_settings(a.geometry)


def add_class(p: argparse.ArgumentParser) -> None:
    """What turns a prior towards a class."""
    p.add_argument(
        "--class", dest="of_class", type=int, metavar="C", help="images of this class, from 0: by --classifier, or by a prior that was "
        "trained with classes",
    )  # fmt: skip
    p.add_argument(
        "--classifier",
        type=Path,
        metavar="FILE",
        help="classifier of noisy images (.safetensors), for a prior without classes",
    )
    p.add_argument(
        "--class-strength",
        type=float,
        metavar="S",
        help="1 is the class as it is, more exaggerates it, 0 leaves it out (1)",
    )


def class_options(a: argparse.Namespace) -> dict[str, Any] | None:
    """Arguments of `sampling.guided.towards_class` but for the prior and the device; None where no class is asked for.

    Raises:
        ValueError: one of its options stands without --class.
    """
    for option, value in (("--classifier", a.classifier), ("--class-strength", a.class_strength)):
        if a.of_class is None and value is not None:
            raise ValueError(f"{option} needs a class: give --class C, a whole number from 0")
    if a.of_class is None:
        return None
    strength = {} if a.class_strength is None else {"strength": a.class_strength}
    return {"c": a.of_class, "classifier": a.classifier, **strength}


def add_training_run(p: argparse.ArgumentParser, steps: int) -> None:
    """What every training run has, of a prior or a baseline; `steps` is the default that the help names."""
    p.add_argument("--steps", type=int, help=f"length of the schedule ({steps})")
    p.add_argument("--hours", type=float, help="stop after so many hours; the same command goes on later")
    p.add_argument("--checkpoint-minutes", type=float, default=3.0, help="time between saved states (%(default)s)")
    p.add_argument(
        "--validate-every", type=int, default=500, metavar="STEPS", help="steps between validations (%(default)s)"
    )
    p.add_argument(
        "--bfloat16", action="store_true", help="autocast to bfloat16 (for processors with matrix instructions for it)"
    )


def add_cluster(p: Any) -> None:
    """What spreads work over the workers of a Dask cluster; `p` is a parser or a group of one."""
    p.add_argument(
        "--cluster",
        metavar="WHERE",
        help="compute on Dask workers: local (processes of this machine), slurm, or the HOST:PORT of a scheduler",
    )
    p.add_argument("--workers", type=int, metavar="N", help="of --cluster local (as many as cores) or slurm (jobs)")


@contextlib.contextmanager
def pool_of(a: argparse.Namespace) -> Iterator[Pool | None]:
    """The workers that were asked for, None where the work stays in this process."""
    if a.cluster is None:
        if a.workers is not None:
            raise ValueError("--workers is for --cluster local or slurm: give that too")
        yield None
        return
    from scoreinv.study.cluster import workers

    with workers(a.cluster, a.workers) as pool:
        yield pool
