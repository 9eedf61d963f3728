"""Mixtures of stationary Gaussians, and their posteriors: see `scoreinv.priors.fourier` and `scoreinv.priors.mixture`.

Posterior weights are ∝ w_k N(y; A μ_k, A Σ_k Aᵀ + Σ_y). Where all components share one covariance its determinant cancels, and
quadratic forms by conjugate gradients are enough, for any number of data.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.priors.fourier import StationaryPosterior, StationaryPrior
from scoreinv.priors.mixture import Mixture, check_weights
from scoreinv.problem import Problem


@dataclass(frozen=True, eq=False)
class StationaryMixturePrior(Mixture):
    """Σ_k w_k N(mean_k, F⁻¹ diag(spectrum_k) F).

    Attributes:
        weights: (K,), positive; they are normalised.
        means: (K, *image_shape).
        spectra: (K, *image_shape), or (*image_shape) for all: then the posterior has no limit on the number of data.
    """

    weights: Tensor
    means: Tensor
    spectra: Tensor

    def __post_init__(self) -> None:
        check_weights("StationaryMixturePrior", self.weights, means=self.means, spectra=self._all_spectra)

    @functools.cached_property
    def components(self) -> tuple[StationaryPrior, ...]:
        """The K Gaussians."""
        return tuple(StationaryPrior(m, s) for m, s in zip(self.means, self._all_spectra, strict=True))

    def posterior(
        self, problem: Problem, *, tolerance: float = 1e-10, iterations: int = 5000
    ) -> StationaryMixturePosterior:
        """The law of x₀ given y, a mixture of the components' posteriors with weights ∝ w_k p(y | k).

        Raises:
            ValueError: as `GaussianPrior.posterior` and, with several spectra, `StationaryPosterior.log_evidence` do.
        """
        parts = tuple(c.posterior(problem, tolerance=tolerance, iterations=iterations) for c in self.components)
        shared = self.spectra.ndim < self.means.ndim  # one ln det M for all, which cancels
        evidence = torch.stack([-part.distance / 2 if shared else part.log_evidence() for part in parts])
        return StationaryMixturePosterior(torch.softmax(self._log_weights + evidence, dim=0), parts)

    @property
    def _all_spectra(self) -> Tensor:
        return self.spectra.expand(self.means.shape) if self.spectra.ndim < self.means.ndim else self.spectra


@dataclass(frozen=True, eq=False)
class StationaryMixturePosterior:
    """Σ_k weights_k components_k.

    Attributes:
        weights: (K,), of sum 1.
        components: the posteriors of the components.
    """

    weights: Tensor
    components: tuple[StationaryPosterior, ...]

    @functools.cached_property
    def mean(self) -> Tensor:
        """(*image_shape)."""
        means = torch.stack([c.mean.double() for c in self.components], dim=-1)
        return (means * self.weights).sum(-1).to(self.components[0].mean)

    def draw(self, n: int, rng: Generator) -> Tensor:
        """n independent draws, (n, *image_shape)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        x = self.mean.new_empty(n, *self.mean.shape)
        for k, component in enumerate(self.components):
            if n_k := int((which == k).sum()):
                x[which == k] = component.draw(n_k, rng)
        return x

    def covariance_of(self, functionals: Tensor) -> Tensor:
        """Of linear functionals of the image, (k, *image_shape) -> (k, k) in float64."""
        flat = functionals.double().flatten(1)
        total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
        for w, c in zip(self.weights, self.components, strict=True):
            off = flat @ (c.mean - self.mean).double().flatten()
            total += w * (c.covariance_of(functionals) + off[:, None] * off)
        return total
