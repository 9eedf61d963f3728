"""Which settings of the classical methods give the best PSNR on the validation patients? Writes
scoreinv/baselines/tuned.json.

One middle slice a patient, 256 x 256; parallel beam, 23 views over 180 degrees (end point left out; or --views of them), 363
detectors as wide as the pixels; noise-free and with Gaussian noise of some per cent of mean |y|. The criterion is the mean over
patients of the PSNR on the window of −1000 to 1000 HU mapped to [0, 1], range 1. Every method is tuned by this protocol, each
noise level on its own. Settings are looked up by τ, the noise that is left when the views are taken together: low levels are those of
many views, for at 23 views the missing ones leave errors beside which weights of 0.005 and 0.02 are within 0.05 dB at 0.15 % noise.

    FBP             the best of the windows
    SIRT, CGLS      one run scores every number of iterations (the mean's maximum, not each patient's)
    FISTA           a grid over log10(weight), then golden-section search around its best point

    SCOREINV_DATA=... python benchmarks/tune_baselines.py --patients 14 --refine 4      # the commands behind tuned.json are in it

The data come from the operator that reconstructs, which for noise-free data is an inverse crime. With --finer-grid they come from images
of 512 x 512 (those of ct/val_512.h5 for the patients that it has, else interpolated with their means kept), by areas, as in paper.toml.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _data import middle_slices
from torch import Tensor

from scoreinv import plugins
from scoreinv.baselines import tuned
from scoreinv.files.atomic import replacing
from scoreinv.metrics import psnr, window
from scoreinv.problem import Method, Problem, simulate
from scoreinv.study.operators import data_operator
from scoreinv.study.truth import ImageFile, finer
from scoreinv.units import MU_WATER_PER_MM, hu_from_mu, mu_from_hu

WINDOWS = ("ramp", "shepp-logan", "cosine", "hann")
FINER: dict[str, Any] = {"refine": 2, "weights": "strip"}
"""How the operator that makes the data differs with --finer-grid, see `scoreinv.study.operators`."""
VIEWS = 23
GOLDEN = (math.sqrt(5) - 1) / 2


def scores(x: Tensor, problem: Problem) -> Tensor:
    """PSNR [dB] of attenuation images."""
    truth = torch.as_tensor(problem.truth)
    return psnr(window(hu_from_mu(x)), window(hu_from_mu(truth)), 1.0)


def mean_score(method: Method, problems: list[Problem]) -> float:
    rng = torch.Generator().manual_seed(0)
    return float(np.mean([float(scores(method(p, rng)[0], p)) for p in problems]))


def best_count(name: str, problems: list[Problem], most: int) -> dict[str, Any]:
    """The number of iterations with the best mean PSNR."""
    curves = []
    for problem in problems:
        iterates: Iterator[Tensor] = plugins.get("methods", name)().iterates(problem)
        curve = [float(scores(x, problem)) for x in islice(iterates, most)]
        curves.append(curve + curve[-1:] * (most - len(curve)))
    mean = np.mean(curves, axis=0)
    best = int(mean.argmax())
    if best == most - 1:
        print("        WARNING: the best number of iterations is the largest tried: raise --most-iterations")
    grid = [
        [k, round(float(mean[k - 1]), 3)]
        for k in sorted({1, 2, 5, 10, 20, 30, 50, 100, 200, most, best + 1})
        if k <= most
    ]
    return {"iterations": best + 1, "psnr": round(float(mean[best]), 3), "grid": grid}


def best_weight(
    make: Callable[[float], Method], problems: list[Problem], grid: list[float], refine: int
) -> dict[str, Any]:
    """The weight with the best mean PSNR."""
    found = search(lambda weight: mean_score(make(weight), problems), grid, refine)
    weight = max(found, key=found.__getitem__)
    return {
        "weight": float(f"{weight:.4g}"),
        "psnr": round(found[weight], 3),
        "grid": [[float(f"{w:.4g}"), round(v, 3)] for w, v in sorted(found.items())],
    }


def search(score: Callable[[float], float], grid: list[float], refine: int) -> dict[float, float]:
    """The scores [dB] of all weights tried: a grid over the logarithm, then `refine` golden-section steps beside its best
    point."""
    found: dict[float, float] = {}

    def at(log: float) -> float:
        if 10**log not in found:
            found[10**log] = score(10**log)
            print(f"        weight {10**log:.3g}: {found[10**log]:.3f} dB", flush=True)
        return found[10**log]

    logs = sorted(math.log10(w) for w in grid)
    best = max(range(len(logs)), key=lambda k: at(logs[k]))
    low, high = logs[max(best - 1, 0)], logs[min(best + 1, len(logs) - 1)]
    for _ in range(refine):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if at(left) > at(right) else (left, high)
    if max(found, key=found.__getitem__) in (10 ** logs[0], 10 ** logs[-1]):
        print("        WARNING: the best weight lies at the end of the grid: widen it")
    return found


def tune(name: str, problems: list[Problem], options: argparse.Namespace) -> dict[str, Any]:
    """The best setting of one method at one noise level, with what was tried."""
    cls = plugins.get("methods", name)
    if name == "fbp":
        tried = {w: round(mean_score(cls(window=w), problems), 3) for w in WINDOWS}
        best = max(tried, key=tried.__getitem__)
        return {"window": best, "psnr": tried[best], "grid": [list(row) for row in tried.items()]}
    if name in ("sirt", "cgls"):
        return best_count(name, problems, options.most_iterations)

    def make(weight: float) -> Method:
        made: Method = cls(weight=weight, max_iterations=options.fista_iterations)
        return made

    found = best_weight(make, problems, options.weights, options.refine)
    return found | {"method": repr(make(found["weight"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=14)
    parser.add_argument("--methods", nargs="+", default=["fbp", "sirt", "cgls", "fista_tv", "fista_wavelet"])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.005], help="standard deviation over mean |y|")
    parser.add_argument("--views", type=int, default=VIEWS, metavar="N", help="over 180 degrees (%(default)s)")
    parser.add_argument("--weights", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1], help="the grid")
    parser.add_argument("--refine", type=int, default=4, help="golden-section steps after the grid")
    parser.add_argument("--fista-iterations", type=int, default=500)
    parser.add_argument("--most-iterations", type=int, default=300, help="of SIRT and CGLS")
    parser.add_argument("--finer-grid", action="store_true", help="simulate on a grid twice as fine: no inverse crime")
    parser.add_argument("--output", type=Path, default=tuned.PATH)
    options = parser.parse_args()
    if "SCOREINV_DATA" not in os.environ:
        sys.exit("set SCOREINV_DATA to the folder that holds ct/val.h5")
    folder = Path(os.environ["SCOREINV_DATA"]) / "ct"
    chosen = middle_slices(folder / "val.h5")[: options.patients]
    names, pixels, hu = [s.patient for s in chosen], [s.pixel_mm for s in chosen], torch.stack([s.hu for s in chosen])
    sources = finer_images(folder, names) if options.finer_grid else None
    for noise in options.noise:
        problems = list(simulated(hu, pixels, noise, sources, options.views))
        tau = float(torch.cat([tuned.noise_level(p, MU_WATER_PER_MM) for p in problems]).square().mean().sqrt())
        for name in options.methods:
            print(f"{name}, {options.views} views, noise {noise:g} (tau {tau:.4g})", flush=True)
            start = time.time()
            row = (
                {"views": options.views, "relative_noise": noise, "tau": tau}
                | tune(name, problems, options)
                | provenance(names, options.views, options.finer_grid)
            )
            save(options.output, name, row)
            setting = row.get("weight") or row.get("iterations") or row["window"]
            print(f"    {row['psnr']:.2f} dB with {setting}, {time.time() - start:.0f} s", flush=True)


def save(path: Path, name: str, row: dict[str, Any]) -> None:
    """Put one result in the table, in the place of an older one for the same views and noise."""

    def of(r: dict[str, Any]) -> tuple[int, float]:
        return r.get("views", VIEWS), r["relative_noise"]

    table = json.loads(path.read_text()) if path.exists() else {"methods": {}}
    others = [r for r in table["methods"].get(name, []) if of(r) != of(row)]
    table["methods"][name] = sorted([*others, row], key=lambda r: float(r["tau"]))
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n")


def finer_images(folder: Path, patients: list[str]) -> list[Tensor]:
    """The patients' middle slices on a grid twice as fine [HU]."""
    fine = folder / "val_512.h5"
    records = ImageFile(
        str(folder / "val.h5"), patients=tuple(patients), fine=str(fine) if fine.is_file() else None
    ).records()
    return [finer(record, FINER["refine"]) for record in records]


