"""Mixtures of Gaussians in terms of their components: dense or stationary, the formulas are the same.

p(x) = Σ_k w_k N(x; μ_k, Σ_k), and on x = x₀ + σ n, with D_k, J_k, S_k the denoiser, Jacobian and score of component k,

    responsibilities  r_k ∝ w_k N(x; μ_k, Σ_k + σ² I)
    denoiser          D = Σ r_k D_k                                                                                (1)
    Jacobian          J = Σ r_k (J_k + (D_k − D)(D_k − D)ᵀ / σ²)                                                   (2)
    score             S = Σ r_k S_k = (D − x) / σ²
    probability flow  dx / d(σ²) = −S / 2                                                                          (3)

The flow has no closed form: it is integrated in σ², where it is regular down to σ = 0, by the pair of orders 5 and 4 of
Dormand & Prince 1980 (doi:10.1016/0771-050X(80)90013-3) with a step of its own for each member of the batch.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor


class Gaussian(Protocol):
    """What a mixture asks of a component."""

    @property
    def mean(self) -> Tensor:
        """(*image_shape)."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_k(x, σ)."""
        ...

    def jvp(self, x: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
        """J_k v."""
        ...

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """S_k."""
        ...

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln N(x; μ_k, Σ_k + σ² I), (batch,)."""
        ...

    def draw(self, n: int, rng: Generator) -> Tensor:
        """(n, *image_shape)."""
        ...


class Mixture(abc.ABC):
    """Σ_k w_k N(μ_k, Σ_k) with K components; x is (batch, *image_shape), sigma a scalar or (batch,)."""

    weights: Tensor

    @property
    @abc.abstractmethod
    def components(self) -> tuple[Gaussian, ...]:
        """The K Gaussians."""

    @property
    def mean(self) -> Tensor:
        """Σ w_k μ_k."""
        means = torch.stack([c.mean.double() for c in self.components], dim=-1)
        return (means * self._log_weights.exp()).sum(-1).to(self.components[0].mean)

    def responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """P(component | x = x₀ + σ n), (batch, K) in float64."""
        return torch.softmax(self._joint(x, sigma), dim=1)

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln of the density of x = x₀ + σ n, (batch,) in float64."""
        return torch.logsumexp(self._joint(x, sigma), dim=1)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | x = x₀ + σ n] for sigma > 0: eq. (1)."""
        return self._average([c(x, sigma) for c in self.components], x, sigma)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """∇ ln p(x); sigma may be 0 where all covariances are regular."""
        return self._average([c.score(x, sigma) for c in self.components], x, sigma)

    def jvp(self, x: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
        """J v for sigma > 0, and Jᵀ v, which is the same: eq. (2)."""
        variance = torch.as_tensor(sigma).to(x.device, torch.float64).reshape(-1, *[1] * (x.ndim - 1)) ** 2
        clean = self(x.double(), sigma)
        parts = []
        for c in self.components:
            off = c(x.double(), sigma) - clean
            along = (off * v).flatten(1).sum(1).reshape(-1, *[1] * (x.ndim - 1))
            parts.append(c.jvp(x, sigma, v.double()) + off * along / variance)
        return self._average(parts, x, sigma)

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, *, tolerance: float = 1e-9) -> Tensor:
        """Where the probability flow (3) takes x from sigma to sigma_next (0 where all covariances are regular).

        Args:
            tolerance: largest error of a step, relative to the member's root mean square. The result was seen within 3
                tolerances (of the larger of its root mean squares at both ends), further off near the watershed between
                two components, where the flow itself drives neighbours apart.

        Raises:
            ValueError: sigma_next is 0 and a covariance is singular.
            ArithmeticError: the tolerance is below rounding.
        """
        start, stop = (torch.as_tensor(s).to(x.device, torch.float64).expand(len(x)) ** 2 for s in (sigma, sigma_next))
        return integrate(lambda x, t: -self.score(x, t.sqrt()) / 2, x, start, stop, tolerance).to(x.dtype)

    def draw(self, n: int, rng: Generator) -> Tensor:
        """n independent images, (n, *image_shape)."""
        which = torch.multinomial(self.weights.double(), n, replacement=True, generator=rng)
        mean = self.components[0].mean
        x = torch.empty(n, *mean.shape, dtype=mean.dtype)
        for k, component in enumerate(self.components):
            x[which == k] = component.draw(int((which == k).sum()), rng)
        return x

    @property
    def _log_weights(self) -> Tensor:
        return torch.log_softmax(self.weights.double().log(), dim=0)

    def _joint(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln w_k N(x; μ_k, Σ_k + σ² I), (batch, K)."""
        log_density = torch.stack([c.log_density(x, sigma) for c in self.components], dim=1)
        return self._log_weights.to(log_density) + log_density

    def _average(self, parts: list[Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        """Σ r_k parts_k in x's dtype."""
        r = self.responsibilities(x, sigma).reshape(len(x), *[1] * (x.ndim - 1), -1)
        return (torch.stack([p.double() for p in parts], dim=-1) * r).sum(-1).to(x.dtype)


def check_weights(name: str, weights: Tensor, **parts: Tensor) -> None:
    """Raise ValueError unless there is one positive weight and one of each part for every component."""
    k = len(weights)
    if k == 0 or not (weights > 0).all() or any(len(p) != k for p in parts.values()):
        got = " and ".join(f"{len(p)} {what}" for what, p in parts.items())
        raise ValueError(
            f"{name}: expected one positive weight, and one each of {' and '.join(parts)}, a component; "
            f"got weights {weights.tolist()}, {got}"
        )


_NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@torch.no_grad()
def integrate(
    slope: Callable[[Tensor, Tensor], Tensor], x: Tensor, start: Tensor, stop: Tensor, tolerance: float
) -> Tensor:
    """Solve dx/dt = slope(x, t) from start to stop, both (batch,), in float64; every member has steps of its own."""
    x, t = x.double().clone(), start.clone()
    step = (stop - start) * 1e-3
    while len(active := (t != stop).nonzero().flatten()):
        h, left = step[active], (stop - t)[active]
        last = h.abs() >= left.abs()
        h = torch.where(last, left, h)
        new, error = _step(slope, x[active], t[active], h)
        if not torch.isfinite(new).all():
            raise ValueError(
                "flow: the score is not finite on the way; to reach sigma = 0 every covariance must be regular, "
                "else stop at a small positive sigma_next"
            )
        if (~last & (h.abs() <= 1e-15 * torch.maximum(t, stop)[active])).any():
            raise ArithmeticError(f"flow: a tolerance of {tolerance:g} cannot be met in float64; raise it")
        ratio = _size(error) / (tolerance * torch.maximum(_size(x[active]), _size(new))).clamp(min=1e-300)
        good = ratio <= 1
        x[active[good]] = new[good]
        t[active[good]] = torch.where(last, stop[active], t[active] + h)[good]
        step[active] = h * (0.9 * ratio.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
    return x


def _step(slope: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One step of each member, and the estimate of its error."""
    wide = h.reshape(-1, *[1] * (x.ndim - 1))
    slopes: list[Tensor] = []
    point = x
    for node, row in zip(_NODES, _STAGES, strict=True):
        point = x + wide * sum((a * k for a, k in zip(row, slopes, strict=True)), torch.zeros_like(x))
        slopes.append(slope(point, t + node * h))
    return point, wide * sum((e * k for e, k in zip(_ERROR, slopes, strict=True)), torch.zeros_like(x))


def _size(x: Tensor) -> Tensor:
    """Root mean square of every member."""
    return x.flatten(1).square().mean(1).sqrt()
