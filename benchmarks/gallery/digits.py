"""scikit-learn's 8 x 8 handwritten digits in [-1, 1], 17 gray values, and a classifier that judges draws."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gallery.measures import frechet
from gallery.setting import Setting, pace
from gallery.training import learnt
from scoreinv.priors.classifier import Classifier, ClassifierConfig
from scoreinv.priors.conditional import Condition
from scoreinv.priors.conditional_training import ClassifierRun, ConditionalTraining, Examples, labelled
from scoreinv.priors.losses.ddpm import DiscretisedGaussian
from scoreinv.priors.network import UNetConfig
from scoreinv.sampling.likelihood import Quantisation

SHAPE = (8, 8)
CLASSES = 10
STEP = 1 / 8
"""Distance of two gray values."""
VALUES = Quantisation(-1.0, 1.0, STEP)
DECODER = DiscretisedGaussian(-1.0, 1.0, 17)
NETWORK = UNetConfig(widths=(64,), unshuffle=2, attention=(0,), embedding=64, sigma_data=0.7)
TRAIN = 1200


@dataclass(frozen=True, eq=False)
class Digits:
    """Images (n, 8, 8) and their digits (n,), in a random order that is always the same."""

    train: Tensor
    labels: Tensor
    held_out: Tensor
    truth: Tensor


@functools.cache
def data() -> Digits:
    """All 1797: 1200 to train on, 597 held out."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    found = load_digits()
    order = torch.randperm(len(found.images), generator=Generator().manual_seed(0))
    x, y = (torch.tensor(found.images).float() / 8 - 1)[order], torch.tensor(found.target)[order].long()
    return Digits(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])


def examples(*, dequantise: bool) -> Examples:
    """Training images without classes; with noise uniform within a gray value if dequantised."""
    known = data().train[:, None]

    def draw(rng: np.random.Generator, n: int) -> tuple[Tensor, Condition]:
        x = known[torch.from_numpy(rng.integers(len(known), size=n))]
        noise = torch.from_numpy(rng.random(tuple(x.shape), dtype=np.float32)) - 0.5
        return x + STEP * noise if dequantise else x, Condition()

    return draw


def training(steps: int, **changes: Any) -> ConditionalTraining:
    """Settings of a run on digits."""
    given: dict[str, Any] = {**pace(steps, 0.995), "batch_size": 32, "lr": 3e-3, "drop": 0.0} | changes
    return ConditionalTraining(**given)


@dataclass(frozen=True, eq=False)
class Judge:
    """A small classifier of digits with hardly any noise, and what it thinks of held-out digits.

    Attributes:
        classifier: the network; its features are the 48 numbers that enter its last layer.
        accuracy: on held-out digits.
        floor: Fréchet distance of training digits from held-out ones.
    """

    classifier: Classifier
    accuracy: float
    floor: float

    @torch.no_grad()
    def seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, 48) and class (n,) of images (n, 8, 8)."""
        kept: list[Tensor] = []
        hook = self.classifier.head.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
        logs = self.classifier(images, torch.tensor(0.05))
        hook.remove()
        return kept[0], logs.argmax(1)

    def distance(self, images: Tensor) -> float:
        """Fréchet distance of images from held-out digits."""
        return frechet(self.seen(images)[0], self.seen(data().held_out)[0])

    def agreement(self, images: Tensor, classes: Tensor) -> float:
        """Share of images that look like their class."""
        return float((self.seen(images)[1] == classes).double().mean())


@functools.cache
def judge(setting: Setting) -> Judge:
    """The judge, trained by the same number of steps for every budget that is not tiny, so that distances compare."""
    network = UNetConfig(widths=(48,), unshuffle=2, attention=(), embedding=32, sigma_data=0.7)
    steps = setting.count(800)
    run = ClassifierRun(
        ClassifierConfig(network, CLASSES),
        training(steps, p_mean=-3.0, p_std=0.7, seed=11, lr=2e-3),
        labelled(data().train, data().labels),
    )
    found = Judge(learnt(run, setting.work / f"digits-judge-{steps}"), 0.0, 0.0)
    accuracy = found.agreement(data().held_out, data().truth)
    return Judge(found.classifier, accuracy, found.distance(data().train))
