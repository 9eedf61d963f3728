"""Laws on the plane, as images of 1 x 2 pixels: a mixture, whose score and likelihood are exact, and scikit-learn's swiss roll."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from gallery.setting import pace
from scoreinv.priors.conditional import Condition
from scoreinv.priors.conditional_training import ConditionalTraining, Examples
from scoreinv.priors.exact import GaussianMixturePrior

REACH = 3.2
"""Half the side of the square that pictures show."""
SHAPE = (1, 2)
MOST = 20_000
"""Training points; each batch draws from them."""

Draw = Callable[[int, Generator], Tensor]
"""(n, random numbers) -> points (n, 1, 2)."""


def ring() -> GaussianMixturePrior:
    """Six Gaussians on a circle, of weights 1 to 6."""
    angles = torch.arange(6, dtype=torch.float64) * math.pi / 3
    means = 1.7 * torch.stack([angles.cos(), angles.sin()], dim=1).reshape(-1, *SHAPE)
    covariance = 0.42**2 * torch.eye(2, dtype=torch.float64).expand(6, 2, 2)
    weights = torch.arange(1, 7, dtype=torch.float64)
    return GaussianMixturePrior(weights / weights.sum(), means, covariance)


def swiss_roll(n: int, rng: Generator) -> Tensor:
    """scikit-learn's roll seen from its side, with noise, to about unit standard deviation."""
    from sklearn.datasets import make_swiss_roll  # type: ignore[import-untyped]

    seed = int(torch.randint(2**31, (), generator=rng))
    points, _ = make_swiss_roll(n, noise=0.8, random_state=seed)
    return torch.from_numpy(points[:, [0, 2]] / 7.0).float().reshape(n, *SHAPE)


def laws() -> dict[str, Draw]:
    """Both, by name."""
    prior = ring()
    return {"mixture": lambda n, rng: prior.draw(n, rng).float(), "swiss roll": swiss_roll}


def points(draw: Draw) -> Examples:
    """A training set of a law."""
    known = draw(MOST, Generator().manual_seed(17))

    def examples(rng: np.random.Generator, n: int) -> tuple[Tensor, Condition]:
        return known[torch.from_numpy(rng.integers(MOST, size=n))][:, None], Condition()

    return examples


def training(steps: int, *, batch_size: int = 128, lr: float = 2e-3) -> ConditionalTraining:
    """Settings of a run on points."""
    return ConditionalTraining(**pace(steps, 0.995), batch_size=batch_size, lr=lr, clip=10.0, drop=0.0)
