"""Filtered back-projection for parallel beams and for fan beams with a flat detector.

With the angles and axes of `scoreinv.operators.ct`, the ramp kernel h of spacing τ (built in space, so that the mean is
right)

    h(0) = 1 / (4 τ²),   h(n τ) = -1 / (π n τ)² for odd n, 0 for even n,

the convolution (q * h) τ by an FFT with zero padding, and w_v the angle that view v stands for:

    parallel:  f(x) = Σ_v w_v (q_v * h)(x cos θ + y sin θ)
    fan:       f(x) = Σ_v w_v R² / L² (q̃_v * h)(p R / L),   q̃(p) = c(θ, γ) q(p) R / √(R² + p²)

where p is the detector position scaled to the rotation axis, L the distance of x from the source along the central ray,
and c shares out lines that are measured more than once: c + c' = 1 over the two views that hold a line. A full turn has
c = 1/2; where the detector is so far off the axis that one side reaches no further than T, less than the image, c runs
from 0 at -T over 1/2 to 1 at T as sin² (π/4) (1 + p / T) and stays 1 beyond (Wang 2002), for parallel beams, too. A short
scan (at least π plus the fan angle) has Parker's weights with the overscan that there is (Silver 2000); below that c is
1/2 or 1, as the other view is held or not. Angles may be irregular: w_v is half the distance of
its two neighbours on the circle (of length π for parallel beams, 2π for fans); a gap of more than four times the median
and twice the next largest counts as not measured.

Source: Kak and Slaney, Principles of computerized tomographic imaging (1988), sections 3.3 and 3.4; D. L. Parker, Med.
Phys. 9 (1982) 254; M. D. Silver, Med. Phys. 27 (2000) 773; G. Wang, Med. Phys. 29 (2002) 1634.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from scoreinv.operators import _checks
from scoreinv.operators.ct import CTOperator, FanBeamCT, ParallelBeamCT

WINDOWS = ("ramp", "shepp-logan", "cosine", "hann")
"""From the sharpest to the smoothest."""

_SAMPLES_AT_ONCE = 2**21


def fbp(A: CTOperator, y: Tensor, window: str = "ramp") -> Tensor:
    """Filtered back-projection, differentiable in y and independent of the operator's own adjoint.

    Args:
        A: a ParallelBeamCT or a FanBeamCT.
        y: sinograms (*batch, views, detectors), dimensionless.
        window: of the ramp filter: "ramp" (none), "shepp-logan", "cosine" or "hann".

    Returns:
        Images (*batch, H, W) in 1/mm, in the dtype and on the device of y.

    Raises:
        TypeError: A is not one of these operators, or y is not floating point.
        ValueError: y does not end with A.out_shape, or the window is unknown.
    """
    if not isinstance(A, (ParallelBeamCT, FanBeamCT)):
        raise TypeError(f"fbp: expected a ParallelBeamCT or a FanBeamCT, got {type(A).__name__}")
    if not y.is_floating_point():
        raise TypeError(f"fbp: expected a floating-point sinogram, got {y.dtype}")
    if tuple(y.shape[-2:]) != A.out_shape:
        raise ValueError(f"fbp: expected a sinogram (*batch, {A.out_shape[0]}, {A.out_shape[1]}), got {tuple(y.shape)}")
    _checks.choice("fbp", "window", window, WINDOWS)
    q = y.reshape(-1, *A.out_shape).to(torch.promote_types(y.dtype, torch.float32))
    if isinstance(A, FanBeamCT):
        p = torch.tensor(A.detector_positions_mm, dtype=torch.float64) * (A.source_origin_mm / A.source_detector_mm)
        cosine = A.source_origin_mm / (A.source_origin_mm**2 + p**2).sqrt()
        q = q * (fan_redundancy(A) * cosine).to(q)
        spacing, period = A.detector_mm * A.source_origin_mm / A.source_detector_mm, 2 * math.pi
    else:
        spacing, period = A.detector_mm, math.pi
        if _full_turn(A):
            p = torch.tensor(A.detector_positions_mm, dtype=torch.float64)
            q = q * (2 * offset_share(p, math.hypot(*A.image_shape) / 2 * A.pixel_mm)).to(q)
    A, q = _evened(A, q)
    weights = angular_weights(A.angles, period).to(q)
    filtered = _filter(q, spacing, window) * weights[:, None]
    return _back_project(A, filtered).reshape(*y.shape[:-2], *A.in_shape).to(y.dtype)


def _full_turn(A: CTOperator) -> bool:
    return _arc(A.angles)[1] > 2 * math.pi - 1e-9


def _evened(A: ParallelBeamCT | FanBeamCT, q: Tensor) -> tuple[ParallelBeamCT | FanBeamCT, Tensor]:
    """An offset detector with cells of nothing on its shorter side, where what is filtered of the longer one has its tail."""
    p = A.detector_positions_mm
    missing = round((max(p) + min(p)) / A.detector_mm)
    if missing == 0 or not _full_turn(A):
        return A, q
    offset = A.detector_offset_mm - missing / 2 * A.detector_mm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there was to say was said of A
        wide = dataclasses.replace(A, n_detectors=A.n_detectors + abs(missing), detector_offset_mm=offset)
    return wide, torch.nn.functional.pad(q, (max(missing, 0), max(-missing, 0)))


def ramp_kernel(n: int, spacing: float) -> Tensor:
    """The band-limited ramp in the order of an FFT of even length, (n,), float64 (Kak and Slaney, eq. 3.61)."""
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64).round()
    h = torch.where(k % 2 == 1, -1 / (math.pi * k * spacing) ** 2, torch.zeros_like(k))
    h[0] = 1 / (4 * spacing**2)
    return h


def angular_weights(angles: Sequence[float], period: float) -> Tensor:
    """The angle that each view stands for on a circle of that length, (views,), float64; see the module's head."""
    theta = torch.tensor(angles, dtype=torch.float64).remainder(period)
    order = theta.argsort()
    ordered = theta[order]
    gaps, missing, step = _gaps(ordered, period)
    if missing is not None:
        gaps[missing] = step
    weights = torch.empty_like(theta)
    weights[order] = (gaps + gaps.roll(1)) / 2
    return weights


