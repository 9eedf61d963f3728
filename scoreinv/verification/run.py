"""A method against exact posteriors: draw problems from a case, solve them, measure.

A case is a reference problem: a prior with a closed-form posterior, an operator and a noise level. J problems are drawn from it,
the method gives L draws of each; the figures are those of `scoreinv.verification.measures`. Cheap methods get more problems,
by a rule that knows nothing but their evaluations (`Case.how_many`); the first problems are the same for all.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from scoreinv import configure, metrics
from scoreinv.linop import LinearOperator
from scoreinv.priors.denoiser import Counted
from scoreinv.priors.exact import dense
from scoreinv.priors.references import Reference
from scoreinv.problem import Problem
from scoreinv.verification import measures
from scoreinv.verification.laws import Laws, effective_coordinates, posteriors
from scoreinv.verification.prior import SharedCovariance, shared

EVALUATIONS = 600
"""A method of so many evaluations a draw gets a case's least number of problems, one of half of them twice as many."""
COVERAGES = (0.5, 0.9, 0.95)
DIRECTIONS = 256
"""At most so many components of a Gaussian posterior's range, and as many of its null space, have their ranks taken."""


@dataclass(frozen=True, eq=False)
class Case:
    """What is verified against.

    Attributes:
        name: short.
        about: a sentence for the table.
        reference: prior with a closed-form posterior, operator and noise, which is not 0.
        fixed: all problems have the reference's own data, and images drawn from their posterior; else images are drawn from the
            prior, with data of their own.
        n_problems: J at least.
        most_problems: J at most; None for J = n_problems always.
        n_draws: L; 39 is the least for intervals of 95 %.
    """

    name: str
    about: str
    reference: Reference
    fixed: bool = False
    n_problems: int = 32
    most_problems: int | None = None
    n_draws: int = 39

    @functools.cached_property
    def prior(self) -> SharedCovariance:
        """The prior, its own unit being `unit`."""
        return shared(self.reference.prior)

    @property
    def unit(self) -> float:
        """The standard deviation of the images, root mean square over pixels."""
        return self.prior.scale

    @functools.cached_property
    def spaces(self) -> tuple[Tensor, Tensor]:
        """See `row_and_null_space`."""
        return row_and_null_space(self.reference.A)

    def how_many(self, evaluations: float) -> int:
        """J for a method of so many evaluations a draw."""
        most = self.most_problems or self.n_problems
        return max(self.n_problems, min(most, self.n_problems * math.floor(EVALUATIONS / evaluations)))

    def problems(self, n: int, rng: Generator) -> Problem:
        """n problems as one batch, with their truths, in float32 as methods get them in practice."""
        r = self.reference
        if not self.fixed:
            problem = r.simulate(n, rng)
            return Problem(r.A, problem.y.float(), r.noise_std, torch.as_tensor(problem.truth).float())
        y = r.y.expand(n, *r.A.out_shape)
        return Problem(r.A, y.float(), r.noise_std, r.posterior.draw(n, rng).float())

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one a case, and a run has few cases)
    def exam(self, seed: int) -> tuple[Problem, Laws]:
        """The most problems that a method can get, and their posteriors; those of fewer are the first of them."""
        rng = torch.Generator().manual_seed(seed)
        problem = self.problems(self.most_problems or self.n_problems, rng)
        return problem, posteriors(self.reference, problem, fixed=self.fixed)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def effective(self, seed: int) -> tuple[float, ...]:
        """`laws.effective_coordinates` for intervals of each of `COVERAGES`."""
        rng = torch.Generator().manual_seed(seed)
        return tuple(effective_coordinates(self.exam(seed)[1], self.n_draws, level, rng) for level in COVERAGES)


@dataclass(frozen=True)
class Figures:
    """What one method did on one case; see `scoreinv.verification.measures`. nan where there is nothing to measure.

    Attributes:
        problems: J.
        mean_error: mean over problems; 0 for exact draws.
        variance, variance_range, variance_null: ratios, the median over problems; 1 for exact draws.
        wasserstein: relative to two sets of exact draws, the median over problems; 1 for exact draws.
        coverage_50, coverage_90, coverage_95: of the coordinates of all truths.
        error_50, error_90, error_95: standard errors of these, if an image is worth as many independent coordinates as it is for
            exact draws.
        rank_p: p-value of uniform ranks.
        evaluations: of the prior, a draw.
        seconds: for all draws of all problems together.
    """

    problems: int
    mean_error: float
    variance: float
    variance_range: float
    variance_null: float
    wasserstein: float
    coverage_50: float
    coverage_90: float
    coverage_95: float
    error_50: float
    error_90: float
    error_95: float
    rank_p: float
    evaluations: float
    seconds: float


