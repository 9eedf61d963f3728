"""Learned primal-dual: the primal-dual algorithm with networks of their own in every iteration, on images and on data.

    f (memory channels of images), h (of data), both 0 at first; superscripts are channels, counted from 1
    h¹ ← (h¹ + τ (K f² − g)) / (1 + τ),    h ← h + Γ_k(h_old, K f², g)
    f¹ ← f¹ − τ Kᵀ h¹,    f² ← 2 f¹ − f¹_old,    f ← f + Λ_k(f_old, γ Kᵀ h¹)                                        (1)
    v = f¹ after the last iteration

(Adler, Öktem, "Learned Primal-dual Reconstruction", 2018, arXiv:1707.06474, algorithm 3: ten iterations, five channels of
memory, three convolutions with PReLU.) With Γ = Λ = 0, as before training, (1) is the primal-dual algorithm of Chambolle
and Pock (2011, doi:10.1007/s10851-010-0251-1) for min ½ ‖K v − g‖², with both steps τ < 1 = 1 / ‖K‖; in the paper
networks replace it, here they are added to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from scoreinv.baselines.learned import Convolutions, Learned, Network, Scaled
from scoreinv.linop import LinearOperator

STEP = 0.95


class PrimalDualNetwork(Network):
    """Eq. (1), for any operator from images (H, W) to data of two dimensions.

    Args:
        iterations: of (1), each with networks of its own.
        memory: channels of f and of h, at least 2.
        width: channels inside Γ and Λ.
    """

    def __init__(self, iterations: int = 10, memory: int = 5, width: int = 32) -> None:
        super().__init__()
        if memory < 2:
            raise ValueError(f"learned primal-dual: memory must be at least 2 (f and its extrapolation), got {memory}")
        self.settings = {"iterations": iterations, "memory": memory, "width": width}
        self.memory = memory
        self.dual = nn.ModuleList([Convolutions(memory + 2, width, memory) for _ in range(iterations)])
        self.primal = nn.ModuleList([Convolutions(memory + 1, width, memory) for _ in range(iterations)])

    def check(self, A: LinearOperator) -> None:
        super().check(A)
        if len(A.out_shape) != 2:
            raise ValueError(f"learned primal-dual: expected data of two dimensions, as sinograms, got {A.out_shape}")

    def forward(self, problem: Scaled, g: Tensor) -> Tensor:
        f = g.new_zeros(len(g), self.memory, *problem.A.in_shape)
        h = g.new_zeros(len(g), self.memory, *problem.A.out_shape)
        for dual, primal in zip(self.dual, self.primal, strict=True):
            projected = problem.forward(f[:, 1])
            h1 = (h[:, 0] + STEP * (projected - g)) / (1 + STEP)
            learned = dual(torch.cat([h, projected[:, None], g[:, None]], dim=1))
            h = torch.cat([h1[:, None], h[:, 1:]], dim=1) + learned
            back = problem.adjoint(h[:, 0])
            f1 = f[:, 0] - STEP * back
            learned = primal(torch.cat([f, problem.gain * back[:, None]], dim=1))
            f = torch.cat([torch.stack([f1, 2 * f1 - f[:, 0]], dim=1), f[:, 2:]], dim=1) + learned
        return f[:, 0]


@dataclass(frozen=True)
class LearnedPrimalDual(Learned):
    """The primal-dual algorithm with trained networks on images and data (Adler and Öktem 2018)."""

    network: ClassVar[type[Network]] = PrimalDualNetwork
