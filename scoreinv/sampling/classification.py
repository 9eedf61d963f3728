"""Generative classification: which class makes an image most likely.

    p(c | x) = w_c p(x | c) / Σ_k w_k p(x | k)                                                                        (1)

with p(x | c) by the probability flow of the prior that is told the class, `sampling.likelihood`, at as many flows as there are
classes. For w = p(c) this is Bayes' rule, without any classifier having been trained (Ng, Jordan 2001; with score networks:
Zimmermann et al. 2021, arXiv:2110.00473).

Differences of ln p between classes decide, and the random projections that estimate the trace are the same for all classes of
an image, so that most of what they get wrong drops out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.priors.classes import ClassConditional, class_conditional
from scoreinv.priors.denoiser import Denoiser
from scoreinv.sampling.likelihood import FlowLikelihood, LogLikelihood
from scoreinv.streams import split

Likelihood = Callable[[Tensor, Sequence[Generator]], LogLikelihood]
"""(x (batch, *image_shape), a stream for each member) -> ln p(x)."""


@dataclass(frozen=True, eq=False)
class Classified:
    """What the classes have to say about a batch of images.

    Attributes:
        log_density: ln p(x | c), (batch, classes) in float64.
        log_posterior: ln p(c | x), (batch, classes).
        n_evaluations: of the prior, for each member, over all classes.
    """

    log_density: Tensor
    log_posterior: Tensor
    n_evaluations: tuple[int, ...]

    @property
    def classes(self) -> Tensor:
        """The most probable class of each image, (batch,)."""
        return self.log_posterior.argmax(1)


def classify(
    prior: ClassConditional,
    x: Tensor,
    rngs: Sequence[Generator],
    *,
    weights: Tensor | None = None,
    likelihood: Callable[[Denoiser], Likelihood] = FlowLikelihood,
) -> Classified:
    """The class of every image, eq. (1).

    Args:
        prior: that knows classes.
        x: (batch, *image_shape), in the unit of the prior's images.
        rngs: one stream a member.
        weights: w_c, (classes,), positive; None for all alike.
        likelihood: D -> the likelihood under D; settings by `functools.partial(FlowLikelihood, probes=8, tolerance=1e-3)`.

    Raises:
        ValueError: the prior knows no classes, the weights are not one positive number for each, or as the likelihood.
    """
    known = class_conditional(prior)
    n = known.n_classes
    w = torch.ones(n, dtype=torch.float64) if weights is None else weights.double()
    if w.shape != (n,) or not (w > 0).all():
        raise ValueError(f"classify: expected a positive weight for each of the {n} classes, got {weights}")
    seeds = [split(rng, 1)[0].initial_seed() for rng in rngs]
    found = [likelihood(known.given(c))(x, [Generator().manual_seed(seed) for seed in seeds]) for c in range(n)]
    log_density = torch.stack([f.log_density for f in found], dim=1)
    joint = log_density + w.log().to(log_density.device)
    evaluations = tuple(sum(e) for e in zip(*(f.n_evaluations for f in found), strict=True))
    return Classified(log_density, torch.log_softmax(joint, dim=1), evaluations)
