"""Denoising score matching: the score of noisy images, learnt from the noise that was added.

x_t = s x₀ + σ z with z ~ N(0, I). Given x₀ the score of x_t is −z / σ, and its mean given x_t is the score of x_t's law:

    one level         ½ ‖S(x_t, σ) + z / σ‖²                                                                         (1)
    many levels       ½ λ(σ_i) ‖S(x_t, σ_i) + z / σ_i‖²,  i uniform, λ = σ²                                           (2)
    continuous time   ½ (λ(t) / q(t)) ‖S(x_t, t) + z / σ(t)‖²,  t ~ q                                                 (3)

(1): Vincent 2011, doi:10.1162/NECO_a_00142; its expectation is that of `score_matching.implicit` on x_t plus d / 2σ².
(2): Song, Ermon 2019, arXiv:1907.05600, eq. 5 and 6. (3): Song et al. 2021, arXiv:2011.13456, eq. 7; divided by q, its
expectation is the integral over time ½ ∫ λ(t) E‖S + z / σ‖² dt, whatever the law q of the times.

Likelihood weighting is λ = g², g the diffusion coefficient of dx = f dt + g dw. With S = ∇ ln p_t for p and the score of
another law q_t that starts from q and follows the same equation,

    KL(p_ε ‖ q_ε) = KL(p_T ‖ q_T) + ½ ∫_ε^T g² E‖S_p − S_q‖² dt                                                      (4)

(Song, Durkan, Murray, Ermon 2021, arXiv:2101.09258, theorem 1 with equality). Its integrand grows like g² / σ² as t → 0,
and times drawn with q ∝ g² / σ² leave (Z / 2) ‖σ S + z‖², Z = ∫ g² / σ² (theirs, appendix). With B(t) = ∫₀ᵗ β:

    VP       σ² = 1 − e^(−B),  g² = β:                  ∫ g² / σ² = ln(e^B − 1)                                       (5)
    sub-VP   σ = 1 − e^(−B),  g² = β (1 − e^(−2B)):     ∫ g² / σ² = 2 ln(e^B − 1) − B                                 (6)
    VE       σ = σ_min (σ_max / σ_min)^t:               g² / σ² is constant, uniform times

Losses are sums over pixels, one number a member; `rngs` holds one stream for each member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.streams import normal

Score = Callable[[Tensor, Tensor], Tensor]
"""(x_t (batch, *image_shape), its noise level σ or time t, (batch,)) -> S, shaped like x_t."""

OfTime = Callable[[Tensor], Tensor]
"""A function of time, (batch,) -> (batch,), in float64."""


def denoising(score: Score, x: Tensor, sigma: Tensor | float, rngs: Sequence[Generator]) -> Tensor:
    """Eq. (1) with s = 1.

    Args:
        score: S(x_t, σ).
        x: clean images, (batch, *image_shape).
        sigma: the noise level, a scalar or (batch,), in the unit of x.
        rngs: one stream a member.

    Returns:
        (batch,).
    """
    level = torch.as_tensor(sigma).to(x.device, torch.float64).expand(len(x))
    return _misfit(score, x, level, torch.ones_like(level), level, rngs) / level.to(x) ** 2


def noise_conditional(score: Score, x: Tensor, sigmas: Tensor, rngs: Sequence[Generator]) -> Tensor:
    """Eq. (2): a level for each member, drawn from all alike.

    Args:
        score: S(x_t, σ).
        x: clean images, (batch, *image_shape).
        sigmas: the levels, (n,), in the unit of x.
        rngs: one stream a member.

    Returns:
        (batch,).
    """
    if sigmas.ndim != 1 or len(sigmas) == 0 or not (sigmas > 0).all():
        raise ValueError(f"noise_conditional: expected positive noise levels (n,), got {sigmas}")
    drawn = torch.tensor([int(torch.randint(len(sigmas), (), generator=g)) for g in rngs])
    level = sigmas.double()[drawn].to(x.device)
    return _misfit(score, x, level, torch.ones_like(level), level, rngs)


def time_continuous(
    score: Score,
    x: Tensor,
    rngs: Sequence[Generator],
    *,
    mean_scale: OfTime,
    std: OfTime,
    weight: OfTime,
    times: Times,
) -> Tensor:
    """Eq. (3): a time for each member.

    Args:
        score: S(x_t, t).
        x: clean images, (batch, *image_shape).
        rngs: one stream a member.
        mean_scale: s(t).
        std: σ(t).
        weight: λ(t); σ² for the noise prediction of DDPM, g² for likelihood weighting.
        times: q.

    Returns:
        (batch,).
    """
    t = times.draw(rngs).to(x.device)
    level = std(t)
    factor = weight(t) / (level**2 * times.density(t))
    return factor.to(x) * _misfit(score, x, t, mean_scale(t), level, rngs)


@dataclass(frozen=True)
class Times:
    """Random times in [first, last] with the density rate(t) / (cumulative(last) − cumulative(first)).

    Attributes:
        cumulative: an antiderivative of rate.
        rate: positive.
        first, last: the ends.
    """

    cumulative: OfTime
    rate: OfTime
    first: float
    last: float

    def __post_init__(self) -> None:
        if not self.first < self.last:
            raise ValueError(f"Times: expected first < last, got {self.first} and {self.last}")
        if not torch.isfinite(self._ends()).all():
            raise ValueError(f"Times: the rate has no finite integral from {self.first} to {self.last}; begin later")

    @property
    def total(self) -> float:
        """Z, the integral of the rate."""
        return float(self._ends().diff())

    def density(self, t: Tensor) -> Tensor:
        """q(t)."""
        return self.rate(t.double()) / self.total

    def draw(self, rngs: Sequence[Generator]) -> Tensor:
        """One time for each stream, (len(rngs),) in float64, by bisection of the cumulative function."""
        u = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in rngs])
        target = self._ends()[0] + u * self.total
        low, high = torch.full_like(u, self.first), torch.full_like(u, self.last)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.cumulative(middle) > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def _ends(self) -> Tensor:
        return self.cumulative(torch.tensor([self.first, self.last], dtype=torch.float64))


def uniform_times(first: float, last: float) -> Times:
    """All times alike; for VE these are the likelihood's too."""
    return Times(lambda t: t, torch.ones_like, first, last)


