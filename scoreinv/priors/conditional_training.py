"""Training of conditional networks and of classifiers, from any source of images with their conditions.

    ln σ ~ N(P_mean, P_std²),  x = x₀ + σ n
    score network   E[ λ(σ) ‖D(x, σ | c) − x₀‖² ],  where nothing is told with probability p_drop                    (1)
    classifier      E[ −ln p(c | x, σ) ]                                                                              (2)

(1): eq. (1) of `priors.training` with the conditions left out of Ho, Salimans, "Classifier-Free Diffusion Guidance", 2022,
arXiv:2207.12598, algorithm 1. (2): Dhariwal, Nichol 2021, arXiv:2105.05233, sec. 4. A run goes by `descent.descend`.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scoreinv.files.atomic import replacing
from scoreinv.priors.classifier import Classifier, ClassifierConfig
from scoreinv.priors.conditional import Condition, ConditionalConfig, ConditionalDenoiser
from scoreinv.priors.descent import Run, check_settings, read_tensors
from scoreinv.priors.parallel import ALONE, Processes
from scoreinv.priors.training import denoising_error

Examples = Callable[[np.random.Generator, int], tuple[Tensor, Condition]]
"""(random numbers, n) -> n images (n, channels, H, W) and what is known of them, a function of the random numbers alone."""


@dataclass(frozen=True)
class ConditionalTraining:
    """How to train.

    Attributes:
        steps: length of the learning-rate schedule.
        batch_size: images a step.
        lr, warmup, decay, lr_reference, ema, clip: as in `training.TrainConfig`.
        p_mean, p_std: ln σ ~ N(p_mean, p_std²).
        drop: share of the images that are told nothing; classifiers do not look at it.
        seed: of everything random.
    """

    steps: int = 4000
    batch_size: int = 32
    lr: float = 1e-3
    warmup: int = 100
    decay: str = "cosine"
    lr_reference: int = 2000
    ema: tuple[float, ...] = (0.995,)
    clip: float = 1.0
    p_mean: float = -1.2
    p_std: float = 1.2
    drop: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, ("steps", "batch_size", "warmup", "lr_reference"))
        if not (self.lr > 0 and self.clip > 0 and self.p_std > 0):
            raise ValueError(f"lr, clip and p_std must be positive, got {self.lr}, {self.clip} and {self.p_std}")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop must lie in [0, 1], got {self.drop}")


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """What one step learns from: x₀, conditions, noise levels (n,), white noise."""

    x0: Tensor
    condition: Condition
    sigma: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def noisy(self) -> Tensor:
        """x = x₀ + σ n."""
        return self.x0 + self.sigma.reshape(-1, 1, 1, 1) * self.noise


def labelled(images: Tensor, labels: Tensor) -> Examples:
    """Random images of a set with their classes.

    Args:
        images: (n, channels, H, W), or (n, H, W) for one channel.
        labels: (n,).

    Raises:
        ValueError: they are not as many, or none.
    """
    if images.ndim not in (3, 4) or len(images) == 0 or labels.shape != (len(images),):
        raise ValueError(
            f"labelled: expected images (n, C, H, W) and labels (n,), got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    x0 = images.float().reshape(len(images), -1, *images.shape[-2:])

    def examples(rng: np.random.Generator, n: int) -> tuple[Tensor, Condition]:
        which = torch.from_numpy(rng.integers(len(x0), size=n))
        return x0[which], Condition(classes=labels[which].long())

    return examples


class ExampleRun(Run):
    """A training run on examples; saved and loaded as one file.

    Args:
        build: makes the network, whose `config` has `to_dict`.
        config: how to train.
        examples: what to learn from.
        processes: where to compute.
    """

    config: ConditionalTraining

    def __init__(
        self, build: Callable[[], nn.Module], config: ConditionalTraining, examples: Examples, *, processes: Processes = ALONE
    ) -> None:  # fmt: skip
        self.config, self.examples, self.processes = config, examples, processes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = build().to(processes.device)
            self.averages = [build().to(processes.device).requires_grad_(False) for _ in config.ema]
        self.start_from(self.model.state_dict())
        self.begin(dict(self.model.named_parameters()))
        self.forward = processes.shared(self.model)

    def batch(self, step: int) -> NoisyBatch:
        """This process's part of the batch of one step, which is a function of (seed, step) alone."""
        c = self.config
        rng = np.random.default_rng([c.seed, step])
        x0, condition = self.examples(rng, c.batch_size)
        sigma = torch.from_numpy(np.exp(c.p_mean + c.p_std * rng.standard_normal(len(x0)))).float()
        noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), dtype=np.float32))
        told = torch.from_numpy(rng.random(len(x0)) >= c.drop)
        condition = replace(condition, told=told if condition.told is None else condition.told & told)
        part = self.processes.part
        return NoisyBatch(part(x0), condition.mapped(part), part(sigma), part(noise))

    @abc.abstractmethod
    def loss(self, b: NoisyBatch) -> Tensor:
        """The loss of a batch, a scalar."""

    def save(self, path: Path) -> None:
        tensors, facts = self.state()
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"scoreinv": json.dumps(facts | {"network": self._network()})})

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            ValueError: the file holds another network or other averages.
        """
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("scoreinv", "{}"))
        if facts.get("network") != json.loads(json.dumps(self._network())):
            raise ValueError(f"{path}: holds the network {facts.get('network')}, this run asks for {self._network()}")
        if len(facts["training"]["ema"]) != len(self.averages):
            raise ValueError(f"{path}: holds averages of decay {facts['training']['ema']}, not {self.config.ema}")
        self.restore(read_tensors(path, self.processes.device), facts)

    def _network(self) -> dict[str, Any]:
        return {"kind": type(self.model).__name__, **cast("Any", self.model).config.to_dict()}


class ConditionalRun(ExampleRun):
    """Training of a conditional score network, eq. (1)."""

    model: ConditionalDenoiser
    averages: list[ConditionalDenoiser]

    def __init__(
        self, network: ConditionalConfig, config: ConditionalTraining, examples: Examples, *, processes: Processes = ALONE
    ) -> None:  # fmt: skip
        super().__init__(lambda: ConditionalDenoiser(network), config, examples, processes=processes)

    def loss(self, b: NoisyBatch) -> Tensor:
        denoised = self.forward(b.noisy, b.sigma, b.condition)
        return denoising_error(denoised, b.x0, b.sigma, self.model.config.network.sigma_data).mean()


class ClassifierRun(ExampleRun):
    """Training of a classifier of noisy images, eq. (2)."""

    model: Classifier
    averages: list[Classifier]

    def __init__(
        self, network: ClassifierConfig, config: ConditionalTraining, examples: Examples, *, processes: Processes = ALONE
    ) -> None:  # fmt: skip
        super().__init__(lambda: Classifier(network), config, examples, processes=processes)

    def loss(self, b: NoisyBatch) -> Tensor:
        if b.condition.classes is None:
            raise ValueError("ClassifierRun: the examples have no classes")
        probabilities: Tensor = self.forward(b.noisy, b.sigma)
        return torch.nn.functional.nll_loss(probabilities, b.condition.classes)
