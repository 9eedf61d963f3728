"""An inverse problem, y = A x + n, and what solves it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from scoreinv.linop import LinearOperator


@dataclass(frozen=True, eq=False)
class Problem:
    """Data with the operator and the noise that they came from.

    Attributes:
        A: the operator; images in its unit (1/mm for CT).
        y: (*batch, *A.out_shape).
        noise_std: standard deviation of y's noise: a number, or a tensor that broadcasts to y (post-log Poisson data);
            0 means noise-free.
        truth: (*batch, *A.in_shape), where known; methods never look at it.
    """

    A: LinearOperator
    y: Tensor
    noise_std: float | Tensor = 0.0
    truth: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.A.out_shape)
        if tuple(self.y.shape[self.y.ndim - n :]) != self.A.out_shape:
            expected = ", ".join(map(str, self.A.out_shape))
            raise ValueError(
                f"Problem: {type(self.A).__name__} gives data (*batch, {expected}), y has shape {tuple(self.y.shape)}"
            )
        std = torch.as_tensor(self.noise_std)
        if not torch.isfinite(std).all() or (std < 0).any():
            raise ValueError("Problem: noise_std must be finite and not negative")
        sides = zip(reversed(std.shape), reversed(self.y.shape), strict=False)
        if std.ndim > self.y.ndim or any(k not in (1, m) for k, m in sides):
            raise ValueError(f"Problem: noise_std {tuple(std.shape)} does not broadcast to y {tuple(self.y.shape)}")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The batch dimensions of y."""
        return tuple(self.y.shape[: self.y.ndim - len(self.A.out_shape)])

    def flat(self) -> Problem:
        """The same problem with exactly one batch dimension."""

        def merge(t: Tensor, shape: tuple[int, ...]) -> Tensor:
            return t.reshape(-1, *shape)

        std = self.noise_std
        if isinstance(std, Tensor) and std.ndim > 0:
            std = merge(std.expand(self.y.shape), self.A.out_shape)
        truth = None if self.truth is None else merge(self.truth, self.A.in_shape)
        return Problem(self.A, merge(self.y, self.A.out_shape), std, truth)

    def repeated(self, n: int) -> Problem:
        """A problem of one batch dimension with its whole batch repeated n times, sample by sample; without the truth."""

        def repeat(t: Tensor) -> Tensor:
            return t.repeat(n, *(1,) * (t.ndim - 1))

        std = self.noise_std
        return Problem(self.A, repeat(self.y), repeat(std) if isinstance(std, Tensor) and std.ndim > 0 else std)


class Method(Protocol):
    """Anything that solves problems: FBP, FISTA-TV and every diffusion sampler have this one type."""

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct.

        Args:
            problem: what to solve; `problem.truth` is not looked at.
            rng: source of all randomness.

        Returns:
            (samples, *batch, *A.in_shape): draws from the posterior, or one image with samples = 1.
        """
        ...


def simulate(A: LinearOperator, x: Tensor, rng: Generator, *, relative_noise: float = 0.0) -> Problem:
    """y = A x + n with Gaussian noise of standard deviation relative_noise * mean |A x| (of each image on its own).

    Args:
        A: the operator.
        x: (*batch, *A.in_shape), kept as the problem's truth.
        rng: source of the noise.
        relative_noise: 0.005 is the half per cent usual for CT; 0 gives noise-free data.
    """
    if not 0 <= relative_noise < math.inf:
        raise ValueError(f"simulate: relative_noise must be finite and not negative, got {relative_noise}")
    y = A(x)
    if relative_noise == 0:
        return Problem(A, y, 0.0, x)
    dims = tuple(range(-len(A.out_shape), 0))
    std = relative_noise * y.abs().mean(dim=dims, keepdim=True)
    noise = torch.randn(y.shape, generator=rng, dtype=torch.float32).to(y)
    return Problem(A, y + std * noise, std if std.numel() > 1 else float(std), x)


def simulate_counts(A: LinearOperator, x: Tensor, rng: Generator, *, photons: float) -> Problem:
    """Transmission CT: N ~ Poisson(photons * exp(-A x)), y = -ln(N / photons), with N = 0 counted as half a photon.

    The noise is given as the standard deviation that post-log data have to first order, 1 / √N.
    """
    if not 0 < photons < math.inf:
        raise ValueError(f"simulate_counts: photons must be positive and finite, got {photons}")
    expected = photons * torch.exp(-A(x).double())
    counts = torch.poisson(expected.cpu(), generator=rng).to(x.device)
    y, std = from_counts(counts, photons)
    return Problem(A, y.to(x), std.to(x), x)


def from_counts(counts: Tensor, photons: float) -> tuple[Tensor, Tensor]:
    """Line integrals -ln(N / photons) and their first-order standard deviation 1 / √N; N = 0 counts as half a photon.

    Raises:
        ValueError: a count is negative.
    """
    if (counts < 0).any():
        raise ValueError(f"photon counts must not be negative, got a minimum of {float(counts.min()):g}")
    n = counts.clamp(min=0.5)
    return -(n / photons).log(), n.rsqrt()
