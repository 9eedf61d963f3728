"""Variational reconstruction with total variation or wavelets, by monotone FISTA.

With v = x / unit and b = y / unit (unit = μ_water for CT, so that v = 1 + HU / 1000) the minimised function is

    F(v) = ‖W^½ (A v − b)‖² / (2 c) + weight · R(v),      c = ‖A‖_F² / n (solvers.mean_column_square), W = (min σ / σᵢ)²

c grows with the number of views and hardly depends on the size of the image, R is a sum over pixels: one weight
serves all sizes, view counts and units. Tuned weights are looked up at the dimensionless noise level τ = σ / (unit √c)
(tuned.py). Where the noise is not uniform, σ is its root mean square, and the weight is that of σ times the harmonic mean
of W, by which the data term falls short of that of data of noise σ.

FISTA: Beck & Teboulle 2009, doi:10.1137/080716542, eq. 4.1-4.3; monotone as their MFISTA
(doi:10.1109/TIP.2009.2028250), with the momentum restarted after each refused step (O'Donoghue & Candès 2015,
doi:10.1007/s10208-013-9150-3, function scheme). The weight starts high and falls geometrically to its value
(continuation: Hale, Yin & Zhang 2008, doi:10.1137/070698920): few-view data with a small weight would otherwise take
thousands of iterations, because the step is that of the largest eigenvalue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.baselines import tuned, wavelet
from scoreinv.baselines.tv import prox_tv, total_variation
from scoreinv.problem import Problem
from scoreinv.solvers import inner, like, mean_column_square, noise_weights
from scoreinv.units import MU_WATER_PER_MM

CONTINUATION_START = 6e-3
"""step · weight of the first iteration."""
CONTINUATION_PART = 0.8
"""Part of the iterations after which the weight has come down to its final value."""

Prox = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(v, step · weight of each member) -> the proximal point and R there."""


@dataclass(frozen=True)
class FistaTV:
    """Least squares with isotropic total variation.

    Attributes:
        weight: of the total variation, as the module head has it; None takes the tuned one for the problem's noise.
        max_iterations: applications of A and Aᵀ, at most; the weight comes down to its value over the first 80 % of
            them.
        tolerance: a member is done when, at its final weight, a step moves it by less than this, relative to its norm.
        nonnegative: the constraint x >= 0.
        prox_iterations: dual steps in each proximal map, started from the last map's dual.
        unit: value of an image that counts as 1, in the image's unit [1/mm for CT].
    """

    weight: float | None = None
    max_iterations: int = 500
    tolerance: float = 1e-5
    nonnegative: bool = True
    prox_iterations: int = 5
    unit: float = MU_WATER_PER_MM

    def __post_init__(self) -> None:
        _check(self.weight, self.max_iterations, self.unit)
        if self.prox_iterations < 1:
            raise ValueError(f"prox_iterations must be at least 1, got {self.prox_iterations}")

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct: (1, *batch, H, W); deterministic, rng is not used."""
        return _last(self.iterates(problem), problem)

    def iterates(self, problem: Problem) -> Iterator[Tensor]:
        """The iterates 1, 2, ..., each (batch, H, W) with all batch dimensions merged."""
        misfit = _Misfit(problem.flat(), self.unit)
        dual: Tensor | None = None

        def prox(v: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal dual
            v, dual = prox_tv(v, step, iterations=self.prox_iterations, nonnegative=self.nonnegative, p=dual)
            return v, total_variation(v)

        yield from misfit.minimise(prox, self._weight(misfit), (0, 0), self.max_iterations, self.tolerance)

    def objective(self, problem: Problem, x: Tensor) -> Tensor:
        """F of images x (batch, H, W) in the operator's unit, for the flat problem: (batch,)."""
        misfit = _Misfit(problem.flat(), self.unit)
        v = x / self.unit
        return misfit.value(misfit.A(v)) + self._weight(misfit) * total_variation(v)

    def _weight(self, misfit: _Misfit) -> Tensor:
        return _weight("fista_tv", self.weight, misfit)