def offset_share(p: Tensor, reach: float) -> Tensor:
    """c of the cells of a detector in a full turn, (detectors,), float64; p and the image's reach are distances or angles from the axis."""
    low, high = float(p.min()), float(p.max())
    shorter = min(-low, high)
    if shorter <= 0 or shorter >= reach or math.isclose(-low, high, rel_tol=1e-6):
        return torch.full_like(p, 0.5 if shorter > 0 else 1.0)
    towards = p if high > -low else -p
    return (math.pi / 4 * (1 + (towards / shorter).clamp(max=1.0))).sin() ** 2


def fan_redundancy(A: FanBeamCT) -> Tensor:
    """c(θ, γ) of every ray of a fan-beam scan, (views, detectors), float64; see the module's head.

    The ray (θ, γ), with tan γ = u / (R + D), runs along the same line as (θ + π - 2 γ, -γ).
    """
    theta = torch.tensor(A.angles, dtype=torch.float64)[:, None]
    gamma = (torch.tensor(A.detector_positions_mm, dtype=torch.float64) / A.source_detector_mm).atan()
    start, arc = _arc(A.angles)
    beta = (theta - start).remainder(2 * math.pi)
    corner = math.hypot(*A.image_shape) / 2 * A.pixel_mm  # rays outside the image do not matter
    if arc > 2 * math.pi - 1e-9:
        return offset_share(gamma, math.asin(min(1.0, corner / A.source_origin_mm))).expand(A.out_shape)
    delta = (arc - math.pi) / 2  # half the overscan; Parker's case is delta = largest fan angle
    if delta >= min(float(gamma.abs().max()), math.asin(corner / A.source_origin_mm)) - 1e-9:
        # The line at (β, γ) is held again at β + π - 2 γ while β < 2 (δ + γ), and at β - π - 2 γ while β > π + 2 γ.
        rise = (math.pi / 4 * beta / (delta + gamma).clamp(min=1e-12)).sin() ** 2
        fall = (math.pi / 4 * (arc - beta) / (delta - gamma).clamp(min=1e-12)).sin() ** 2
        return torch.where(
            beta < 2 * (delta + gamma), rise, torch.where(beta > math.pi + 2 * gamma, fall, torch.ones_like(rise))
        )
    conjugate = (beta + math.pi - 2 * gamma).remainder(2 * math.pi)
    return torch.where(conjugate <= arc, 0.5, 1.0).to(torch.float64)


