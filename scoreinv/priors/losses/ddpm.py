"""The losses of DDPM, a chain of T steps of noise with the kept shares ᾱ_1 > … > ᾱ_T of the signal's power.

x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) z,  α_t = ᾱ_t / ᾱ_{t−1},  β_t = 1 − α_t,  ᾱ_0 = 1. The step back, given x₀ and in the model:

    q(x_{t−1} | x_t, x₀)   N(μ̃, β̃),  μ̃ = (√ᾱ_{t−1} β_t x₀ + √α_t (1 − ᾱ_{t−1}) x_t) / (1 − ᾱ_t),
                           β̃_t = β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t)                                                       (1)
    p(x_{t−1} | x_t)       N(μ, Σ),  μ = (x_t − β_t ε(x_t, t) / √(1 − ᾱ_t)) / √α_t,                                  (2)
                           Σ = β_t or β̃_t, or learnt: ln Σ = v ln β_t + (1 − v) ln β̃_t                               (3)
    L_simple               ‖ε(x_t, t) − z‖²,  t uniform in 1 … T                                                      (4)
    bound                  −ln p(x₀) ≤ L_T + Σ_{t=2}^T L_{t−1} + L_0,  L_T = KL(q(x_T | x₀) ‖ N(0, I)),
                           L_{t−1} = KL(q(x_{t−1} | x_t, x₀) ‖ p(x_{t−1} | x_t)),  L_0 = −ln p(x₀ | x_1)              (5)
    L_hybrid               L_simple + 0.001 L_vlb, where L_vlb trains Σ alone: no gradient goes through μ             (6)

(1), (2), (4), (5): Ho, Jain, Abbeel 2020, arXiv:2006.11239, eqs. 7, 11, 14, 5. (3), (6): Nichol, Dhariwal 2021,
arXiv:2102.09672, eqs. 15 and 16. β̃_1 is 0; where Σ of the first step is asked for, β̃_2 stands for it, as in the code of both.

L_0 of images with gray values takes the model's probability of the value, a Gaussian integrated over a bin whose ends at
the first and last value are infinite (Ho et al., eq. 13); `gaussian_density` is for images that are real numbers.

All losses are sums over pixels in nats, one number a member (published code averages over pixels and has L_vlb in bits: the
weight in (6) that does the same here is 0.001 / ln 2). Times count from 1: a network that counts from 0 is called with t − 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from scoreinv.priors.losses.denoising import Score, column
from scoreinv.streams import normal

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t (batch, *image_shape), t (batch,) whole numbers from 1) -> the noise estimate ε, shaped like x_t."""

