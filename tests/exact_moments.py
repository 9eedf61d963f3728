"""Mean and covariance of a sampler's draws without drawing: for what is affine in its noise, by impulse responses.

With a Gaussian prior and conjugate gradients run to the end, a draw is m + Σ_j h_j z_j with independent z_j ~ N(0, 1). One run without
noise gives m, and one batch whose member j has z_j = 1 and no other noise gives all h_j; the covariance is Σ_j h_j h_jᵀ.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from scoreinv import streams
from scoreinv.problem import Problem


def moments(method: Any, problem: Problem) -> tuple[Tensor, Tensor]:
    """Mean (pixels,) and covariance (pixels, pixels) of the draws of a problem without batch dimensions."""
    sizes: list[int] = []

    def silent(rngs: Sequence[Generator], like: Tensor) -> Tensor:
        sizes.append(like[0].numel())
        return torch.zeros_like(like)

    _run(dataclasses.replace(method, samples=1), problem, silent)
    left = iter(list(sizes))
    given = 0

    def impulses(rngs: Sequence[Generator], like: Tensor) -> Tensor:
        nonlocal given
        size, z = next(left), torch.zeros_like(like)
        z.flatten(1)[given : given + size] = torch.eye(size, dtype=like.dtype)
        given += size
        return z

    x = _run(dataclasses.replace(method, samples=sum(sizes) + 1), problem, impulses).flatten(1)
    responses = x[:-1] - x[-1]
    return x[-1], responses.T @ responses


def _run(method: Any, problem: Problem, normal: Any) -> Tensor:
    """The method with another source of noise, in every module that has imported `streams.normal`."""
    original = streams.normal
    with pytest.MonkeyPatch.context() as patch:
        for module in list(sys.modules.values()):
            if getattr(module, "normal", None) is original:
                patch.setattr(module, "normal", normal)
        return method(problem, torch.Generator().manual_seed(0))
