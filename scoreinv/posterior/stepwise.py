"""What the samplers with a step of their own share: those that do more at a level than any unconditional step does with a
posterior denoiser (see `scoreinv.posterior.guidance` for the others).

    x ~ N(0, σ_max²);  for σ, σ' in levels:  x ← step(D, x, σ, σ');  the last step goes to σ' = 0

Several of them end their step with a corrected estimate D' of the image and a share η of fresh noise,

    x' = D' + σ' (κ ε̂ + η z),     κ = √(1 − η²),  z ~ N(0, I)                                                     (1)

where η does not know how long the step is, unlike that of `sampling.steps.Ancestral`: more levels mean more noise. For
images N(0, I) and D' = D the variance of x goes from v to (1 + κ σ σ')² / (1 + σ²)² v + η² σ'², and that of the draws tends
to (1 + κ) / 2, not to 1, as levels are added: 0.76 for η = 0.85.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.posterior.chains import check_settings, run
from scoreinv.posterior.proximal import proximal_denoiser
from scoreinv.priors.denoiser import Counted, Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import sample
from scoreinv.sampling.steps import Step
from scoreinv.streams import normal


@dataclass(frozen=True, eq=False)
class Stepwise(abc.ABC):
    """A sampler with a step of its own; see the module's head.

    Attributes:
        prior: the denoiser D; its `scale` is the size of its own unit in the unit of the images.
        samples: draws.
        n_levels: noise levels, each an evaluation of D.
        sigma_max: first noise level, in the prior's own unit.
        sigma_min: last positive one.
    """

    prior: Denoiser
    samples: int = 1
    n_levels: int = 50
    sigma_max: float = 20.0
    sigma_min: float = 0.01

    def __post_init__(self) -> None:
        levels = (self.sigma_min, self.sigma_max)
        check_settings(self, levels=levels, samples=self.samples, n_levels=self.n_levels)

    @abc.abstractmethod
    def step(self, problem: Problem) -> Step:
        """From one level to the next, for a problem with one batch dimension; it is given the prior to denoise with."""

    def levels(self) -> Tensor:
        """Decreasing noise levels, in the prior's own unit; the last is 0."""
        return karras(self.n_levels, self.sigma_min, self.sigma_max)

    def begin(self, problem: Problem, sigma: Tensor, rngs: Sequence[Generator]) -> tuple[Tensor, Step]:
        """A draw at the first level, and the step."""
        return sigma * normal(rngs, problem.y.new_zeros(len(rngs), *problem.A.in_shape)), self.step(problem)

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw: (samples, *batch, *A.in_shape) in y's dtype."""
        return run(self.walk, problem, rng, samples=self.samples, name=type(self).__name__, n=self.n_levels)

    @torch.no_grad()
    def walk(self, problem: Problem, rngs: Sequence[Generator]) -> Iterator[Tensor]:
        """x after every step, for a problem with one batch dimension."""
        sigmas = (self.levels() * scale_of(self.prior)).to(problem.y)
        x, step = self.begin(problem, sigmas[0], rngs)
        return sample(Counted(self.prior), x, sigmas, step=step, rngs=rngs)


def proximal_map(problem: Problem, *, trust: float = 1.0, iterations: int = 10) -> Denoiser:
    """(D, σ) -> P(D), the proximal map of `scoreinv.posterior.proximal`."""
    return proximal_denoiser(lambda clean, sigma: clean, problem, trust=trust, iterations=iterations)


def renoised(
    clean: Tensor, noise: Tensor, sigma_next: Tensor, share: float | Tensor, rngs: Sequence[Generator]
) -> Tensor:
    """Eq. (1): D', ε̂, σ' and η -> x'. Fresh noise is drawn whatever η is."""
    share = torch.as_tensor(share).to(clean)
    return clean + sigma_next * ((1 - share**2).clamp(min=0).sqrt() * noise + share * normal(rngs, clean))