VarianceNetwork = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The same -> (ε, v), both shaped like x_t."""

Reverse = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The same -> mean and logarithm of the variance of p(x_{t−1} | x_t), both broadcast to x_t."""

Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x₀, mean, logarithm of the variance) -> ln p(x₀ | x_1) of every pixel, shaped like x₀."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The forward chain; t (batch,) are whole numbers from 1 to T.

    Attributes:
        alphas_cumprod: ᾱ_1 … ᾱ_T, (T,), decreasing within (0, 1).
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if a.ndim != 1 or len(a) == 0 or not (a.diff() < 0).all() or not a[0] < 1 or not a[-1] > 0:
            raise ValueError(f"Chain: expected alphas_cumprod (T,) that decrease within (0, 1), got {a}")

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def noisy(self, x0: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) z."""
        kept, _ = self._kept(t)
        return column(kept.sqrt(), x0) * x0 + column((1 - kept).sqrt(), x0) * z

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """μ̃ of eq. (1)."""
        kept, before = self._kept(t)
        alpha = kept / before
        of_x0 = before.sqrt() * (1 - alpha) / (1 - kept)
        of_xt = alpha.sqrt() * (1 - before) / (1 - kept)
        return column(of_x0, x0) * x0 + column(of_xt, x_t) * x_t

    def model_mean(self, x_t: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """μ of eq. (2)."""
        kept, before = self._kept(t)
        alpha = kept / before
        return (x_t - column((1 - alpha) / (1 - kept).sqrt(), x_t) * noise) / column(alpha.sqrt(), x_t)

    def log_variances(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """ln β_t and ln β̃_t, (batch,) in float64."""
        beta, posterior = (table.to(t.device)[t - 1] for table in self._log_variances)
        return beta, posterior

    def draw_times(self, rngs: Sequence[Generator]) -> Tensor:
        """A uniform time for each stream, (len(rngs),)."""
        return torch.tensor([int(torch.randint(1, len(self) + 1, (), generator=g)) for g in rngs])

    def _kept(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """ᾱ_t and ᾱ_{t−1} in float64."""
        table = torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod]).to(t.device, torch.float64)
        return table[t], table[t - 1]

    @functools.cached_property
    def _log_variances(self) -> tuple[Tensor, Tensor]:
        kept, before = self._kept(torch.arange(1, len(self) + 1))
        beta = 1 - kept / before
        posterior = beta * (1 - before) / (1 - kept)
        posterior[0] = posterior[1] if len(self) > 1 else beta[0]
        return beta.log(), posterior.log()


def fixed_variance(network: Network, chain: Chain, variance: Literal["beta", "posterior"] = "beta") -> Reverse:
    """The step back with Σ = β_t (right for x₀ ~ N(0, I)) or β̃_t (right for one image)."""
    if variance not in ("beta", "posterior"):
        raise ValueError(f"fixed_variance: variance is 'beta' or 'posterior', got {variance!r}")

    def reverse(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_variance = chain.log_variances(t)[0 if variance == "beta" else 1]
        return chain.model_mean(x_t, network(x_t, t), t), column(log_variance, x_t)

    return reverse


def learned_variance(network: VarianceNetwork, chain: Chain) -> Reverse:
    """The step back with Σ between β̃_t and β_t, eq. (3); v need not lie in [0, 1]."""

    def reverse(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        noise, v = network(x_t, t)
        return chain.model_mean(x_t, noise, t), _between(chain, v, t)

    return reverse


def noise_of_denoiser(denoiser: Score, chain: Chain) -> Network:
    """ε(x_t, t) of a denoiser D(x, σ) of x = x₀ + σ n: with x = x_t / √ᾱ_t and σ = √(1/ᾱ_t − 1), ε = (x − D) / σ."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        kept, _ = chain._kept(t)
        x, sigma = x_t / column(kept.sqrt(), x_t), (1 / kept - 1).sqrt().to(x_t)
        return (x - denoiser(x, sigma)) / column(sigma, x)

    return network


def simple(network: Network, x: Tensor, rngs: Sequence[Generator], chain: Chain) -> Tensor:
    """L_simple, eq. (4), of clean images x (batch, *image_shape) -> (batch,); a time for each member."""
    t, z = chain.draw_times(rngs).to(x.device), normal(rngs, x)
    return _sum((network(chain.noisy(x, t, z), t) - z) ** 2)


def hybrid(
    network: VarianceNetwork,
    x: Tensor,
    rngs: Sequence[Generator],
    chain: Chain,
    decoder: Decoder,
    *,
    weight: float = 0.001,
) -> Tensor:
    """L_hybrid, eq. (6): L_simple and, times the weight, T of the bound's terms at the same time.

    Args:
        network: (ε, v).
        x: clean images, (batch, *image_shape).
        rngs: one stream a member.
        chain: the forward chain.
        decoder: of L_0.
        weight: of L_vlb.

    Returns:
        (batch,).
    """
    t, z = chain.draw_times(rngs).to(x.device), normal(rngs, x)
    x_t = chain.noisy(x, t, z)
    noise, v = network(x_t, t)
    mean = chain.model_mean(x_t, noise.detach(), t)
    term = _term(x, x_t, t, mean, _between(chain, v, t), chain, decoder)
    return _sum((noise - z) ** 2) + weight * len(chain) * term


def random_term(reverse: Reverse, x: Tensor, rngs: Sequence[Generator], chain: Chain, decoder: Decoder) -> Tensor:
    """T times one of L_0 … L_{T−1}, drawn for each member alike: unbiased for their sum, L_vlb. Arguments as for `bound`."""
    t, z = chain.draw_times(rngs).to(x.device), normal(rngs, x)
    x_t = chain.noisy(x, t, z)
    return len(chain) * _term(x, x_t, t, *reverse(x_t, t), chain, decoder)


@dataclass(frozen=True, eq=False)
class Bound:
    """The terms of eq. (5) [nats].

    Attributes:
        prior: L_T, (batch,).
        steps: L_1 … L_{T−1}, (T − 1, batch), each from one draw of x_t.
        decoder: L_0, (batch,).
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on −ln p(x₀), (batch,)."""
        return self.prior + self.steps.sum(0) + self.decoder


