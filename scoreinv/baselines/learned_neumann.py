"""The Neumann network: the series of the inverse of a regularised normal equation, with a network as the regulariser.

For a linear regulariser R the minimiser of ½ ‖K v − g‖² + ½ ⟨v, R v⟩ is

    v = (KᵀK + R)⁻¹ Kᵀg = Σ_j (I − η KᵀK − η R)^j η Kᵀg,                                                           (1)

and the network is this sum, cut off after J terms, with a network as R, the same in all terms:

    b₀ = η Kᵀg,    b_j = b_{j−1} − η KᵀK b_{j−1} − η R(b_{j−1}),    v = Σ_{j=0}^J b_j                              (2)

(Gilton, Ongie, Willett, "Neumann Networks for Linear Inverse Problems in Imaging", 2020, arXiv:1901.03707.)
η learns too. With R = 0, as before training, v is the result of J + 1 steps of Landweber's iteration from 0, which at few views
is much blurred: all that is sharp comes from R. The paper's variant with a preconditioner is not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from scoreinv.baselines.learned import Learned, Network, Refiner, Scaled


class NeumannNetwork(Network):
    """Eq. (2), for any operator on images (H, W).

    Args:
        terms: J.
        widths, unshuffle: of R, see `learned.Refiner`.
    """

    def __init__(self, terms: int = 6, widths: Sequence[int] = (32, 64, 96, 128), unshuffle: int = 2) -> None:
        super().__init__()
        self.settings = {"terms": terms, "widths": list(widths), "unshuffle": unshuffle}
        self.terms, self.regulariser = terms, Refiner(1, widths, unshuffle)
        self.eta = nn.Parameter(torch.ones(()))

    def forward(self, problem: Scaled, g: Tensor) -> Tensor:
        b = self.eta * problem.adjoint(g)
        v = b
        for _ in range(self.terms):
            descent = problem.adjoint(problem.forward(b)) + self.regulariser(b[:, None])[:, 0]
            b = b - self.eta * descent
            v = v + b
        return v


@dataclass(frozen=True)
class Neumann(Learned):
    """A cut-off Neumann series with a trained regulariser (Gilton, Ongie, Willett 2020)."""

    network: ClassVar[type[Network]] = NeumannNetwork
