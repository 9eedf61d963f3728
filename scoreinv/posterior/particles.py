"""What particle filters on a diffusion prior share: its chain of noise levels, weights, resampling, draws.

Sequential Monte Carlo carries N weighted particles per image down the noise levels of the Markov chain

    p(x) = N(0, σ_max²),    p(x' | x) = N(D + (σ'/σ)² (x − D), v),    v = c² + (1 − σ'²/σ²)² r²,    p(x₀ | x) = δ(x₀ − D)    (1)

with c² = σ'² (1 − σ'²/σ²), the variance of x' given x₀ and x, and r² that of x₀ given x, taken as r² = σ² s² / (σ² + s²) for
images of standard deviation s. (1) is exact for a Gaussian prior of that covariance; for others the error falls as levels
are added. r = 0 would be DDPM's smaller variance, r = σ reverse diffusion. As N grows the weighted particles tend to the
law of x₀ given y in this chain: what is left is the error of (1), for which no N makes up.

Particles are one batch in the order of `sampling.loop.member_streams`: particle i of member b is number i B + b.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.chains import check_numbers
from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import check_finite, member_streams


@dataclass(frozen=True, eq=False)
class Weighted:
    """The outcome of a particle filter: estimates weighted by softmax(log_weights) waste less than draws do.

    Attributes:
        images: (particles, *batch, *image_shape).
        log_weights: (particles, *batch) in float64, not normalised.
        log_evidence: (*batch), estimate of the logarithm of the density of what the filter takes for its data: of TDS ln p(y) + Σ ln(σ_y √2π); of
            MCG-diff ln p(ȳ), of the coordinates ȳ of its eq. (1).
    """

    images: Tensor
    log_weights: Tensor
    log_evidence: Tensor


class Cloud:
    """The weights of N particles of each of B members, and who is chosen when they are resampled."""

    def __init__(self, n: int, rngs: Sequence[Generator], threshold: float, device: torch.device) -> None:
        """Equal weights.

        Args:
            n: N.
            rngs: one stream for each member.
            threshold: a member is resampled when its effective size falls below this share of N.
            device: of the particles.
        """
        self.n, self.rngs, self.threshold = n, rngs, threshold
        self.log_weights = torch.zeros(n, len(rngs), dtype=torch.float64, device=device)
        self.log_evidence = self.log_weights.new_zeros(len(rngs))

    def reweigh(self, log_factors: Tensor) -> None:
        """Multiply the weights; log_factors is (N B,).

        Raises:
            ArithmeticError: one is not a number, or none of a member's weights is positive.
        """
        self.log_weights = self.log_weights + log_factors.to(self.log_weights).reshape(self.n, -1)
        if not torch.isfinite(self.log_weights.amax(0)).all():
            raise ArithmeticError(
                "a particle filter has lost all its weights: particles diverged; "
                "take more levels, a larger sigma_min or a data_std nearer to the images'"
            )

    def resample(self, *particles: Tensor) -> tuple[Tensor, ...]:
        """The particles (N B, ...), chosen anew and weighted alike for every member that needs it."""
        few = effective_size(self.log_weights) < self.threshold * self.n
        chosen = systematic(self.log_weights, self._uniforms())
        ancestors = torch.where(few, chosen, torch.arange(self.n, device=chosen.device)[:, None])
        self._collect(few)
        return tuple(pick(p, ancestors) for p in particles)

    def draws(self, x: Tensor, samples: int) -> tuple[Tensor, Weighted]:
        """`samples` of the particles x (N B, ...) as equally weighted draws, (samples, B, ...), and all with their weights.

        Resampled once more to N equal ones in a random order, of which the first are taken: draw s does not depend on
        how many there are, and all N together are the filter's estimate.
        """
        log_weights, n_members = self.log_weights, len(self.rngs)
        equal = pick(x, systematic(log_weights, self._uniforms())).reshape(self.n, n_members, *x.shape[1:])
        order = torch.stack([torch.randperm(self.n, generator=g)[:samples] for g in self.rngs], dim=1).to(x.device)
        self._collect(torch.ones(n_members, dtype=torch.bool, device=x.device))
        drawn = equal[order, torch.arange(n_members, device=x.device)]
        return drawn, Weighted(x.reshape(equal.shape), log_weights, self.log_evidence)

    def _collect(self, members: Tensor) -> None:
        """Move the mean weight of some members into the evidence."""
        mean = torch.logsumexp(self.log_weights, 0) - math.log(self.n)
        self.log_evidence = self.log_evidence + torch.where(members, mean, 0)
        self.log_weights = torch.where(members, 0, self.log_weights)

    def _uniforms(self) -> Tensor:
        uniforms = [torch.rand((), generator=g, dtype=torch.float64) for g in self.rngs]
        return torch.stack(uniforms).to(self.log_weights.device)


def effective_size(log_weights: Tensor) -> Tensor:
    """1 / Σ W² with W normalised, between 1 and N: (N, B) -> (B,)."""
    return 1 / torch.softmax(log_weights, 0).square().sum(0)


def systematic(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Who is chosen, (N, B), by one uniform number a member: N equal steps through the cumulated weights (N, B).

    A particle of weight W is chosen ⌊N W⌋ or ⌈N W⌉ times, N W on average.
    """
    n = len(log_weights)
    cumulated = torch.softmax(log_weights, 0).cumsum(0).T.contiguous()
    steps = (torch.arange(n, device=uniforms.device) + uniforms[:, None]) / n
    return torch.searchsorted(cumulated, steps, right=True).clamp(max=n - 1).T


