"""Latent DAPS: decoupled annealing on the latents of an autoencoder.

    z ~ N(0, σ_max²);  for σ, σ' in levels (σ' = 0 last):
        ẑ₀ = end of the probability flow from (z, σ); with one Euler step D(z, σ)                                    (1)
        z₀, e ~ exp(−½ ‖Σ_y^{−½} (A (dec(z₀) + e) − y)‖² − ‖z₀ − ẑ₀‖² / 2r² − ‖e‖² / 2s²)                               (2)
        z = z₀ + σ' n;     the image is x = dec(z₀) + e of the last level                                          (3)

(Zhang, Chu, Berner, Meng, Anandkumar, Song 2025, arXiv:2407.01521, whose latent algorithm samples (2) by Langevin steps, with e = 0.)
r² = σ² v² / (σ² + v²), where v, the standard deviation of a latent, is 1 by construction (`priors.autoencoder`). e is what
latents do not hold, of the size s that was measured when the autoencoder was trained: with e = 0 the latents have to fit data, noise
and all, that no latents can make.

(2) is drawn by optimising a perturbed misfit (Oliver, He, Reynolds 1996; Papandreou, Yuille 2010, for linear maps): with

    v = ẑ₀ + r n₁,   η = y + Σ_y^½ n₂,   f = s n₃:      min ‖Σ_y^{−½} (A (dec(z₀) + e) − η)‖² + ‖z₀ − v‖² / r² + ‖e − f‖² / s²    (4)

by Gauss-Newton rounds, each with the decoder linearised at the last z₀ (at first v) and solved by conjugate gradients, with neither
step sizes nor the decoder's Lipschitz constant. As in `gaussian_draw` nothing is divided by the noise. A round that makes (4) larger
is shortened, member by member.

What it samples. For a linear decoder one round is an exact draw of (2), and then the method is DAPS on the operator A dec: with one
evaluation a level and latents that are N(0, v² I) it draws from the posterior of x = dec(z) + e, whatever A and the levels, else it
tends to it as small levels are repeated. A prior of images is its own latents, dec(z) = z and s = 0: there this is DAPS with
`ode_steps=1, prior_std=1`. What is left for a network: N(D, r² I) for the law of z₀ given z, (4) for (2), and a white e.

On the Gaussian of tests/test_latent_daps.py (4 latents of variances 0.5 to 1.5, a linear decoder to 8 pixels, s = 0.2, 3 data with noise
0.3) the trace of the covariance is 1.02 of the exact one and the mean off by 0.07 exact standard deviations with 20 levels, 1.01 and 0.03
with 80. For latents of variance 1 both are exact, and with e left out 0.73 and 0.08: too sure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoreinv.posterior.chains import check_settings, run
from scoreinv.priors.denoiser import Counted, Denoiser, scale_of
from scoreinv.priors.latent import LatentPrior, latents
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import last, sample
from scoreinv.sampling.steps import euler
from scoreinv.solvers import cg, inner, like, noise_weights
from scoreinv.streams import normal

Map = Callable[[Tensor], Tensor]
HALVINGS = 4
"""How often a Gauss-Newton step is halved before its member stays where it is."""


def linearised(decode: Map, z: Tensor) -> tuple[Tensor, Map, Map]:
    """dec(z), v -> J v and u -> Jᵀ u with J = ∂dec/∂z, member by member; results carry no gradient."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the other kernels for attention have no second derivative
        point = z.detach().requires_grad_()
        image = decode(point)
        weight = torch.zeros_like(image, requires_grad=True)
        (product,) = torch.autograd.grad(image, point, weight, create_graph=True)  # Jᵀ weight: linear in weight

    def push(v: Tensor) -> Tensor:
        (out,) = torch.autograd.grad(product, weight, v, retain_graph=True)
        return out

    def pull(u: Tensor) -> Tensor:
        (out,) = torch.autograd.grad(image, point, u, retain_graph=True)
        return out

    return image.detach(), push, pull


