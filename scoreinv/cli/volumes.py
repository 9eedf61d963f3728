"""Volumes, slice by slice: what `reconstruct` does with `--slices`, `--batch`, `--cluster` and Zarr."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scoreinv.cli.options import add_cluster, pool_of


def add_volume(p: argparse.ArgumentParser) -> None:
    v = p.add_argument_group("volumes, slice by slice; the same command goes on where it was stopped")
    v.add_argument(
        "--slices", metavar="A:B", help="slices A to B - 1 of the scan, ':' for all; rows of a DXchange file"
    )
    v.add_argument("--batch", type=int, metavar="N", help="reconstruct N slices together (1)")
    add_cluster(v)


def is_volume(a: argparse.Namespace) -> bool:
    """Whether `reconstruct` is to go slice by slice."""
    zarr = any(path is not None and path.suffix == ".zarr" for path in (a.scan, a.out))
    return zarr or any(value is not None for value in (a.slices, a.batch, a.cluster, a.workers))


def reconstruct_volume(a: argparse.Namespace, out: Path, how: dict[str, Any]) -> None:
    """`how` are arguments of `scoreinv.volume.reconstruct_volume`."""
    from scoreinv import volume
    from scoreinv.files.slices import open_slices
    from scoreinv.files.volume import judgement, opened, summary
    from scoreinv.priors.shipped import identity
    from scoreinv.progress import bar
    from scoreinv.tune import tuned_settings

    for name, given in (("--picture", a.picture), ("--row", a.row)):
        if given is not None:
            raise ValueError(f"{name} is for one slice, --slices for a volume: leave one of them out")
    slices = open_slices(a.scan, centre=a.centre, detector_mm=a.detector_mm, binning=a.binning, every=a.every)
    which = slices_of(":" if a.slices is None else a.slices, len(slices))
    method, settings = a.method, how.pop("settings")
    if a.tuned is not None:
        method, tuned = tuned_settings(
            a.tuned, volume.look(slices, a.noise_std), a.method, prior_sha256=identity(a.prior)["sha256"]
        )
        settings = tuned | settings
    with pool_of(a) as pool, bar(a.scan.stem, len(which)) as progress:
        mapper: volume.Mapper = volume.one_by_one if pool is None else pool.computed
        for k in volume.reconstruct_volume(
            slices, out, method, which=which, batch=1 if a.batch is None else a.batch, samples=a.samples, seed=a.seed,
            prior=a.prior, settings=settings, noise_std=a.noise_std, device=a.device, mapper=mapper, **how,
        ):  # fmt: skip
            progress.advance(f"slice {k}")
    with opened(out) as found:
        print(f"{out}: {summary(found)}")
        if words := judgement(found):
            print(words)


def slices_of(text: str, n: int) -> range:
    """The slices that "A:B", "A:", ":B", ":" or "A" stand for, of n.

    Raises:
        ValueError: it is written otherwise, or there are no such slices.
    """
    start, colon, stop = text.partition(":")
    if not all(part.isdigit() for part in (start, stop) if part) or not (colon or start):
        raise ValueError(f"--slices is written A:B, with A and B from 0, or left out on either side; got {text!r}")
    first = int(start or 0)
    end = int(stop or n) if colon else first + 1
    if not first < end <= n:
        raise ValueError(f"--slices {text}: the volume has slices 0:{n}")
    return range(first, end)
