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
            tolerance: largest error of a step, relative to the member's root mean square. The result was seen within 3
                tolerances (of the larger of its root mean squares at both ends), further off near the watershed between
                two components, where the flow itself drives neighbours apart.

        Raises:
            ValueError: the tolerance is not positive, or sigma_next is 0 and a covariance is singular.
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
        size = tolerance * float(np.sqrt(np.mean(first**2)))
        solved = solve_ivp(rate, (float(start[k]), float(stop[k])), first, method="RK45", rtol=tolerance, atol=size)
        if not solved.success:
            raise ArithmeticError(f"flow: {solved.message}; a tolerance of {tolerance:g} cannot be met, raise it")
        out[k] = torch.from_numpy(solved.y[:, -1]).to(device).reshape(shape[1:])
    return out
