"""deepinv's and azula's samplers on a problem of ours: the same network, the same operator, their own interfaces.

Their constants are meant for images of about unit size and operators of norm 1 (deepinv's `Tomography` is normalised, too). So an
image is x = offset + scale v with v in [0, 1] for -1000 to 1000 HU (deepinv) or v = HU / 1000 (azula), and the data are

    y_v = (y − A offset) / c = A_v v + n_v,     A_v = scale A / c,  c = scale ‖A‖,  n_v of standard deviation σ_y / c
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoreinv.linop import LinearOperator
from scoreinv.posterior.svd import spectrum
from scoreinv.priors.adapters.azula import as_azula
from scoreinv.priors.adapters.deepinv import as_deepinv
from scoreinv.priors.denoiser import Denoiser, Rescaled
from scoreinv.priors.exact import dense
from scoreinv.problem import Problem
from scoreinv.solvers import cgls
from scoreinv.units import MU_WATER_PER_MM

Run = Callable[[Denoiser, Problem], Tensor]
"""(D, problem without a batch dimension) -> an image (H, W), both in 1/mm."""


@dataclass(frozen=True, eq=False)
class View:
    """A problem and its prior in another unit; images are (1, 1, H, W), data (1, 1, views, detectors)."""

    problem: Problem
    prior: Denoiser
    offset: float
    scale: float

    @property
    def factor(self) -> float:
        """c."""
        return self.scale * math.sqrt(self.problem.A.norm_squared())

    def A(self, v: Tensor) -> Tensor:  # noqa: N802
        return self.problem.A(self.scale / self.factor * v)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.scale / self.factor * self.problem.A.H(y)

    def pseudo_inverse(self, y: Tensor, iterations: int) -> Tensor:
        """CGLS, ended early: few-view data have singular values down to nothing."""
        return cgls(self.problem.A, self.factor * y[:, 0], max_iterations=iterations)[:, None] / self.scale

    @property
    def y(self) -> Tensor:
        ones = torch.full(self.problem.A.in_shape, self.offset)
        return ((self.problem.y - self.problem.A(ones)) / self.factor)[None, None]

    @property
    def noise_std(self) -> float:
        return float(self.problem.noise_std) / self.factor

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 1, *self.problem.A.in_shape)

    @property
    def denoiser(self) -> Denoiser:
        return Rescaled(self.prior, -self.offset / self.scale, 1 / self.scale)

    def back(self, v: Tensor) -> Tensor:
        """(1, 1, H, W) -> (H, W) in 1/mm."""
        return (self.offset + self.scale * v[0, 0]).to(self.problem.y)


def for_deepinv(prior: Denoiser, problem: Problem) -> View:
    return View(problem, prior, 0.0, 2 * MU_WATER_PER_MM)


def for_azula(prior: Denoiser, problem: Problem) -> View:
    return View(problem, prior, MU_WATER_PER_MM, MU_WATER_PER_MM)


def physics_of(view: View) -> Any:
    """The operator and its noise as deepinv's."""
    import deepinv

    noise = deepinv.physics.GaussianNoise(sigma=view.noise_std)
    return deepinv.physics.LinearPhysics(
        A=lambda x, **_: view.A(x), A_adjoint=lambda y, **_: view.adjoint(y), noise_model=noise
    )


def deepinv_dps(**settings: Any) -> Run:
    def run(prior: Denoiser, problem: Problem) -> Tensor:
        import deepinv

        view = for_deepinv(prior, problem)
        sampler = deepinv.sampling.DPS(as_deepinv(view.denoiser), rng=torch.Generator(), **settings)
        return view.back(sampler(view.y, physics_of(view), x_init=view.shape, seed=0))

    return run


