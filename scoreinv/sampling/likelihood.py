"""The likelihood of images under a prior, by the probability flow.

On x = x₀ + σ n the flow dx/dσ = (x − D) / σ carries p_σ along, with J = ∂D/∂x and d pixels (Chen et al. 2018,
arXiv:1806.07366, theorem 1; Song et al. 2021, arXiv:2011.13456, eq. 39):

    d ln p_σ(x) / dσ = −(d − tr J) / σ                                                                              (1)

It is solved in τ = ln σ for the scaled image y = (x − m) / n, n² = σ² + σ_d², with m the mean of the images, which is D
under so much noise that nothing else is known (found at σ_max from a draw of noise and its opposite), and σ_d about the standard deviation of a pixel:

    dy/dτ = (x − D) / n − y σ² / n²,      dc/dτ = σ_d² / n² − diag J                                                 (2)

    ln p(x) = Σ_pixels c − ½ y² − ½ ln 2π − ln n(σ_min)     with y, c at σ_max, where p is taken for N(m, n² I)        (3)

For a prior N(m, σ_d² I) neither y nor c moves. tr J is exact or estimated from random projections
(`priors.divergence`); c is one number a pixel, so the share that each pixel has in the likelihood comes with it, and the
solver's error is controlled pixel by pixel. By scipy's pair of orders 5 and 4, each member of a batch on its own.

Images of whole gray values, steps of δ, have probabilities and no density. With u uniform in [−½, ½]^d,

    −ln P(x) ≤ −E ln( 1/K Σ_k p(x + δ u_k) ) − d ln δ                                                               (4)

for every K: uniform dequantisation (Theis et al. 2016, arXiv:1511.01844) at K = 1, and closer for larger K (Burda et al.
2016, arXiv:1509.00519). Bits per dimension are that over d ln 2: they do not depend on the unit of the images, if δ has
it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import RK45
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.priors.divergence import Projection, projections, rademacher, with_diagonal, with_estimate
from scoreinv.priors.losses.ddpm import Chain, Decoder, Reverse, bound
from scoreinv.progress import track
from scoreinv.sampling.discrete import DiscreteVE


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """What is known of the likelihood of a batch of images.

    Attributes:
        shares: (batch, *image_shape) in float64, one number a pixel [nats]; their sum is ln p.
        standard_error: of ln p, from the spread over the projections, (batch,): nan for one projection, 0 for the exact trace.
        n_evaluations: of the prior, for each member; as many times the projections is the number of backward passes.
    """

    shares: Tensor
    standard_error: Tensor
    n_evaluations: tuple[int, ...]

    @property
    def log_density(self) -> Tensor:
        """ln p(x), (batch,): a density in the unit of the images to the power of −d."""
        return self.shares.flatten(1).sum(1)


@dataclass(frozen=True)
class FlowLikelihood:
    """ln p_σ(x) at σ = sigma_min by the flow: the density of the images with so little noise, at the images.

    Attributes:
        prior: D, differentiable in x and without jumps in x and σ.
        sigma_min, sigma_max: where the flow begins and ends, in the prior's own unit.
        data_std: σ_d in that unit; ln p does not depend on it, the number of evaluations does.
        probes: projections an image for the trace; None for the exact one, at as many backward passes as there are pixels.
        draw: their law.
        tolerance: error of a step, in units of n and in nats a pixel.

    Raises:
        ValueError: (at construction) a setting is out of its range, or the prior jumps: it, or one that it wraps, says so
            by the attribute `continuous = False`, or knows only a list of noise levels.
    """

    prior: Denoiser
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    data_std: float = 0.5
    probes: int | None = 1
    draw: Projection = rademacher
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max or not self.data_std > 0:
            raise ValueError(
                "FlowLikelihood: expected 0 < sigma_min < sigma_max and data_std > 0, got "
                f"{self.sigma_min}, {self.sigma_max} and {self.data_std}"
            )
        if self.probes is not None and self.probes < 1:
            raise ValueError(
                f"FlowLikelihood: probes must be 1 or more, or None for the exact trace, got {self.probes}"
            )
        if not 1e-12 < self.tolerance < 1:
            raise ValueError(f"FlowLikelihood: tolerance must lie in (1e-12, 1), got {self.tolerance}")
        if jumping := _jumping(self.prior):
            raise ValueError(
                f"FlowLikelihood: {jumping} jumps from one noise level or call to another, its flow has no likelihood; "
                "a network in discrete time needs interpolated labels, a patch prior a fixed grid"
            )

    def __call__(self, x: Tensor, rngs: Sequence[Generator]) -> LogLikelihood:
        """The likelihood of every image.

        Args:
            x: (batch, *image_shape), in the unit of the prior's images.
            rngs: one stream a member, for the projections.

        Raises:
            ValueError: x is no batch of finite images, the streams are not as many as they, D(x) has no gradient or is
                not finite.
            ArithmeticError: the tolerance cannot be met.
        """
        if x.ndim < 2 or not x.is_floating_point() or not torch.isfinite(x).all():
            raise ValueError(
                f"FlowLikelihood: expected finite floating-point images (batch, *image_shape), got {x.dtype} {tuple(x.shape)}"
                f"{'' if torch.isfinite(x).all() else ' with NaN or infinite pixels'}"
            )
        if len(rngs) != len(x):
            raise ValueError(f"FlowLikelihood: {len(x)} images need as many streams, got {len(rngs)}")
        members = [self._member(x[k : k + 1], rngs[k], f"flow {k + 1} of {len(x)}") for k in range(len(x))]
        shares = torch.cat([m.mean(0, keepdim=True) for m, _ in members])
        totals = [m.flatten(1).sum(1) for m, _ in members]
        spread = [t.std() / len(t) ** 0.5 if len(t) > 1 else t.new_tensor(math.nan) for t in totals]
        if self.probes is None:
            spread = [t.new_zeros(()) for t in totals]
        return LogLikelihood(shares, torch.stack(spread), tuple(n for _, n in members))

    def _member(self, x: Tensor, rng: Generator, what: str) -> tuple[Tensor, int]:
        """The shares of one image (1, *image_shape) by each projection, (projections, *image_shape), and the evaluations."""
        unit = scale_of(self.prior)
        low, high, std = (v * unit for v in (self.sigma_min, self.sigma_max, self.data_std))
        d = x.numel()
        centre = self._mean(x, high)
        v = None if self.probes is None else projections(self.draw, self.probes, [rng], x)

        def rate(tau: float, state: np.ndarray) -> np.ndarray:
            sigma = math.exp(tau)
            n = math.hypot(sigma, std)
            y = torch.from_numpy(state[:d]).to(x.device).reshape(x.shape)
            image = centre + n * y
            clean, diagonal = self._denoised(image.to(x.dtype), sigma, v)
            dy = (image - clean) / n - y * (sigma / n) ** 2
            dc = (std / n) ** 2 - diagonal.double()
            found = torch.cat([dy.flatten(), dc.flatten()]).cpu().numpy()
            if not np.isfinite(found).all():
                raise ValueError(f"FlowLikelihood: D(x, sigma) or its gradient is not finite at sigma = {sigma:g}")
            return np.asarray(found)

        first = math.hypot(low, std)
        y0 = np.asarray(((x.double() - centre) / first).cpu().flatten().numpy())
        state = np.concatenate([y0, np.zeros(d * (self.probes or 1))])
        solver = RK45(rate, math.log(low), state, math.log(high), rtol=self.tolerance, atol=self.tolerance)
        for _ in track(_steps(solver), what):
            pass
        end = torch.from_numpy(solver.y)
        y, c = end[:d], end[d:].reshape(-1, d)
        shares = c - y**2 / 2 - math.log(2 * math.pi) / 2 - math.log(first)
        return shares.reshape(-1, *x.shape[1:]).to(x.device), int(solver.nfev) + 2

    @torch.no_grad()
    def _mean(self, x: Tensor, sigma: float) -> Tensor:
        """m, shaped like one image x: the mean of D at two images of noise of that level, opposite to each other. At an image without
        noise a network that finds out the level by itself (NCSNv2) would take it for another one."""
        noise = torch.randn(x.shape, generator=Generator().manual_seed(0), dtype=torch.float64).to(x)
        middle = float(getattr(self.prior, "shift", 0.0))
        both = [self.prior(middle + sign * sigma * noise, x.new_tensor([sigma])).double() for sign in (1, -1)]
        found = (both[0] + both[1]) / 2
        if not torch.isfinite(found).all():
            raise ValueError(f"FlowLikelihood: D(x, sigma) is not finite at sigma = {sigma:g}")
        return found

    @torch.no_grad()
    def _denoised(self, x: Tensor, sigma: float, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """D(x, σ) of one image, and diag J, (1, *image_shape), or its estimates, (probes, 1, *image_shape)."""
        level = x.new_tensor([sigma])
        field = lambda z: self.prior(z, level)  # noqa: E731
        return with_diagonal(field, x) if v is None else with_estimate(field, x, v)


def _jumping(prior: object) -> str:
    """The kind of prior, itself or wrapped in it, that is not continuous; empty if all are."""
    coordinates = getattr(prior, "coordinates", None)
    discrete = isinstance(coordinates, DiscreteVE) or getattr(coordinates, "labels", None) == "nearest"
    if discrete or not getattr(prior, "continuous", True):
        return type(prior).__name__
    inner = getattr(prior, "denoiser", None)
    return "" if inner is None else _jumping(inner)


def _steps(solver: RK45) -> Iterator[float]:
    """One by one, so that a progress bar can move."""
    while solver.status == "running":
        message = solver.step()
        if solver.status == "failed":
            raise ArithmeticError(f"FlowLikelihood: {message}; raise the tolerance, or the prior jumps")
        yield float(solver.t)


@dataclass(frozen=True)
class Quantisation:
    """Images that take whole steps from one value to another.

    Attributes:
        low, high: the least and largest value.
        step: δ, the distance of two values.
    """

    low: float
    high: float
    step: float

    def __post_init__(self) -> None:
        if not self.low < self.high or not 0 < self.step <= self.high - self.low:
            raise ValueError(
                f"Quantisation: expected low < high and 0 < step <= high - low, got {self.low}, {self.high}, {self.step}"
            )

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless all pixels are among the values, to a hundredth of a step."""
        steps = (x.double() - self.low) / self.step
        top = (self.high - self.low) / self.step
        if not ((steps > -0.01) & (steps < top + 0.01)).all():
            raise ValueError(
                f"Quantisation: expected values in [{self.low:g}, {self.high:g}], got {float(x.min()):g} to "
                f"{float(x.max()):g}; clip the images, or widen the range"
            )
        off = float((steps - steps.round()).abs().max())
        if off > 0.01:
            raise ValueError(
                f"Quantisation: expected whole steps of {self.step:g} from {self.low:g}, a pixel is {off:.2g} steps off; "
                "round the images, or take log_density for images that are real numbers"
            )