def _arc(angles: Sequence[float]) -> tuple[float, float]:
    """Start and length of the arc that fan views cover, half a step beyond the outer ones."""
    theta = torch.tensor(angles, dtype=torch.float64).remainder(2 * math.pi).sort().values
    gaps, missing, step = _gaps(theta, 2 * math.pi)
    if missing is None:
        return 0.0, 2 * math.pi
    return float(theta[(missing + 1) % len(theta)]) - step / 2, 2 * math.pi - float(gaps[missing]) + step


def _gaps(ordered: Tensor, period: float) -> tuple[Tensor, int | None, float]:
    """From each view to the next on the circle; the index of the gap that was not measured, if any; the median gap."""
    gaps = torch.cat([ordered[1:], ordered[:1] + period]) - ordered
    step = float(gaps[gaps > 1e-9].median())
    widest = int(gaps.argmax())
    others = torch.cat([gaps[:widest], gaps[widest + 1 :]])
    stands_out = len(others) > 0 and gaps[widest] > max(4 * step, 2 * float(others.max()))
    return gaps, widest if stands_out else None, step


def _filter(q: Tensor, spacing: float, window: str) -> Tensor:
    """(q * h) τ along the last axis."""
    n = 2 ** math.ceil(math.log2(max(2 * q.shape[-1], 4)))
    response = torch.fft.rfft(ramp_kernel(n, spacing)).real * spacing
    f = torch.linspace(0, 1, n // 2 + 1, dtype=torch.float64)  # in units of the Nyquist frequency
    if window == "hann":
        response = response * (1 + (math.pi * f).cos()) / 2
    elif window == "cosine":
        response = response * (math.pi * f / 2).cos()
    elif window == "shepp-logan":
        response = response * torch.sinc(f / 2)
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(q, n) * response.to(q), n)
    return filtered[..., : q.shape[-1]]


def _back_project(A: ParallelBeamCT | FanBeamCT, q: Tensor) -> Tensor:
    """Σ_v of q (batch, views, detectors), interpolated linearly where each pixel falls, zero off the detector."""
    x, y = pixel_centres(A, q)
    theta = torch.tensor(A.angles, dtype=torch.float64)
    image = q.new_zeros(q.shape[0], x.numel())
    step = max(1, _SAMPLES_AT_ONCE // (q.shape[0] * x.numel()))
    for start in range(0, len(A.angles), step):
        views = slice(start, start + step)
        cos, sin = (f(theta[views]).to(q)[:, None] for f in (torch.cos, torch.sin))
        u = x * cos + y * sin
        if isinstance(A, FanBeamCT):
            nearness = A.source_origin_mm / (A.source_origin_mm - x * sin + y * cos)  # R / L
            u = u * nearness * (A.source_detector_mm / A.source_origin_mm)
            samples = _interpolate(q[:, views], _cell(A, u)) * nearness**2
        else:
            samples = _interpolate(q[:, views], _cell(A, u))
        image = image + samples.sum(dim=1)
    return image


def pixel_centres(A: CTOperator, like: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of every pixel [mm], each (H * W,), in the dtype and on the device of a tensor."""
    height, width = A.image_shape
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * A.pixel_mm
    y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64)) * A.pixel_mm
    return x.repeat(height).to(like), y.repeat_interleave(width).to(like)


def _cell(A: CTOperator, u: Tensor) -> Tensor:
    """The detector position u [mm] in units of cells."""
    return (u - A.detector_offset_mm) / A.detector_mm + (A.n_detectors - 1) / 2


def _interpolate(q: Tensor, cell: Tensor) -> Tensor:
    """q (batch, views, n) at positions (views, pixels) -> (batch, views, pixels); zero off the detector."""
    n = q.shape[-1]
    padded = torch.nn.functional.pad(q, (1, 2))
    cell = (cell + 1).clamp(0, n + 1)
    below = cell.floor()
    fraction = cell - below
    index = below.long().expand(q.shape[0], *cell.shape)
    return padded.gather(-1, index) * (1 - fraction) + padded.gather(-1, index + 1) * fraction
