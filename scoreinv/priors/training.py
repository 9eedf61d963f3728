"""Training of the score network by denoising score matching over all noise levels.

    ln σ ~ N(P_mean, P_std²),   x = x₀ + σ n,   L = E[ λ(σ) ‖D(x, σ) − x₀‖² ],   λ = (σ² + σ_d²) / (σ σ_d)²       (1)

(Karras et al. 2022, arXiv:2206.00364, eq. 2 and table 1.) With learned weights the loss of a noise level is measured in
units of what is usual there (Karras et al. 2024, arXiv:2312.02696, eq. 22):

    L = E[ e^(−a(σ)) λ(σ) ‖D(x, σ) − x₀‖² + a(σ) ]                                                                (2)

What a run of this has in common with any other is in `priors.descent`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scoreinv.files.atomic import replacing
from scoreinv.priors.blocks import FourierFeatures, start_at_zero
from scoreinv.priors.crops import ImageSet, draw_crops
from scoreinv.priors.descent import Run, check_settings, descend, learning_rate, read_tensors
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.priors.parallel import ALONE, Processes
from scoreinv.priors.validation import VALIDATION_SIGMAS, Slice, denoising_psnr

__all__ = ["Batch", "Learner", "TrainConfig", "Trainer", "UsualError", "denoising_error", "learning_rate", "train"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: length of the learning-rate schedule.
        batch_size: crops a step, over all processes.
        crop: side of a crop [pixels].
        whole: side of the crops in the last part of training, so that attention sees there what it sees at test time.
        whole_fraction: that part of the steps; the batch shrinks so that a step keeps its number of pixels.
        zoom: share of crops resampled to pixels of another size (see `priors.crops`).
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        decay: "cosine", to lr / 100 at the last step, or "power", lr / √(step / lr_reference) from lr_reference on.
        lr_reference: step at which the power decay begins.
        ema: decays of the exponential moving averages of the weights, reached gradually; the prior is the best of them.
        clip: gradient norm above which gradients are scaled down.
        p_mean, p_std: ln σ ~ N(p_mean, p_std²).
        weighting: "edm", eq. (1), or "learned", eq. (2).
        seed: of everything random.
        bfloat16: autocast to bfloat16, worth it where the processor has the instructions.
        compile: torch.compile the network (needs a C++ compiler on CPU).
        recompute: gradient checkpointing: keep less memory and compute the inside of blocks twice.
    """

    steps: int = 20_000
    batch_size: int = 8
    crop: int = 128
    whole: int = 256
    whole_fraction: float = 0.15
    zoom: float = 0.2
    lr: float = 5e-4
    warmup: int = 300
    decay: str = "cosine"
    lr_reference: int = 10_000
    ema: tuple[float, ...] = (0.999, 0.9997)
    clip: float = 0.5
    p_mean: float = -1.4
    p_std: float = 1.5
    weighting: str = "edm"
    seed: int = 0
    bfloat16: bool = False
    compile: bool = False
    recompute: bool = False

    def __post_init__(self) -> None:
        check_settings(self, ("steps", "batch_size", "crop", "whole", "warmup", "lr_reference"))
        if not (self.lr > 0 and self.clip > 0 and self.p_std > 0):
            raise ValueError(f"lr, clip and p_std must be positive, got {self.lr}, {self.clip} and {self.p_std}")
        for name in ("whole_fraction", "zoom"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.weighting not in ("edm", "learned"):
            raise ValueError(f"weighting must be 'edm' or 'learned', got {self.weighting!r}")


def denoising_error(denoised: Tensor, x0: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """λ(σ) ‖D(x₀ + σ n, σ) − x₀‖² averaged over the pixels of each image: (batch,)."""
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return weight * ((denoised - x0) ** 2).flatten(1).mean(1)


class UsualError(nn.Module):
    """a(σ) of eq. (2), linear in Fourier features of ln σ / 4; 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.linear = FourierFeatures(32), nn.Linear(64, 1)
        start_at_zero(self.linear)

    def forward(self, sigma: Tensor) -> Tensor:
        a: Tensor = self.linear(self.features(sigma.log() / 4))
        return a[:, 0]


class Learner(nn.Module):
    """All that learns, in one module: the network, and a(σ) where weights are learned."""

    def __init__(self, model: EDMDenoiser, usual: UsualError | None) -> None:
        super().__init__()
        self.model, self.usual = model, usual

    def forward(self, x: Tensor, sigma: Tensor, pixel_mm: Tensor, box: Tensor) -> tuple[Tensor, Tensor | None]:
        """D(x, σ), and a(σ) or None."""
        return self.model(x, sigma, pixel_mm, box), None if self.usual is None else self.usual(sigma)


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step learns from: x₀, pixel sizes and places of `priors.crops.Crops`, noise levels (n,), white noise."""

    x0: Tensor
    pixel_mm: Tensor
    box: Tensor
    sigma: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.x0)


class Trainer(Run):
    """The state of a prior's training run; saved and loaded as one file."""

    config: TrainConfig
    model: EDMDenoiser
    averages: list[EDMDenoiser]

    def __init__(
        self, network: UNetConfig, config: TrainConfig, data: ImageSet, *, processes: Processes = ALONE
    ) -> None:
        for name in ("crop", "whole"):
            side, multiple = getattr(config, name), network.multiple
            if side % multiple:
                raise ValueError(f"{name} must be a multiple of {multiple} pixels for this network, got {side}")
        self.config, self.data, self.processes = config, data, processes
        self.cumulative = np.cumsum(data.weights())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = EDMDenoiser(network).to(processes.device)
            self.averages = [EDMDenoiser(network).to(processes.device).requires_grad_(False) for _ in config.ema]
            self.usual = UsualError().to(processes.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.unet.recompute = config.recompute
        self.start_from(self.model.state_dict())
        learner = Learner(self.model, self.usual if config.weighting == "learned" else None)
        self.begin(dict(learner.named_parameters()))
        forward = processes.shared(learner)
        self.forward = torch.compile(forward) if config.compile else forward

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "usual": self.usual}

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of one step, which is a function of (seed, step) alone."""
        c = self.config
        side, n = c.crop, c.batch_size
        if step >= (1 - c.whole_fraction) * c.steps:
            side, n = c.whole, max(1, round(c.batch_size * (c.crop / c.whole) ** 2))
        rng = np.random.default_rng([c.seed, step])
        crops = draw_crops(self.data, self.cumulative, rng, n, side, zoom=c.zoom)
        sigma = torch.from_numpy(np.exp(c.p_mean + c.p_std * rng.standard_normal(n))).float()
        noise = torch.from_numpy(rng.standard_normal(crops.u.shape, dtype=np.float32))
        return Batch(*(self.processes.part(t) for t in (crops.u, crops.pixel_mm, crops.box, sigma, noise)))

    def loss(self, b: Batch) -> Tensor:
        """Eq. (1) or (2), a scalar."""
        noisy = b.x0 + b.sigma.reshape(-1, 1, 1, 1) * b.noise
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            denoised, a = self.forward(noisy, b.sigma, b.pixel_mm, b.box)
        error = denoising_error(denoised, b.x0, b.sigma, self.model.config.sigma_data)
        if a is not None:
            error = error * (-a).exp() + a
        return error.mean()

    def save(self, path: Path) -> None:
        tensors, facts = self.state()
        facts["network"] = self.model.config.to_dict()
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"scoreinv": json.dumps(facts)})

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            ValueError: the file holds another network or other averages.
        """
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["scoreinv"])
        if UNetConfig.from_dict(facts["network"]) != self.model.config:
            raise ValueError(
                f"{path}: holds the network {facts['network']}, this run asks for {self.model.config.to_dict()}"
            )
        if len(facts["training"]["ema"]) != len(self.averages):
            raise ValueError(f"{path}: holds averages of decay {facts['training']['ema']}, not {self.config.ema}")
        self.restore(read_tensors(path, self.processes.device), facts)

    def best_average(self, images: Sequence[Slice]) -> EDMDenoiser:
        """The average that denoises these images best; the first where there are none."""
        if not images:
            return self.averages[0]
        return max(self.averages, key=lambda average: sum(denoising_psnr(average, images)))


