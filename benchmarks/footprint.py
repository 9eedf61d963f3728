"""How long does a reconstruction take, start to finish, and how much memory does it need? Against FISTA-TV in the same run.

Each command runs in a process of its own, interpreter start and imports included: `scoreinv demo`, and one 256 x 256 image of
23 views by the default method and by FISTA-TV. The 256 x 256 image is a Shepp-Logan phantom, so no data set is needed.

    python benchmarks/footprint.py --out benchmarks/results/footprint.md
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import resize


def measure(*arguments: str) -> tuple[float, float]:
    """Wall time [s] and peak resident memory [MiB] of one scoreinv command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "scoreinv", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"scoreinv {' '.join(arguments)} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        phantom = resize(shepp_logan_phantom(), (256, 256), anti_aliasing=True)
        np.save(folder / "phantom.npy", (2000 * phantom - 1000).astype(np.int16))
        scan = str(folder / "scan.h5")
        measure("simulate", str(folder / "phantom.npy"), "--pixel-mm", "1", "--noise", "0.005", "--out", scan)
        runs = {
            "scoreinv demo (128 x 128, three methods)": measure("demo", "--out", str(folder / "demo")),
            "reconstruct, 256 x 256, default": measure("reconstruct", scan),
            "reconstruct, 256 x 256, --samples 1": measure("reconstruct", scan, "--samples", "1"),
            "reconstruct, 256 x 256, --method fista_tv": measure("reconstruct", scan, "--method", "fista_tv"),
        }
    lines = [
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}",
        "",
        "| command | wall time [s] | peak memory [MiB] |",
        "| --- | --- | --- |",
        *(f"| {what} | {seconds:.1f} | {memory:.0f} |" for what, (seconds, memory) in runs.items()),
    ]
    print("\n".join(lines))
    if a.out:
        a.out.write_text("# Time and memory of a reconstruction\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
