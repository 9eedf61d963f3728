"""The same network and the same operator through deepinv's and azula's samplers and ours: time, PSNR, fit to the data.

Validation slices at 128 x 128 pixels (the mean of 2 x 2 of their own), 23 parallel views, 0.5 % noise, one image each, in one
environment; at 64 x 64 what is too costly above: DDRM, which needs a dense SVD, and DPS with the many steps that it is published with. Time
is that of the whole method on the processor, all threads, divided by the evaluations of the network that it made, so that it does
not see what else the machine does; singular vectors and system matrices are made before. The rows "network" are what an evaluation
costs without and with its gradient. PSNR (range 1.0) on the window of -1000 to 1000 HU. Every library is used through its
documented interface with its default constants: deepinv's DPS (1000 steps of DDPM, weight 1), DiffPIR (100 steps, λ 7, ζ 0.1) and
DDRM (100 steps, η 0.85); azula's samplers with 64 steps on its `VPSchedule`, DPS with ζ 1, PiGDM with η 1, MMPS with one GMRES
iteration. azula's PiGDM wants a pseudo-inverse and knows no noise: it has 10 CGLS iterations. Images are handed over in the
libraries' usual range and the operator with norm 1 (see _rivals.py). Rows called "tuned" have the one weight of those tried (see the
CSV) with the best PSNR on these very slices, which is more than anybody could know. Ours have their defaults or, where a row says so, the
rival's number of steps. The rivals' schedules begin at levels of up to 1000 in the prior's unit, which training never met: until priors.network
told the network of none beyond 80, azula's DPS and its MMPS with CG diverged on it.

    pip install deepinv azula       # the script runs with either, and says which it leaves out
    SCOREINV_DATA=/data OMP_NUM_THREADS=1 python benchmarks/rivals.py --out benchmarks/results

Rows are appended to rivals.csv as they come and are not computed again, priors are told apart by the checksum of their weights and
environments by torch's version; a ratio of times is within one environment. rivals.md is made from them.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _data import slices
from _problems import PROBLEMS, reduced
from _rivals import Run, azula_dps, azula_mmps, azula_pigdm, deepinv_ddrm, deepinv_diffpir, deepinv_dps, whole_svd
from operator_speed import processor
from torch import Tensor

from scoreinv import configure, metrics
from scoreinv.posterior.svd import spectrum
from scoreinv.priors.denoiser import Counted, Denoiser
from scoreinv.priors.shipped import ct_prior, identity
from scoreinv.problem import Problem
from scoreinv.progress import quiet
from scoreinv.report import scores
from scoreinv.units import MU_WATER_PER_MM, hu_from_mu

KEY = ("patient", "size", "method", "library", "version", "settings", "weights", "torch")
FIELDS = (*KEY, "evaluations", "cpu_seconds", "seconds", "psnr", "chi2", "error")
SIZE, SMALL = 128, 64
TUNED_STEPS = 200
TUNED = {"deepinv": (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0), "azula": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}
"""Weights tried for DPS beside the default one."""


class Entry(NamedTuple):
    """A method as one library has it."""

    method: str
    library: str
    settings: str
    run: Run
    size: int = SIZE


def ours(name: str, **settings: Any) -> Run:
    """A method of scoreinv."""

    def run(prior: Denoiser, problem: Problem) -> Tensor:
        built = configure.method(name, {"samples": 1, **settings}, lambda: prior)
        return built(problem, torch.Generator().manual_seed(0))[0]

    return run


def network(gradient: bool, times: int = 20) -> Run:
    """Nothing but evaluations at one level."""

    def run(prior: Denoiser, problem: Problem) -> Tensor:
        x = torch.full((1, *problem.A.in_shape), MU_WATER_PER_MM).requires_grad_(gradient)
        for _ in range(times):
            clean = prior(x, torch.tensor(0.1 * MU_WATER_PER_MM))
            if gradient:
                torch.autograd.grad(clean, x, torch.ones_like(clean))
        return clean[0].detach()

    return run


ENTRIES = [
    Entry("network", "scoreinv", "evaluations alone", network(gradient=False)),
    Entry("network", "scoreinv", "with gradient", network(gradient=True)),
    Entry("network", "scoreinv", "evaluations alone", network(gradient=False), SMALL),
    Entry("network", "scoreinv", "with gradient", network(gradient=True), SMALL),
    Entry("proximal", "scoreinv", "defaults", ours("proximal")),
    Entry("dds", "scoreinv", "defaults", ours("dds")),
    Entry("DiffPIR", "scoreinv", "defaults: 100 steps", ours("diffpir")),
    Entry("DiffPIR", "deepinv", "defaults: 100 steps", deepinv_diffpir()),
    Entry("DDRM", "scoreinv", "defaults: 20 steps", ours("ddrm"), SMALL),
    Entry("DDRM", "scoreinv", "100 steps", ours("ddrm", n_levels=100), SMALL),
    Entry("DDRM", "deepinv", "defaults: 100 steps", deepinv_ddrm(), SMALL),
    Entry("PiGDM", "scoreinv", "defaults: 50 steps", ours("pigdm")),
    Entry("PiGDM", "scoreinv", "64 steps, 10 CG", ours("pigdm", n_levels=64, iterations=10)),
    Entry(
        "PiGDM",
        "scoreinv",
        "64 steps, 10 CG, whole pulls",
        ours("pigdm", n_levels=64, iterations=10, weight="whole"),
    ),
    Entry("PiGDM", "azula", "defaults: 64 steps", azula_pigdm(64, 10, eta=1.0)),
    Entry("MMPS", "scoreinv", "64 steps, 1 GMRES", ours("mmps", n_levels=64, solver="gmres", iterations=1)),
    Entry("MMPS", "azula", "defaults: 64 steps, 1 GMRES", azula_mmps(64)),
    Entry("DPS", "scoreinv", "64 steps", ours("dps", n_levels=64)),
    Entry("DPS", "azula", "defaults: 64 steps, ζ 1", azula_dps(64)),
    Entry("DPS", "deepinv", "64 steps, weight 1", deepinv_dps(num_steps=64)),
    Entry("MMPS", "scoreinv", "64 steps, 5 CG", ours("mmps", n_levels=64)),
    Entry("MMPS", "azula", "64 steps, 5 CG", azula_mmps(64, solver="cg", iterations=5)),
    Entry("DPS", "scoreinv", "defaults: 200 steps", ours("dps"), SMALL),
    Entry("DPS", "deepinv", "defaults: 1000 steps, weight 1", deepinv_dps(), SMALL),
]


def tuned(library: str, weight: float) -> Entry:
    """DPS with another weight."""
    runs = {
        "deepinv": lambda: deepinv_dps(num_steps=TUNED_STEPS, weight=weight),
        "azula": lambda: azula_dps(TUNED_STEPS, zeta=weight),
    }
    return Entry("DPS", library, f"tried: {TUNED_STEPS} steps, weight {weight:g}", runs[library](), SMALL)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--prior", help="a shipped prior's name or a .safetensors file (the default prior)")
    p.add_argument("--patients", type=int, default=1, metavar="K", help="the first so many (%(default)s)")
    p.add_argument("--methods", nargs="+", metavar="NAME", help="such as DPS or MMPS (all)")
    p.add_argument("--untuned", action="store_true", help="leave out the search for DPS's weights")
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "rivals.csv"
    done = list(csv.DictReader(path.open())) if path.is_file() else []
    seen = {tuple(r[k] for k in KEY) for r in done}
    card = identity(a.prior)
    there = [library for library in ("scoreinv", "deepinv", "azula") if version_of(library)]
    for library in sorted({"deepinv", "azula"} - set(there)):
        print(f"{library} is not installed: its methods are left out")
    entries = [e for e in ENTRIES if e.library in there]
    if not a.untuned:
        entries += [tuned(library, w) for library in TUNED if library in there for w in TUNED[library]]
    entries = [e for e in entries if a.methods is None or e.method in a.methods]
    with path.open("a", newline="") as file, quiet():
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        for image in slices(Path(os.environ["SCOREINV_DATA"]) / "ct" / "val.h5")[: a.patients]:
            for e in entries:
                small = reduced(image, e.size)
                named = (e.method, e.library, version_of(e.library), e.settings, card["sha256"][:12], torch.__version__)
                key = (small.patient, str(e.size), *named)
                if key in seen:
                    continue
                prior = Counted(ct_prior(a.prior, pixel_mm=small.pixel_mm))
                figures = measured(e.run, prior, PROBLEMS["few_view"].problem(small), small.hu)
                writer.writerow(dict(zip(KEY, key, strict=True)) | figures)
                file.flush()
                print(*key, *figures.values(), flush=True)
    rows = [r for r in csv.DictReader(path.open()) if r["weights"] == card["sha256"][:12]]
    (a.out / "rivals.md").write_text(table(rows, f"{card['name']} ({card['sha256'][:12]})"), encoding="utf-8")
    print((a.out / "rivals.md").read_text(encoding="utf-8"))


def version_of(library: str) -> str:
    """Empty where it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def measured(run: Run, prior: Counted, problem: Problem, hu: Tensor) -> dict[str, str]:
    """The figures of a row, or its error."""
    problem.A.H(problem.A(torch.zeros(problem.A.in_shape)))  # what is made once for each geometry counts for nobody
    problem.A.norm_squared()
    if min(problem.A.in_shape) <= SMALL:  # and neither do singular vectors
        spectrum(problem.flat())
        whole_svd(problem)
    prior(torch.zeros(1, *problem.A.in_shape), torch.tensor(MU_WATER_PER_MM))
    prior.n_evaluations = 0
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        x = run(prior, problem)
    except Exception as error:  # a method that fails is a result, and the others go on
        return {"error": f"{type(error).__name__}: {error}".replace("\n", " ")}
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    psnr, _ = scores(hu_from_mu(x), hu)
    figures = (prior.n_evaluations, cpu, wall, psnr, float(metrics.chi_squared(problem, x)))
    names = ("evaluations", "cpu_seconds", "seconds", "psnr", "chi2")
    return {k: f"{v:.5g}" for k, v in zip(names, figures, strict=True)}