@dataclass(frozen=True, eq=False)
class Bits:
    """Bits per dimension, each (batch,): an upper bound on those of the probability, eq. (4).

    Attributes:
        bits: per pixel.
        standard_error: from the projections alone; nan for one, 0 for the exact trace.
        n_evaluations: of the prior, for each member.
        shares: (batch, *image_shape), bits of each pixel; their mean is `bits` where there is one draw of the dequantisation,
            about that where there are more.
    """

    bits: Tensor
    standard_error: Tensor
    n_evaluations: tuple[int, ...]
    shares: Tensor


def bits_per_dimension(log_density: Tensor, pixels: int, step: float) -> Tensor:
    """−(ln p + d ln δ) / (d ln 2), of densities in the unit of δ."""
    return -(log_density / pixels + math.log(step)) / math.log(2)


def dequantised(
    likelihood: Callable[[Tensor, Sequence[Generator]], LogLikelihood],
    x: Tensor,
    rngs: Sequence[Generator],
    quantisation: Quantisation,
    *,
    draws: int = 1,
) -> Bits:
    """Bits per dimension of quantised images, eq. (4).

    Args:
        likelihood: of images that are real numbers, such as `FlowLikelihood`.
        x: (batch, *image_shape).
        rngs: one stream a member.
        quantisation: what values x takes, in its unit.
        draws: K, of the dequantisation; each is a flow of its own. Projections make the logarithm's argument noisy, the bound
            for K > 1 is one with the exact trace only.

    Raises:
        ValueError: x takes other values; or draws is less than 1.
    """
    if draws < 1:
        raise ValueError(f"dequantised: expected one draw or more, got {draws}")
    quantisation.check(x)
    found = [likelihood(x + quantisation.step * (_uniform(rngs, x) - 0.5), rngs) for _ in range(draws)]
    log_density = torch.stack([f.log_density for f in found])
    weights = log_density.softmax(0)
    pixels = x[0].numel()
    mean = torch.logsumexp(log_density, 0) - math.log(draws)
    error = torch.stack([f.standard_error for f in found]).mul(weights).square().sum(0).sqrt() / (pixels * math.log(2))
    shares = torch.stack([f.shares for f in found]).mul(weights.reshape(*weights.shape, *[1] * (x.ndim - 1))).sum(0)
    evaluations = tuple(sum(n) for n in zip(*(f.n_evaluations for f in found), strict=True))
    step = quantisation.step
    return Bits(bits_per_dimension(mean, pixels, step), error, evaluations, -(shares + math.log(step)) / math.log(2))


def _uniform(rngs: Sequence[Generator], like: Tensor) -> Tensor:
    return torch.stack([torch.rand(like.shape[1:], generator=g, dtype=torch.float64) for g in rngs]).to(like)


def chain_bits(reverse: Reverse, x: Tensor, rngs: Sequence[Generator], chain: Chain, decoder: Decoder) -> Tensor:
    """DDPM's variational bound in bits per dimension, (batch,): `priors.losses.ddpm.bound` over d ln 2.

    For a `DiscretisedGaussian` decoder it bounds the bits of gray values, as eq. (4) does; for `gaussian_density` those of a
    density, in the unit of the images. A prior in our coordinate has the chain's step back
    `fixed_variance(noise_of_denoiser(prior, chain), chain)`.
    """
    with torch.no_grad():
        total = bound(reverse, x, rngs, chain, decoder).total
    return total / (x[0].numel() * math.log(2))
