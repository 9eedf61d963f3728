"""How much faster than ASTRA's own CPU projectors is the CT operator?

One slice and 16 slices of 256 x 256 pixels, 23 parallel views, 363 detector cells, "linear" weights on both sides.
ASTRA's projectors run on arrays that lie ready, one slice after another, as they do in the packages built on it.
Blocks of 5 calls of the two take turns, so that a busy machine slows both and both are measured as iterations use them, call
after call; what counts are ratios: of the medians, and of the best times, which a machine shared with others disturbs least.

    python benchmarks/operator_speed.py --out benchmarks/results/operator_speed.md
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import astra
import torch
from astra import experimental
from torch import Tensor

from scoreinv.operators import ParallelBeamCT, equispaced_angles

IN_A_ROW = 5
BATCHES = (1, 16)


def main() -> None:
    """Measure, print a Markdown table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table to this file too")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timed repeats (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, metavar="N", help="side of the image (default: %(default)s)")
    parser.add_argument("--views", type=int, default=23, metavar="N", help="number of views (default: %(default)s)")
    args = parser.parse_args()
    text = report(args.size, args.views, args.repeats)
    print(text, end="")
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


def report(size: int, views: int, repeats: int) -> str:
    """The table with the set-up and the machine."""
    n_detectors = round(size * 2**0.5) + 1
    A = ParallelBeamCT((size, size), equispaced_angles(views), n_detectors)
    start = time.perf_counter()
    A(torch.zeros(A.in_shape))
    build = time.perf_counter() - start
    lines = [
        "# Speed of the CT operator against ASTRA's CPU projectors",
        "",
        f"{size} x {size} pixels, {views} parallel views, {n_detectors} cells, weights `linear`, float32; medians of "
        f"{repeats} turns of 5 calls.",
        f"torch {torch.__version__} with {torch.get_num_threads()} thread(s), ASTRA {astra.__version__}, "
        f"Python {platform.python_version()}, {processor()}.",
        f"Making the matrix took {build:.1f} s (once for each geometry).",
        "",
        "| Slices | Direction | scoreinv [ms] | ASTRA [ms] | Ratio of medians | Ratio of best | Difference (relative L2) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for batch in BATCHES:
        for adjoint in (False, True):
            lines.append(row(A, batch, adjoint, repeats))
    lines += [
        "",
        f"Adjoint mismatch |<A x, y> - <x, A'y>| / (|A x| |y|), worst of 16 pairs: {adjoint_mismatch(A):.1e}.",
    ]
    return "\n".join(lines) + "\n"


def row(A: ParallelBeamCT, batch: int, adjoint: bool, repeats: int) -> str:
    """One line of the table."""
    B = A.H if adjoint else A
    x = torch.rand(batch, *B.in_shape, generator=torch.Generator().manual_seed(0))
    theirs = torch.zeros(batch, *B.out_shape)
    with ExitStack() as stack:
        projector = astra.create_projector("linear", A.astra_geometry(), astra.create_vol_geom(*A.image_shape))
        stack.callback(astra.projector.delete, projector)

        def rival() -> None:
            for source, result in zip(x, theirs, strict=True):
                if adjoint:
                    experimental.direct_BP2D(projector, result, source)
                else:
                    experimental.direct_FP2D(projector, source, result)

        ours, theirs_s = interleaved((lambda: B(x), rival), repeats)
        difference = float((B(x) - theirs).norm() / theirs.norm())
    name = "A^T" if adjoint else "A"
    return (
        f"| {batch} | {name} | {1e3 * ours[0]:.2f} | {1e3 * theirs_s[0]:.2f} | {theirs_s[0] / ours[0]:.1f} "
        f"| {theirs_s[1] / ours[1]:.1f} | {difference:.1e} |"
    )


def interleaved(calls: tuple[Callable[[], object], ...], repeats: int) -> list[tuple[float, float]]:
    """Median and least seconds of each call, two warm-up rounds left out."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(-2, repeats):
        for call, taken in zip(calls, seconds, strict=True):
            for _ in range(IN_A_ROW):
                start = time.perf_counter()
                call()
                if repeat >= 0:
                    taken.append(time.perf_counter() - start)
    return [(statistics.median(taken), min(taken)) for taken in seconds]


def adjoint_mismatch(A: ParallelBeamCT) -> float:
    """The largest relative mismatch of the two sides of the dot-product test, in float32."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, *A.in_shape, generator=rng), torch.randn(16, *A.out_shape, generator=rng)
    Ax, Aty = A(x), A.H(y)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() * b.double()).sum(dim=(1, 2))

    scale = inner(Ax, Ax).sqrt() * inner(y, y).sqrt()
    return float(((inner(Ax, y) - inner(x, Aty)).abs() / scale).max())


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
