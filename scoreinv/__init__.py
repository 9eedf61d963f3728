"""Medical-imaging inverse problems, y = A x + n, with score-based (diffusion) priors.

    scan = scoreinv.read_scan("scan.h5")                          # operator, data, noise
    result = scoreinv.reconstruct(scan, samples=8)                # draws from the posterior
    result.mean_hu, result.std                                    # Hounsfield units, uncertainty [1/mm]
    scoreinv.write_reconstruction("recon.h5", result)

A `LinearOperator` is A, a `Problem` is A, y and the noise; a `Method` solves problems, whether it is FBP or a diffusion
sampler; a `Denoiser` D(x, σ) = E[x₀ | x = x₀ + σ n] is a prior. Lengths are in mm, attenuation in 1/mm, angles in
radians, and all randomness comes from the seed or the `torch.Generator` that is passed. Operators lie in
`scoreinv.operators`.

Nothing heavy is imported before it is used: a name is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoreinv.files.dxchange import read_any_scan
    from scoreinv.files.reconstruction import Reconstruction, read_reconstruction, write_reconstruction
    from scoreinv.files.scan import Scan, read_scan, write_scan
    from scoreinv.linop import LinearOperator, Nonlinear
    from scoreinv.metrics import psnr, ssim
    from scoreinv.priors.checkpoint import load_prior, save_prior
    from scoreinv.priors.denoiser import Denoiser, NetworkPrior, Rescaled
    from scoreinv.priors.shipped import ct_prior
    from scoreinv.problem import Method, Problem, simulate, simulate_counts
    from scoreinv.reconstruction import reconstruct
    from scoreinv.testing import check_denoiser, check_operator
    from scoreinv.units import hu_from_mu, mu_from_hu

    __version__: str

__all__ = [
    "Denoiser",
    "LinearOperator",
    "Method",
    "NetworkPrior",
    "Nonlinear",
    "Problem",
    "Reconstruction",
    "Rescaled",
    "Scan",
    "__version__",
    "check_denoiser",
    "check_operator",
    "ct_prior",
    "hu_from_mu",
    "load_prior",
    "mu_from_hu",
    "psnr",
    "read_any_scan",
    "read_reconstruction",
    "read_scan",
    "reconstruct",
    "save_prior",
    "simulate",
    "simulate_counts",
    "ssim",
    "write_reconstruction",
    "write_scan",
]

_HOMES = {
    "files.dxchange": ("read_any_scan",),
    "files.reconstruction": ("Reconstruction", "read_reconstruction", "write_reconstruction"),
    "files.scan": ("Scan", "read_scan", "write_scan"),
    "linop": ("LinearOperator", "Nonlinear"),
    "metrics": ("psnr", "ssim"),
    "priors.checkpoint": ("load_prior", "save_prior"),
    "priors.denoiser": ("Denoiser", "NetworkPrior", "Rescaled"),
    "priors.shipped": ("ct_prior",),
    "problem": ("Method", "Problem", "simulate", "simulate_counts"),
    "reconstruction": ("reconstruct",),
    "testing": ("check_denoiser", "check_operator"),
    "units": ("hu_from_mu", "mu_from_hu"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """The public name, loaded at its first use (PEP 562)."""
    if name == "__version__":
        from scoreinv.files.versions import package_version

        value: Any = package_version()
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"scoreinv.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'scoreinv' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
