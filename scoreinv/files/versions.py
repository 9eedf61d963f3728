"""Versions of what made a result, kept inside every file."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def package_version(name: str = "scoreinv") -> str:
    """Version of an installed package, "unknown" where it runs from a checkout that is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """scoreinv, Python and the libraries that numbers depend on."""
    return {"python": platform.python_version()} | {
        name: package_version(name) for name in ("scoreinv", "torch", "numpy", "h5py")
    }
