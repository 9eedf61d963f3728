"""How much better than BM3D and total variation, both told the true sigma, does the score network denoise CT?

One middle slice of every validation patient (256 x 256) in u = HU / 1000 with white Gaussian noise of known standard deviation
sigma, the same noise for every method (seed round(1e4 sigma), one draw after another in the order of the patients' names: the
noise of the validation figures in a training log). PSNR with u clipped to [-1, 1] on both sides, range 2; nothing is clipped
before denoising. BM3D is the authors' package in its default profile "np" (their profiles "vn", "vn_old" and "high" were worse
at sigma = 0.02, 0.1, 0.5 and 1 on three of the patients), on (u + 1) / 2 with the true sigma as noise level. Total variation is
Chambolle's algorithm in scikit-image with, for each sigma, the weight of the best mean PSNR on all of these very patients, which
is more than it could be told in practice. The shipped prior was trained on other patients. "Four flips" is the mean of its
estimates of the image and its mirror images (`priors.denoiser.PoseAverage`), at four times the cost.

    pip install bm3d
    SCOREINV_DATA=/data OMP_NUM_THREADS=1 python benchmarks/denoising.py --out benchmarks/results --prior runs/mine/prior.safetensors

Rows are appended to denoising.csv as they come and are not computed again, priors are told apart by the checksum of their
weights; denoising.md is made from the rows.

bm3d (Mäkinen, Azzari, Foi 2020, doi:10.1109/TIP.2020.3014721; Dabov, Foi, Katkovnik, Egiazarian 2007,
doi:10.1109/TIP.2007.901238) is licensed for non-commercial use only. It is needed for this benchmark and nothing else: it is no
dependency of scoreinv and is not distributed with it.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _data import Slice, slices
from operator_speed import processor
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor
from tune_baselines import search

import scoreinv as si
from scoreinv.priors.denoiser import NetworkPrior, PoseAverage
from scoreinv.priors.shipped import identity, load_network

SIGMAS = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
TV_GRID = [0.25, 0.35, 0.5, 0.7, 1.0, 1.4]
"""Weights in units of sigma."""
TV_REFINE = 4
FIELDS = ("method", "weights", "sigma", "patient", "psnr", "seconds", "setting")


class Pair(NamedTuple):
    """A patient's slice with and without noise, (H, W) in u, and the side of its pixels [mm]."""

    patient: str
    pixel_mm: float
    clean: Tensor
    noisy: Tensor


Denoise = Callable[[Pair, float], Tensor]
"""(pair, sigma) -> the estimate of the clean slice."""


class Method(NamedTuple):
    """What is compared. `prepare` takes sigma and all pairs, and gives the denoiser and what was set."""

    name: str
    weights: str
    prepare: Callable[[float, list[Pair]], tuple[Denoise, str]]


def pairs(images: list[Slice], sigma: float) -> list[Pair]:
    """The same noise at every call."""
    rng = torch.Generator().manual_seed(round(1e4 * sigma))
    clean = [s.hu / 1000 for s in images]
    noise = [sigma * torch.randn(u.shape, generator=rng) for u in clean]
    return [Pair(s.patient, s.pixel_mm, u, u + n) for s, u, n in zip(images, clean, noise, strict=True)]


def psnr(estimate: Tensor, clean: Tensor) -> float:
    return float(si.psnr(estimate.clamp(-1, 1), clean.clamp(-1, 1), 2.0))


def noisy(sigma: float, all_pairs: list[Pair]) -> tuple[Denoise, str]:
    return (lambda pair, _: pair.noisy), ""


def bm3d(sigma: float, all_pairs: list[Pair]) -> tuple[Denoise, str]:
    from bm3d import BM3DProfile
    from bm3d import bm3d as run

    profile = BM3DProfile()
    profile.num_threads = torch.get_num_threads()

    def denoise(pair: Pair, s: float) -> Tensor:
        u = pair.noisy
        return torch.from_numpy(2 * run((u.double().numpy() + 1) / 2, s / 2, profile) - 1).to(u)

    return denoise, f"profile np of bm3d {version('bm3d')}"


def total_variation(u: Tensor, weight: float) -> Tensor:
    chambolle: Any = denoise_tv_chambolle  # it has no types
    return torch.from_numpy(chambolle(u.double().numpy(), weight, eps=1e-6, max_num_iter=1000)).to(u)


def tv(rows: list[dict[str, str]]) -> Callable[[float, list[Pair]], tuple[Denoise, str]]:
    """Total variation with the best weight; where rows have it, with theirs."""

    def prepare(sigma: float, all_pairs: list[Pair]) -> tuple[Denoise, str]:
        known = [r["setting"] for r in rows if r["method"] == "tv" and float(r["sigma"]) == sigma]
        if known:
            ratio = float(known[0].split()[0])
        else:
            found = search(
                lambda w: statistics.fmean(psnr(total_variation(p.noisy, w * sigma), p.clean) for p in all_pairs),
                TV_GRID,
                TV_REFINE,
            )
            ratio = float(f"{max(found, key=found.__getitem__):.4g}")
        return (lambda pair, s: total_variation(pair.noisy, ratio * s)), f"{ratio:g} sigma"

    return prepare