def verify(case: Case, method: str, settings: Mapping[str, Any], seed: int = 0) -> Figures:
    """Run a registered method on a case and measure its draws.

    Args:
        case: what to solve.
        method: its registered name; it must have the settings `prior` and `samples`.
        settings: further arguments of its constructor, in the case's unit.
        seed: of problems, draws and measures.

    Raises:
        ValueError: no such method or setting, or the method cannot solve the case.
    """
    problem, _ = case.exam(seed)
    rng = torch.Generator().manual_seed(seed)
    counted = Counted(case.prior)
    solver = configure.method(method, {"samples": case.n_draws, **settings}, lambda: counted)
    started = time.process_time()
    with torch.no_grad():
        draws = solver(_part(problem, 0, case.n_problems), rng)
        n = case.how_many(counted.n_evaluations / (case.n_draws * case.n_problems))
        if n > case.n_problems:
            draws = torch.cat([draws, solver(_part(problem, case.n_problems, n), rng)], dim=1)
    seconds = time.process_time() - started
    return measured(case, draws, seed, counted.n_evaluations / (case.n_draws * n), seconds)


def measured(case: Case, draws: Tensor, seed: int = 0, evaluations: float = 0.0, seconds: float = 0.0) -> Figures:
    """The figures of draws (L, J, *image_shape) of the first J problems of a case's exam of that seed."""
    if not torch.isfinite(draws).all():
        raise ValueError("the method diverged: draws are not finite")
    rng = torch.Generator().manual_seed(seed)
    n = draws.shape[1]
    problem, all_laws = case.exam(seed)
    laws, flat = all_laws.first(n), draws.double().flatten(2)
    truth = torch.as_tensor(problem.truth)[:n].double().flatten(1)
    seen, unseen = case.spaces
    trace = laws.covariances.diagonal(dim1=1, dim2=2).sum(1)

    def ratio(basis: Tensor | None) -> float:
        return _median(measures.variance_ratio(flat, laws.covariances, basis))

    covered = [float(metrics.coverage(flat[:, None], truth[None], level)) for level in COVERAGES]
    errors = [measures.binomial_error(c, n * k) for c, k in zip(covered, case.effective(seed), strict=True)]
    return Figures(
        problems=n,
        mean_error=float(measures.mean_error(flat, laws.means, trace).mean()),
        variance=ratio(None),
        variance_range=ratio(seen),
        variance_null=ratio(unseen),
        wasserstein=_median(torch.tensor([_distance(laws, j, flat[:, j], rng) for j in range(n)], dtype=torch.float64)),
        coverage_50=covered[0],
        coverage_90=covered[1],
        coverage_95=covered[2],
        error_50=errors[0],
        error_90=errors[1],
        error_95=errors[2],
        rank_p=_rank_uniformity(flat, truth, laws, case.spaces, rng),
        evaluations=evaluations,
        seconds=seconds,
    )


def row_and_null_space(A: LinearOperator, tolerance: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Orthonormal bases (pixels, k) of what the operator sees and of what it does not; small operators only."""
    _, singular, vt = torch.linalg.svd(dense(A))
    rank = int((singular > tolerance * singular[0]).sum())
    return vt[:rank].T, vt[rank:].T


def _part(problem: Problem, start: int, stop: int) -> Problem:
    """Some members of a batch of problems, without their truths."""
    return Problem(problem.A, problem.y[start:stop], problem.noise_std)


def _rank_uniformity(draws: Tensor, truth: Tensor, laws: Laws, spaces: tuple[Tensor, Tensor], rng: Generator) -> float:
    """`measures.rank_uniformity` in range and null space, the smaller p-value times their number: of Gaussian posteriors along up to
    `DIRECTIONS` each whose components are independent, as one sample, of others along 2."""
    found = []
    for basis in (s for s in spaces if s.shape[1]):
        if not laws.gaussian:
            found.append(measures.rank_uniformity(draws, truth, measures.directions(basis, 2, rng)))
            continue
        along = measures.directions(basis, DIRECTIONS, rng, laws.covariances[0])
        pooled = (draws @ along).reshape(len(draws), -1, 1), (truth @ along).reshape(-1, 1)
        found.append(measures.rank_uniformity(*pooled, torch.ones(1, 1, dtype=torch.float64)))
    return min(1.0, len(found) * min(found))


def _distance(laws: Laws, j: int, draws: Tensor, rng: Generator) -> float:
    """Sliced W₂ from exact draws of problem j, relative to that between two sets of exact draws."""
    one, two = (laws.draw(j, len(draws), rng) for _ in range(2))
    return measures.sliced_wasserstein(draws, one, rng) / measures.sliced_wasserstein(one, two, rng)


def _median(values: Tensor) -> float:
    """The mean of the two in the middle where `Tensor.median` gives the lower one, which of two problems is the lower of both."""
    return float(values.quantile(0.5))
