"""SIN-4c-PRN: a network fills in the views that were not measured, a second one cleans the images made from them.

    ĝ = L(g) + S(L(g)),    measured views kept as they are                                                          (1)
    v = f_8 + P(f_1, f_2, f_4, f_8),    f_k = FBP of every (8/k)-th view of ĝ                                       (2)

L interpolates linearly to 8 times as many views; it and S see the sinogram go on beyond its ends, where half a turn mirrors
the detector: g(θ + π, u) = g(θ, −u). f_1 is the filtered back-projection of the data alone.

(Wei, Schiffers, Würfl, Shen, Kim, Katsaggelos, Cossairt, "2-Step Sparse-View CT Reconstruction with a Domain-Specific Perceptual
Network", 2020, arXiv:2012.04743; code: github.com/anonyr7/Sinogram-Inpainting.) From abstract and code: 23 views become 180, the
second network sees the images of 23, 45, 90 and 180 views, both networks are U-Nets, a mirrored view is added at both ends. Ours
differs: 184 views instead of 180, so that the measured ones are among them; the loss is the mean absolute
error of the sinogram plus the mean squared error of the image, without the paper's adversarial, perceptual and high-frequency
terms; both networks learn at the same time, each from its own error (no gradient goes from (2) to (1)), instead of one after the
other. The first network's loss weights, and the sizes of layers, could not be confirmed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from scoreinv import plugins
from scoreinv.baselines.learned import Learned, Network, Refiner, Scaled
from scoreinv.linop import LinearOperator

FACTOR = 8
BEYOND = 16
"""Views that S sees beyond each end."""


class SinogramNetwork(Network):
    """Eqs. (1) and (2), for parallel beams over half a turn; bound to the views that it was trained with.

    Args:
        sinogram_widths, image_widths: of S and P, see `learned.Refiner`.
        unshuffle: of both.
    """

    bound_to = ("operator", "angles_degrees")

    def __init__(
        self,
        sinogram_widths: Sequence[int] = (32, 48, 80, 128),
        image_widths: Sequence[int] = (48, 80, 112, 128),
        unshuffle: int = 2,
    ) -> None:
        super().__init__()
        widths = {"sinogram_widths": list(sinogram_widths), "image_widths": list(image_widths)}
        self.settings = {**widths, "unshuffle": unshuffle}
        self.inpaint = Refiner(1, sinogram_widths, unshuffle)
        self.refine = Refiner(4, image_widths, unshuffle)

    def check(self, A: LinearOperator) -> None:
        super().check(A)
        if not isinstance(A, plugins.get("operators", "parallel_beam_ct")):
            raise ValueError(f"sin_4c_prn: expected a ParallelBeamCT, got {type(A).__name__}")
        step = math.pi / len(A.angles)
        off = max(abs(a - (A.angles[0] + k * step)) for k, a in enumerate(A.angles))
        if off > 1e-4 * step or A.detector_offset_mm != 0:
            raise ValueError(
                "sin_4c_prn: expected views in equal steps over half a turn and a centred detector: what lies between the views is "
                f"filled in; these are {len(A.angles)} views up to {math.degrees(A.angles[-1]):.4g} degrees, offset {A.detector_offset_mm:g} mm"
            )

    def sinogram(self, g: Tensor) -> Tensor:
        """ĝ of eq. (1): (batch, views, detectors) -> (batch, FACTOR views, detectors)."""
        full = interpolated(g)
        seen = torch.cat([full[:, -BEYOND:].flip(-1), full, full[:, :BEYOND].flip(-1)], dim=1)
        filled = full + self.inpaint(seen[:, None])[:, 0, BEYOND:-BEYOND]
        measured = (torch.arange(full.shape[1], device=g.device) % FACTOR == 0)[:, None]
        return torch.where(measured, full, filled)

    def image(self, problem: Scaled, full: Tensor) -> Tensor:
        """v of eq. (2), from all views."""
        A: Any = problem.A
        images = []
        for every in (8, 4, 2, 1):
            part = dataclasses.replace(A, angles=angles(A)[::every])
            images.append(part.fbp(full[:, ::every] * problem.norm, window="hann"))
        stacked = torch.stack(images, dim=1)
        refined: Tensor = stacked[:, -1] + self.refine(stacked)[:, 0]
        return refined

    def forward(self, problem: Scaled, g: Tensor) -> Tensor:
        return self.image(problem, self.sinogram(g))

    def loss(self, problem: Scaled, g: Tensor, v: Tensor, rng: Generator) -> Tensor:
        """Error of the sinogram and of the image, without gradients from one to the other."""
        A: Any = problem.A
        with torch.autocast(v.device.type, enabled=False):
            true = dataclasses.replace(A, angles=angles(A))(v) / problem.norm
        full = self.sinogram(g)
        error = self.image(problem, full.detach()) - v
        total: Tensor = (full - true).abs().mean() + error.square().mean()
        return total


def angles(A: Any) -> tuple[float, ...]:
    """FACTOR times as many views over the same half turn, beginning with the first."""
    n = FACTOR * len(A.angles)
    return tuple(A.angles[0] + math.pi * k / n for k in range(n))


def interpolated(g: Tensor) -> Tensor:
    """L of eq. (1)."""
    following = torch.cat([g[:, 1:], g[:, :1].flip(-1)], dim=1)
    shares = torch.arange(FACTOR, device=g.device, dtype=g.dtype)[:, None] / FACTOR
    return torch.lerp(g[:, :, None], following[:, :, None], shares).flatten(1, 2)


@dataclass(frozen=True)
class SIN4cPRN(Learned):
    """Unmeasured views filled in by a trained network, images from four sets of views refined by a second (Wei et al. 2020)."""

    network: ClassVar[type[Network]] = SinogramNetwork
