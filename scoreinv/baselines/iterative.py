"""Iterative least squares that regularises by stopping early.

SIRT    x ← x + ρ C Aᵀ R (y − A x), R and C one over the row and column sums of A
        (Gilbert 1972, doi:10.1016/0022-5193(72)90180-4; in this form Gregor & Benson 2008, doi:10.1109/TMI.2008.923696)
CGLS    conjugate gradients on AᵀW A x = AᵀW y with W the inverse noise variance (scoreinv.solvers)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.baselines import tuned
from scoreinv.problem import Problem
from scoreinv.solvers import cgls_iterates, like, noise_weights
from scoreinv.units import MU_WATER_PER_MM


@dataclass(frozen=True)
class SIRT:
    """Simultaneous iterative reconstruction technique, from zero; data of uneven noise get no weights beyond R.

    Attributes:
        iterations: how many; None takes the tuned number for the problem's noise.
        relaxation: ρ, between 0 and 2.
        nonnegative: clip to x >= 0 after each iteration.
    """

    iterations: int | None = None
    relaxation: float = 1.0
    nonnegative: bool = True

    def __post_init__(self) -> None:
        _check(self.iterations)
        if not 0 < self.relaxation < 2:
            raise ValueError(f"relaxation must lie between 0 and 2, got {self.relaxation}")

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct: (1, *batch, *A.in_shape); deterministic, rng is not used.

        Raises:
            ValueError: A has negative row or column sums.
        """
        return _stopped("sirt", self.iterations, self.iterates(problem), problem)

    @torch.no_grad()
    def iterates(self, problem: Problem) -> Iterator[Tensor]:
        """The iterates 1, 2, ... without end, each (batch, *A.in_shape) with all batch dimensions merged."""
        flat = problem.flat()
        A, y = flat.A, flat.y
        R = _inverse(A(y.new_ones(1, *A.in_shape)))
        C = self.relaxation * _inverse(A.H(y.new_ones(1, *A.out_shape)))
        x = y.new_zeros(y.shape[0], *A.in_shape)
        while True:
            x = x + C * A.H(R * (y - A(x)))
            if self.nonnegative:
                x = x.clamp(min=0)
            yield x


@dataclass(frozen=True)
class CGLS:
    """Conjugate gradients for (weighted) least squares, from zero.

    Attributes:
        iterations: how many; None takes the tuned number for the problem's noise.
    """

    iterations: int | None = None

    def __post_init__(self) -> None:
        _check(self.iterations)

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct: (1, *batch, *A.in_shape); deterministic, rng is not used."""
        return _stopped("cgls", self.iterations, self.iterates(problem), problem)

    def iterates(self, problem: Problem, max_iterations: int = 10_000) -> Iterator[Tensor]:
        """The iterates 1, 2, ..., each (batch, *A.in_shape) with all batch dimensions merged; ends when all are
        exact."""
        flat = problem.flat()
        return cgls_iterates(flat.linear, flat.y, max_iterations=max_iterations, weights=noise_weights(flat)[0])


def _stopped(method: str, count: int | None, iterates: Iterator[Tensor], problem: Problem) -> Tensor:
    """Each member at its own number of iterations: (1, *batch, *A.in_shape)."""
    flat = problem.flat()
    if count is None:
        counts = tuned.iterations(method, tuned.noise_level(flat, MU_WATER_PER_MM))
    else:
        counts = [count] * flat.y.shape[0]
    last = torch.tensor(counts, device=flat.y.device)
    found = flat.y.new_zeros(flat.y.shape[0], *flat.A.in_shape)
    for _, (k, x) in zip(range(max(counts)), enumerate(iterates, start=1), strict=False):
        found = torch.where(like(last >= k, x), x, found)
    return found.reshape(1, *problem.batch_shape, *problem.A.in_shape)


def _inverse(sums: Tensor) -> Tensor:
    """1 / sums, 0 where a row or column is empty."""
    if (sums < 0).any():
        raise ValueError(
            "SIRT: the operator has negative row or column sums; it is meant for line integrals and the like: take CGLS"
        )
    return torch.where(sums > 0, 1 / sums, 0)


def _check(iterations: int | None) -> None:
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations must be at least 1, or None for the tuned number, got {iterations}")
