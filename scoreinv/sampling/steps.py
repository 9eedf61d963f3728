"""Steps from one noise level to the next, on the coordinate x = x₀ + σ n (variance exploding, n ~ N(0, I)).

Every step has the signature `step(denoise, x, sigma, sigma_next, rngs) -> x at sigma_next`, with D = denoise(x, sigma):

    score             S = (D − x) / σ²
    noise estimate    ε̂ = (x − D) / σ = −σ S
    probability flow  dx/dσ = ε̂
    reverse SDE       dx = −2 σ S dσ + √(2 σ) dw

`denoise` is a prior or a posterior made from one: a step knows nothing about data. `rngs` holds one generator for each
member of the batch, so that a member's draw does not depend on its mates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser
from scoreinv.streams import normal

Step = Callable[[Denoiser, Tensor, Tensor, Tensor, Sequence[Generator]], Tensor]
"""(denoise, x (batch, *image_shape), sigma, sigma_next, rngs) -> x at sigma_next."""

Constraint = Callable[[Tensor, Tensor, Sequence[Generator]], Tensor]
"""(x, sigma, rngs) -> x, moved towards what is known about an image with noise of that level."""


def euler(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]) -> Tensor:
    """One Euler step of the probability flow, order 1; equals DDIM with eta = 0 (Song, Meng, Ermon 2020)."""
    slope = (x - denoise(x, sigma)) / sigma
    return x + (sigma_next - sigma) * slope


def heun(denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]) -> Tensor:
    """One step of Heun's method on the probability flow, order 2, two evaluations; a step to 0 is Euler's.

    Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """
    slope = (x - denoise(x, sigma)) / sigma
    end = x + (sigma_next - sigma) * slope
    if sigma_next == 0:
        return end
    slope_at_end = (end - denoise(end, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_at_end) / 2


def reverse_diffusion(
    denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
) -> Tensor:
    """Reverse-diffusion predictor, order 1 in distribution: x + (σ² − σ'²) S + √(σ² − σ'²) z.

    A step to 0 keeps noise of standard deviation σ: finish with `denoise(x, sigma)`. Song et al. 2021,
    arXiv:2011.13456, algorithm 2.
    """
    variance = sigma**2 - sigma_next**2
    score = (denoise(x, sigma) - x) / sigma**2
    return x + variance * score + variance.sqrt() * normal(rngs, x)


@dataclass(frozen=True)
class Ancestral:
    """x' = D + √(σ'² − c²) ε̂ + c z with c = η σ' √(1 − σ'² / σ²): the DDIM family.

    η = 0 is `euler`; η = 1 is ancestral sampling, exact in distribution where x₀ given x is certain. Song, Meng, Ermon
    2020, arXiv:2010.02502, eqs. 12 and 16.

    Attributes:
        eta: share of fresh noise, in [0, 1].
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"Ancestral: eta must lie in [0, 1], got {self.eta}")

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        clean = denoise(x, sigma)
        fresh = self.eta * sigma_next * (1 - (sigma_next / sigma) ** 2).clamp(min=0).sqrt()
        kept = (sigma_next**2 - fresh**2).clamp(min=0).sqrt()
        x = clean + kept * (x - clean) / sigma
        return x + fresh * normal(rngs, x) if self.eta > 0 else x


@dataclass(frozen=True)
class Churn:
    """Heun's step from a higher level: noise is added until σ̂ = (1 + γ) σ, then the flow followed from there to σ'.

    γ = 0 is `heun`. Two evaluations; Karras et al. 2022, arXiv:2206.00364, algorithm 2.

    Attributes:
        gamma: γ; the paper's S_churn / (number of levels), at most √2 − 1.
        noise: S_noise, standard deviation of what is added relative to what the law of x asks for.
        lowest, highest: S_tmin and S_tmax, the levels between which noise is added, in the unit of x.
    """

    gamma: float = 0.1
    noise: float = 1.0
    lowest: float = 0.0
    highest: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= math.sqrt(2) - 1:
            raise ValueError(f"Churn: gamma must lie in [0, √2 - 1], got {self.gamma}")
        if self.noise < 0 or not 0 <= self.lowest <= self.highest:
            raise ValueError(
                f"Churn: expected noise >= 0 and 0 <= lowest <= highest, got {self.noise}, {self.lowest} and {self.highest}"
            )

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        if self.gamma > 0 and self.lowest <= sigma <= self.highest:
            raised = (1 + self.gamma) * sigma
            x = x + self.noise * (raised**2 - sigma**2).sqrt() * normal(rngs, x)
            sigma = raised
        return heun(denoise, x, sigma, sigma_next, rngs)


