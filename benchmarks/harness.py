"""What does the sweep harness cost beside the methods, and how long does a finished sweep take to find that it is finished?

Cost: phantoms of 256 x 256 pixels, 23 parallel views, 0.5 % noise, data from a grid twice as fine, the methods of
README's table. All that is not a method or the operator's matrix (true image, data, figures, row) is set against the methods' own, both
in seconds of the processor, which other programs on the machine disturb least. Resume: a store of 1000 rows is made with FBP on tiny
phantoms, and the same sweep is run again.

    python benchmarks/harness.py --out benchmarks/results/harness.md
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from scoreinv.configure import operator_for_image
from scoreinv.files.versions import versions
from scoreinv.study import read, read_sweep, run
from scoreinv.study.machine import processor

SIZE = 256
COST = """
[truth]
phantom = "ellipses"
count = {images}
size = {size}

[operator]
name = "parallel_beam_ct"
n_views = 23
simulate = {{ refine = 2, weights = "strip" }}

[noise]
relative = 0.005

[[method]]
sweep.name = ["fbp", "cgls", "sirt", "fista_wavelet", "fista_tv", "proximal"]
"""

RESUME = """
seeds = {seeds}

[truth]
phantom = "ellipses"
size = 16

[operator]
name = "parallel_beam_ct"
n_views = 5

[noise]
relative = 0.01

[method]
name = "fbp"
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, metavar="FILE.md", help="write the table to this file too")
    p.add_argument("--images", type=int, default=1, metavar="N", help="phantoms (%(default)s)")
    p.add_argument("--rows", type=int, default=1000, metavar="N", help="rows to resume from (%(default)s)")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text = report(cost(Path(name), a.images), resume(Path(name), a.rows), a.rows)
    print(text)
    if a.out:
        a.out.write_text(text, encoding="utf-8")


def cost(folder: Path, n_images: int) -> tuple[float, float, float, int]:
    """Processor seconds of the whole sweep, of its methods, of making the operator's matrix, and the number of rows."""
    sweep, warm = folder / "cost.toml", folder / "warm.toml"
    sweep.write_text(COST.format(images=n_images, size=SIZE), encoding="utf-8")
    warm.write_text(COST.format(images=1, size=32), encoding="utf-8")
    list(run(read_sweep(warm), folder / "warm"))  # libraries and the prior are loaded
    started = time.process_time()
    rows = list(run(read_sweep(sweep), folder / "cost"))
    seconds = time.process_time() - started
    assert all(row["status"] == "done" for row in rows), [row["error"] for row in rows]
    pixel_mm = 1.0  # not the sweep's, whose matrix is kept
    A = operator_for_image("parallel_beam_ct", (SIZE, SIZE), pixel_mm, {"n_views": 23})
    started = time.process_time()
    A(torch.zeros(SIZE, SIZE))
    matrix = time.process_time() - started
    return seconds, sum(row["cpu_seconds"] for row in rows), matrix, len(rows)


def resume(folder: Path, n: int) -> tuple[float, float, float]:
    """Seconds a row of the first run, of the second run in a process that is ready, and of the command in the shell."""
    sweep, out = folder / "resume.toml", folder / "resume"
    sweep.write_text(RESUME.format(seeds=list(range(n))), encoding="utf-8")
    started = time.perf_counter()
    assert sum(1 for _ in run(read_sweep(sweep), out)) == n
    first = (time.perf_counter() - started) / n
    assert len(read(out)) == n
    started = time.perf_counter()
    assert sum(1 for _ in run(read_sweep(sweep), out)) == 0
    again = time.perf_counter() - started
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "scoreinv", "bench", sweep, "--out", out], check=True, capture_output=True)
    return first, again, time.perf_counter() - started


def report(cost: tuple[float, float, float, int], resume: tuple[float, float, float], n: int) -> str:
    """The Markdown text."""
    total, methods, matrix, rows = cost
    harness = total - methods - matrix
    about = versions()
    return "\n".join(
        [
            "# What the sweep harness costs",
            "",
            __doc__.split("\n\n")[1].replace("\n", " "),
            "",
            f"{processor()}, {torch.get_num_threads()} threads, torch {about['torch']}, Python {about['python']}",
            "",
            "| | |",
            "| --- | --- |",
            f"| methods, {rows} rows [s] | {methods:.1f} |",
            f"| making the operator's matrix, once [s] | {matrix:.2f} |",
            f"| all else [s] | {harness:.2f} |",
            f"| all else, share of the methods' time | {harness / methods:.1%} |",
            f"| all else, a row [ms] | {1000 * harness / rows:.0f} |",
            f"| {n} tiny rows (16 x 16, FBP), each [ms] | {1000 * resume[0]:.1f} |",
            f"| {n} rows found finished [s] | {resume[1]:.2f} |",
            f"| the same from the shell, start of Python and torch included [s] | {resume[2]:.1f} |",
            "",
        ]
    )


if __name__ == "__main__":
    main()
