"""Run a method on a problem: its random streams, its device, its noise, and whether what it returns are images."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv import metrics
from scoreinv.problem import Method, Problem
from scoreinv.streams import split

MISFIT = 1.5
"""chi^2 of an image from which on noise that was estimated is raised, once."""


@dataclass(frozen=True, eq=False)
class Solved:
    """Draws on the CPU; the problem with the noise that they were made with, and by how much it was raised, (*batch,); how long it took."""

    draws: Tensor
    problem: Problem
    raised: Tensor
    seconds: float


def solved(
    name: str, solver: Method, problem: Problem, may_raise: bool, *, seed: int, first: int, device: str
) -> Solved:
    """What a method makes of a problem, and once more with more noise where `_misfit` asks for it.

    Raises:
        ValueError: it returns no images, or diverges.
    """

    def solve(p: Problem) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        split(rng, first)  # the streams of the slices before
        with torch.no_grad():
            draws = _checked_draws(name, p, solver(_to(p, device), rng))
        if not torch.isfinite(draws).all():
            raise ValueError(
                f"method {name!r} diverged (NaN or infinite pixels): check its settings and the scan's geometry and noise"
            )
        return draws

    started = time.perf_counter()
    draws, raised = solve(problem), torch.ones(problem.batch_shape)
    if may_raise and (factor := _misfit(problem, draws)) is not None:
        problem = dataclasses.replace(problem, noise_std=problem.noise_std * factor)
        raised = factor.reshape(raised.shape)
        draws = solve(problem)
    return Solved(draws, problem, raised, time.perf_counter() - started)


def _misfit(problem: Problem, draws: Tensor) -> Tensor | None:
    """By how much the noise of every slice has to be raised for the image to fit the data, shaped like the noise; None where no slice
    needs it. Noise that is estimated from the data comes out too small where neighbouring cells share it, and knows nothing of errors of
    the model; a method that believes it follows what is no image (real scans in docs/real-scans.md)."""
    chi2 = metrics.chi_squared(problem, draws.mean(dim=0))
    if (
        not torch.isfinite(chi2).all()
        or not (chi2 > MISFIT).any()
        or not (torch.as_tensor(problem.noise_std) > 0).all()
    ):
        return None
    factor = torch.where(chi2 > MISFIT, chi2.sqrt(), torch.ones_like(chi2))
    return factor.reshape(*problem.batch_shape, *(1,) * len(problem.A.out_shape)) if problem.batch_shape else factor


def _checked_draws(name: str, problem: Problem, draws: object) -> Tensor:
    """What a method returned, on the CPU.

    Raises:
        ValueError: it is no tensor, of another shape, or holds no real numbers.
    """
    images = (*problem.batch_shape, *problem.A.in_shape)
    got = tuple(draws.shape) if isinstance(draws, Tensor) else type(draws).__name__
    if not isinstance(draws, Tensor) or draws.ndim != len(images) + 1 or tuple(draws.shape[1:]) != images:
        raise ValueError(
            f"method {name!r} should return a tensor (samples, {', '.join(map(str, images))}): draws, or one image with samples = 1; got {got}"
        )
    if not draws.is_floating_point():
        raise ValueError(
            f"method {name!r} should return real floating-point images, got {draws.dtype}; .real and .float() make such"
        )
    return draws.cpu()


def _to(problem: Problem, device: str) -> Problem:
    """What a method is given: the problem on its device, without the truth."""
    return dataclasses.replace(problem.to(device), truth=None)
