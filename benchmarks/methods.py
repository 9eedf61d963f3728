"""Which posterior method is best, at which cost, and whose draws vary as they should?

The middle slice of validation patients (the last column says how many), parallel beam, detector cells as wide as a pixel, data made
with the operator that reconstructs; PSNR (range 1.0) and SSIM (Gaussian 11 x 11, sigma 1.5) on the window of -1000 to 1000 HU. Every
method that takes a prior runs twice, for one image and for N draws; particle filters once, for their draws are particles of one run.
repaint (for masked pixels), ddrm and mcg_diff (dense singular vectors, for at most 64 x 64 pixels) cannot do CT of this size;
latent_daps is daps where the prior is one of images. Settings are the methods' defaults but for the samplers of Song et al. (100
levels, not 1000, with constants found for that number) and padis (guidance 4: CT data are fitted slowly), and are in the CSV.
proximal's one image is its point estimate; all others' is a draw. Seconds are by the clock of machines that did other work, too.

    SCOREINV_DATA=/data python benchmarks/methods.py --out benchmarks/results                  # the sweep: hours
    SCOREINV_DATA=/data python benchmarks/methods.py --size 128 --draws 4 --patients 1         # on a cheap machine
    SCOREINV_DATA=/data python benchmarks/methods.py --evaluations --patients 4                # fewer and more evaluations

Before it starts it says what each method will take (see _cost.py). Rows are appended to methods.csv (methods_evaluations.csv) as
they come and are not computed again, priors are told apart by the checksum of their weights and methods by their settings; a method
that fails is a row with its error, to be deleted for another try. Markdown and picture are made from the rows of this size, number
of draws and prior.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import few_view
import torch
from _cost import Calls, Pace, count
from _data import Slice, slices
from _methods_report import evaluations_picture, evaluations_table, pareto_picture, table
from _problems import PROBLEMS, reduced
from operator_speed import processor
from torch import Tensor

from scoreinv import configure, metrics, plugins
from scoreinv.priors.denoiser import Counted
from scoreinv.priors.shipped import ct_prior, identity
from scoreinv.problem import Problem
from scoreinv.progress import quiet
from scoreinv.report import scores
from scoreinv.units import hu_from_mu

NOT_CT = ("ddrm", "mcg_diff", "repaint", "latent_daps")
BASELINES = ("fbp", "fista_tv")
METHODS = [n for n in plugins.names("methods") if configure.needs_prior(n) and n not in NOT_CT] + list(BASELINES)
SETTINGS: dict[str, dict[str, Any]] = {
    "padis": {"guidance": 4.0},
    "song_exact": few_view.METHODS["song_exact"],
    "song_faithful": few_view.METHODS["song_faithful"],
}
"""Where they differ from the defaults."""
EVALUATIONS = (5, 10, 15, 20, 30, 50, 100)
EVALUATED = ("proximal", "dds", "ddnm", "diffpir", "mmps", "pigdm")
LEVEL = 0.9
TISSUE_HU = -500.0
KEY = ("patient", "problem", "size", "method", "weights", "draws", "settings")
FIGURES = ("evaluations", "seconds", "psnr", "ssim", "psnr_draw", "ssim_draw", "chi2_draw")
SPREADS = ("spread_tissue", "spread_all", "coverage_tissue", "coverage_all", "crps_tissue", "crps_all")
FIELDS = (*KEY, *FIGURES, *SPREADS, "machine", "error")


class Job(NamedTuple):
    """One row to be computed: a method with its settings, on an image, for a number of draws."""

    method: str
    settings: Mapping[str, Any]
    problem: str
    image: Slice
    draws: int
    weights: str

    @property
    def key(self) -> tuple[str, ...]:
        """As it is in the rows."""
        size, settings = str(self.image.hu.shape[-1]), json.dumps(resolved(self.method, self.settings))
        return (self.image.patient, self.problem, size, self.method, self.weights, str(self.draws), settings)


def main() -> None:
    a = arguments()
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / ("methods_evaluations.csv" if a.evaluations else "methods.csv")
    done = list(csv.DictReader(path.open())) if path.is_file() else []
    seen = {tuple(r[k] for k in KEY) for r in done}
    card = identity(a.prior)
    weights = card["sha256"][:12]
    costs = Costs(a.prior)
    todo = {job.key: job for job in jobs(a, weights)}
    chosen = announced([job for key, job in todo.items() if key not in seen], costs, a.longest)
    with path.open("a", newline="") as file, quiet():
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for job in chosen:
            at_once = a.at_once if costs.of(job).gradients else job.draws
            row = dict(zip(KEY, job.key, strict=True)) | computed(job, a.prior, at_once) | {"machine": machine()}
            writer.writerow(row)
            if job.draws > 1 and is_filter(job.method) and not row.get("error"):
                one = {"draws": "1", "psnr": row["psnr_draw"], "ssim": row["ssim_draw"]}
                writer.writerow({k: v for k, v in row.items() if k not in SPREADS} | one)
            file.flush()
            shown = (row.get(k, "") for k in (*FIGURES, *SPREADS, "error"))
            print(job.image.patient, job.problem, job.method, job.draws, *shown, flush=True)
    head = [
        __doc__.split("\n\n")[1].replace("\n", " "),
        "",
        f"**{a.size} x {a.size} pixels**, each the mean of {256 // a.size} x {256 // a.size} of the slices' own; "
        f"prior {card['name']} ({weights}).",
    ]
    rows = [r for r in csv.DictReader(path.open()) if r["size"] == str(a.size) and r["weights"] in ("", weights)]
    if a.evaluations:
        path.with_suffix(".md").write_text(evaluations_table(rows, head), encoding="utf-8")
        evaluations_picture(path.with_suffix(".png"), rows)
    else:
        path.with_suffix(".md").write_text(table(rows, head, a.draws), encoding="utf-8")
        pareto_picture(path.with_suffix(".png"), rows, a.draws)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


def is_filter(method: str) -> bool:
    """Whether draws are particles of one run, which costs the same for any number of them."""
    return configure.has_setting(method, "particles")


def machine() -> str:
    """What computed this."""
    return f"{processor()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--prior", help="a shipped prior's name or a .safetensors file (the default prior)")
    p.add_argument("--size", type=int, default=256, help="side of the images in pixels (%(default)s)")
    p.add_argument("--draws", type=int, default=16, metavar="N", help="1 leaves the runs for N draws out (%(default)s)")
    p.add_argument("--patients", type=int, metavar="K", help="the first so many only")
    p.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help="(all)")
    p.add_argument(
        "--problems", nargs="+", choices=list(PROBLEMS), metavar="NAME", help=f"of {', '.join(PROBLEMS)} (all)"
    )
    p.add_argument(
        "--evaluations", action="store_true", help="PSNR against the number of network evaluations, one image"
    )
    p.add_argument("--longest", type=float, metavar="MINUTES", help="leave out what is expected to take longer, a row")
    p.add_argument(
        "--at-once", type=int, default=4, metavar="N", help="draws in memory with their gradients (%(default)s)"
    )
    return p.parse_args()


def jobs(a: argparse.Namespace, checksum: str) -> Iterator[Job]:
    """All rows, patient by patient, so that a sweep that is stopped has compared all methods on the same ones."""
    images = slices(Path(os.environ["SCOREINV_DATA"]) / "ct" / "val.h5")[: a.patients]
    methods = a.methods or (EVALUATED if a.evaluations else METHODS)
    for image in images:
        small = reduced(image, a.size)
        for problem in a.problems or PROBLEMS:
            for method in methods:
                weights = checksum if configure.needs_prior(method) else ""
                settings = SETTINGS.get(method, {})
                if a.evaluations:
                    for n in EVALUATIONS:
                        yield Job(method, settings | levels_for(method, settings, n), problem, small, 1, weights)
                    continue
                many = a.draws > 1 and configure.has_setting(method, "samples")
                if not (many and is_filter(method)):  # a filter's one image is the first draw of the same run
                    yield Job(method, settings, problem, small, 1, weights)
                if many:
                    yield Job(method, settings, problem, small, a.draws, weights)


class Costs:
    """What jobs will cost; methods are counted once."""

    def __init__(self, prior: str | None) -> None:
        self.prior = prior
        self.known: dict[tuple[str, str, int], Calls] = {}
        self.paces: dict[str, Pace] = {}

    def of(self, job: Job) -> Calls:
        key = (job.method, json.dumps(job.settings), job.draws)
        if key not in self.known:
            self.known[key] = count(job.method, with_draws(job), PROBLEMS["few_view"])
        return self.known[key]

    def seconds(self, job: Job) -> float:
        if job.problem not in self.paces:
            problem = PROBLEMS[job.problem].problem(job.image)
            self.paces[job.problem] = Pace.of(ct_prior(self.prior, pixel_mm=job.image.pixel_mm), problem)
        return self.paces[job.problem].seconds(self.of(job))


def announced(todo: list[Job], costs: Costs, longest: float | None) -> list[Job]:
    """The jobs that are not too long, after a word about what all will take."""
    expected: dict[tuple[str, int], list[float]] = {}
    for job in todo:
        expected.setdefault((job.method, job.draws), []).append(costs.seconds(job))
    limit = float("inf") if longest is None else 60 * longest
    total = 0.0
    for (method, draws), each in expected.items():
        kept = [s for s in each if s <= limit]
        total += sum(kept)
        left_out = f", left out: {len(each) - len(kept)} of {max(each) / 60:.1f} min" if len(kept) < len(each) else ""
        print(f"{method}, {draws} draws: {len(kept)} rows, about {sum(kept) / 60:.1f} min{left_out}")
    print(f"all: about {total / 3600:.2f} h", flush=True)
    return [job for job in todo if costs.seconds(job) <= limit]


def with_draws(job: Job) -> dict[str, Any]:
    draws = {"samples": job.draws} if configure.has_setting(job.method, "samples") else {}
    return {**job.settings, **draws}


def resolved(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, defaults included, without the number of draws."""
    values = configure.settings_of(configure.method(method, settings, Calls))
    return {k: v for k, v in values.items() if k != "samples"}