def pick(x: Tensor, ancestors: Tensor) -> Tensor:
    """The chosen particles of x (N B, ...), member by member."""
    members = ancestors.shape[1]
    return x[(ancestors * members + torch.arange(members, device=x.device)).flatten()]


def variance_given(sigma: Tensor, data_std: float) -> Tensor:
    """r², the variance of x₀ given x at a noise level."""
    return sigma**2 * data_std**2 / (sigma**2 + data_std**2)


def transition(x: Tensor, clean: Tensor, sigma: Tensor, sigma_next: Tensor, data_std: float) -> tuple[Tensor, Tensor]:
    """Mean (like x) and variance v (a scalar) of p(x' | x): eq. (1); r² for a step to 0."""
    kept = (sigma_next / sigma) ** 2
    variance = sigma_next**2 * (1 - kept) + (1 - kept) ** 2 * variance_given(sigma, data_std)
    return clean + kept * (x - clean), variance


@dataclass(frozen=True, eq=False)
class ParticleFilter(abc.ABC):
    """A method by sequential Monte Carlo; see the module's head.

    Draws are particles of one run for each image: resampled to equal weights and put in a random order, so that they are
    exchangeable, but not independent; some may be copies. `weighted` gives the particles themselves.

    Attributes:
        prior: the denoiser D; its `scale` is the size of its own unit in the unit of the images.
        samples: draws, at most as many as particles.
        particles: N.
        n_levels: noise levels, each N evaluations of D.
        sigma_max: first noise level, in the prior's own unit; large against the images, whose law there is taken as normal.
        sigma_min: last positive one.
        data_std: s, the standard deviation of the images, in the prior's own unit. A wrong value costs levels and
            particles, not the limit.
        threshold: particles are resampled when their effective number falls below this share of N.
    """

    prior: Denoiser
    samples: int = 1
    particles: int = 64
    n_levels: int = 100
    sigma_max: float = 20.0
    sigma_min: float = 0.01
    data_std: float = 0.5
    threshold: float = 0.5

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_numbers(self)
        if not 1 <= self.samples <= self.particles:
            raise ValueError(
                f"{name}: draws are particles: expected 1 <= samples <= particles, got {self.samples} and "
                f"{self.particles}; raise particles"
            )
        if self.n_levels < 1 or not 0 < self.sigma_min < self.sigma_max or not self.data_std > 0:
            raise ValueError(
                f"{name}: expected n_levels >= 1, 0 < sigma_min < sigma_max and data_std > 0, "
                f"got {self.n_levels}, {self.sigma_min}, {self.sigma_max} and {self.data_std}"
            )
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"{name}: threshold must lie in [0, 1], got {self.threshold}")

    @torch.no_grad()
    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw: (samples, *batch, *A.in_shape) in y's dtype."""
        drawn, _ = self._run(problem, rng)
        return drawn.reshape(self.samples, *problem.batch_shape, *problem.A.in_shape)

    @torch.no_grad()
    def weighted(self, problem: Problem, rng: Generator) -> Weighted:
        """All particles with their weights, from the run that the draws are taken from."""
        _, outcome = self._run(problem, rng)
        batch = problem.batch_shape
        return Weighted(
            outcome.images.reshape(self.particles, *batch, *problem.A.in_shape),
            outcome.log_weights.reshape(self.particles, *batch),
            outcome.log_evidence.reshape(batch),
        )

    @abc.abstractmethod
    def _filter(self, problem: Problem, sigmas: Tensor, rngs: Sequence[Generator], cloud: Cloud) -> Tensor:
        """Particles at level 0 (N B, *image_shape), their weights in the cloud; rngs holds a stream for each."""

    def _run(self, problem: Problem, rng: Generator) -> tuple[Tensor, Weighted]:
        flat = problem.flat()
        streams = member_streams(rng, self.particles + 1, len(flat.y))
        split = self.particles * len(flat.y)
        cloud = Cloud(self.particles, streams[split:], self.threshold, flat.y.device)
        sigmas = (karras(self.n_levels, self.sigma_min, self.sigma_max) * scale_of(self.prior)).to(flat.y)
        x = self._filter(flat, sigmas, streams[:split], cloud)
        check_finite(x, "the last level")
        return cloud.draws(x, self.samples)

    @property
    def _data_std(self) -> float:
        """s in the unit of the images."""
        return self.data_std * scale_of(self.prior)