def simulated(
    hu: Tensor, pixels: list[float], noise: float, sources: list[Tensor] | None = None, views: int = VIEWS
) -> Iterator[Problem]:
    """One problem a patient, each with its own pixel size and noise; the data of `sources`, where they are given."""
    parallel = plugins.get("operators", "parallel_beam_ct")
    for k, (image, pixel) in enumerate(zip(hu, pixels, strict=True)):
        angles = [math.pi * v / views for v in range(views)]
        A = parallel(tuple(image.shape), angles, 363, pixel_mm=pixel, detector_mm=pixel)
        rng = torch.Generator().manual_seed(k)
        x = mu_from_hu(image)[None]
        if sources is None:
            yield simulate(A, x, rng, relative_noise=noise)
            continue
        made = simulate(data_operator(A, FINER), mu_from_hu(sources[k])[None], rng, relative_noise=noise)
        yield Problem(A, made.y, made.noise_std, x)


def provenance(patients: list[str], views: int = VIEWS, finer_grid: bool = False) -> dict[str, Any]:
    try:
        installed = version("scoreinv")
    except PackageNotFoundError:
        installed = "not installed"
    return {
        "provenance": {
            "data": "ct/val.h5, middle slice of each patient",
            "geometry": f"parallel beam, {views} views over 180 degrees, 363 detectors, 256 x 256, linear weights",
            "simulation": "512 x 512 pixels, strip weights" if finer_grid else "the operator that reconstructs",
            "patients": patients,
            "criterion": "mean PSNR [dB] on -1000..1000 HU mapped to [0, 1], range 1",
            "date": datetime.date.today().isoformat(),
            "command": shlex.join(["python", "benchmarks/tune_baselines.py", *sys.argv[1:]]),
            "version": {"scoreinv": installed, "torch": torch.__version__},
        }
    }


if __name__ == "__main__":
    main()
