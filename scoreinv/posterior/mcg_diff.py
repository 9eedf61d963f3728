"""MCG-diff: a particle filter in the singular directions of the operator, with closed-form proposals.

Cardoso, Janati El Idrissi, Le Corff, Moulines 2023, arXiv:2308.07983, on the chain of `scoreinv.posterior.particles`. In the
coordinates c = Vᵀ x of the operator's singular vectors the data are noised coordinates of the image,

    ȳ_i = c_i + σ_i n,    σ_i = σ_y / s_i                                                                          (1)

so that ȳ_i is what the diffusion itself would make of c_i at the noise level σ_i: data and iterate may share one Brownian
path. Above that level a particle is drawn to the data by the path's law from ȳ_i upwards (eq. 6 and section 3 there), from it
downwards the data say nothing more. One step from σ to σ' with p(x' | x) = N(m, v I):

    σ' > σ_i         potential N(c'; ȳ, σ'² − σ_i²)                                                                (2)
    σ > σ_i >= σ'    exact, by the Brownian bridge: N(ȳ; (1 − f) c' + f c, (1 − f)(σ_i² − σ'²)),
                     f = (σ_i² − σ'²) / (σ² − σ'²)                                                                 (3)
    σ_i >= σ         none

Both are Gaussian in c', N(o; c', w) up to a factor, so that weights and proposals are closed forms:

    w ← w Π_i N(o_i; m_i, v + w_i) / N(c_i; ȳ_i, σ² − σ_i²)  over the i with σ_i < σ,  then  c' ~ N(m, v) N(o; c', w)          (4)

Particles are resampled after they are weighed and before they move. No gradient of the prior is needed, noise-free data
(σ_i = 0) are met exactly, and operators must be small enough for a dense SVD (`scoreinv.posterior.svd`).

What the paper does differently: it moves σ_i to a level of the grid and widens that level's potential by a small constant in
the place of (3); and it resamples before every step, multinomially.

The potentials (2) know nothing of the prior, so that more particles are needed than with TDS: on the Gaussian example of
tests/test_smc.py the error of one run's mean is 0.60, 0.27, 0.14 of the posterior's deviation with 8, 64, 512 of them,
on the four modes of `priors.references` 0.52, 0.23, 0.14.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.particles import Cloud, ParticleFilter, transition
from scoreinv.posterior.svd import Spectrum, spectrum
from scoreinv.priors.denoiser import checked
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.solvers import like, noise_weights
from scoreinv.streams import normal


@dataclass(frozen=True, eq=False)
class MCGDiff(ParticleFilter):
    """Monte Carlo guided diffusion; see the module's head."""

    def _filter(self, problem: Problem, sigmas: Tensor, rngs: Sequence[Generator], cloud: Cloud) -> Tensor:
        found, levels = _directions(problem, cloud.n)
        mean = problem.y.new_zeros(len(rngs), *problem.A.in_shape)
        pull, variance = _Pull.at_first(found, levels, sigmas[0]), sigmas[0] ** 2
        cloud.reweigh(pull.log_weights(found.coordinates(mean), variance))
        x = _moved(mean, variance.sqrt(), normal(rngs, mean), pull, variance, found)
        for sigma, sigma_next in track(itertools.pairwise(sigmas), "MCGDiff", self.n_levels):
            pull = _Pull.between(found, levels, found.coordinates(x), sigma, sigma_next)
            mean, variance = transition(x, checked(self.prior(x, sigma), x), sigma, sigma_next, self._data_std)
            cloud.reweigh(pull.log_weights(found.coordinates(mean), variance))
            mean, pull.target = cloud.resample(mean, pull.target)
            spread = variance.sqrt() if sigma_next > 0 else torch.zeros_like(variance)
            x = _moved(mean, spread, normal(rngs, mean), pull, variance, found)
        return x


@dataclass(eq=False)
class _Pull:
    """Where the data draw the next coordinates c' of every particle: the potential N(o; c', w), both (particles, k).

    Attributes:
        target: o.
        width: w.
        active: where there is a potential.
        debt: ln of what its constants, and the potential of the level above, leave to divide by (particles,).
    """

    target: Tensor
    width: Tensor
    active: Tensor
    debt: Tensor

    @classmethod
    def at_first(cls, found: Spectrum, levels: Tensor, sigma: Tensor) -> _Pull:
        """On x ~ N(0, σ²); what is noisier than that counts as a measurement of x itself."""
        return cls(found.data, (sigma**2 - levels**2).abs(), torch.isfinite(levels), levels.new_zeros(len(levels)))

    @classmethod
    def between(cls, found: Spectrum, levels: Tensor, c: Tensor, sigma: Tensor, sigma_next: Tensor) -> _Pull:
        """Eqs. (2) and (3), with o and w of the bridge (3) put into the form of a potential on c'."""
        active, above = levels < sigma, levels < sigma_next
        share = torch.where(active & ~above, (sigma**2 - levels**2) / (sigma**2 - sigma_next**2), 1)  # 1 − f
        width = torch.where(active, (sigma_next**2 - levels**2).abs() / share, math.inf)
        debt = share.log() + _log_normal(found.data - c, torch.where(active, sigma**2 - levels**2, 1))
        return cls(c + (found.data - c) / share, width, active, torch.where(active, debt, 0).sum(1))

    def log_weights(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Eq. (4) for the means (particles, k) of c'."""
        known = _log_normal(self.target - mean, variance + torch.where(self.active, self.width, 0))
        return torch.where(self.active, known, 0).sum(1) - self.debt


def _moved(mean: Tensor, spread: Tensor, noise: Tensor, pull: _Pull, variance: Tensor, found: Spectrum) -> Tensor:
    """A draw of the next image: mean + spread n, and in the active directions of N(m, v) N(o; c', w)."""
    gain = variance / (variance + pull.width)
    deviation = (gain * torch.where(pull.active, pull.width, 0)).sqrt()
    change = gain * (pull.target - found.coordinates(mean)) + (deviation - spread) * found.coordinates(noise)
    return mean + spread * noise + found.image(torch.where(pull.active, change, 0), tuple(mean.shape[1:]))


def _directions(problem: Problem, n: int) -> tuple[Spectrum, Tensor]:
    """Singular directions and σ_i (∞ where not measured) of a problem, repeated for n particles of each member."""
    once = spectrum(problem)
    levels = like(noise_weights(problem)[1], once.values) / once.values
    levels = torch.where(once.values > 0, levels, math.inf)
    which, values, data = once.which.repeat(n), once.values.repeat(n, 1), once.data.repeat(n, 1)
    return Spectrum(once.vectors, which, values, data), levels.repeat(n, 1)


def _log_normal(x: Tensor, variance: Tensor) -> Tensor:
    """ln N(x; 0, variance)."""
    return -0.5 * (x**2 / variance + variance.log() + math.log(2 * math.pi))