@dataclass(frozen=True)
class FistaWavelet:
    """Least squares with the ℓ1 norm of orthogonal wavelet details.

    Images whose sides are not divisible by 2^levels are unknowns on a larger canvas of which A sees the upper left
    corner.

    Attributes:
        weight: of the ℓ1 norm, as the module head has it; None takes the tuned one for the problem's noise.
        wavelet: an orthogonal one, as PyWavelets names it.
        levels: depth of the transform.
        max_iterations: applications of A and Aᵀ, at most; the weight comes down to its value over the first 80 % of
            them.
        tolerance: a member is done when, at its final weight, a step moves it by less than this, relative to its norm.
        unit: value of an image that counts as 1, in the image's unit [1/mm for CT].
    """

    weight: float | None = None
    wavelet: str = "db4"
    levels: int = 4
    max_iterations: int = 500
    tolerance: float = 1e-5
    unit: float = MU_WATER_PER_MM

    def __post_init__(self) -> None:
        _check(self.weight, self.max_iterations, self.unit)
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")
        wavelet.matrix(2, self.wavelet)

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct: (1, *batch, H, W); deterministic, rng is not used."""
        return _last(self.iterates(problem), problem)

    def iterates(self, problem: Problem) -> Iterator[Tensor]:
        """The iterates 1, 2, ..., each (batch, H, W) with all batch dimensions merged."""
        misfit = _Misfit(problem.flat(), self.unit)
        height, width = misfit.A.in_shape

        def prox(v: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
            return wavelet.prox_l1(v, step, self.wavelet, self.levels)

        margin = (-height % 2**self.levels, -width % 2**self.levels)
        weight = _weight("fista_wavelet", self.weight, misfit)
        yield from misfit.minimise(prox, weight, margin, self.max_iterations, self.tolerance)


class _Misfit:
    """The data term of a problem with one batch dimension, and FISTA for it plus a penalty."""

    def __init__(self, problem: Problem, unit: float) -> None:
        if len(problem.A.in_shape) != 2:
            raise ValueError(
                f"TV and wavelets are for images (H, W), {type(problem.A).__name__} takes {problem.A.in_shape}"
            )
        self.A, self.b, self.unit = problem.A, problem.y / unit, unit
        self.w, sigma = noise_weights(problem)
        self.c = mean_column_square(problem.A)
        self.tau = tuned.noise_level(problem, unit)
        self.share = torch.ones_like(sigma) if self.w is None else 1 / tuned.mean_inverse(self.w)

    def weighted(self, r: Tensor) -> Tensor:
        return r if self.w is None else self.w * r

    def value(self, Av: Tensor) -> Tensor:
        r = Av - self.b
        return inner(r, self.weighted(r)) / (2 * self.c)

    @torch.no_grad()
    def minimise(
        self, prox: Prox, weight: Tensor, margin: tuple[int, int], max_iterations: int, tolerance: float
    ) -> Iterator[Tensor]:
        """Monotone FISTA with step c / ‖A‖² from zero; the unknown has `margin` more rows and columns than the
        image."""
        height, width = self.A.in_shape
        step = self.c / self.A.norm_squared()
        x = self.b.new_zeros(self.b.shape[0], height + margin[0], width + margin[1])
        Ax, v, Av = torch.zeros_like(self.b), x, torch.zeros_like(self.b)
        misfit, penalty = torch.full_like(weight, torch.inf), torch.zeros_like(weight)
        t = torch.ones_like(weight)
        done = torch.zeros_like(weight, dtype=torch.bool)
        for k in range(max_iterations):
            lam = _continued(weight, step, k / max_iterations)
            slope = self.A.H(self.weighted(Av - self.b)) / self.c
            z, penalty_z = prox(
                v - step * torch.nn.functional.pad(slope, (0, margin[1], 0, margin[0])), step * lam
            )  # eq. 4.1
            Az = self.A(z[:, :height, :width])
            misfit_z = self.value(Az)
            better = (misfit_z + lam * penalty_z <= misfit + lam * penalty) & ~done
            t_next = torch.where(better, (1 + torch.sqrt(1 + 4 * t * t)) / 2, 1.0)  # eq. 4.2, or restart
            momentum = torch.where(better, (t - 1) / t_next, 0.0)
            dx, dAx = like(better, z) * (z - x), like(better, Az) * (Az - Ax)
            x, Ax = x + dx, Ax + dAx
            misfit, penalty = torch.where(better, misfit_z, misfit), torch.where(better, penalty_z, penalty)
            v, Av = x + like(momentum, x) * dx, Ax + like(momentum, Ax) * dAx  # eq. 4.3
            still = inner(dx, dx) <= tolerance**2 * inner(x, x)
            done |= still & (better | (t == 1)) & (lam == weight)
            t = t_next
            yield x[:, :height, :width] * self.unit
            if done.all():
                return


def _continued(weight: Tensor, step: float, progress: float) -> Tensor:
    """The weight of an iteration: falls geometrically to `weight` over the first part of the iterations."""
    first = CONTINUATION_START / step
    return weight * (first / weight).clamp(min=1) ** max(0.0, 1 - progress / CONTINUATION_PART)


def _weight(method: str, weight: float | None, misfit: _Misfit) -> Tensor:
    """The weight of each member: (batch,)."""
    if weight is None:
        return tuned.weight(method, misfit.tau) * misfit.share
    return torch.full_like(misfit.tau, weight)


def _last(iterates: Iterator[Tensor], problem: Problem) -> Tensor:
    x = torch.empty(0)
    for x in iterates:  # noqa: B007
        pass
    return x.reshape(1, *problem.batch_shape, *problem.A.in_shape)


def _check(weight: float | None, max_iterations: int, unit: float) -> None:
    if weight is not None and not weight > 0:
        raise ValueError(f"weight must be positive, or None for the tuned one, got {weight}")
    if max_iterations < 1 or not unit > 0:
        raise ValueError(f"max_iterations must be at least 1 and unit positive, got {max_iterations} and {unit}")
