"""Hounsfield units and linear attenuation: μ = μ_water (1 + HU / 1000)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

MU_WATER_PER_MM = 0.0193
"""Attenuation of water at 70 keV [1/mm], about the mean energy of a 120 kVp spectrum (NIST XCOM)."""

Array = TypeVar("Array", Tensor, np.ndarray, float)


def mu_from_hu(hu: Array, mu_water_per_mm: float = MU_WATER_PER_MM) -> Array:
    """Attenuation [1/mm] of Hounsfield units."""
    return mu_water_per_mm * (1 + hu / 1000)


def hu_from_mu(mu: Array, mu_water_per_mm: float = MU_WATER_PER_MM) -> Array:
    """Hounsfield units of attenuation [1/mm]."""
    return 1000 * (mu / mu_water_per_mm - 1)
