"""An inverse problem, y = A x + n, and what solves it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from scoreinv.linop import LinearOperator, Operator


@dataclass(frozen=True, eq=False)
class Counts:
    """The photons that transmission data were made from, N ~ Poisson(photons · exp(-A x)).

    Attributes:
        arrived: N, (*batch, *A.out_shape).
        photons: how many arrive without an object, the same number for every datum.

    Raises:
        ValueError: a count is negative or not finite, or photons is not positive and finite.
    """

    arrived: Tensor
    photons: float

    def __post_init__(self) -> None:
        if not 0 < self.photons < math.inf:
            raise ValueError(f"Counts: photons must be positive and finite, got {self.photons}")
        if not torch.isfinite(self.arrived).all() or (self.arrived < 0).any():
            raise ValueError("Counts: photon counts must be finite and not negative")

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Counts:
        """The same photons in another shape, order or place."""
        return Counts(change(self.arrived), self.photons)


@dataclass(frozen=True, eq=False)
class Problem:
    """Data with the operator and the noise that they came from.

    Attributes:
        A: the operator; images in its unit (1/mm for CT). All methods take linear ones, some any that is differentiable.
        y: (*batch, *A.out_shape), real.
        noise_std: standard deviation of y's noise: a number, or a tensor that broadcasts to y (post-log Poisson data);
            0 means noise-free.
        truth: (*batch, *A.in_shape), where known; methods never look at it.
        counts: the photons behind y, where known: methods that need no more than the gradient of the likelihood take the exact one
            (see `scoreinv.misfit`), all others y and noise_std.

    Raises:
        ValueError: A is no operator, or the parts do not fit together.
    """

    A: Operator
    y: Tensor
    noise_std: float | Tensor = 0.0
    truth: Tensor | None = None
    counts: Counts | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.A, Operator):
            raise ValueError(
                f"Problem: A must be a scoreinv.LinearOperator, got {type(self.A).__name__}; "
                "wrap a map that is not linear in scoreinv.Nonlinear, which methods that follow a gradient take"
            )
        for name, value in (("y", self.y), ("truth", self.truth)):
            if not isinstance(value, Tensor | None):
                kind = type(value).__name__
                raise ValueError(
                    f"Problem: {name} must be a torch tensor, got {kind}; torch.as_tensor(...) makes one of arrays and lists"
                )
        if self.y is None:
            raise ValueError("Problem: y, the data, must be a torch tensor, got None")
        if not self.y.is_floating_point():
            raise ValueError(
                f"Problem: y must be real floating-point data, got {self.y.dtype}; "
                "give real and imaginary parts as two data of a real operator"
            )
        if self.y.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"Problem: y must be float32 or float64, got {self.y.dtype}, whose rounding no solver stands: y.float()"
            )
        if self.y.numel() == 0:
            raise ValueError(f"Problem: y has no data, its shape is {tuple(self.y.shape)}")
        n = len(self.A.out_shape)
        if n == 0 or len(self.A.in_shape) == 0:
            raise ValueError(
                f"Problem: {type(self.A).__name__} maps {self.A.in_shape} to {self.A.out_shape}; both need a dimension at least, (1,) for one number"
            )
        if tuple(self.y.shape[self.y.ndim - n :]) != tuple(self.A.out_shape):
            expected = ", ".join(map(str, self.A.out_shape))
            raise ValueError(
                f"Problem: {type(self.A).__name__} gives data (*batch, {expected}), y has shape {tuple(self.y.shape)}"
            )
        if not (finite := torch.isfinite(self.y)).all():
            raise ValueError(
                f"Problem: {int((~finite).sum())} of {self.y.numel()} data are NaN or infinite, the first at "
                f"{tuple((~finite).nonzero()[0].tolist())}; mend them, or give them a large noise_std and any value"
            )
        if not isinstance(self.noise_std, Tensor | numbers.Real):
            raise ValueError(
                f"Problem: noise_std must be a number or a torch tensor, got {type(self.noise_std).__name__}; torch.as_tensor(...) makes one of "
                "arrays and lists"
            )
        std = torch.as_tensor(self.noise_std)
        if std.is_complex() or not torch.isfinite(std).all() or (std < 0).any():
            raise ValueError("Problem: noise_std must be real, finite and not negative")
        sides = zip(reversed(std.shape), reversed(self.y.shape), strict=False)
        if std.ndim > self.y.ndim or any(k not in (1, m) for k, m in sides):
            raise ValueError(f"Problem: noise_std {tuple(std.shape)} does not broadcast to y {tuple(self.y.shape)}")
        images = (*self.batch_shape, *self.A.in_shape)
        if self.truth is not None and tuple(self.truth.shape) != images:
            raise ValueError(f"Problem: truth should have the shape {images}, it has {tuple(self.truth.shape)}")
        if self.counts is not None and self.counts.arrived.shape != self.y.shape:
            got = tuple(self.counts.arrived.shape)
            raise ValueError(f"Problem: counts {got} and y {tuple(self.y.shape)} must have one shape")

    @property
    def linear(self) -> LinearOperator:
        """The operator, for methods that need a linear one.

        Raises:
            ValueError: it is not linear.
        """
        return self.A if isinstance(self.A, LinearOperator) else self.A.H.H

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The batch dimensions of y."""
        return tuple(self.y.shape[: self.y.ndim - len(self.A.out_shape)])

    def to(self, device: str | torch.device) -> Problem:
        """The same problem with its tensors on a device."""
        std = self.noise_std.to(device) if isinstance(self.noise_std, Tensor) else self.noise_std
        truth = None if self.truth is None else self.truth.to(device)
        counts = self.counts and self.counts.mapped(lambda n: n.to(device))
        return Problem(self.A, self.y.to(device), std, truth, counts)

    def flat(self) -> Problem:
        """The same problem with exactly one batch dimension."""

        def merge(t: Tensor, shape: tuple[int, ...]) -> Tensor:
            return t.reshape(-1, *shape)

        std = self.noise_std
        if isinstance(std, Tensor) and std.ndim > 0:
            std = merge(std.expand(self.y.shape), self.A.out_shape)
        truth = None if self.truth is None else merge(self.truth, self.A.in_shape)
        counts = self.counts and self.counts.mapped(lambda n: merge(n, self.A.out_shape))
        return Problem(self.A, merge(self.y, self.A.out_shape), std, truth, counts)

    def repeated(self, n: int) -> Problem:
        """A problem of one batch dimension with its whole batch repeated n times, sample by sample; without the truth."""

        def repeat(t: Tensor) -> Tensor:
            return t.repeat(n, *(1,) * (t.ndim - 1))

        std = self.noise_std
        std = repeat(std.expand(self.y.shape)) if isinstance(std, Tensor) and std.ndim > 0 else std
        counts = self.counts and self.counts.mapped(repeat)
        return Problem(self.A, repeat(self.y), std, None, counts)


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


