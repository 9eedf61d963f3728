"""Settings tuned on validation patients (tuned.json, written by benchmarks/tune_baselines.py), looked up by the noise
level τ.

τ = σ / (unit √c) is the dimensionless noise of fista.py. Between and beyond the tuned levels

    weight      is linear in τ²: weight = β τ² is Bayes' rule, and what is left at τ = 0 stands for the missing views
    iterations  ln n is linear in τ, constant beyond the ends
    window      is that of the nearest level
"""

from __future__ import annotations

import functools
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
    tau: Tensor = noise_weights(problem)[1] / (unit * mean_column_square(problem.A) ** 0.5)
    return tau


def weight(method: str, tau: Tensor) -> Tensor:
    """The tuned weight for each noise level, shaped and typed like tau."""
    levels, weights = _table(method, "weight")
    squares = np.square(levels)
    x = tau.detach().cpu().double().numpy() ** 2
    found = np.interp(x, squares, weights)
    beyond = x > squares[-1]
    found[beyond] = weights[-1] * x[beyond] / squares[-1] if squares[-1] > 0 else weights[-1]
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