def train(
    trainer: Trainer, folder: Path, *, validation: Sequence[Slice], training: Sequence[Slice] = (), until: int | None = None,
    hours: float = math.inf, checkpoint_minutes: float = 3.0, validate_every: int = 500,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Run from the trainer's step to the end of the schedule, see `descent.descend`; yields a row of figures after every step.

    Args:
        trainer: the run; its `step` advances.
        folder: where state and log go.
        validation: slices of patients that are not trained on: `psnr_<sigma>` for each average, the later ones with the
            number of the average in front.
        training: slices that are: `train_psnr_<sigma>`; where it leaves validation behind, the network learns by heart.
        until: stop at this step (default: the end of the schedule).
        hours: stop after so much time in this call.
        checkpoint_minutes: time between two saved states.
        validate_every: steps between two validations.
    """
    yield from descend(
        trainer, folder, lambda: _figures(trainer, validation, training), until=until, hours=hours,
        checkpoint_minutes=checkpoint_minutes, validate_every=validate_every,
    )  # fmt: skip


def _figures(trainer: Trainer, validation: Sequence[Slice], training: Sequence[Slice]) -> dict[str, float]:
    """Denoising PSNR of every average on validation slices, and of the first on training slices."""
    wanted = [("" if k == 0 else f"{k + 1}_", a, validation) for k, a in enumerate(trainer.averages)]
    wanted.append(("train_", trainer.averages[0], training))
    return {
        f"{prefix}psnr_{s:g}": p
        for prefix, average, images in wanted
        if images
        for s, p in zip(VALIDATION_SIGMAS, denoising_psnr(average, images), strict=True)
    }
