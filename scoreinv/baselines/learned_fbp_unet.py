"""Filtered back-projection, cleaned by a U-Net.

    f = FBP(g),    v = f + U(f)                                                                                    (1)

(Jin, McCann, Froustey, Unser, "Deep Convolutional Neural Network for Inverse Problems in Imaging", 2017,
arXiv:1611.03679, fig. 2.) The network learns what to take away, from 0. U is the U-Net of this package's priors without a
noise level, working on blocks of 2 x 2 pixels, in place of the paper's, which works at full resolution with batch
normalisation; the ramp filter has a Hann window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoreinv.baselines.learned import Learned, Network, Refiner, Scaled


class FBPUNetNetwork(Network):
    """Eq. (1), for any operator with a filtered back-projection.

    Args:
        widths, unshuffle: of U, see `learned.Refiner`.
        window: of the ramp filter.
    """

    def __init__(self, widths: Sequence[int] = (48, 96, 128, 192), unshuffle: int = 2, window: str = "hann") -> None:
        super().__init__()
        self.settings = {"widths": list(widths), "unshuffle": unshuffle, "window": window}
        self.window, self.refine = window, Refiner(1, widths, unshuffle)

    def forward(self, problem: Scaled, g: Tensor) -> Tensor:
        f = problem.fbp(g, self.window)
        refined: Tensor = f + self.refine(f[:, None])[:, 0]
        return refined


@dataclass(frozen=True)
class FBPUNet(Learned):
    """Filtered back-projection, cleaned by a trained U-Net (Jin et al. 2017)."""

    network: ClassVar[type[Network]] = FBPUNetNetwork
