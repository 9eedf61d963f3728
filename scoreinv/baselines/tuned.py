"""Settings tuned on validation patients (tuned.json, written by benchmarks/tune_baselines.py), looked up by the noise
level τ.

τ = σ / (unit √c) is the dimensionless noise of fista.py, σ the root mean square of the noise of the data. Between and beyond the
tuned levels

    weight      ln weight is linear in ln τ, also beyond the highest level; below the lowest but 0 the weight is linear in τ², and
                what is left at τ = 0 stands for the missing views. (Bayes' rule, weight = β τ², smooths noisy data too much: the PSNR is
                best with weights that grow like τ to the power of 1.2 to 1.5)
    iterations  ln n is linear in τ, constant beyond the ends
    window      is that of the nearest level
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreinv.problem import Problem
from scoreinv.solvers import mean_column_square, noise_weights

PATH = Path(__file__).with_name("tuned.json")


def noise_level(problem: Problem, unit: float) -> Tensor:
    """τ of every member of a problem with one batch dimension: (batch,)."""
    w, least = noise_weights(problem)
    sigma = least if w is None else least * mean_inverse(w).sqrt()
    tau: Tensor = sigma / (unit * mean_column_square(problem.A) ** 0.5)
    return tau


def mean_inverse(w: Tensor) -> Tensor:
    """Of each member's weights (batch, *out_shape): (batch,). One over it is their harmonic mean."""
    return (1 / w).flatten(1).mean(1)


def weight(method: str, tau: Tensor) -> Tensor:
    """The tuned weight for each noise level, of data of equal noise; shaped and typed like tau."""
    levels, weights = _table(method, "weight")
    x = tau.detach().cpu().double().numpy()
    found = np.interp(x**2, np.square(levels), weights)
    positive = [(math.log(t), math.log(w)) for t, w in zip(levels, weights, strict=True) if t > 0]
    for (t0, w0), (t1, w1) in itertools.pairwise(positive):
        above = x >= math.exp(t0)
        found[above] = np.exp(w0 + (w1 - w0) / (t1 - t0) * (np.log(x[above]) - t0))
    return torch.from_numpy(found).to(tau)


def iterations(method: str, tau: Tensor) -> list[int]:
    """The tuned number of iterations for each noise level."""
    levels, counts = _table(method, "iterations")
    found = np.exp(np.interp(tau.detach().cpu().double().numpy(), levels, np.log(counts)))
    return [max(1, round(float(n))) for n in found]


def window(method: str, tau: Tensor) -> list[str]:
    """The tuned filter window for each noise level."""
    levels, windows = _table(method, "window")
    return [windows[min(range(len(levels)), key=lambda k: abs(levels[k] - t))] for t in tau.tolist()]


def _table(method: str, setting: str) -> tuple[list[float], list[Any]]:
    """Noise levels, ascending, and the setting at each."""
    rows = sorted(_read()["methods"].get(method, []), key=lambda row: row["tau"])
    if not rows or any(setting not in row for row in rows) or not all(math.isfinite(row["tau"]) for row in rows):
        raise ValueError(f"{PATH.name} has no {setting} for {method}: give it, or run benchmarks/tune_baselines.py")
    return [row["tau"] for row in rows], [row[setting] for row in rows]


@functools.cache
def _read() -> dict[str, Any]:
    with open(PATH, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found
