"""Mixtures of Gaussians in terms of their components: dense or stationary, the formulas are the same.

p(x) = Σ_k w_k N(x; μ_k, Σ_k), and on x = x₀ + σ n, with D_k, J_k, S_k the denoiser, Jacobian and score of component k,

    responsibilities  r_k ∝ w_k N(x; μ_k, Σ_k + σ² I)
    denoiser          D = Σ r_k D_k                                                                                (1)
    Jacobian          J = Σ r_k (J_k + (D_k − D)(D_k − D)ᵀ / σ²)                                                   (2)
    score             S = Σ r_k S_k = (D − x) / σ²
    probability flow  dx / d(σ²) = −S / 2                                                                          (3)

The flow has no closed form: it is integrated in σ², where it is regular down to σ = 0, by scipy's pair of orders 5
and 4 (Dormand & Prince 1980, doi:10.1016/0771-050X(80)90013-3), each member of the batch on its own.
"""

from __future__ import annotations

import abc
import numbers
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from scipy.integrate import solve_ivp
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
            tolerance: largest error of a step, relative to the member's root mean square (that of a blank image counts as
                1e-3 √|σ² − σ'²|). The result was seen within 3 tolerances (of the larger of its root mean squares at both ends), further off near the watershed between
                two components, where the flow itself drives neighbours apart.

        Raises:
            ValueError: the tolerance is not positive, or sigma_next is 0 and a covariance is singular.
        """
        start, stop = (torch.as_tensor(s).to(x.device, torch.float64).expand(len(x)) ** 2 for s in (sigma, sigma_next))
        return integrate(lambda x, t: -self.score(x, t.sqrt()) / 2, x, start, stop, tolerance).to(x.dtype)

    def draw(self, n: int, rng: Generator) -> Tensor:
        """n independent images, (n, *image_shape)."""
        check_draws(n, rng)
        which = torch.multinomial(self.weights.double(), n, replacement=True, generator=rng)
        mean = self.components[0].mean
        x = torch.empty(n, *mean.shape, dtype=mean.dtype)
        for k, component in enumerate(self.components):
            if count := int((which == k).sum()):
                x[which == k] = component.draw(count, rng)
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
    """Raise ValueError unless there is one positive weight and one of each part for every component, all of them finite numbers."""
    check_numbers(name, weights=weights, **{what: p for what, p in parts.items() if isinstance(p, Tensor)})
    k = len(weights)
    if k == 0 or not (weights > 0).all() or any(len(p) != k for p in parts.values()):
        got = " and ".join(f"{len(p)} {what}" for what, p in parts.items())
        raise ValueError(
            f"{name}: expected one positive weight, and one each of {' and '.join(parts)}, a component; "
            f"got weights {weights.tolist()}, {got}"
        )


def check_numbers(name: str, **parts: Tensor) -> None:
    """Raise ValueError unless all parts are real floating-point tensors without NaN and infinities."""
    for what, part in parts.items():
        if not part.is_floating_point():
            raise ValueError(f"{name}: {what} must be real floating-point numbers, got {part.dtype}")
        if not torch.isfinite(part).all():
            raise ValueError(f"{name}: {what} holds NaN or infinity")


def check_draws(n: int, rng: Generator) -> None:
    """Raise ValueError unless n draws can be made, from a generator."""
    if not isinstance(n, numbers.Integral) or isinstance(n, bool) or n < 1:
        raise ValueError(f"draw: expected a whole number of at least 1, got {n!r}")
    if not isinstance(rng, Generator):
        raise ValueError(f"draw: expected a torch.Generator, got {type(rng).__name__}")


def variance_of(sigma: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    """σ² in float64 on x's device, for a scalar or (batch,), shaped to broadcast to x (batch, *image_shape).

    Raises:
        ValueError: x is no batch of images shaped like the mean, or has not as many members as there are levels.
    """
    level = torch.as_tensor(sigma).to(x.device, torch.float64).reshape(-1, *[1] * (x.ndim - 1))
    if x.ndim != mean.ndim + 1 or x.shape[1:] != mean.shape or len(level) not in (1, len(x)):
        raise ValueError(
            f"expected images (batch, {', '.join(map(str, mean.shape))}) and one sigma, or one for each; got {tuple(x.shape)} and "
            f"{tuple(torch.as_tensor(sigma).shape)}"
        )
    return level**2


def flow_factor(spread: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """√((λ + σ'²) / (λ + σ²)), by which the probability flow scales a direction in which the images have the variance λ.

    Raises:
        ValueError: the flow leaves σ = 0 in a direction without variance, where it comes from infinity.
    """
    if ((spread + before == 0) & (after > 0)).any():
        raise ValueError(
            "flow: the covariance is singular, so that no flow leaves sigma = 0; start at a small positive one"
        )
    return torch.where(spread + before == 0, 1, (spread + after) / (spread + before)).sqrt()


def gain(spread: Tensor, variance: Tensor) -> Tensor:
    """λ / (λ + σ²), the factor of a Gaussian's denoiser; 0 for 0 / 0."""
    return torch.where(spread + variance == 0, 0, spread / (spread + variance))


@torch.no_grad()
def integrate(
    slope: Callable[[Tensor, Tensor], Tensor], x: Tensor, start: Tensor, stop: Tensor, tolerance: float
) -> Tensor:
    """Solve dx/dt = slope(x, t) from start to stop, both (batch,), in float64; every member on its own, by scipy's RK45."""
    if not tolerance > 0:
        raise ValueError(f"flow: tolerance must be positive, got {tolerance}")
    tolerance = max(tolerance, 100 * torch.finfo(torch.float64).eps)  # what rounding allows
    out = x.double().clone()
    for k in (start != stop).nonzero().flatten().tolist():
        shape, device = out[k : k + 1].shape, out.device

        def rate(t: float, flat: np.ndarray, shape: torch.Size = shape, device: torch.device = device) -> np.ndarray:
            point = torch.from_numpy(flat).to(device).reshape(shape)
            found = slope(point, torch.tensor([t], dtype=torch.float64, device=device))
            if not torch.isfinite(found).all():
                raise ValueError(
                    "flow: the score is not finite on the way; to reach sigma = 0 every covariance must be regular, "
                    "else stop at a small positive sigma_next"
                )
            return np.asarray(found.cpu().numpy()).ravel()

        first = out[k].cpu().numpy().ravel()
        # The root mean square of x, but of blank images some of the size that the flow ends at or comes from.
        size = max(float(np.sqrt(np.mean(first**2))), 1e-3 * abs(float(stop[k] - start[k])) ** 0.5)
        solved = solve_ivp(
            rate, (float(start[k]), float(stop[k])), first, method="RK45", rtol=tolerance, atol=tolerance * size
        )
        if not solved.success:
            raise ArithmeticError(f"flow: {solved.message}; a tolerance of {tolerance:g} cannot be met, raise it")
        out[k] = torch.from_numpy(solved.y[:, -1]).to(device).reshape(shape[1:])
    return out
