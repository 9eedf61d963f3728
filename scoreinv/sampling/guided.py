"""Samples of a class, from a prior without classes and a classifier, or from one network with and without the class.

On x = x₀ + σ n, with D_c and D the mean of x₀ given the class c and without it (`priors.classes`),

    D_c = D + σ² ∇ₓ ln p(c | x, σ)                                                                                    (1)

Classifier guidance (Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv:2105.05233) takes s times
the gradient of a classifier, towards p(x) p(c | x)^s at every level:

    algorithm 1   x' = D + (σ'² / σ²) (x − D) + s r c² ∇ₓ ln p(c | x, σ) + c z,    r = √((1 + σ²) / (1 + σ'²))         (2)
    algorithm 2   x' = D̃ + (σ' / σ) (x − D̃),    D̃ = D + s σ² ∇ₓ ln p(c | x, σ)                                      (3)

(2) is DDPM's step with the mean moved by Σ times the gradient in their coordinate x_t = √ᾱ x: Σ there is ᾱ' c² and the
gradient ∇ₓ / √ᾱ, whence r = √(ᾱ' / ᾱ). c² is one of `sampling.ddpm`. As steps get short all of them are those of D̃; at s = 1
a step of the large variance moves the mean by 1 / r times what (1) does. (3) is DDIM with ε̂ = ε − σ s ∇ₓ ln p(c | x, σ),
which is `steps.euler` of the denoiser `ClassifierGuided`; with it every other step of this room is guided too.

Classifier-free guidance (Ho, Salimans 2022, arXiv:2207.12598) needs no classifier:

    D_w = D + w (D_c − D),    a score of S + w (S_c − S), as if s = w                                                 (4)

w = 0 is the prior, w = 1 the class, larger w exaggerates it; their w is ours minus 1.

p(x) p(c | x, σ)^s is normalised at every level on its own: but for s of 0 and 1 these are not the laws of one process, and
what comes out is no draw from the tilted law at σ = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor

from scoreinv.priors.classes import Class, class_conditional, class_tensor, of_batch
from scoreinv.priors.classifier import Classify, load_classifier
from scoreinv.priors.denoiser import Denoiser, scale_of
from scoreinv.sampling.ddpm import large, small, with_learned_variance
from scoreinv.streams import normal

Gradient = Callable[[Tensor, Tensor], Tensor]
"""(x (batch, *image_shape), sigma) -> ∇ₓ ln p(c | x, σ), shaped like x."""


@dataclass(frozen=True, eq=False)
class ClassGradient:
    """∇ₓ ln p(c | x, σ) of a classifier, by reverse mode.

    Attributes:
        classify: ln p(c | x, σ): a `priors.classifier.Classifier`, or the `classify` of a `priors.classes.ClassMixture`.
        classes: c, one for all members of a batch or one for each, (batch,).

    A call raises ValueError for a class that the classifier does not have, and for a classifier that gives anything but
    (batch, classes), or no gradient.
    """

    classify: Classify
    classes: int | Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            point = x if keep else x.detach().requires_grad_()
            logs = self.classify(point, sigma)
            if logs.ndim != 2 or len(logs) != len(x):
                raise ValueError(f"ClassGradient: expected ln p (batch = {len(x)}, classes), got {tuple(logs.shape)}")
            if not logs.requires_grad:
                raise ValueError("ClassGradient: the classifier has no gradient with respect to x")
            c = of_batch(class_tensor(self.classes, logs.shape[1], "ClassGradient"), len(x), "ClassGradient")
            chosen = logs.gather(1, c.to(x.device)[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), point, create_graph=keep)
        return gradient


@dataclass(frozen=True, eq=False)
class ClassifierGuided:
    """D̃ of eq. (3), a denoiser for any step: by `steps.euler` algorithm 2.

    Attributes:
        denoiser: D.
        gradient: of ln p(c | x, σ), a `ClassGradient`.
        strength: s.
    """

    denoiser: Denoiser
    gradient: Gradient
    strength: float = 1.0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = torch.as_tensor(sigma).to(x).reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return self.denoiser(x, sigma) + self.strength * variance * self.gradient(x, sigma)

    @property
    def scale(self) -> float:
        return scale_of(self.denoiser)


@dataclass(frozen=True)
class ShiftedMean:
    """Algorithm 1, eq. (2), a step; from the last positive level to 0 it takes D.

    In the unit of the network, as the steps of `sampling.ddpm`. Raises ValueError for a variance that there is not; when called
    with a prior that has learnt none, for "learned".

    Attributes:
        gradient: of ln p(c | x, σ), a `ClassGradient`.
        strength: s.
        variance: c²: "small", "large" or "learned".
    """

    gradient: Gradient
    strength: float = 1.0
    variance: Literal["small", "large", "learned"] = "large"

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large", "learned"):
            raise ValueError(f"ShiftedMean: variance is 'small', 'large' or 'learned', got {self.variance!r}")

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        if self.variance == "learned":
            clean, log_variance = with_learned_variance(denoise, x, sigma, sigma_next)
            variance = log_variance.exp()
        else:
            clean, variance = denoise(x, sigma), (small if self.variance == "small" else large)(sigma, sigma_next)
        if sigma_next == 0:
            return clean
        r = ((1 + sigma**2) / (1 + sigma_next**2)).sqrt()
        shift = self.strength * r * variance * self.gradient(x, sigma)
        return torch.lerp(clean, x, (sigma_next / sigma) ** 2) + shift + variance.sqrt() * normal(rngs, x)


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """D_w of eq. (4), a denoiser for any step; two evaluations of the prior, one where w is 0 or 1.

    Attributes:
        prior: that knows classes, see `priors.classes.ClassConditional`.
        classes: c, one for all members of a batch or one for each, (batch,).
        weight: w.

    Raises:
        ValueError: (at construction) the prior knows no classes, or not this one.
    """

    prior: Denoiser
    classes: Class
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.classes is None:
            raise ValueError("ClassifierFree: expected a class, or classes (batch,), got None")
        class_conditional(self.prior).given(self.classes)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        prior = class_conditional(self.prior)
        if self.weight == 1:
            return prior.given(self.classes)(x, sigma)
        without = prior.given(None)(x, sigma)
        if self.weight == 0:
            return without
        return without + self.weight * (prior.given(self.classes)(x, sigma) - without)

    @property
    def scale(self) -> float:
        return scale_of(self.prior)


def towards_class(
    prior: Denoiser, c: int, *, classifier: str | Path | None = None, strength: float = 1.0, device: str = "cpu"
) -> Denoiser:
    """A prior turned towards a class, for any sampler or posterior method: D̃ of eq. (3), or D_w of eq. (4) without a classifier.

    Args:
        prior: D; without a classifier it must know classes itself.
        c: the class, from 0.
        classifier: file of `save_classifier`, trained on images in the unit of the prior's.
        strength: s, or w.
        device: where the classifier goes.

    Raises:
        FileNotFoundError, ValueError: see `load_classifier`; there is no such class, the prior knows no classes, or the strength is
            negative or not finite.
    """
    if not 0 <= strength < float("inf"):
        raise ValueError(f"towards_class: expected a strength of at least 0, got {strength:g}")
    if classifier is None:
        return ClassifierFree(prior, c, strength)
    network = load_classifier(classifier)[0].to(device)
    class_tensor(c, network.config.n_classes, f"classifier {Path(classifier).name}")
    return ClassifierGuided(prior, ClassGradient(network, c), strength)
