"""On what a number was made: versions, commit, machine; and how much memory a piece of work needed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from scoreinv.files.versions import versions


@functools.cache
def provenance() -> dict[str, Any]:
    """`versions` with `sources`, `commit` and `machine`; asked for once a process."""
    return {"versions": {**versions(), "sources": sources()}, "commit": commit(), "machine": machine()}


def sources() -> str:
    """The first 12 digits of a SHA-256 over the package's own code and tuned constants, which tells code apart that no commit names: changed
    since the last one, or installed without a checkout."""
    found = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for path in sorted(p for kind in ("py", "json") for p in package.rglob(f"*.{kind}")):
        found.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """The computer, without its name."""
    return {"system": platform.system(), "processor": processor(), "threads": torch.get_num_threads()}


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The commit of the checkout that the package runs from, with "+" where files have changed since; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package may lie inside somebody else's checkout
        return None
    try:
        found = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return found + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603 (all literals)
    return done.stdout.strip()


def reset_peak(device: str) -> None:
    """Let the peak of `peak_mib` start from now, where the system can do that (Linux, CUDA)."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib(device: str) -> float:
    """Largest memory since `reset_peak` [MiB]: resident in the whole process, its libraries and caches included, or allocated on a
    CUDA device; where the system cannot reset it, since the process began."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    except (OSError, ValueError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if platform.system() == "Darwin" else 2**10)
