"""Every generative system of the library, trained on real data small enough for a processor: pictures, figures, and the tests that verify it.

    SCOREINV_DATA=/data python benchmarks/gallery --out docs/gallery                   # at most 60 minutes on 2 cores
    python benchmarks/gallery --out docs/gallery --minutes 20                          # a third of the training
    python benchmarks/gallery --out docs/gallery --only ct_prior ct_latent             # some parts

2-D laws, scikit-learn's 8 x 8 digits, and CT slices of 64 x 64 pixels from $SCOREINV_DATA/ct (scikit-image's pictures without). Each part
writes its pictures and, last, PART.json with its figures; a part whose figures are there, of this budget or a larger one, is not computed
again. What is trained is kept in --work and goes on from there. README.md is made from the figures of all parts. Parts of one kind of data
go one after the other, for they share what is trained; the kinds are shared between two processes (--jobs).
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gallery.setting import FULL_MINUTES, Part, Setting
from gallery.systems import GROUPS, SYSTEMS, System
from scoreinv.files.atomic import replacing

PARTS = tuple(dict.fromkeys(system.part for system in SYSTEMS))
"""In the order of the table; each is a module with a `run`."""
MISSING = "not run yet"
JOBS = 2
"""Processes, of a core each."""


def part_named(name: str) -> Part:
    """The function of a part."""
    found: Part = importlib.import_module(f"gallery.{name}").run
    return found


def known(setting: Setting, part: str) -> dict[str, Any] | None:
    """What a part has measured before; None if it has not."""
    path = setting.out / f"{part}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def run_parts(setting: Setting, parts: Sequence[str]) -> list[str]:
    """Run those that have not been run with this budget or a larger one; returns their names.

    Raises:
        ValueError: a part has no figure for one of its systems.
    """
    setting.out.mkdir(parents=True, exist_ok=True)
    done = []
    for part in parts:
        before = known(setting, part)
        if before is not None and before["minutes"] >= setting.minutes:
            print(f"{part}: there already", flush=True)
            continue
        started, cpu = time.perf_counter(), time.process_time()
        outcome = part_named(part)(setting)
        lacking = {s.name for s in SYSTEMS if s.part == part} - set(outcome.figures)
        if lacking:
            raise ValueError(f"{part} has no figures for {sorted(lacking)}")
        found = {
            "part": part, "minutes": setting.minutes, "seconds": round(time.perf_counter() - started, 1),
            "processor_seconds": round(time.process_time() - cpu, 1), "machine": machine(),
            "figures": dict(outcome.figures), "numbers": dict(outcome.numbers),
        }  # fmt: skip
        with replacing(setting.out / f"{part}.json") as temporary:
            temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{part}: {found['seconds']:.0f} s", flush=True)
        done.append(part)
    return done


def chains(parts: Sequence[str]) -> list[list[str]]:
    """Parts that share what is trained, in their order: those of one kind of data, the first word of their names; the longest first."""
    kinds: dict[str, list[str]] = {}
    for part in parts:
        kinds.setdefault(part.split("_")[0], []).append(part)
    return sorted(kinds.values(), key=len, reverse=True)


def run_chains(setting: Setting, parts: Sequence[str], jobs: int) -> None:
    """`run_parts` of every chain, so many at a time in processes of their own; the first failure is raised when all have ended."""
    waiting = chains(parts)
    if min(jobs, len(waiting)) <= 1:
        run_parts(setting, parts)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        for running in [pool.submit(run_parts, setting, chain) for chain in waiting]:
            running.result()


def clock(minutes: Mapping[str, float], jobs: int) -> float:
    """How long processes take that run the chains of parts of these lengths, each the next one that waits."""
    ends = [0.0] * jobs
    for chain in chains(tuple(minutes)):
        ends[ends.index(min(ends))] += sum(minutes[part] for part in chain)
    return max(ends)


def machine() -> str:
    """What computed this, in a line."""
    n = torch.get_num_threads()
    return f"{n} thread{'s' if n > 1 else ''}, {platform.machine()}, torch {version('torch')}, scikit-learn {version('scikit-learn')}, Python {platform.python_version()}"


def readme(setting: Setting) -> str:
    """The page of the gallery."""
    found = {part: known(setting, part) for part in PARTS}
    lines = ["# Gallery", "", INTRODUCTION, "", spent(found), ""]
    lines += digits_table(found["digits_models"])
    for group, systems in GROUPS.items():
        lines += [
            f"## {group}",
            "",
            "| system | file | verified by | figure | picture |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [row(system, found[system.part]) for system in systems]
        lines += [
            "",
            *[
                f"![{name}]({name}.png)\n"
                for name in dict.fromkeys(s.picture for s in systems)
                if name not in shown(lines)
            ],
        ]
    lines += extra_pictures(lines, setting)
    return "\n".join(lines).rstrip() + "\n"


INTRODUCTION = """Every generative system of scoreinv, trained on real data small enough for a processor, sampled and measured:

```sh
SCOREINV_DATA=/data python benchmarks/gallery --out docs/gallery
```

The figures are those of short trainings, and say that a system works, not how far it can be taken; that it is what its paper says, to rounding
or within standard errors, is told by the test beside it. "Fréchet" is the Fréchet distance between the features of draws and of the 597
held-out digits, the 48 numbers before the last layer of a small classifier of digits trained for this: the FID's formula, but not its
features, and larger the fewer draws it is taken of, so that only numbers of one table compare. "Accuracy" is what that classifier thinks of draws. "From the data" on the plane is the
sliced Wasserstein distance, next to that of two sets of data."""


def spent(found: dict[str, Any]) -> str:
    """Budgets and times of the parts."""
    ran = [f for f in found.values() if f is not None]
    if not ran:
        return "No part has been run yet."
    budgets = sorted({f["minutes"] for f in ran})
    words = " and ".join(f"{b:g}" for b in budgets)
    minutes = {f["part"]: f["processor_seconds"] / 60 for f in ran}
    total, two = sum(minutes.values()), clock(minutes, JOBS)
    each = ", ".join(f"{part} {m:.1f}" for part, m in minutes.items())
    machines = "; ".join(dict.fromkeys(f["machine"] for f in ran))
    return (
        f"Budget of what is shown: `--minutes {words}`, of {FULL_MINUTES:g}. It took {total:.0f} minutes of a processor core ({each}; a part finds "
        f"what an earlier one has trained), which is {two:.0f} by the clock for the command's {JOBS} processes on as many cores. {machines}."
    )


def digits_table(found: dict[str, Any] | None) -> list[str]:
    """Bits and distances of the models of digits."""
    if found is None:
        return []
    numbers = found["numbers"]
    lines = [
        "## Digits, model by model", "",
        f"{numbers['n_bits']} held-out digits for the bits by the flow (one projection, uniform dequantisation), twice as many for DDPM's bound "
        f"(17 gray values, log2(17) = 4.09 bits if all were alike); {numbers['n']} draws for the Fréchet distance, of which training digits have "
        f"{numbers['floor']:.2f}. The classifier is right about {100 * numbers['accuracy']:.1f} % of held-out digits.", "",
        "| model | bits per dimension, flow | bits per dimension, discrete bound | Fréchet distance |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, r in numbers["models"].items():
        bound = f"{r['bound']:.2f}" if "bound" in r else ""
        lines.append(f"| {name} | {r['bits']:.2f} ± {r['bits_error']:.2f} | {bound} | {r['frechet']:.2f} |")
    return [*lines, "", DIGITS_WORDS, ""]


DIGITS_WORDS = """Models whose bits are by the flow are trained on digits with uniform noise of a gray value, as the likelihood has them; the two chains on
gray values as they are, so that their flow has a density that is peaked at these values and their own likelihood is the discrete bound."""


def row(system: System, found: dict[str, Any] | None) -> str:
    """A row of the table."""
    figure = MISSING if found is None else found["figures"][system.name]
    test = system.test.split("::")[1].removeprefix("test_").replace("_", " ")
    name = system.name.removeprefix("digits: ")
    up = "../.."
    return (
        f"| {name} | [{system.file.removeprefix('scoreinv/')}]({up}/{system.file}) | [{test}]({up}/{system.test.split('::')[0]}) | "
        f"{figure} | [{system.picture}]({system.picture}.png) |"
    )


def shown(lines: Sequence[str]) -> set[str]:
    """Pictures that a page has already."""
    return {
        line.split("](")[1].removesuffix(".png)\n").removesuffix(".png)") for line in lines if line.startswith("![")
    }


def extra_pictures(lines: Sequence[str], setting: Setting) -> list[str]:
    """Pictures that no row names."""
    more = sorted({p.stem for p in setting.out.glob("*.png")} - shown(lines))
    return ["## More pictures", "", *[f"![{name}]({name}.png)\n" for name in more]] if more else []


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    p = argparse.ArgumentParser(
        prog="gallery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, default=Path("docs/gallery"), help="pictures, figures and README.md")
    p.add_argument("--work", type=Path, default=Path("runs/gallery"), help="training states")
    p.add_argument("--minutes", type=float, default=FULL_MINUTES, help="budget on 2 cores; training in proportion")
    p.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    p.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    p.add_argument("--jobs", type=int, default=JOBS, metavar="N", help="processes (%(default)s)")
    a = p.parse_args(arguments)
    if a.jobs < 1:
        p.error(f"--jobs must be at least 1, got {a.jobs}")
    minutes = 0.01 if a.quick else a.minutes
    if not minutes > 0:
        p.error(f"--minutes must be positive, got {minutes:g}")
    data = os.environ.get("SCOREINV_DATA")
    setting = Setting(a.out, a.work, minutes, Path(data) if data else None)
    try:
        run_chains(setting, a.only, a.jobs)
    finally:
        with replacing(a.out / "README.md") as temporary:
            temporary.write_text(readme(setting), encoding="utf-8")