def latent_draw(
    problem: Problem,
    latent: LatentPrior,
    centre: Tensor,
    spread: Tensor | float,
    rngs: Sequence[Generator],
    *,
    residual: float = 0.0,
    rounds: int = 3,
    iterations: int = 20,
    tolerance: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """One draw of (2) for each member, by (4): exact for a linear decoder, but for the tolerance.

    Args:
        problem: A, y (batch, *A.out_shape) and σ_y, 0 where noise-free; one batch dimension.
        latent: the decoder; its denoiser is not looked at.
        centre: ẑ₀, (batch, *latent_shape).
        spread: r > 0, a scalar or (batch,).
        rngs: one generator for each member.
        residual: s, in the unit of the images; 0 leaves e out.
        rounds: Gauss-Newton rounds.
        iterations: CG steps at most, a round.
        tolerance: relative residual at which they stop.

    Returns:
        z₀ (batch, *latent_shape) and dec(z₀) + e (batch, *A.in_shape), without gradients.

    Raises:
        ValueError: a spread is not positive, or some data of a member are noise-free and others are not.
    """
    r = torch.as_tensor(spread).to(centre).expand(len(centre))
    if not (r > 0).all():
        raise ValueError(f"latent_draw: expected a positive spread, got {r.tolist()}")
    target = _Perturbed.of(problem, latent, centre, like(r, centre), residual, rngs)
    w = torch.zeros_like(target.flat(centre, target.e))
    value = target.misfit(w)
    for _ in range(rounds):
        step = target.minimiser_at(w, iterations, tolerance) - w
        for _ in range(1 + HALVINGS):
            found = target.misfit(w + step)
            worse = ~(found <= value)  # NaN too
            if not worse.any():
                break
            step = torch.where(like(worse, step), step / 2, step)
        step = torch.where(like(worse, step), 0, step)
        w, value = w + step, torch.where(worse, value, found)
    w = torch.where(like(value.isfinite(), w), w, torch.nan)  # else a w that was never tried would pass for an answer
    z, e = target.apart(w)
    return z, target.decode(z) + e


@dataclass(frozen=True, eq=False)
class _Perturbed:
    """(4) as a function of w, how far z₀ and e are from v and f in units of r and s: (batch, numbers), 0 at (v, f).

    With τ = min σ_y and W = (τ / σ_y)² it is, times τ², ‖W^½ (A (dec(v + r w_z) + f + s w_e) − η)‖² + τ² ‖w‖².
    """

    problem: Problem
    decode: Map
    weights: Tensor | None
    ridge: Tensor
    eta: Tensor
    v: Tensor
    r: Tensor
    e: Tensor | None
    s: float

    @classmethod
    def of(
        cls, problem: Problem, latent: LatentPrior, centre: Tensor, r: Tensor, s: float, rngs: Sequence[Generator]
    ) -> _Perturbed:
        """With its perturbations drawn."""
        weights, tau = noise_weights(problem)
        v = centre + r * normal(rngs, centre)
        eta = problem.y + torch.as_tensor(problem.noise_std).to(problem.y) * normal(rngs, problem.y)
        images = problem.y.new_zeros(len(v), *problem.A.in_shape)
        e = s * normal(rngs, images) if s > 0 else None
        return cls(problem, latent.autoencoder.decode, weights, tau.reshape(-1, 1) ** 2, eta, v, r, e, s)

    def flat(self, z: Tensor, e: Tensor | None) -> Tensor:
        """Two parts as one vector a member."""
        return torch.cat([t.flatten(1) for t in (z, e) if t is not None], dim=1)

    def parts(self, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """r w_z shaped like z and s w_e shaped like images, None without e."""
        n = self.v[0].numel()
        z = self.r * w[:, :n].reshape(self.v.shape)
        return z, None if self.e is None else self.s * w[:, n:].reshape(self.e.shape)

    def apart(self, w: Tensor) -> tuple[Tensor, Tensor | float]:
        """z₀ and e, 0 without e."""
        z, e = self.parts(w)
        return self.v + z, 0.0 if self.e is None or e is None else self.e + e

    def weighted(self, data: Tensor) -> Tensor:
        return data if self.weights is None else self.weights * data

    def misfit(self, w: Tensor) -> Tensor:
        """The value at w, (batch,)."""
        z, e = self.apart(w)
        gap = self.problem.A(self.decode(z) + e) - self.eta
        return inner(gap, self.weighted(gap)) + self.ridge[:, 0] * inner(w, w)

    def minimiser_at(self, w: Tensor, iterations: int, tolerance: float) -> Tensor:
        """The w that is best with the decoder linearised at w."""
        A, (z, _) = self.problem.A, self.apart(w)
        image, push, pull = linearised(self.decode, z)

        def forward(u: Tensor) -> Tensor:
            dz, de = self.parts(u)
            return A(push(dz) if de is None else push(dz) + de)

        def adjoint(data: Tensor) -> Tensor:
            back = A.H(self.weighted(data))
            return self.flat(self.r * pull(back), None if self.e is None else self.s * back)

        start = image - push(z - self.v)  # what the linearised decoder makes of v
        gap = self.eta - A(start if self.e is None else start + self.e)
        return cg(
            lambda u: adjoint(forward(u)) + self.ridge * u, adjoint(gap), max_iterations=iterations, tolerance=tolerance
        )


@dataclass(frozen=True, eq=False)
class LatentDAPS:
    """Decoupled annealing in the latent space of an autoencoder; see the module's head.

    Attributes:
        prior: of latents (`priors.latent`); a prior of images is taken as its own latents.
        samples: draws.
        n_levels: noise levels.
        ode_steps: evaluations a level, for (1).
        sigma_max: first noise level, in the unit of the latents.
        sigma_min: last one; with more than one ODE step the flow ends a tenth below it.
        prior_std: v, in the unit of the latents; None is r = σ.
        residual: s, in the unit of u = HU / 1000 for CT; None takes what was measured with the autoencoder, 0 leaves e out.
        rounds: of Gauss-Newton, a level.
        iterations: CG steps at most, a round.
    """

    prior: Denoiser
    samples: int = 1
    n_levels: int = 50
    ode_steps: int = 1
    sigma_max: float = 20.0
    sigma_min: float = 0.01
    prior_std: float | None = 1.0
    residual: float | None = None
    rounds: int = 2
    iterations: int = 20

    def __post_init__(self) -> None:
        counts = {k: getattr(self, k) for k in ("samples", "n_levels", "ode_steps", "rounds", "iterations")}
        check_settings(self, levels=(self.sigma_min, self.sigma_max), **counts)
        if self.prior_std is not None and not self.prior_std > 0:
            raise ValueError(f"LatentDAPS: expected prior_std > 0, got {self.prior_std}")
        if self.residual is not None and not self.residual >= 0:
            raise ValueError(f"LatentDAPS: expected residual >= 0, got {self.residual}")

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw: (samples, *batch, *A.in_shape) in y's dtype.

        Raises:
            ValueError: the autoencoder does not take images of that shape.
        """
        return run(self.walk, problem, rng, samples=self.samples, name="LatentDAPS", n=self.n_levels)

    @torch.no_grad()
    def walk(self, problem: Problem, rngs: Sequence[Generator]) -> Iterator[Tensor]:
        """The image of (3) after every level."""
        latent = latents(self.prior)
        unit = scale_of(latent.denoiser)
        sigmas = (karras(self.n_levels, self.sigma_min, self.sigma_max) * unit).to(problem.y)
        s = latent.residual_std if self.residual is None else self.residual * scale_of(self.prior)
        shape = latent.autoencoder.latent_shape(problem.A.in_shape)
        z = sigmas[0] * normal(rngs, problem.y.new_zeros(len(rngs), *shape))
        for sigma, sigma_next in itertools.pairwise(sigmas):
            grid = karras(self.ode_steps, self.sigma_min * unit / 10, float(sigma)).to(z)
            centre = last(sample(Counted(latent.denoiser), z, grid, step=euler, rngs=[torch.Generator()] * len(z)))
            spread = sigma if self.prior_std is None else sigma / (1 + (sigma / (self.prior_std * unit)) ** 2).sqrt()
            clean, image = latent_draw(
                problem, latent, centre, spread, rngs, residual=s, rounds=self.rounds, iterations=self.iterations
            )
            z = clean + sigma_next * normal(rngs, z)
            yield image