class DPMSolver2M:
    """DPM-Solver++(2M): order 2 on the probability flow with one evaluation a step; remembers the last D.

        h = ln(σ / σ'),  r = h_last / h,  D̃ = (1 + 1/2r) D − (1/2r) D_last,  x' = (σ'/σ) x + (1 − σ'/σ) D̃

    The first step and a step to 0 are of order 1 (equal to `euler`). A call at another level than the last one ended at starts
    afresh, so one instance can serve several runs in turn; after a run that was stopped on its way take a new one. Lu et al. 2022,
    arXiv:2211.01095, algorithm 2.
    """

    def __init__(self) -> None:
        self._last: tuple[float, float, Tensor] | None = None

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        clean = extrapolated = denoise(x, sigma)
        s, s_next = float(sigma), float(sigma_next)
        if self._last is not None and s_next > 0 and self._last[1] == s and self._last[2].shape == x.shape:
            s_last, _, clean_last = self._last
            r = math.log(s_last / s) / math.log(s / s_next)
            extrapolated = clean + (clean - clean_last) / (2 * r)
        self._last = (s, s_next, clean) if s_next > 0 else None
        ratio = sigma_next / sigma
        return ratio * x + (1 - ratio) * extrapolated


@dataclass(frozen=True)
class Langevin:
    """Langevin corrector at the level sigma (sigma_next is not looked at): x + ε S + √(2ε) z, ε = 2 (snr ‖z‖ / ‖S‖)².

    Norms are of each member of the batch, unlike in the original, where they are averages over the batch and an image's
    step depends on its mates. Song et al. 2021, arXiv:2011.13456, algorithm 4; in the coordinate of VP the rule is the same
    but for a factor α = 1 − β on ε (algorithm 5).

    As ε depends on x, small steps do not keep p but p / ε, and that is p ‖S‖². In many dimensions ‖S‖ is all but constant; in few, or
    where some are far more certain than others, draws become too wide: of N(0, I) in 4 dimensions the variance was seen 2 to 2.6 times the
    exact one, in 16 1.2 to 1.3 times, and with variances 1 (15 times) and 0.01 (once) that of the last 4 to 13 times. With `steady`, ε = 2 (snr σ)²,
    which is what the rule above gives for pure noise, and small steps keep p.

    Attributes:
        snr: signal-to-noise ratio ‖ε S‖ / ‖√(2ε) z‖ of a step.
        n_steps: number of steps, an evaluation each.
        alpha: σ -> α; for N steps of VP `lambda sigma: 1 - vp.beta(vp.time(sigma)) / N`. By default 1.
        steady: whether ε depends on σ alone.
    """

    snr: float
    n_steps: int = 1
    alpha: Callable[[Tensor], Tensor] | None = None
    steady: bool = False

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        for _ in range(self.n_steps):
            score = (denoise(x, sigma) - x) / sigma**2
            z = normal(rngs, x)
            norm = _norm(score)  # 0 where the denoiser leaves x as it is: then there is nowhere to go
            ratio = sigma if self.steady else torch.where(norm > 0, _norm(z) / torch.where(norm > 0, norm, 1), 0)
            step_size = 2 * (self.snr * ratio) ** 2
            if self.alpha is not None:
                step_size = step_size * self.alpha(sigma).to(x)
            x = x + step_size * score + (2 * step_size).sqrt() * z
        return x


@dataclass(frozen=True)
class PredictorCorrector:
    """The corrector at sigma, then the predictor from sigma to sigma_next, the order of the original code.

    Song et al. 2021, arXiv:2011.13456, algorithm 1.
    """

    predictor: Step
    corrector: Step

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        x = self.corrector(denoise, x, sigma, sigma, rngs)
        return self.predictor(denoise, x, sigma, sigma_next, rngs)


def finished(step: Step) -> Step:
    """The step, but from the last positive level to 0 the denoised estimate: for steps that would keep noise there."""

    def finishing_step(
        denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        return denoise(x, sigma) if sigma_next == 0 else step(denoise, x, sigma, sigma_next, rngs)

    return finishing_step


def constrained(step: Step, constrain: Constraint) -> Step:
    """The step that first applies a constraint at sigma."""

    def constrained_step(
        denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        return step(denoise, constrain(x, sigma, rngs), sigma, sigma_next, rngs)

    return constrained_step


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each member of a batch, shaped to broadcast."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.reshape(-1, *[1] * (x.ndim - 1))
