"""What a method will cost before it is run: its calls are counted on a tiny problem, where they are nearly free, and multiplied by
the time of a call at the size that counts.

A method evaluates the network, takes its gradient and applies the operator as often for a small image as for a large one,
but for what ends by a tolerance. Counts are of single images, whatever the batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from _data import Slice
from _problems import Setting
from torch import Tensor

from scoreinv import configure
from scoreinv.operators import ParallelBeamCT
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Problem
from scoreinv.solvers import like
from scoreinv.units import MU_WATER_PER_MM

SIDE = 16
"""Pixels of the tiny problem."""


@dataclass(eq=False)
class Calls:
    """How often each costly thing was done, image by image: also a Gaussian prior that counts its own calls.

    Attributes:
        evaluations: of the prior.
        gradients: backward passes through it.
        products: of the operator or its adjoint with an image.
    """

    evaluations: int = 0
    gradients: int = 0
    products: int = 0
    scale: float = MU_WATER_PER_MM

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.evaluations += len(x)
        variance = like(torch.as_tensor(sigma).to(x).expand(len(x)) ** 2, x)
        spread = (0.5 * self.scale) ** 2
        clean = self.scale + (x - self.scale) * spread / (spread + variance)
        if clean.requires_grad:
            clean.register_hook(self._differentiated)
        return clean

    def _differentiated(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


@dataclass(frozen=True)
class CountedCT(ParallelBeamCT):
    """An operator that counts its products."""

    calls: Calls = field(default_factory=Calls, compare=False, repr=False)

    def _forward(self, x: Tensor) -> Tensor:
        self.calls.products += x[..., 0, 0].numel()
        return super()._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        self.calls.products += y[..., 0, 0].numel()
        return super()._adjoint(y)


def count(method: str, settings: Mapping[str, Any], setting: Setting) -> Calls:
    """The calls of one run; none for a method that fails."""
    calls = Calls()
    side_mm = 350 / SIDE
    A = setting.operator((SIDE, SIDE), side_mm)
    problem = setting.problem(Slice("", side_mm, torch.zeros(SIDE, SIDE)))
    counted = CountedCT(A.image_shape, A.angles, A.n_detectors, side_mm, side_mm, calls=calls)
    try:
        run = configure.method(method, settings, lambda: calls)
        run(Problem(counted, problem.y, problem.noise_std), torch.Generator().manual_seed(0))
    except Exception:  # a method that cannot do it says so in its row
        return Calls()
    return calls


@dataclass(frozen=True)
class Pace:
    """Seconds of an evaluation, a backward pass and a product of the operator, each for one image."""

    evaluation: float
    gradient: float
    product: float

    @classmethod
    def of(cls, prior: Denoiser, problem: Problem) -> Pace:
        """Measured: the median of three calls each."""
        A = problem.A
        x = torch.zeros(1, *A.in_shape).requires_grad_()
        sigma = torch.tensor(0.1 * MU_WATER_PER_MM)

        def both() -> None:
            clean = prior(x, sigma)
            torch.autograd.grad(clean, x, torch.ones_like(clean))

        with torch.no_grad():
            evaluation = seconds(lambda: prior(x, sigma))
            product = seconds(lambda: A.H(A(x))) / 2
        return cls(evaluation, max(seconds(both) - evaluation, 0.0), product)

    def seconds(self, calls: Calls) -> float:
        """What so many calls take."""
        return calls.evaluations * self.evaluation + calls.gradients * self.gradient + calls.products * self.product


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of a call, the first left out."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])
