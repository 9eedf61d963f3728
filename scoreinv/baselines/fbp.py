"""Filtered back-projection: the operator's own analytic inverse, where it has one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.baselines import tuned
from scoreinv.problem import Problem
from scoreinv.units import MU_WATER_PER_MM


@dataclass(frozen=True)
class FBP:
    """Filtered back-projection by the operator's method `fbp(y, window)`; the noise's distribution over the data is
    not used.

    Attributes:
        window: of the ramp filter, as the operator names it ("ramp", "hann", ...); None takes the tuned one for the
            noise.
    """

    window: str | None = None

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct: (1, *batch, H, W); deterministic, rng is not used.

        Raises:
            ValueError: the operator has no `fbp`.
        """
        flat = problem.flat()
        fbp = getattr(problem.linear, "fbp", None)
        if fbp is None:
            raise ValueError(
                f"FBP: {type(flat.A).__name__} has no method fbp(y, window): take SIRT or CGLS for this operator"
            )
        if self.window is not None:
            x: Tensor = fbp(flat.y, window=self.window)
        else:
            windows = tuned.window("fbp", tuned.noise_level(flat, MU_WATER_PER_MM))
            x = torch.cat([fbp(y[None], window=w) for y, w in zip(flat.y, windows, strict=True)])
        return x.reshape(1, *problem.batch_shape, *problem.A.in_shape)
