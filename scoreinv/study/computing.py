"""One cell: image, data, reconstruction, figures. A pure function of plain values, so that cells can be computed anywhere."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from scoreinv import configure, metrics, plugins
from scoreinv.arguments import different, plain
from scoreinv.calibration import TISSUE_HU
from scoreinv.linop import LinearOperator
from scoreinv.priors.denoiser import Counted
from scoreinv.priors.shipped import ct_prior
from scoreinv.priors.shipped import identity as identity_of
from scoreinv.problem import Problem, simulate, simulate_counts
from scoreinv.study import lodopab
from scoreinv.study.machine import peak_mib, provenance, reset_peak
from scoreinv.study.operators import data_operator, operator
from scoreinv.study.sweep import Cell, canonical, identity, weights_checksum
from scoreinv.study.truth import finer, load, located
from scoreinv.units import MU_WATER_PER_MM, hu_from_mu, mu_from_hu

TISSUES_HU = {"lung": (-950.0, -500.0), "soft": (-150.0, 150.0), "bone": (200.0, math.inf)}
"""Range of the true values of each class [HU]."""
LEVEL = 0.9


@dataclass(frozen=True)
class Context:
    """What does not change the numbers of a cell.

    Attributes:
        device: where to compute.
        images: whether rows come with their images.
        lpips: whether they have that figure, see `metrics.lpips`.
    """

    device: str = "cpu"
    images: bool = False
    lpips: bool = False


@dataclass(frozen=True, eq=False)
class Row:
    """What came of a cell.

    Attributes:
        cell: which one.
        status: "done" or "failed".
        result: figures, costs and provenance, by their column names (see `study.store.read`).
        images: `mean_hu`, `std_hu` (of several draws), `truth_hu`, where they were asked for.
    """

    cell: Cell
    status: str
    result: Mapping[str, Any]
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


def compute(cell: Cell, context: Context) -> Row:
    """Compute a cell; an error becomes a row that tells of it.

    Prior, images and operators are kept between the calls of a process.
    """
    about = {"device": context.device, **provenance()}
    try:
        result, images = _solved(cell, context)
        row = Row(cell, "done", {**result, **about}, images)
    except Exception as error:  # a method that fails is a result, and the others go on
        row = Row(cell, "failed", {"error_type": type(error).__name__, "error": str(error), **about})
    finished = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return dataclasses.replace(row, result={**row.result, "finished": finished})


def _solved(cell: Cell, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    device = context.device
    about = (plain(v) for v in (cell.image, cell.operator, cell.simulate, cell.noise, cell.seed))
    problem, truth = _problem(*(json.dumps(v, sort_keys=True) for v in about))
    counted: list[Counted] = []
    mu_water, pixel_mm = cell.image.get("mu_water_per_mm", MU_WATER_PER_MM), cell.image["pixel_mm"]

    def prior() -> Counted:
        assert cell.prior is not None
        name = str(located(cell.prior["name"]))
        if (found := identity_of(name)["sha256"]) != cell.prior["sha256"]:
            raise ValueError(
                f"{name}: the weights are not those that the sweep began with ({found[:12]}); start it again"
            )
        counted.append(Counted(ct_prior(name, mu_water_per_mm=mu_water, pixel_mm=pixel_mm, device=device)))
        return counted[0]

    name = cell.method["name"]
    settings = {k: v for k, v in cell.method.items() if k != "name"}
    if cell.weights is not None and (found := weights_checksum(cell.method)) != cell.weights:
        raise ValueError(f"{name}: the weights are not those that the sweep began with ({found[:12]}); start it again")
    solver = configure.method(name, different(plugins.get("methods", name), settings), prior)
    on_device, rng = problem.to(device), Generator().manual_seed(stream(cell.image, cell.seed, "method"))
    reset_peak(device)
    started = time.perf_counter(), time.process_time()
    with torch.no_grad():
        draws = solver(on_device, rng).cpu()
    cost = {
        "seconds": time.perf_counter() - started[0],
        "cpu_seconds": time.process_time() - started[1],
        "peak_memory_mib": peak_mib(device),
        "evaluations": sum(c.n_evaluations for c in counted) if cell.weights is None else None,
        "gradients": sum(c.n_gradients for c in counted),
    }
    if not torch.isfinite(draws).all():
        raise FloatingPointError("the method diverged: NaN or infinite pixels")
    hu = hu_from_mu(draws, mu_water)
    figures = {**scores(hu, truth, cell.image.get("full_range_hu")), **fit(problem, draws)}
    if context.lpips and min(truth.shape) >= metrics.LPIPS_SIDE:
        figures["lpips"] = float(metrics.lpips(metrics.window(hu.mean(0)), metrics.window(truth)))
    images = {}
    if context.images:
        images = {"mean_hu": hu.mean(0).numpy(), "truth_hu": truth.numpy()}
        if len(hu) > 1:
            images["std_hu"] = hu.std(0).numpy()
    return {**figures, **cost}, images


def scores(draws_hu: Tensor, truth_hu: Tensor, full_range_hu: float | None = None) -> dict[str, float | None]:
    """The figures of a reconstruction against the truth.

    Args:
        draws_hu: (samples, H, W) [HU]; their mean is what is scored.
        truth_hu: (H, W) [HU].
        full_range_hu: range of all images of a data set, where its tables have figures by that [HU].

    Returns:
        Columns as `study.store.read` describes them; None for what does not exist (too small an image, no such tissue, one draw) or
        is infinite.
    """
    hu, n = draws_hu.mean(0), len(draws_hu)
    u, v = metrics.window(hu), metrics.window(truth_hu)
    mu, true_mu = 1 + hu / 1000, 1 + truth_hu / 1000  # attenuation: SSIM depends on where zero is
    own_range, side = float(truth_hu.max() - truth_hu.min()), min(truth_hu.shape)
    found: dict[str, Any] = {"samples": n, "psnr": metrics.psnr(u, v, 1.0), "rmse_hu": metrics.rmse_hu(hu, truth_hu)}
    found["psnr_range"] = metrics.psnr(hu, truth_hu, own_range) if own_range > 0 else math.nan
    found["ssim"] = metrics.ssim(u, v, 1.0) if side >= 11 else math.nan
    uniform = side >= 7 and own_range > 0
    found["ssim_range"] = metrics.ssim_uniform(mu, true_mu, own_range / 1000) if uniform else math.nan
    full = full_range_hu or math.nan
    found["psnr_full"] = metrics.psnr(hu, truth_hu, full) if full > 0 else math.nan
    found["ssim_full"] = metrics.ssim_uniform(mu, true_mu, full / 1000) if full > 0 and side >= 7 else math.nan
    for name, (low, high) in TISSUES_HU.items():
        found[f"rmse_hu_{name}"] = metrics.rmse_hu_between(hu, truth_hu, low, high)
    tissue = truth_hu > TISSUE_HU
    found["calibration"] = metrics.calibration_ratio(draws_hu, truth_hu, tissue) if n > 1 else math.nan
    found["coverage_90"] = metrics.coverage_of_normal(draws_hu, truth_hu, tissue, LEVEL) if n > 1 else math.nan
    return {k: v if isinstance(v, int) else _finite(v) for k, v in found.items()}


def fit(problem: Problem, draws: Tensor) -> dict[str, float | None]:
    """χ² of the draws' mean (None for noise-free data) and its relative residual ‖A x − y‖ / ‖y‖."""
    mean = draws.mean(0)
    exact = dataclasses.replace(problem, noise_std=0.0)
    noisy = bool((torch.as_tensor(problem.noise_std) > 0).any())
    chi2 = metrics.chi_squared(problem, mean) if noisy else math.nan
    return {"chi2": _finite(chi2), "residual": _finite(metrics.chi_squared(exact, mean))}


