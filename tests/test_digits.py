"""Small networks trained in seconds on scikit-learn's 8 x 8 digits 0 to 3: they learn classes, and draw and classify by them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor

from scoreinv.priors.classes import ClassPrior
from scoreinv.priors.classifier import Classifier, ClassifierConfig
from scoreinv.priors.conditional import ConditionalConfig
from scoreinv.priors.conditional_training import ClassifierRun, ConditionalRun, ConditionalTraining, labelled
from scoreinv.priors.denoiser import Denoiser
from scoreinv.priors.network import UNetConfig
from scoreinv.sampling.classification import classify
from scoreinv.sampling.guided import ClassGradient, ClassifierFree, ClassifierGuided
from scoreinv.sampling.likelihood import FlowLikelihood
from scoreinv.sampling.steps import DPMSolver2M
from scoreinv.sampling.unconditional import generate
from scoreinv.streams import split

datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn for its digits")

CLASSES = 4
NETWORK = UNetConfig(widths=(64,), unshuffle=2, attention=(), embedding=64, sigma_data=0.7)
TRAINING = ConditionalTraining(
    steps=200, batch_size=64, lr=4e-3, warmup=20, ema=(0.97,), p_mean=-0.5, p_std=1.2, drop=0.2
)


@dataclass
class Digits:
    """Images with values from -1 to 1, (n, 8, 8), and what was trained on them."""

    train: Tensor
    labels: Tensor
    held_out: Tensor
    truth: Tensor
    prior: ClassPrior
    classifier: Classifier

    def nearest(self, images: Tensor) -> Tensor:
        """The class that most of the three nearest training images have."""
        near = torch.cdist(images.flatten(1), self.train.flatten(1)).topk(3, largest=False).indices
        return self.labels[near].mode(1).values


@pytest.fixture(scope="module")
def digits() -> Digits:
    found = datasets.load_digits(n_class=CLASSES)
    x, y = torch.tensor(found.images).float() / 8 - 1, torch.tensor(found.target)
    n = 600
    examples = labelled(x[:n], y[:n])
    network = ConditionalRun(ConditionalConfig(NETWORK, n_classes=CLASSES), TRAINING, examples)
    classifier = ClassifierRun(ClassifierConfig(NETWORK, CLASSES), TRAINING, examples)
    for run in (network, classifier):
        for _ in range(TRAINING.steps):
            run.advance()
    prior = ClassPrior(network.averages[0].eval())
    return Digits(x[:n], y[:n], x[n:], y[n:], prior, classifier.averages[0].eval())


def test_the_yardstick(digits: Digits) -> None:
    assert (digits.nearest(digits.held_out) == digits.truth).double().mean() > 0.95


def test_classifier_of_noisy_images(digits: Digits) -> None:
    """Nearly right with little noise, worse with more, and then it says so: its own probabilities are calibrated."""
    rng, right = Generator().manual_seed(0), []
    for sigma, least in ((0.1, 0.9), (0.7, 0.7), (2.0, 0.35)):
        noisy = digits.held_out + sigma * torch.randn(digits.held_out.shape, generator=rng)
        with torch.no_grad():
            logs = digits.classifier(noisy, torch.tensor(sigma))
        right.append(float((logs.argmax(1) == digits.truth).double().mean()))
        claimed = float(logs.exp().amax(1).mean())
        assert right[-1] > least and abs(claimed - right[-1]) < 0.15, (sigma, right, claimed)
    assert right[0] > right[2] + 0.1


def agreement(denoise: Denoiser, c: Tensor, digits: Digits) -> float:
    """Share of draws that look like their class."""
    draws = generate(
        denoise, (8, 8), len(c), Generator().manual_seed(0), n_levels=20, sigma_min=0.02, sigma_max=10.0, step=DPMSolver2M()
    )  # fmt: skip
    assert draws.isfinite().all()
    return float((digits.nearest(draws) == c).double().mean())


@torch.no_grad()
def test_draws_have_the_class_that_was_asked_for(digits: Digits) -> None:
    c = torch.arange(40) % CLASSES
    unconditional = digits.prior.given(None)
    gradient = ClassGradient(digits.classifier, c)
    found = {
        "none": agreement(unconditional, c, digits),
        "class": agreement(digits.prior.given(c), c, digits),
        "classifier-free, w = 2": agreement(ClassifierFree(digits.prior, c, 2.0), c, digits),
        "classifier, s = 3": agreement(ClassifierGuided(unconditional, gradient, 3.0), c, digits),
    }
    assert found["none"] < 0.5 and found["class"] > 0.7, found
    assert found["classifier-free, w = 2"] > 0.8 and found["classifier, s = 3"] > 0.6, found


def test_generative_classification(digits: Digits) -> None:
    """By the likelihood alone, of images that the network was not trained on."""
    n = 8
    likelihood = functools.partial(FlowLikelihood, probes=1, tolerance=3e-2, sigma_min=0.2, sigma_max=10.0)
    found = classify(digits.prior, digits.held_out[:n], split(Generator().manual_seed(0), n), likelihood=likelihood)
    assert (found.classes == digits.truth[:n]).double().mean() > 0.6
