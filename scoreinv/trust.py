"""How far to trust a reconstruction: does it fit the data, and what in it do the data determine?

Fit. If x is a draw from the posterior p(x | y), then x and the true image have the same law given y, so the misfit
χ² = ‖(A x − y) / σ‖² / m of a draw is that of the truth: 1 on average, with a standard deviation of √(2 / m) for m data. Draws
well above 1 do not explain the data; draws well below follow the noise. (The mean of the draws may fit better than 1.)

Support. x = A⁺A x + (I − A⁺A) x: the first part is what data without noise would tell, the second comes from the prior alone.
With noise the singular directions that it buries belong to the prior too:

    measured part   x_A = (AᵀW A + ρ I)⁻¹ AᵀW A x,   W = 1 / σ_y²,   ρ = 1 / s²                                       (1)

with s the standard deviation of images around their prior; ρ → 0 gives A⁺A x.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreinv.problem import Problem
from scoreinv.solvers import cg, like, noise_weights

MODEL_ERROR = 0.15
"""Misfit, relative to 1, that is put down to the model (geometry, discretisation) rather than to the reconstruction."""


def verdict(chi2: float, n_data: int) -> str:
    """What the misfit of posterior draws says, in a word and a sentence.

    Args:
        chi2: mean over draws of ‖(A x − y) / σ‖² / m.
        n_data: m.
    """
    margin = slack(n_data)
    if not math.isfinite(chi2):
        return "no verdict: the noise of the data is unknown"
    if chi2 > 1 + margin:
        return (
            "inconsistent with the data: the images do not explain the measurements down to the stated noise "
            "(is the geometry right, is the noise larger, is there metal or motion?)"
        )
    if chi2 < 1 - margin:
        return (
            "over-fitted: the images follow the noise of the measurements more closely than the true image would, and their "
            "spread says too little (is the stated noise too large?)"
        )
    return "consistent: the images explain the measurements down to the noise"


def worse_fit(chi2_samples: Tensor | None, usual: float, problem: Problem) -> bool:
    """Whether draws fit noisy data worse than usual; of noise-free data nothing is said."""
    if chi2_samples is None or not (torch.as_tensor(problem.noise_std) > 0).any():
        return False
    return float(chi2_samples.mean()) > usual * (1 + slack(problem.A.n_data))


def slack(n_data: int) -> float:
    """How far the mean misfit of so many data may be from 1."""
    return MODEL_ERROR + 3 * math.sqrt(2 / max(n_data, 1))


@torch.no_grad()
def measured_part(problem: Problem, x: Tensor, *, spread: float, iterations: int = 60) -> Tensor:
    """The part of an image that the data determine, eq. (1); the rest, x minus this, comes from the prior.

    Args:
        problem: operator and noise; its data are not looked at.
        x: (*batch, *A.in_shape).
        spread: s, in the unit of the images.
        iterations: CG steps, each an application of A and of Aᵀ.

    Returns:
        Shaped like x.
    """
    flat = problem.flat()
    images = x.reshape(-1, *problem.A.in_shape)
    A = problem.A
    weights, sigma = noise_weights(flat)
    ridge = like((sigma / spread) ** 2, images)

    def normal(z: Tensor) -> Tensor:
        data = A(z)
        return A.H(data if weights is None else weights * data)

    part = cg(lambda z: normal(z) + ridge * z, normal(images), max_iterations=iterations)
    return part.reshape(x.shape)


def support_map(measured: Tensor, x: Tensor, *, window: int = 9) -> Tensor:
    """Share of each pixel's neighbourhood that the data determine, from 0 (prior alone) to 1.

    E_A / (E_A + E_0), with E_A and E_0 the local energies of the measured part and of the rest, each less its own mean over the
    image: what is judged is structure. 0 where nothing is measured, and the square of the share of an amplitude over its sum with that
    of the rest: 1/2 where the data determine half of it.

    Args:
        measured: `measured_part` of x, (*batch, H, W).
        x: (*batch, H, W).
        window: side of the neighbourhood [pixels].
    """

    def energy(image: Tensor) -> Tensor:
        squares = image.reshape(-1, 1, *image.shape[-2:]).square()
        local = F.avg_pool2d(squares, window, stride=1, padding=window // 2, count_include_pad=False)
        return local.reshape(image.shape)

    def structure(image: Tensor) -> Tensor:
        return image - image.mean((-2, -1), keepdim=True)

    seen, unseen = energy(structure(measured)), energy(structure(x - measured))
    share: Tensor = seen / (seen + unseen).clamp(min=torch.finfo(x.dtype).tiny)
    return share