def stream(image: Mapping[str, Any], seed: int, use: str) -> int:
    """The seed of a random stream: another one for every image and use, the same for all methods."""
    text = f"{use} {seed} {canonical(identity(image))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@functools.lru_cache(maxsize=2)
def _problem(image: str, call: str, simulated: str, noise: str, seed: str) -> tuple[Problem, Tensor]:
    """The problem without its truth, and the truth (H, W) [HU]; arguments as JSON."""
    record, how, level = json.loads(image), json.loads(simulated), json.loads(noise)
    A = _operator(call, tuple(record["shape"]), record["pixel_mm"])
    if lodopab.is_stored(record):
        stored, truth = lodopab.measured(record, A)
        A(mu_from_hu(truth))
        return stored, truth
    truth = _image(image, 1)
    x = mu_from_hu(_image(image, how.get("refine", 1)))
    rng = Generator().manual_seed(stream(record, json.loads(seed), "noise"))
    maker = data_operator(A, how)
    if maker != A:
        A(mu_from_hu(truth))  # so that no method's time has the making of A's matrix in it
    if level["photons"] is None:
        made = simulate(maker, x, rng, relative_noise=level["relative"])
    else:
        made = simulate_counts(maker, x, rng, photons=level["photons"])
    return dataclasses.replace(made, A=A, truth=None), truth


@functools.lru_cache(maxsize=4)
def _image(record: str, refine: int) -> Tensor:
    """The true image of a record as JSON, or the finer one (H, W) [HU]."""
    return load(json.loads(record)) if refine == 1 else finer(json.loads(record), refine)


@functools.lru_cache(maxsize=8)
def _operator(call: str, shape: tuple[int, ...], pixel_mm: float) -> LinearOperator:
    """One object for equal arguments."""
    return operator(json.loads(call), shape, pixel_mm)


def _finite(value: Tensor | float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
