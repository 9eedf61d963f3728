"""A method against exact posteriors: draw problems from a case, solve them, measure.

A case is a reference problem: a prior with a closed-form posterior, an operator and a noise level. J problems are drawn from it,
the method gives L draws of each, all in one batch; the figures are those of `scoreinv.verification.measures`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from scoreinv import configure, metrics
from scoreinv.linop import LinearOperator
from scoreinv.priors.denoiser import Counted, Denoiser
from scoreinv.priors.exact import dense
from scoreinv.priors.references import Reference
from scoreinv.problem import Problem
from scoreinv.verification import measures


@dataclass(frozen=True, eq=False)
class Scaled:
    """A denoiser that states the size of its own unit, in the unit of its images; it gives what it gave without.

    Attributes:
        denoiser: D.
        scale: the size.
    """

    denoiser: Denoiser
    scale: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(x, sigma)


@dataclass(frozen=True, eq=False)
class Case:
    """What is verified against.

    Attributes:
        name: short.
        about: a sentence for the table.
        reference: prior with a closed-form posterior, operator and noise.
        fixed: all problems have the reference's own data, and images drawn from their posterior; else images are drawn from the
            prior, with data of their own.
        n_problems: J.
        n_draws: L; 39 is the least for intervals of 95 %.
    """

    name: str
    about: str
    reference: Reference
    fixed: bool = False
    n_problems: int = 32
    n_draws: int = 64

    @functools.cached_property
    def unit(self) -> float:
        """The standard deviation of the images, root mean square over pixels."""
        return float(self.reference.prior.covariance.diagonal().mean().sqrt())

    @property
    def prior(self) -> Scaled:
        """The prior, its own unit being `unit`."""
        return Scaled(self.reference.prior, self.unit)

    def problems(self, rng: Generator) -> Problem:
        """J problems as one batch, with their truths, in float32 as methods get them in practice."""
        r = self.reference
        if not self.fixed:
            problem = r.simulate(self.n_problems, rng)
            return Problem(r.A, problem.y.float(), r.noise_std, torch.as_tensor(problem.truth).float())
        y = r.y.expand(self.n_problems, *r.A.out_shape)
        return Problem(r.A, y.float(), r.noise_std, r.posterior.draw(self.n_problems, rng).float())


@dataclass(frozen=True)
class Figures:
    """What one method did on one case; see `scoreinv.verification.measures`. nan where there is nothing to measure.

    Attributes:
        mean_error: mean over problems; 0 for exact draws.
        variance, variance_range, variance_null: ratios, the median over problems; 1 for exact draws.
        wasserstein: relative to two sets of exact draws, the median over problems; 1 for exact draws.
        coverage_50, coverage_90, coverage_95: of the coordinates of all truths.
        rank_p: p-value of uniform ranks.
        evaluations: of the prior, a draw.
        seconds: for all draws of all problems together.
    """

    mean_error: float
    variance: float
    variance_range: float
    variance_null: float
    wasserstein: float
    coverage_50: float
    coverage_90: float
    coverage_95: float
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
    rng = torch.Generator().manual_seed(seed)
    problem = case.problems(rng)
    counted = Counted(case.prior)
    solver = configure.method(method, {"samples": case.n_draws, **settings}, lambda: counted)
    started = time.perf_counter()
    with torch.no_grad():
        draws = solver(problem, rng)
    seconds = time.perf_counter() - started
    evaluations = counted.n_evaluations / (case.n_draws * case.n_problems)
    return measured(case, problem, draws, rng, evaluations, seconds)


def measured(
    case: Case, problem: Problem, draws: Tensor, rng: Generator, evaluations: float = 0.0, seconds: float = 0.0
) -> Figures:
    """The figures of draws (L, J, *image_shape) of the problems of a case."""
    if not torch.isfinite(draws).all():
        raise ValueError("the method diverged: draws are not finite")
    flat = draws.double().flatten(2)
    truth = torch.as_tensor(problem.truth).double().flatten(1)
    laws = _posteriors(case, problem)
    mean = torch.stack([law.mean.flatten() for law in laws]).double()
    covariance = torch.stack([law.covariance for law in laws]).double()
    seen, unseen = row_and_null_space(case.reference.A)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)

    def ratio(basis: Tensor | None) -> float:
        return float(measures.variance_ratio(flat, covariance, basis).median())

    def covered(level: float) -> float:
        return float(metrics.coverage(flat[:, None], truth[None], level))

    return Figures(
        mean_error=float(measures.mean_error(flat, mean, trace).mean()),
        variance=ratio(None),
        variance_range=ratio(seen),
        variance_null=ratio(unseen),
        wasserstein=_median([_distance(law, flat[:, j], rng) for j, law in enumerate(laws)]),
        coverage_50=covered(0.5),
        coverage_90=covered(0.9),
        coverage_95=covered(0.95),
        rank_p=measures.rank_uniformity(flat, truth, _directions(flat.shape[-1], rng)),
        evaluations=evaluations,
        seconds=seconds,
    )


def row_and_null_space(A: LinearOperator, tolerance: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Orthonormal bases (pixels, k) of what the operator sees and of what it does not; small operators only."""
    _, singular, vt = torch.linalg.svd(dense(A))
    rank = int((singular > tolerance * singular[0]).sum())
    return vt[:rank].T, vt[rank:].T


def _directions(d: int, rng: Generator, k: int = 4) -> Tensor:
    """Random orthonormal directions for rank statistics, at most k."""
    directions: Tensor = torch.linalg.qr(torch.randn(d, min(k, d), generator=rng, dtype=torch.float64)).Q
    return directions


def _posteriors(case: Case, problem: Problem) -> list[Any]:
    """The exact law of every image, computed once where all data are the same."""
    r = case.reference
    if case.fixed:
        return [r.posterior] * len(problem.y)
    return [r.prior.posterior(Problem(r.A, y, r.noise_std)) for y in problem.y.double()]


def _distance(law: Any, draws: Tensor, rng: Generator) -> float:
    """Sliced W₂ from exact draws, relative to that between two sets of exact draws."""
    one, two = (law.draw(len(draws), rng).double().flatten(1) for _ in range(2))
    return measures.sliced_wasserstein(draws, one, rng) / measures.sliced_wasserstein(one, two, rng)


def _median(values: list[float]) -> float:
    return float(torch.tensor(values).median())