def network(prior: str | None, poses: int = 1) -> Method:
    """A prior with the checksum of its weights; the default one without a name. It is told the size of a pixel."""
    model, card = load_network(prior), identity(prior)

    @torch.no_grad()
    def denoise(pair: Pair, sigma: float) -> Tensor:
        return PoseAverage(NetworkPrior(model, pair.pixel_mm), poses)(pair.noisy[None], torch.tensor(sigma))[0]

    return Method(
        card["name"] + (", four flips" if poses == 4 else ""),
        card["sha256"][:12],
        lambda sigma, all_pairs: (denoise, ""),
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument(
        "--prior", action="append", default=[], metavar="NAME", help="shipped priors or files, beside the default one"
    )
    p.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS, help="in u")
    p.add_argument("--patients", type=int, help="the first so many only (total variation is tuned on all)")
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "denoising.csv"
    done = list(csv.DictReader(path.open())) if path.is_file() else []
    seen = {(r["method"], r["weights"], float(r["sigma"]), r["patient"]) for r in done}
    images = slices(Path(os.environ["SCOREINV_DATA"]) / "ct" / "val.h5")
    methods = [Method("noisy", "", noisy), Method("tv", "", tv(done)), Method("bm3d", "", bm3d)]
    methods += [network(prior, poses) for prior in (None, *a.prior) for poses in (1, 4)]
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        for sigma in a.sigmas:
            all_pairs = pairs(images, sigma)
            for method in methods:
                key = (method.name, method.weights, sigma)
                missing = [pair for pair in all_pairs[: a.patients] if (*key, pair.patient) not in seen]
                if not missing:
                    continue
                denoise, setting = method.prepare(sigma, all_pairs)
                for pair in missing:
                    started = time.perf_counter()
                    estimate = denoise(pair, sigma)
                    seconds = time.perf_counter() - started
                    row = (*key, pair.patient, f"{psnr(estimate, pair.clean):.3f}", f"{seconds:.3f}", setting)
                    writer.writerow(dict(zip(FIELDS, row, strict=True)))
                    file.flush()
                    print(*row, flush=True)
    (a.out / "denoising.md").write_text(table(list(csv.DictReader(path.open()))), encoding="utf-8")
    print((a.out / "denoising.md").read_text(encoding="utf-8"))


def table(rows: list[dict[str, str]]) -> str:
    """The Markdown report: mean PSNR of every method, then what each gains over BM3D on the patients that both have."""
    by: dict[tuple[str, str], dict[float, dict[str, float]]] = {}
    for r in rows:
        by.setdefault((r["method"], r["weights"]), {}).setdefault(float(r["sigma"]), {})[r["patient"]] = float(
            r["psnr"]
        )
    sigmas = sorted({float(r["sigma"]) for r in rows})
    header = [f"| {' | '.join(['method', *(f'{s:g}' for s in sigmas)])} |", "| --- " * (len(sigmas) + 1) + "|"]
    lines = ["# Denoising CT at known noise, validation patients", "", __doc__.split("\n\n")[1].replace("\n", " "), ""]
    lines += [f"Mean PSNR [dB] by sigma in u ({patients(rows)}).", "", *header]
    for key, at in by.items():
        cells = [f"{statistics.fmean(at[s].values()):.2f}" if s in at else "" for s in sigmas]
        lines.append(f"| {' | '.join([label(key), *cells])} |")
    lines += ["", "Gain over BM3D [dB]: mean, and the least of any patient.", "", *header]
    rival = by.get(("bm3d", ""), {})
    for key, at in by.items():
        if key[0] not in ("noisy", "bm3d"):
            cells = [gain(at.get(s, {}), rival.get(s, {})) for s in sigmas]
            lines.append(f"| {' | '.join([label(key), *cells])} |")
    weights = {float(r["sigma"]): r["setting"] for r in rows if r["method"] == "tv"}
    seconds = {
        key: statistics.median(float(r["seconds"]) for r in rows if (r["method"], r["weights"]) == key)
        for key in by
        if key[0] != "noisy"
    }
    lines += [
        "",
        f"Weights of total variation: {', '.join(f'{weights[s]} at {s:g}' for s in sorted(weights))}.",
        f"Median seconds an image: {', '.join(f'{label(k)} {v:.2f}' for k, v in seconds.items())}.",
        "BM3D: Mäkinen, Azzari, Foi 2020, doi:10.1109/TIP.2020.3014721, the authors' package for non-commercial use.",
        machine(),
    ]
    return "\n".join(lines) + "\n"


def gain(mine: dict[str, float], rival: dict[str, float]) -> str:
    """Such as "+1.23 (+0.45)"."""
    gains = [mine[p] - rival[p] for p in mine if p in rival]
    return f"{statistics.fmean(gains):+.2f} ({min(gains):+.2f})" if gains else ""


def label(key: tuple[str, str]) -> str:
    names = {"noisy": "noisy image", "tv": "total variation", "bm3d": "BM3D"}
    return names.get(key[0], f"{key[0]} ({key[1]})")


def patients(rows: list[dict[str, str]]) -> str:
    """How many patients the means are over."""
    counts = {(r["method"], r["weights"], r["sigma"]): 0 for r in rows}
    for r in rows:
        counts[r["method"], r["weights"], r["sigma"]] += 1
    low, high = min(counts.values()), max(counts.values())
    return f"{high} patients" if low == high else f"{low} to {high} patients"


def machine() -> str:
    """What computed this, in a line."""
    installed = []
    for package in ("torch", "scikit-image", "bm3d", "bm4d"):
        try:
            installed.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            installed.append(f"{package} not installed")
    n = torch.get_num_threads()
    return (
        f"{processor()}, {n} thread{'s' if n > 1 else ''}, {', '.join(installed)}, Python {platform.python_version()}."
    )


if __name__ == "__main__":
    main()