def table(rows: Sequence[dict[str, str]], prior: str) -> str:
    """The Markdown report: a table an environment, methods side by side; of what was tried only the best is shown."""
    lines = ["# Rivals with the same network and operator", "", __doc__.split("\n\n")[1].replace("\n", " "), ""]
    lines += [f"Prior {prior}; {processor()}.", ""]
    for environment in dict.fromkeys(r["torch"] for r in rows):
        at = [r for r in rows if r["torch"] == environment]
        lines += [f"## torch {environment}, {len({r['patient'] for r in at})} slice(s)", ""]
        titles = "method | library | settings | pixels | evaluations | ms an evaluation | of the network alone | PSNR [dB] | χ²"
        lines += [f"| {titles} |", "| --- " * 9 + "|"]
        groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for r in sorted(at, key=lambda r: METHOD_ORDER.index(r["method"])):
            groups.setdefault((r["method"], r["library"], r["version"], r["settings"], r["size"]), []).append(r)
        alone = {
            size: milliseconds(groups[key])
            for size in (SIZE, SMALL)
            for key in groups
            if key[0] == "network" and key[3] == "evaluations alone" and key[4] == str(size)
        }
        for (method, library, number, settings, size), mine in best_tried(groups).items():
            if any(r["error"] for r in mine):
                lines.append(f"| {method} | {library} {number} | {settings} | {size} | {mine[0]['error']} | | | | |")
                continue
            ms = milliseconds(mine)
            ratio = f"{ms / alone[int(size)]:.2f}" if int(size) in alone else ""
            psnr, chi2 = ("" if method == "network" else shown(mean(mine, k)) for k in ("psnr", "chi2"))
            figures = f"{mean(mine, 'evaluations'):.0f} | {ms:.0f} | {ratio} | {psnr} | {chi2}"
            lines.append(f"| {method} | {library} {number} | {settings} | {size} x {size} | {figures} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def best_last(psnr: float) -> float:
    return psnr if math.isfinite(psnr) else -math.inf


def shown(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "diverged"


METHOD_ORDER = list(dict.fromkeys(e.method for e in ENTRIES))


def best_tried(groups: dict[tuple[str, ...], list[dict[str, str]]]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """All groups, but of the weights that were tried only the best, called tuned."""
    tried: dict[str, tuple[str, ...]] = {}
    candidates = [k for k, rows in groups.items() if k[3].startswith("tried: ") and not any(r["error"] for r in rows)]
    for key in sorted(candidates, key=lambda k: best_last(mean(groups[k], "psnr"))):
        tried[key[1]] = key
    return {
        (*key[:3], key[3].replace("tried", "tuned"), *key[4:]): rows
        for key, rows in groups.items()
        if not key[3].startswith("tried: ") or key in tried.values()
    }


def mean(rows: Sequence[dict[str, str]], field: str) -> float:
    return statistics.fmean(float(r[field]) for r in rows)


def milliseconds(rows: Sequence[dict[str, str]]) -> float:
    """Of the processor, an evaluation."""
    return 1000 * mean(rows, "cpu_seconds") / mean(rows, "evaluations")


if __name__ == "__main__":
    main()
