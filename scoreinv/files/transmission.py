"""From the counts of a camera to line integrals and their noise.

    t = (data - dark) / (white - dark),   y = -ln t
    Var y ≈ (g s + r²) / s² + (g w + r²) / (n w²),   s = data - dark,   w = white - dark

with the mean dark field and the mean of n white fields. The camera's gain g [counts a photon] and its read noise r come
from the frame-to-frame variance of the fields, Var white = g w + r² (photon transfer).
"""

from __future__ import annotations

import warnings

import numpy as np


def line_integrals(
    path: str, raw: np.ndarray, white: np.ndarray, dark: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """-ln of the corrected transmission and its standard deviation, None where there are fewer than two white fields.

    Args:
        path: for messages.
        raw: (views, rows, bins) counts.
        white, dark: (frames, rows, bins) counts; dark may have no frames.

    Warns:
        UserWarning: there is no dark field, or some transmissions are not positive (set to the smallest positive one).
    """
    if len(dark) == 0:
        warnings.warn(f"{path}: has no dark field; it is taken to be zero", stacklevel=3)
        dark = np.zeros_like(white[:1])
    offset = dark.mean(axis=0)
    signal, flat = raw - offset, white.mean(axis=0) - offset
    if (flat <= 0).any():
        n = (flat <= 0).sum()
        raise ValueError(
            f"{path}: the white field is not brighter than the dark field in {n} bins; leave them out or rescan"
        )
    if not np.isfinite(signal).all():
        raise ValueError(f"{path}: {(~np.isfinite(signal)).sum()} counts are NaN or infinite")
    blocked = signal <= 0
    if blocked.all():
        raise ValueError(f"{path}: no projection is brighter than the dark field; are data and data_dark exchanged?")
    if blocked.any():
        floor = float((signal / flat)[~blocked].min())
        warnings.warn(
            f"{path}: {blocked.sum()} of {blocked.size} transmissions are not positive; set to {floor:.3g}",
            stacklevel=3,
        )
        signal = np.where(blocked, floor * flat, signal)
    return -np.log(signal / flat), _standard_deviation(signal, white, dark, flat)


def _standard_deviation(signal: np.ndarray, white: np.ndarray, dark: np.ndarray, flat: np.ndarray) -> np.ndarray | None:
    if len(white) < 2:
        return None
    # Frames are brought to one brightness first, so that drift of the beam does not pass for noise.
    brightness = white.mean(axis=(1, 2), keepdims=True)
    total = (white * brightness.mean() / brightness).var(axis=0, ddof=1).mean()
    read = dark.var(axis=0, ddof=1).mean() if len(dark) > 1 else 0.0
    gain = max(total - read, 0.0) / flat.mean()
    if gain == 0:
        return None
    variance = (gain * signal + read) / signal**2 + (gain * flat + read) / (len(white) * flat**2)
    return np.asarray(np.sqrt(variance))
