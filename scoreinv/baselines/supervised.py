"""Training of learned baselines: images with known data, simulated on the fly.

    g = K v + s ε,    s = r mean|K v|,    ε ~ N(0, I),    L = E ‖N(g) − v‖²                                        (1)

with the coordinates of `baselines.learned` and r drawn for every image from the levels of the run. Each network states its own
loss, by default (1). The run itself is `priors.descent`'s, which the prior's training uses too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from scoreinv.baselines.learned import Network, Scaled, geometry, network_class
from scoreinv.files.atomic import replacing
from scoreinv.linop import LinearOperator
from scoreinv.metrics import psnr, window
from scoreinv.priors.crops import AIR_HU, ImageSet, draw_crops
from scoreinv.priors.descent import Run, check_settings, descend, learning_rate, read_tensors
from scoreinv.priors.parallel import ALONE, Processes

__all__ = ["Simulated", "SupervisedConfig", "SupervisedRun", "fitted", "learning_rate", "reconstruction_psnr", "train"]


@dataclass(frozen=True)
class SupervisedConfig:
    """How to train.

    Attributes:
        steps: length of the learning-rate schedule.
        batch_size: images a step.
        side: of the images [pixels]: larger ones are cut at random, smaller ones get air.
        noise: standard deviations of the noise relative to the mean of the data, each as likely as the others.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        decay: "cosine", to lr / 100 at the last step, or "power", lr / √(step / lr_reference) from lr_reference on.
        lr_reference: step at which the power decay begins.
        ema: decays of the moving averages of the weights; the baseline is the best of them on validation images.
        clip: gradient norm above which gradients are scaled down.
        seed: of everything random.
        bfloat16: autocast to bfloat16, worth it where the processor has the instructions.
    """

    steps: int = 4000
    batch_size: int = 1
    side: int = 256
    noise: tuple[float, ...] = (0.0, 0.005)
    lr: float = 5e-4
    warmup: int = 100
    decay: str = "cosine"
    lr_reference: int = 2000
    ema: tuple[float, ...] = field(default=(0.995,))
    clip: float = 1.0
    seed: int = 0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        check_settings(self, ("steps", "batch_size", "side", "warmup", "lr_reference"))
        if not (self.lr > 0 and self.clip > 0):
            raise ValueError(f"lr and clip must be positive, got {self.lr} and {self.clip}")
        if not self.noise or not all(0 <= r < math.inf for r in self.noise):
            raise ValueError(f"noise needs one or more levels of at least 0, got {self.noise}")


@dataclass(frozen=True, eq=False)
class Simulated:
    """What one step learns from: v (n, H, W), relative noise (n,), white noise (n, *out_shape), a seed of what a loss draws."""

    v: Tensor
    relative: Tensor
    white: Tensor
    seed: int

    def __len__(self) -> int:
        return len(self.v)


class SupervisedRun(Run):
    """The state of a learned baseline's training; saved and loaded as one file.

    Args:
        name: of the method.
        settings: of its network.
        config: how to train.
        data: images [HU].
        A: the operator, on images of `config.side`.
        processes: where to compute; one process.

    Raises:
        ValueError: the network refuses its settings or the operator.
    """

    config: SupervisedConfig
    model: Network
    averages: list[Network]

    def __init__(
        self, name: str, settings: dict[str, Any], config: SupervisedConfig, data: ImageSet, A: LinearOperator,
        *, processes: Processes = ALONE,
    ) -> None:  # fmt: skip
        if A.in_shape != (config.side, config.side):
            raise ValueError(f"expected an operator on images of {config.side} x {config.side}, got {A.in_shape}")
        self.name, self.config, self.data, self.processes = name, config, data, processes
        self.problem, self.cumulative = Scaled(A), np.cumsum(data.weights())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            networks = [network_class(name)(**settings).to(processes.device) for _ in range(1 + len(config.ema))]
        self.model, self.averages = networks[0], [n.requires_grad_(False) for n in networks[1:]]
        self.model.check(A)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.start_from(self.model.state_dict())
        self.begin(dict(self.model.named_parameters()))

    def batch(self, step: int) -> Simulated:
        c = self.config
        rng = np.random.default_rng([c.seed, step])
        v = 1 + draw_crops(self.data, self.cumulative, rng, c.batch_size, c.side).u[:, 0]
        relative = torch.from_numpy(rng.choice(np.asarray(c.noise), c.batch_size)).float()
        white = rng.standard_normal((c.batch_size, *self.problem.A.out_shape), dtype=np.float32)
        v, relative, noise = (t.to(self.processes.device) for t in (v, relative, torch.from_numpy(white)))
        return Simulated(v, relative, noise, int(rng.integers(2**62)))

    def loss(self, b: Simulated) -> Tensor:
        g = noisy(self.problem, b.v, b.relative, b.white)
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            return self.model.loss(self.problem, g, b.v, torch.Generator().manual_seed(b.seed))

    def _identity(self) -> dict[str, Any]:
        """What a state must have in common with the run that goes on from it."""
        return {"method": self.name, "network": self.model.settings, "geometry": geometry(self.problem.A)}

    def save(self, path: Path) -> None:
        tensors, facts = self.state()
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"scoreinv": json.dumps(facts | self._identity())})

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            ValueError: the file holds another method, network or geometry, or other averages.
        """
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("scoreinv", "{}"))
        for key, mine in self._identity().items():
            if facts.get(key) != mine:
                raise ValueError(
                    f"{path}: holds the {key} {facts.get(key)}, this run asks for {mine}; give another --out"
                )
        if len(facts["training"]["ema"]) != len(self.averages):
            raise ValueError(f"{path}: holds averages of decay {facts['training']['ema']}, not {self.config.ema}")
        self.restore(read_tensors(path, self.processes.device), facts)

    def best_average(self, images: Sequence[Tensor]) -> Network:
        """The average that reconstructs these images best; the first where there are none."""
        if not images or len(self.averages) == 1:
            return self.averages[0]
        return max(self.averages, key=lambda n: sum(reconstruction_psnr(n, self.problem, images, self.config.noise)))