def bound(reverse: Reverse, x: Tensor, rngs: Sequence[Generator], chain: Chain, decoder: Decoder) -> Bound:
    """The whole variational bound, eq. (5), with T evaluations of the network.

    Args:
        reverse: the step back, of `fixed_variance` or `learned_variance`.
        x: clean images, (batch, *image_shape).
        rngs: one stream a member.
        chain: the forward chain.
        decoder: of L_0: a `DiscretisedGaussian`, or `gaussian_density`.
    """
    terms = []
    for k in range(1, len(chain) + 1):
        t = torch.full((len(x),), k, device=x.device)
        x_t = chain.noisy(x, t, normal(rngs, x))
        terms.append(_term(x, x_t, t, *reverse(x_t, t), chain, decoder))
    kept = float(chain.alphas_cumprod[-1])
    prior = _sum(kept * x**2 - kept - math.log1p(-kept)) / 2
    return Bound(prior, torch.stack(terms[1:]) if len(terms) > 1 else x.new_zeros(0, len(x)), terms[0])


def gaussian_density(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """ln N(x; mean, variance) of every pixel."""
    log_density: Tensor = -((x - mean) ** 2 / log_variance.exp() + log_variance + math.log(2 * math.pi)) / 2
    return log_density


@dataclass(frozen=True)
class DiscretisedGaussian:
    """ln of a Gaussian's probability of one of n gray values, evenly spaced from low to high.

    The bins of the first and the last value reach to infinity, so that the probabilities add up to 1 (Ho et al. 2020,
    eq. 13). Exact to rounding in the far tails, where the difference of two values of Φ is 0.

    Attributes:
        low, high: the first and the last value; −1 and 1 for DDPM.
        n_values: their number.
    """

    low: float = -1.0
    high: float = 1.0
    n_values: int = 256

    def __post_init__(self) -> None:
        if not self.low < self.high or self.n_values < 2:
            raise ValueError(
                f"DiscretisedGaussian: expected low < high and n_values >= 2, got {self.low}, {self.high}, {self.n_values}"
            )

    @property
    def step(self) -> float:
        """Distance of two values."""
        return (self.high - self.low) / (self.n_values - 1)

    def __call__(self, x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """ln P(x) of every pixel, in x's dtype.

        Raises:
            ValueError: x lies outside the values.
        """
        half, slack = self.step / 2, 1e-3 * self.step
        if not ((x >= self.low - slack) & (x <= self.high + slack)).all():
            raise ValueError(
                f"DiscretisedGaussian: expected values in [{self.low:g}, {self.high:g}], got {float(x.min()):g} to "
                f"{float(x.max()):g}; scale the images, or widen the range"
            )
        off, std = (x - mean).double(), (log_variance.double() / 2).exp()
        up, down = (off + half) / std, (off - half) / std
        first, last = x < self.low + half, x > self.high - half
        # ln(Φ(up) − Φ(down)) in the left tail, where both are small: mirrored if off > 0
        upper, lower = torch.where(off > 0, -down, up), torch.where(off > 0, -up, down)
        log_upper = torch.special.log_ndtr(upper)
        inside = log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))
        ends = torch.where(first, torch.special.log_ndtr(up), torch.special.log_ndtr(-down))
        return torch.where(first | last, ends, inside).to(x.dtype)


def _term(
    x: Tensor, x_t: Tensor, t: Tensor, mean: Tensor, log_variance: Tensor, chain: Chain, decoder: Decoder
) -> Tensor:
    """L_{t−1} of every member, (batch,): L_0 where t = 1, else the divergence of two Gaussians."""
    true_mean, true_log = chain.posterior_mean(x, x_t, t), column(chain.log_variances(t)[1], x)
    gap = true_log - log_variance
    divergence = (gap.exp() - 1 - gap + (true_mean - mean) ** 2 / log_variance.exp()) / 2
    out, first = _sum(divergence), t == 1
    if not first.any():
        return out
    decoded = -_sum(decoder(*(v.expand_as(x)[first] for v in (x, mean, log_variance))))
    return out.masked_scatter(first, decoded.to(out))


def _between(chain: Chain, v: Tensor, t: Tensor) -> Tensor:
    """ln Σ of eq. (3)."""
    beta, posterior = (column(table, v) for table in chain.log_variances(t))
    return v * beta + (1 - v) * posterior


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)