def vp_likelihood_times(beta: OfTime, integral: OfTime, first: float, last: float) -> Times:
    """q ∝ g² / σ² of the VP process, eq. (5).

    Args:
        beta: β(t).
        integral: B(t) = ∫₀ᵗ β.
        first, last: the ends; first > 0, where the density is infinite.
    """

    def cumulative(t: Tensor) -> Tensor:
        return torch.expm1(integral(t)).log()

    def rate(t: Tensor) -> Tensor:
        return -beta(t) / torch.expm1(-integral(t))

    return Times(cumulative, rate, first, last)


def sub_vp_likelihood_times(beta: OfTime, integral: OfTime, first: float, last: float) -> Times:
    """q ∝ g² / σ² of the sub-VP process, eq. (6); arguments as for `vp_likelihood_times`."""

    def cumulative(t: Tensor) -> Tensor:
        return 2 * torch.expm1(integral(t)).log() - integral(t)

    def rate(t: Tensor) -> Tensor:
        return beta(t) / torch.tanh(integral(t) / 2)

    return Times(cumulative, rate, first, last)


def score_of_denoiser(denoiser: Score) -> Score:
    """S(x, σ) = (D(x, σ) − x) / σ² of a denoiser."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return (denoiser(x, sigma) - x) / column(sigma, x) ** 2

    return score


def column(values: Tensor, x: Tensor) -> Tensor:
    """Numbers (batch,) shaped to broadcast over a batch of images, in its dtype."""
    return values.to(x).reshape(-1, *[1] * (x.ndim - 1))


def _misfit(score: Score, x: Tensor, label: Tensor, scale: Tensor, std: Tensor, rngs: Sequence[Generator]) -> Tensor:
    """½ ‖σ S(s x + σ z, label) + z‖² of every member, (batch,)."""
    z = normal(rngs, x)
    s = score(column(scale, x) * x + column(std, x) * z, label.to(x))
    return (column(std, x) * s + z).square().flatten(1).sum(1) / 2