def simulate(A: Operator, x: Tensor, rng: Generator, *, relative_noise: float = 0.0) -> Problem:
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
        return Problem(A, y.clone(), 0.0, x)  # an operator may return its input
    dims = tuple(range(-len(A.out_shape), 0))
    std = relative_noise * y.abs().mean(dim=dims, keepdim=True)
    noise = torch.randn(y.shape, generator=rng, dtype=torch.float32).to(y)
    return Problem(A, y + std * noise, std if std.numel() > 1 else float(std), x)


def simulate_counts(A: Operator, x: Tensor, rng: Generator, *, photons: float) -> Problem:
    """Transmission CT: N ~ Poisson(photons * exp(-A x)), y = -ln(N / photons), with N = 0 counted as half a photon.

    The noise is given as the standard deviation that post-log data have to first order, 1 / √N, and the problem carries the
    counts.
    """
    if not 0 < photons < math.inf:
        raise ValueError(f"simulate_counts: photons must be positive and finite, got {photons}")
    expected = photons * torch.exp(-A(x).double())
    counts = torch.poisson(expected.cpu(), generator=rng).to(x.device)
    y, std = from_counts(counts, photons)
    return Problem(A, y.to(x), std.to(x), x, Counts(counts.to(x), photons))


def from_counts(counts: Tensor, photons: float) -> tuple[Tensor, Tensor]:
    """Line integrals -ln(N / photons) and their first-order standard deviation 1 / √N; N = 0 counts as half a photon.

    Raises:
        ValueError: a count is negative.
    """
    if (counts < 0).any():
        raise ValueError(f"photon counts must not be negative, got a minimum of {float(counts.min()):g}")
    n = counts.clamp(min=0.5)
    return -(n / photons).log(), n.rsqrt()
