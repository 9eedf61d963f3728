"""The conditional predictor-corrector of Song, Shen, Xing, Ermon 2022 (arXiv:2111.08005), in two forms.

The iterate x carries noise of level σ. Before each score update, the corrector's and the predictor's, it is pulled to a
fresh draw of what the data would be of an image as noisy, ŷ = y + σ A z with z white noise in the image. λ = 1 replaces
what the data determine, λ = 0 ignores the data:

    x ← x + λ A⁺ (ŷ − A x)                                                                                       (1)

    x ~ N(0, σ_max²)
    for σ, σ' in levels:    (1), corrector at σ;   (1) with a new z, predictor from σ to σ'
    x ← D(x, σ_min), then (1) with λ = 1 and the data themselves

That costs 2 n_levels + 1 evaluations of the prior (n_levels + 1 with snr = 0, which leaves the corrector out). The two
forms differ in A⁺: an FFT on nearest-neighbour radial lines as published (`SongFaithful`), or the operator's
pseudo-inverse by conjugate gradients (`SongExact`), a much stronger step.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv import plugins
from scoreinv.posterior.chains import check_numbers
from scoreinv.posterior.pseudopolar import pseudo_polar
from scoreinv.priors.denoiser import Counted, Denoiser, scale_of
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.sampling.levels import geometric
from scoreinv.sampling.loop import check_finite, last, member_streams, sample
from scoreinv.sampling.steps import Langevin, PredictorCorrector, Step, constrained, reverse_diffusion
from scoreinv.solvers import cg, like, noise_weights
from scoreinv.streams import normal

Correction = Callable[[Tensor, Tensor], Tensor]
"""(δ, σ) -> A⁺ (y + A δ), the step that takes x to ŷ for δ = σ z − x (batch, *image_shape); σ is a scalar."""


@dataclass(frozen=True, eq=False)
class _Song(abc.ABC):
    """What both forms share; see the module's head.

    Attributes:
        prior: the denoiser D; its `scale` is the size of its own unit in the unit of the images.
        n_levels: noise levels, from sigma_max to sigma_min in equal ratios.
        snr: step size of the Langevin corrector; 0 leaves it out.
        lam: λ, how far each step goes towards the data.
        sigma_max: first noise level, in the prior's own unit.
        sigma_min: last one, at which the final denoising takes place.
        samples: draws of each image.
    """

    prior: Denoiser
    n_levels: int = 1000
    snr: float = 0.246
    lam: float = 0.841
    sigma_max: float = 20.0
    sigma_min: float = 0.01
    samples: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_numbers(self)
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"{name}: expected 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"{name}: lam must lie in [0, 1], got {self.lam}")
        if self.n_levels < 1 or self.samples < 1 or self.snr < 0:
            raise ValueError(
                f"{name}: expected n_levels >= 1, samples >= 1 and snr >= 0, "
                f"got {self.n_levels}, {self.samples} and {self.snr}"
            )

    @abc.abstractmethod
    def _correction(self, problem: Problem) -> Correction:
        """A⁺ for a problem with one batch dimension."""

    @torch.no_grad()
    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw from the posterior, approximately.

        Returns:
            (samples, *batch, *A.in_shape) in y's dtype.
        """
        flat = problem.flat().repeated(self.samples)
        rngs = member_streams(rng, self.samples, len(flat.y) // self.samples)
        correct = self._correction(flat)

        def constrain(x: Tensor, sigma: Tensor, rngs: Sequence[Generator]) -> Tensor:
            return x + self.lam * correct(sigma * normal(rngs, x) - x, sigma)

        scale = scale_of(self.prior)
        sigmas = (geometric(self.n_levels, self.sigma_min, self.sigma_max) * scale).to(flat.y)
        x = sigmas[0] * normal(rngs, flat.y.new_zeros(len(rngs), *problem.A.in_shape))
        prior = Counted(self.prior)
        iterates = sample(prior, x, sigmas, step=self._step(constrain), rngs=rngs)
        x = last(track(iterates, type(self).__name__, self.n_levels))
        x = prior(x, sigmas[-2])
        x = x + correct(-x, sigmas[-2])
        check_finite(x, "the last correction")
        return x.reshape(self.samples, *problem.batch_shape, *problem.A.in_shape)

    def _step(self, constrain: Callable[[Tensor, Tensor, Sequence[Generator]], Tensor]) -> Step:
        predictor = constrained(reverse_diffusion, constrain)
        if self.snr == 0:
            return predictor
        return PredictorCorrector(predictor, constrained(Langevin(self.snr), constrain))


@dataclass(frozen=True, eq=False)
class SongFaithful(_Song):
    """As published: A⁺ = T⁻¹ with the transform T of `scoreinv.posterior.pseudopolar`, for parallel-beam CT only.

    Two things differ from the published program. Its data are no sinogram of the measured views: they are made from
    the projections of the true image at all 320 angles of a grid, interpolated between angles, so that what it calls
    measured also holds parts of views that were not (most of it at the lowest frequencies). Here only the measured
    views count: a cell takes the Fourier transform of its view's projection at the nearest point of that view's line.
    And unmeasured lines are not written at all, where there they were written back unchanged, over or under the
    measured ones in an order that was left open; so no grid of angles is needed and views may lie anywhere.

    Measurement noise is not modelled (the data of that work have none): lower lam for noisy data.

    Attributes:
        expansion: zero padding of the FFT beyond the image's diagonal.
    """

    expansion: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion < 1:
            raise ValueError(f"SongFaithful: expansion must be at least 1, got {self.expansion}")

    def _correction(self, problem: Problem) -> Correction:
        A = problem.A
        if not isinstance(A, plugins.get("operators", "parallel_beam_ct")):
            raise ValueError(
                f"SongFaithful: its transform is made for ParallelBeamCT, got {type(A).__name__}; "
                "SongExact takes any operator"
            )
        theta = torch.tensor(A.angles, dtype=torch.float64)
        directions = torch.stack([-theta.sin(), theta.cos()], dim=1)  # y points up, rows go down
        T = pseudo_polar(A.image_shape, directions, self.expansion, A.pixel_mm / A.detector_mm)
        positions = torch.tensor(A.detector_positions_mm, dtype=torch.float64)
        known = T.known(problem.y, positions, A.pixel_mm)
        return lambda delta, sigma: T.inverse(known + T.transform(delta))


@dataclass(frozen=True, eq=False)
class SongExact(_Song):
    """With the true operator: step (1) in the image's norm, A⁺ by conjugate gradients warm-started at x.

    As a proximal map, x ← argmin_v (1 − λ) ‖v − x‖² + λ min_u {‖v − u‖² : A u = ŷ}. With measurement noise σ_y, the
    projection u becomes argmin_u ‖A u − ŷ‖² / σ_y² + ‖u − x‖² / σ²: it solves

        (Aᵀ W A + (σ_y / σ)² I) (u − x) = Aᵀ W (ŷ − A x),     W = σ_y² / σ_yi²,

    so that what σ has buried in noise follows the data, and singular values of A below σ_y / σ are left to the prior.
    Stopping the iterations early regularises in the same way. Works for every linear operator.

    With noisy data, draws were seen to scatter about the data by 2 to 3 σ_y at the default sigma_min on small Gaussian
    examples, less with a larger one; probably because the corrector's step rule knows of the prior only.

    Attributes:
        iterations: conjugate-gradient steps at most.
        tolerance: relative residual at which they stop.
    """

    iterations: int = 10
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1 or self.tolerance < 0:
            raise ValueError(
                f"SongExact: expected iterations >= 1 and tolerance >= 0, got {self.iterations} and {self.tolerance}"
            )

    def _correction(self, problem: Problem) -> Correction:
        A, y = problem.A, problem.y
        weights, std = noise_weights(problem)

        def correct(delta: Tensor, sigma: Tensor) -> Tensor:
            ridge = like((std / sigma) ** 2, delta)
            residual = y + A(delta)
            b = A.H(residual if weights is None else weights * residual)

            def normal_equations(u: Tensor) -> Tensor:
                data = A(u)
                return A.H(data if weights is None else weights * data) + ridge * u

            return cg(normal_equations, b, max_iterations=self.iterations, tolerance=self.tolerance)

        return correct
