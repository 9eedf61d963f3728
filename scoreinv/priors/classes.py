"""Priors that know classes: p(x) = Σ_c w_c p(x | c), each p(x | c) a prior of its own.

Given the class of x = x₀ + σ n, or not, the means of x₀ are D_c and D; with S_c = (D_c − x) / σ² and S the scores of x,

    class of a noisy image    p(c | x, σ) = w_c p_σ(x | c) / p_σ(x)                                                   (1)
    its gradient              ∇ₓ ln p(c | x, σ) = S_c − S = (D_c − D) / σ²                                            (2)

What samplers make of that: `scoreinv.sampling.guided`. Where every p(x | c) is a Gaussian or a mixture of them, all of it has
a closed form: `ClassMixture`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from scoreinv.priors.checkpoint import card_format
from scoreinv.priors.conditional import FORMAT, Condition, ConditionalDenoiser, Conditioned, check_classes
from scoreinv.priors.denoiser import Denoiser
from scoreinv.priors.mixture import Gaussian, Mixture, check_weights

Class = int | Tensor | None
"""A class for all members of a batch, one for each, (batch,), or none told."""


class ClassConditional(Protocol):
    """A prior that can be told a class, a whole number from 0 to n_classes − 1."""

    @property
    def n_classes(self) -> int:
        """How many there are."""
        ...

    def given(self, c: Class) -> Denoiser:
        """D_c, or D for None; ValueError for a class that there is not."""
        ...


def given(prior: object, c: Class) -> Denoiser:
    """D_c of a prior.

    Raises:
        ValueError: the prior knows no classes, or not this one.
    """
    return class_conditional(prior).given(c)


def class_conditional(prior: object) -> ClassConditional:
    """The prior itself, or ValueError if it knows no classes."""
    if not callable(getattr(prior, "given", None)) or not getattr(prior, "n_classes", 0):
        raise ValueError(
            f"expected a prior that knows classes, got {type(prior).__name__}, which has no given(c) and n_classes; take "
            "priors.classes.ClassPrior around a network that was trained with classes, or a ClassMixture"
        )
    return cast("ClassConditional", prior)


def class_tensor(c: int | Tensor, n_classes: int, name: str) -> Tensor:
    """A class as (1,), or those of a batch, (batch,).

    Raises:
        ValueError: it is no whole number, or lies outside 0 to n_classes - 1.
    """
    if not isinstance(c, Tensor):
        try:
            c = torch.tensor([operator.index(c)])
        except TypeError:
            raise ValueError(f"{name}: a class is a whole number, got {c!r}") from None
    if c.ndim > 1:
        raise ValueError(f"{name}: expected one class, or classes (batch,), got {tuple(c.shape)}")
    c = c.reshape(-1)
    check_classes(c, n_classes, name)
    return c.long()


def of_batch(classes: Tensor, n: int, name: str) -> Tensor:
    """Classes (n,) from one or from as many; ValueError for another number."""
    if len(classes) not in (1, n):
        raise ValueError(f"{name}: a batch of {n} needs 1 class or {n}, got {len(classes)}")
    return classes.expand(n)


@dataclass(frozen=True, eq=False)
class ClassMixture(Mixture):
    """Classes whose laws are Gaussians or mixtures: as a prior the mixture of all, with everything of `Mixture`.

    Attributes:
        weights: w_c, (classes,), positive; they are normalised.
        parts: p(x | c), such as `exact.GaussianPrior` and `exact.GaussianMixturePrior`.
    """

    weights: Tensor
    parts: Sequence[Gaussian]

    def __post_init__(self) -> None:
        check_weights("ClassMixture", self.weights, parts=cast("Tensor", self.parts))

    @property
    def components(self) -> tuple[Gaussian, ...]:
        """The law of each class."""
        return tuple(self.parts)

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.parts)

    def given(self, c: Class) -> Denoiser:
        """D_c, or D for None; raises ValueError for a class that there is not."""
        return self if c is None else _OfClasses(self, class_tensor(c, self.n_classes, "ClassMixture"))

    def classify(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln p(c | x, σ), eq. (1), (batch, classes) in float64; sigma may be 0 where all densities are regular."""
        return torch.log_softmax(self._joint(x, sigma), dim=1)


@dataclass(frozen=True, eq=False)
class _OfClasses:
    """D_c of a mixture with classes (1,) or (batch,)."""

    prior: ClassMixture
    classes: Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if len(self.classes) == 1:
            return self.prior.parts[int(self.classes)](x, sigma)
        which = of_batch(self.classes, len(x), "ClassMixture").to(x.device)
        each = torch.stack([part(x, sigma) for part in self.prior.parts])
        return each[which, torch.arange(len(x), device=x.device)]


@dataclass(frozen=True, eq=False)
class ClassPrior:
    """A network that was trained with classes, as a prior of images (batch, H, W) or (batch, channels, H, W).

    Called, it is D, told no class.

    Attributes:
        model: the network.
        pixel_mm: side of a pixel [mm]; None where it is unknown.
    """

    model: ConditionalDenoiser
    pixel_mm: float | None = None

    def __post_init__(self) -> None:
        if not self.n_classes:
            raise ValueError("ClassPrior: the network was made without classes (ConditionalConfig.n_classes is 0)")

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.given(None)(x, sigma)

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return self.model.config.n_classes

    def given(self, c: Class) -> Denoiser:
        """D_c, or D for None; raises ValueError for a class that there is not."""
        classes = None if c is None else class_tensor(c, self.n_classes, "ClassPrior")
        return Conditioned(self.model, Condition(classes=classes), self.pixel_mm)


def knows_classes(path: Path) -> bool:
    """Whether the card beside a file says that it is of a conditional network."""
    return card_format(path) == FORMAT
