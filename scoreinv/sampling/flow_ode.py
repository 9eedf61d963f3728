"""The probability flow as a map between images and noise, by an adaptive Runge-Kutta method of scipy (RK45).

    dx / d ln σ = x − D(x, σ)                                                                                           (1)

(Song et al. 2021, arXiv:2011.13456, sec. 4.3 and appendix D.) No randomness is in it, so that an image has one latent,
z = x(σ_max) / σ_max, and a latent one image. z is nearly N(0, I): along a direction in which images have the variance λ
(in the prior's own unit), it has (λ + σ_max²) / σ_max². In the coordinate of any other process the latent is the same, up
to a factor that is the same for all images; and two priors of the same images that are both well trained have the same
latents, whatever their networks are (identifiable encoding).

The flow stops at σ_min > 0, where what is called an image still has that much noise. Every member of the batch is
integrated by itself and in float64, with an error relative to its root mean square of about the tolerance a step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.priors.mixture import integrate

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""In the prior's own unit."""


def flow(denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, *, tolerance: float = 1e-5) -> Tensor:
    """Where the probability flow takes x from one level to another, up or down.

    Args:
        denoise: prior or posterior mean.
        x: (batch, *image_shape).
        sigma, sigma_next: positive, in the unit of x.
        tolerance: of a step, relative; the paper's is 1e-5.

    Raises:
        ValueError: a level is not positive, or the tolerance is not.
    """
    if not (sigma > 0 and sigma_next > 0):
        raise ValueError(f"flow: expected positive levels, got {sigma} and {sigma_next}; finish a sample by D instead")
    start, stop = (x.new_full((len(x),), math.log(level), dtype=torch.float64) for level in (sigma, sigma_next))
    return integrate(lambda x, t: x - denoise(x, t.exp()), x, start, stop, tolerance).to(x.dtype)


def encode(
    prior: Denoiser,
    x: Tensor,
    *,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    tolerance: float = 1e-5,
) -> Tensor:
    """The latents z of images (batch, *image_shape).

    Args:
        prior: D.
        x: the images, in the unit of the prior's images.
        sigma_min, sigma_max: where the flow starts and ends, in the prior's own unit.
        tolerance: see `flow`.

    Raises:
        ValueError: see `flow`.
    """
    shift, scale = _unit(prior)
    noisy = flow(prior, x, sigma_min * scale, sigma_max * scale, tolerance=tolerance)
    return (noisy - shift) / (sigma_max * scale)


def decode(
    prior: Denoiser,
    z: Tensor,
    *,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    tolerance: float = 1e-5,
) -> Tensor:
    """The images of latents, the inverse of `encode`; of latents N(0, I), draws from the prior with noise of sigma_min."""
    shift, scale = _unit(prior)
    return flow(prior, shift + sigma_max * scale * z, sigma_max * scale, sigma_min * scale, tolerance=tolerance)


def slerp(a: Tensor, b: Tensor, fractions: Tensor) -> Tensor:
    """From a to b on the great circle through them, (n, *shape) at n fractions; lengths go linearly from ‖a‖ to ‖b‖.

    (Shoemake 1985, doi:10.1145/325165.325242.) On a straight line latents would get too short to be noise.

    Raises:
        ValueError: a or b is 0, or they are opposite, so that there is no such circle.
    """
    length_a, length_b = a.double().norm(), b.double().norm()
    if length_a == 0 or length_b == 0:
        raise ValueError("slerp: a latent of length 0 has no direction")
    u, v = a.double() / length_a, b.double() / length_b
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())
    if math.pi - angle < 1e-6:
        raise ValueError("slerp: opposite latents have no shortest way between them")
    f = fractions.to(a.device, torch.float64).reshape(-1, *[1] * a.ndim)
    if angle < 1e-6:
        direction = torch.lerp(u, v, f)
    else:
        direction = (((1 - f) * angle).sin() * u + (f * angle).sin() * v) / angle.sin()
    return (torch.lerp(length_a, length_b, f) * direction).to(a.dtype)


def interpolate(
    prior: Denoiser,
    a: Tensor,
    b: Tensor,
    n: int,
    *,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    tolerance: float = 1e-5,
) -> Tensor:
    """n images from a to b (both *image_shape) through the latents between theirs, (n, *image_shape); a and b are the ends."""
    if n < 2:
        raise ValueError(f"interpolate: expected n of at least 2, the two ends, got {n}")
    latents = encode(prior, torch.stack([a, b]), sigma_min=sigma_min, sigma_max=sigma_max, tolerance=tolerance)
    between = slerp(latents[0], latents[1], torch.linspace(0, 1, n))
    return decode(prior, between, sigma_min=sigma_min, sigma_max=sigma_max, tolerance=tolerance)


def _unit(prior: Denoiser) -> tuple[float, float]:
    """shift and scale of a prior's images."""
    return float(getattr(prior, "shift", 0.0)), scale_of(prior)