def levels_for(method: str, settings: Mapping[str, Any], evaluations: int) -> dict[str, int]:
    """The number of levels (or sweeps) that makes about so many evaluations for one image."""
    name = "n_sweeps" if configure.has_setting(method, "n_sweeps") else "n_levels"
    ten, twenty = (
        count(method, {**settings, name: n, "samples": 1}, PROBLEMS["few_view"]).evaluations for n in (10, 20)
    )
    return {name: max(1, round(10 + 10 * (evaluations - ten) / (twenty - ten)))}


def computed(job: Job, prior: str | None, at_once: int) -> dict[str, str]:
    """The figures of a row, or its error."""
    problem = PROBLEMS[job.problem].problem(job.image)
    counted = Counted(ct_prior(prior, pixel_mm=job.image.pixel_mm))
    started = time.perf_counter()
    try:
        draws = drawn(job, problem, counted, at_once)
        seconds = time.perf_counter() - started
        if not torch.isfinite(draws).all():
            raise ArithmeticError("NaN or infinite pixels")
    except Exception as error:  # a method that fails is a result, and the others go on
        return {"error": f"{type(error).__name__}: {error}".replace("\n", " ")}
    psnr, ssim = scores(hu_from_mu(draws.mean(0)), job.image.hu)
    psnr_draw, ssim_draw = scores(hu_from_mu(draws[0]), job.image.hu)
    chi2 = float(metrics.chi_squared(problem, draws[0]))
    values = (counted.n_evaluations, seconds, psnr, ssim, psnr_draw, ssim_draw, chi2)
    row = {k: f"{v:.5g}" for k, v in zip(FIGURES, values, strict=True)}
    if job.draws > 1:
        row |= {k: f"{v:.4f}" for k, v in spread(hu_from_mu(draws), job.image.hu).items()}
    return row


def drawn(job: Job, problem: Problem, prior: Counted, at_once: int) -> Tensor:
    """(draws, H, W), so many at a time; particles all at once, for the draws of a filter are particles of one run."""
    if is_filter(job.method):
        at_once = job.draws
    parts = []
    for first in range(0, job.draws, at_once):
        few = job._replace(draws=min(at_once, job.draws - first))
        run = configure.method(job.method, with_draws(few), lambda: prior)
        parts.append(run(problem, torch.Generator().manual_seed(first)))
    return torch.cat(parts)


def spread(draws: Tensor, truth: Tensor) -> dict[str, float]:
    """Do draws (n, H, W) differ from each other as their mean differs from the truth (H, W)? [HU]"""
    crps, out = metrics.crps(draws, truth), {}
    for name, where in (("tissue", truth > TISSUE_HU), ("all", torch.ones_like(truth, dtype=torch.bool))):
        out[f"spread_{name}"] = float(metrics.calibration_ratio(draws, truth, where))
        out[f"coverage_{name}"] = float(metrics.coverage_of_normal(draws, truth, where, LEVEL))
        out[f"crps_{name}"] = float(crps[where].mean())
    return out


if __name__ == "__main__":
    main()
