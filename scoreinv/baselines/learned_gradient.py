"""Learned gradient descent: a network decides on the step, from the gradients of misfit and roughness and a memory.

    v₀ = FBP(g) (0 where there is none), s₀ = 0
    p = Kᵀ (K v − g),    q = −Δ v = ∇ᵀ∇ v                         gradients of ½ ‖K v − g‖² and ½ ‖∇v‖²
    (δ, s') = Λ(v, γ p, q, s);    v ← v − p + δ,    s ← max(s', 0)                                                  (1)

(Adler, Öktem, "Solving ill-posed inverse problems using iterative deep neural networks", 2017, arXiv:1704.04058,
algorithm 1.) The iterations share one Λ. With Λ = 0, as before training, (1) is gradient descent with step 1 / ‖A‖²
(Landweber); that −p stands outside the network is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreinv.baselines.learned import Convolutions, Learned, Network, Scaled


class GradientNetwork(Network):
    """Eq. (1), for any operator on images (H, W).

    Args:
        iterations: of (1).
        memory: channels of s.
        width: channels inside Λ.
    """

    def __init__(self, iterations: int = 10, memory: int = 5, width: int = 32) -> None:
        super().__init__()
        self.settings = {"iterations": iterations, "memory": memory, "width": width}
        self.iterations, self.memory = iterations, memory
        self.update = Convolutions(3 + memory, width, 1 + memory)

    def forward(self, problem: Scaled, g: Tensor) -> Tensor:
        v = problem.fbp(g) if hasattr(problem.A, "fbp") else torch.zeros_like(problem.adjoint(g))
        s = v.new_zeros(len(v), self.memory, *v.shape[1:])
        for _ in range(self.iterations):
            p = problem.adjoint(problem.forward(v) - g)
            q = roughness_gradient(v)
            step = self.update(torch.cat([torch.stack([v, problem.gain * p, q], dim=1), s], dim=1))
            v, s = v - p + step[:, 0], step[:, 1:].relu()
        return v


def roughness_gradient(v: Tensor) -> Tensor:
    """∇ᵀ∇ v with forward differences, zero across the border, as in `baselines.tv` but differentiable: (batch, H, W) -> the same."""
    down, right = v.diff(dim=-2), v.diff(dim=-1)
    return F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1)) + F.pad(right, (1, 0)) - F.pad(right, (0, 1))


@dataclass(frozen=True)
class LearnedGradient(Learned):
    """Gradient descent whose steps a trained network decides on (Adler and Öktem 2017)."""

    network: ClassVar[type[Network]] = GradientNetwork