def deepinv_diffpir(**settings: Any) -> Run:
    def run(prior: Denoiser, problem: Problem) -> Tensor:
        import deepinv

        view = for_deepinv(prior, problem)
        sampler = deepinv.sampling.DiffPIR(
            as_deepinv(view.denoiser), deepinv.optim.data_fidelity.L2(), sigma=view.noise_std, **settings
        )
        return view.back(sampler(view.y, physics_of(view), seed=1))

    return run


def deepinv_ddrm(**settings: Any) -> Run:
    def run(prior: Denoiser, problem: Problem) -> Tensor:
        import deepinv

        view = for_deepinv(prior, problem)
        U, s, V = whole_svd(problem)
        k, n = len(s), len(V)
        physics = deepinv.physics.DecomposablePhysics(
            U=lambda c: (c[:, :k] @ U.T).reshape(view.y.shape),
            U_adjoint=lambda y: torch.nn.functional.pad(y.reshape(1, -1) @ U, (0, n - k)),
            V=lambda c: (c @ V.T).reshape(view.shape),
            V_adjoint=lambda x: x.reshape(1, -1) @ V,
            mask=torch.nn.functional.pad(view.scale / view.factor * s, (0, n - k))[None],
            noise_model=deepinv.physics.GaussianNoise(sigma=view.noise_std),
        )
        sampler = deepinv.sampling.DDRM(as_deepinv(view.denoiser), **settings)
        return view.back(sampler(view.y, physics, seed=1))

    return run


def whole_svd(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """A = U diag(s) V[:, :k]ᵀ; V (pixels, pixels) has the null space's directions, too: deepinv draws them from the same V."""
    return _whole_svd(problem.A)


@functools.lru_cache(maxsize=2)
def _whole_svd(A: LinearOperator) -> tuple[Tensor, Tensor, Tensor]:
    matrix = dense(A)
    found = spectrum(Problem(A, matrix.new_zeros(1, *A.out_shape)))
    measured = found.values[0] > 0
    s, V = found.values[0, measured], found.vectors[0][:, measured]
    null = torch.linalg.qr(V, mode="complete").Q[:, len(s) :]
    return (matrix @ V / s).float(), s.float(), torch.cat([V, null], dim=1).float()


def azula_dps(steps: int, **settings: Any) -> Run:
    def run(prior: Denoiser, problem: Problem) -> Tensor:
        from azula.guidance.dps import DPSSampler

        view = for_azula(prior, problem)
        return sampled(DPSSampler(denoiser_of(view), view.y, view.A, steps=steps, silent=True, **settings), view)

    return run


def azula_pigdm(steps: int, iterations: int, **settings: Any) -> Run:
    def run(prior: Denoiser, problem: Problem) -> Tensor:
        from azula.guidance.pgdm import PGDMSampler

        view = for_azula(prior, problem)

        def inverse(y: Tensor) -> Tensor:
            return view.pseudo_inverse(y, iterations)

        return sampled(
            PGDMSampler(denoiser_of(view), view.y, view.A, inverse, steps=steps, silent=True, **settings), view
        )

    return run


def azula_mmps(steps: int, **settings: Any) -> Run:
    def run(prior: Denoiser, problem: Problem) -> Tensor:
        from azula.guidance.mmps import MMPSDenoiser
        from azula.linalg.covariance import IsotropicCovariance
        from azula.sample import DDPMSampler

        view = for_azula(prior, problem)
        guided = MMPSDenoiser(
            denoiser_of(view),
            view.y.flatten(1),
            lambda x: view.A(x).flatten(1),
            IsotropicCovariance(view.noise_std**2),
            **settings,
        )
        return sampled(DDPMSampler(guided, steps=steps, silent=True), view)

    return run


def denoiser_of(view: View) -> Any:
    from azula.noise import VPSchedule

    return as_azula(view.denoiser, VPSchedule())


def sampled(sampler: Any, view: View) -> Tensor:
    """azula draws from torch's global generator."""
    torch.manual_seed(0)
    return view.back(sampler(sampler.init(view.shape)))