def noisy(problem: Scaled, v: Tensor, relative: Tensor, white: Tensor) -> Tensor:
    """g of eq. (1)."""
    with torch.no_grad():
        clean = problem.forward(v)
        std = relative * clean.abs().flatten(1).mean(1)
        return clean + std.reshape(-1, *[1] * (clean.ndim - 1)) * white


def fitted(hu: np.ndarray, side: int) -> Tensor:
    """v (side, side) of an image [HU]: its middle, with air where it is smaller."""
    out = torch.full((side, side), 1 + AIR_HU / 1000)
    height, width = min(side, hu.shape[0]), min(side, hu.shape[1])
    top, left = (hu.shape[0] - height) // 2, (hu.shape[1] - width) // 2
    row, column = (side - height) // 2, (side - width) // 2
    middle = torch.from_numpy(np.ascontiguousarray(hu[top : top + height, left : left + width])).float()
    out[row : row + height, column : column + width] = 1 + middle / 1000
    return out


@torch.no_grad()
def reconstruction_psnr(
    network: Network, problem: Scaled, images: Sequence[Tensor], noise: Sequence[float]
) -> list[float]:
    """PSNR [dB] on the window of -1000 to 1000 HU, range 1, for each noise level, mean over images; the same noise at every call.

    Args:
        network: g -> v.
        problem: the operator.
        images: v, each (H, W).
        noise: relative levels.
    """
    out = []
    for relative in noise:
        rng, total = torch.Generator().manual_seed(0), 0.0
        for v in images:
            white = torch.randn((1, *problem.A.out_shape), generator=rng).to(v)
            estimate = network(problem, noisy(problem, v[None], v.new_tensor([relative]), white))
            total += float(psnr(window(1000 * (estimate - 1)), window(1000 * (v[None] - 1)), 1.0))
        out.append(total / len(images))
    return out


def train(
    run: SupervisedRun, folder: Path, *, validation: Sequence[Tensor] = (), training: Sequence[Tensor] = (),
    until: int | None = None, hours: float = math.inf, checkpoint_minutes: float = 3.0, validate_every: int = 500,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Run to the end of the schedule, see `descent.descend`; yields a row of figures after every step.

    Args:
        run: its `step` advances.
        folder: where state and log go.
        validation: images of patients that are not trained on, as v: `psnr_<noise>` of the first average.
        training: images that are: `train_psnr_<noise>`.
        until, hours, checkpoint_minutes, validate_every: see `descent.descend`.
    """

    def figures() -> dict[str, float]:
        levels = run.config.noise
        return {
            f"{prefix}psnr_{level:g}": value
            for prefix, images in (("", validation), ("train_", training))
            if images
            for level, value in zip(
                levels, reconstruction_psnr(run.averages[0], run.problem, images, levels), strict=True
            )
        }

    yield from descend(
        run, folder, figures, until=until, hours=hours, checkpoint_minutes=checkpoint_minutes, validate_every=validate_every
    )  # fmt: skip
