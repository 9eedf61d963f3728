"""Orthogonal wavelet transform with periodic borders, as products with orthogonal matrices, on any device.

Level by level the low-pass block x becomes W x Wᵀ, with W's upper half the low-pass and its lower half the high-pass
filter of a wavelet at all even shifts: what PyWavelets calls mode="periodization". Because the whole transform T is
orthogonal, the proximal map of λ‖T·‖₁ is exactly Tᵀ soft(T ·, λ).
"""

from __future__ import annotations

import functools

import pywt
import torch
from torch import Tensor


def analysis(x: Tensor, wavelet: str, levels: int) -> Tensor:
    """T x: (*batch, H, W) -> (*batch, H, W), coarse coefficients in the upper left corner; H and W divisible by
    2^levels."""
    x = x.clone()
    for height, width in _blocks(x, levels):
        rows, columns = _matrices(height, width, wavelet, x)
        x[..., :height, :width] = rows @ x[..., :height, :width] @ columns.T
    return x


def synthesis(c: Tensor, wavelet: str, levels: int) -> Tensor:
    """Tᵀ c, the inverse of `analysis`."""
    c = c.clone()
    for height, width in reversed(_blocks(c, levels)):
        rows, columns = _matrices(height, width, wavelet, c)
        c[..., :height, :width] = rows.T @ c[..., :height, :width] @ columns
    return c


def details(c: Tensor, levels: int) -> Tensor:
    """A copy of the coefficients with the coarse block set to zero: what is penalised."""
    c = c.clone()
    c[..., : c.shape[-2] >> levels, : c.shape[-1] >> levels] = 0
    return c


@torch.no_grad()
def prox_l1(b: Tensor, weight: Tensor, wavelet: str, levels: int) -> tuple[Tensor, Tensor]:
    """argmin ½‖x − b‖² + λ‖details(T x)‖₁, exactly, and the value of that ℓ1 norm there.

    Args:
        b: (batch, H, W).
        weight: λ of each member, (batch,), in b's unit.
        wavelet: an orthogonal one, as PyWavelets names it.
        levels: H and W must be divisible by 2^levels.
    """
    c = analysis(b, wavelet, levels)
    d = details(c, levels)
    lam = weight.reshape(-1, 1, 1)
    shrunk = d - torch.clamp(d, -lam, lam)
    return synthesis(c - d + shrunk, wavelet, levels), shrunk.abs().flatten(1).sum(1)


@functools.lru_cache(maxsize=64)
def matrix(n: int, wavelet: str) -> Tensor:
    """The orthogonal matrix of one level on n (even) samples, float64.

    Raises:
        ValueError: the wavelet is unknown or not orthogonal.
    """
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise ValueError(
            f"no discrete wavelet is named {wavelet!r}: see pywt.wavelist(kind='discrete'), for example 'db4' or 'sym8'"
        )
    w = pywt.Wavelet(wavelet)
    if not w.orthogonal:
        raise ValueError(f"wavelet {wavelet!r} is not orthogonal: take one of the families haar, db, sym, coif")
    identity = torch.eye(n, dtype=torch.float64).numpy()
    low, high = pywt.dwt(identity, w, mode="periodization", axis=0)
    m = torch.cat([torch.from_numpy(low), torch.from_numpy(high)])
    u, _, v = torch.linalg.svd(
        m
    )  # PyWavelets' tabulated filters are orthogonal to 1e-11 or so only: the nearest orthogonal one
    nearest: Tensor = u @ v
    return nearest


def _matrices(height: int, width: int, wavelet: str, x: Tensor) -> tuple[Tensor, Tensor]:
    return matrix(height, wavelet).to(x), matrix(width, wavelet).to(x)


def _blocks(x: Tensor, levels: int) -> list[tuple[int, int]]:
    """Sizes of the low-pass block that each level works on, finest first."""
    height, width = x.shape[-2:]
    if levels < 1 or height % 2**levels or width % 2**levels:
        raise ValueError(
            f"a wavelet transform of {levels} levels needs sides divisible by {2**levels}, got {height} x {width}"
        )
    return [(height >> k, width >> k) for k in range(levels)]
