"""Where and how far a prior is wrong about an image: what it makes of the image when noise is added.

At noise level σ the squared residual (D(x₀ + σ z, σ) − x₀)² of a pixel is small where the prior knows what to expect, and large
where the image is not like those that it was trained on. In units of what is usual at that level, all levels count alike:

    unusual = mean over levels of  G ∗ (D − x₀)² / usual(σ)                                                         (1)

with a box G of a few pixels, because single residuals follow the noise. The integral over ln σ of the residuals over σ², less
what pure noise gives, is the likelihood (Kong, Brekelmans, Ver Steeg 2023, arXiv:2302.03792): this is its cheap relative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser

WINDOW = 9
"""Side of G [pixels]."""


@torch.no_grad()
def squared_residuals(prior: Denoiser, u: Tensor, sigmas: Sequence[float], rng: Generator) -> Tensor:
    """(D − x₀)² of every pixel, D and x₀ clipped to [−1, 1] as `priors.validation` does, (levels, H, W) in float64.

    Args:
        prior: D, of images in u = HU / 1000.
        u: one image, (H, W).
        sigmas: noise levels in u.
        rng: source of the noise.
    """
    out = []
    for sigma in sigmas:
        noisy = u + sigma * torch.randn(u.shape, generator=rng).to(u)
        clean = prior(noisy[None], u.new_tensor([sigma]))[0]
        out.append((clean.clamp(-1, 1) - u.clamp(-1, 1)).double() ** 2)
    return torch.stack(out)


def usual_from_psnr(psnr_db: float) -> float:
    """Mean squared residual that a PSNR of range 2 stands for, as in the card of a prior."""
    return float(4 * 10 ** (-psnr_db / 10))


def unusual_map(residuals: Tensor, usual: Tensor) -> Tensor:
    """Eq. (1): 1 where the image is as hard to denoise as is usual.

    Args:
        residuals: of `squared_residuals`, (levels, H, W).
        usual: mean squared residual of usual images, (levels,).

    Returns:
        (H, W).
    """
    return smoothed((residuals / usual.to(residuals)[:, None, None]).mean(0))


def smoothed(image: Tensor) -> Tensor:
    """The mean over a square of WINDOW pixels around each pixel of (H, W), over what lies inside the image."""
    mean: Tensor = F.avg_pool2d(image[None, None], WINDOW, 1, WINDOW // 2, count_include_pad=False)[0, 0]
    return mean


def excess(residuals: Tensor, usual: Tensor) -> float:
    """Root-mean-square residual over the usual one, geometric mean over levels: 1 for an image like others."""
    ratios = residuals.flatten(1).mean(1).clamp(min=1e-20) / usual.to(residuals)
    return math.exp(float(ratios.log().mean()) / 2)
