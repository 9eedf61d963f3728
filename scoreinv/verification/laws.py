"""The exact posteriors of many problems of a reference at once.

For Gaussian images the covariance of the posterior does not depend on the data: it is computed once, and the means are

    μ_p = μ + Σ_p Aᵀ (y − A μ) / σ_y²                                                                                (1)

How far the coverage of exact draws scatters is found by simulation (`effective_coordinates`): the coordinates of one image
are dependent, so that d of them tell less than d independent ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv import metrics
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior, dense
from scoreinv.priors.references import Reference
from scoreinv.problem import Problem

Law = GaussianPrior | GaussianMixturePrior


@dataclass(frozen=True, eq=False)
class Laws:
    """The posteriors of J problems.

    Attributes:
        means: (J, d).
        covariances: (J, d, d), or (1, d, d) where all are equal.
        laws: of each problem, or the one that has the others' shape.
    """

    means: Tensor
    covariances: Tensor
    laws: tuple[Law, ...]

    def __len__(self) -> int:
        return len(self.means)

    @property
    def gaussian(self) -> bool:
        """Whether they are Gaussian, all of one covariance: what is uncorrelated is independent then."""
        return isinstance(self.laws[0], GaussianPrior)

    def first(self, n: int) -> Laws:
        """Those of the first n problems."""
        few = self.covariances if len(self.covariances) == 1 else self.covariances[:n]
        return Laws(self.means[:n], few, self.laws if len(self.laws) == 1 else self.laws[:n])

    def draw(self, j: int, n: int, rng: Generator) -> Tensor:
        """n exact draws of problem j, (n, d) in float64."""
        if len(self.laws) > 1:
            return self.laws[j].draw(n, rng).double().flatten(1)
        (law,) = self.laws
        return law.draw(n, rng).double().flatten(1) + (self.means[j] - law.mean.double().flatten())


def posteriors(reference: Reference, problem: Problem, *, fixed: bool = False) -> Laws:
    """The posteriors of J problems of a reference.

    Args:
        reference: their prior, operator and noise, which must not be 0 for a Gaussian prior.
        problem: of one batch dimension, J.
        fixed: all have the reference's own data.
    """
    prior, A, std = reference.prior, reference.A, reference.noise_std
    n = len(problem.y)
    if isinstance(prior, GaussianPrior):
        law = reference.posterior
        matrix, mean, covariance = dense(A), prior.mean.double().flatten(), law.covariance.double()
        residual = problem.y.double().flatten(1) - matrix @ mean
        return Laws(mean + residual @ matrix @ covariance / std**2, covariance[None], (law,))
    laws = (reference.posterior,) if fixed else tuple(prior.posterior(Problem(A, y, std)) for y in problem.y.double())
    means = torch.stack([law.mean.double().flatten() for law in laws])
    return Laws(means.expand(n, -1), torch.stack([law.covariance.double() for law in laws]), laws)


def effective_coordinates(laws: Laws, n_draws: int, level: float, rng: Generator, trials: int = 200) -> float:
    """How many independent coordinates one image is worth when the coverage of exact draws is measured on it.

    It is q (1 − q) / Var(c), c the share of an image's coordinates inside the intervals of so many draws, and q its mean,
    over so many trials (at least): 10 % off for 200 of them.
    """
    each = math.ceil(trials / len(laws))
    shares = []
    for j in range(len(laws)):
        x = laws.draw(j, each * (n_draws + 1), rng).reshape(n_draws + 1, each, 1, -1)
        shares.append(metrics.coverage(x[1:], x[0], level))
    share = torch.cat(shares)
    return float(share.mean() * (1 - share.mean()) / share.var())
