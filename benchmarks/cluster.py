"""Do two Dask workers compute a sweep twice as fast as one process?

    python benchmarks/cluster.py --out benchmarks/results [--side 128] [--images 8] [--workers 2]

The same cells, FBP, FISTA-TV and the score prior's `proximal` on ellipse phantoms, by `study.run` in one process with one thread, and on
`--cluster local` with one thread a worker. The workers are up, with scoreinv imported and the prior loaded, before the clock starts; so is the
one process. Starting them is a column of its own. Rows must be equal: the largest difference of PSNR is printed beside.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from scoreinv.files.versions import versions
from scoreinv.study import Cell, MethodCall, Noise, OperatorCall, Phantoms, Row, Sweep, run
from scoreinv.study.cluster import Pool, workers
from scoreinv.study.machine import machine

PRIOR = "ct-256-fast"


def sweep(side: int, images: int) -> Sweep:
    return Sweep(
        truths=[Phantoms("ellipses", count=images, size=side)],
        operators=[OperatorCall("parallel_beam_ct", {"n_views": n}) for n in (23, 60)],
        methods=[MethodCall("fbp"), MethodCall("fista_tv"), MethodCall("proximal", {"n_levels": 10, "samples": 1})],
        noises=[Noise(relative=0.005)],
        priors=[PRIOR],
        title="cluster",
    )


def measured(
    cells: Sweep, mapper: Callable[[Callable[[Cell], Row], Sequence[Cell]], Iterable[Row]]
) -> tuple[float, dict[str, Any]]:
    """Seconds, and the PSNR of every cell by its key."""
    with TemporaryDirectory() as folder:
        begun = time.perf_counter()
        rows = {row["key"]: row["psnr"] for row in run(cells, Path(folder), mapper=mapper)}
        return time.perf_counter() - begun, rows


def warm(pool: Pool) -> None:
    """Every worker imports and loads what it will need."""
    from scoreinv.priors.shipped import load_network

    pool.client.run(load_network, PRIOR)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--side", type=int, default=128)
    p.add_argument("--images", type=int, default=8)
    p.add_argument("--workers", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(1)
    cells, few = sweep(a.side, a.images), sweep(a.side, 1)
    measured(few, map)
    alone, here = measured(cells, map)
    begun = time.perf_counter()
    with workers("local", a.workers) as pool:
        warm(pool)
        start = time.perf_counter() - begun
        together, there = measured(cells, pool.rows)
    n = len(cells.cells)
    assert set(here) == set(there) == {cell.key for cell in cells.cells}
    apart = max(abs(here[key] - there[key]) for key in here)
    lines = [
        "# A sweep on Dask workers",
        "",
        f"{n} cells: {a.images} ellipse phantoms of {a.side} x {a.side}, 23 and 60 views, FBP, FISTA-TV, proximal (10 levels, {PRIOR}). One thread a",
        f"process. {machine()['processor']}, {', '.join(f'{k} {v}' for k, v in versions().items())}.",
        "",
        "| | seconds | rows a minute | start-up [s] |",
        "| --- | --- | --- | --- |",
        f"| one process | {alone:.1f} | {60 * n / alone:.1f} | |",
        f"| {a.workers} Dask workers | {together:.1f} | {60 * n / together:.1f} | {start:.1f} |",
        "",
        f"{alone / together:.2f} times as fast. The largest difference of PSNR between the two is {apart:.2g} dB.",
    ]
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "cluster.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
