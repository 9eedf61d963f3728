"""Training of an autoencoder, and of a denoiser of its latents: two runs of `priors.descent`.

The autoencoder learns by eq. (2) of `priors.autoencoder`. The denoiser of latents is the prior's own network, trained as any prior
(`priors.training`) but for its images, which are draws z of q(z | u) for crops u, standardised (Rombach et al. 2022, arXiv:2112.10752).
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
from torch import Tensor

from scoreinv.files.atomic import replacing
from scoreinv.priors.autoencoder import AutoencoderConfig, KLAutoencoder, autoencoding_error
from scoreinv.priors.crops import ImageSet, draw_crops
from scoreinv.priors.descent import Run, check_settings, descend, read_tensors
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.priors.parallel import ALONE, Processes
from scoreinv.priors.training import Batch, TrainConfig, Trainer
from scoreinv.priors.validation import Slice, denoising_psnr

LATENT_SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Noise levels of the validation, in standard deviations of a latent."""


@dataclass(frozen=True)
class AutoencoderTraining:
    """How to train an autoencoder.

    Attributes:
        steps: length of the learning-rate schedule.
        batch_size: crops a step, over all processes.
        crop: side of a crop [pixels].
        zoom: share of crops resampled to pixels of another size (see `priors.crops`).
        power: p of the loss, 1 or 2.
        kl: β of the loss; for power 2 it is 2 s² with s the error that the decoder is to have [u].
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        decay: "cosine", to lr / 100 at the last step, or "power", lr / √(step / lr_reference) from lr_reference on.
        lr_reference: step at which the power decay begins.
        ema: decays of the moving averages of the weights; the autoencoder is the best of them on validation images.
        clip: gradient norm above which gradients are scaled down.
        seed: of everything random.
        bfloat16: autocast to bfloat16, worth it where the processor has the instructions.
    """

    steps: int = 20_000
    batch_size: int = 8
    crop: int = 128
    zoom: float = 0.2
    power: int = 1
    kl: float = 1e-5
    lr: float = 1e-3
    warmup: int = 300
    decay: str = "cosine"
    lr_reference: int = 10_000
    ema: tuple[float, ...] = (0.999,)
    clip: float = 1.0
    seed: int = 0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        check_settings(self, ("steps", "batch_size", "crop", "warmup", "lr_reference"))
        if self.power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {self.power!r}")
        if not (self.lr > 0 and self.clip > 0 and self.kl >= 0):
            raise ValueError(
                f"lr and clip must be positive and kl not negative, got {self.lr}, {self.clip} and {self.kl}"
            )
        if not 0 <= self.zoom <= 1:
            raise ValueError(f"zoom must lie in [0, 1], got {self.zoom}")


@dataclass(frozen=True, eq=False)
class Pairs:
    """What one step of an autoencoder learns from: images (n, 1, side, side) and white noise shaped like their latents."""

    u: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.u)


class AutoencoderRun(Run):
    """The state of an autoencoder's training; saved and loaded as one file.

    Raises:
        ValueError: the crop is no multiple of the autoencoder's factor.
    """

    config: AutoencoderTraining
    model: KLAutoencoder
    averages: list[KLAutoencoder]

    def __init__(
        self, network: AutoencoderConfig, config: AutoencoderTraining, data: ImageSet, *, processes: Processes = ALONE
    ) -> None:
        if config.crop % network.factor:
            raise ValueError(f"crop must be a multiple of the factor {network.factor}, got {config.crop}")
        self.config, self.data, self.processes = config, data, processes
        self.cumulative = np.cumsum(data.weights())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            models = [KLAutoencoder(network).to(processes.device) for _ in range(1 + len(config.ema))]
        self.model, self.averages = models[0], [m.requires_grad_(False) for m in models[1:]]
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.start_from(self.model.state_dict())
        self.begin(dict(self.model.named_parameters()))
        self.forward = processes.shared(self.model)

    def batch(self, step: int) -> Pairs:
        c = self.config
        rng = np.random.default_rng([c.seed, step])
        u = draw_crops(self.data, self.cumulative, rng, c.batch_size, c.crop, zoom=c.zoom).u
        shape = (c.batch_size, *self.model.latent_shape((c.crop, c.crop)))
        noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        return Pairs(self.processes.part(u), self.processes.part(noise))

    def loss(self, b: Pairs) -> Tensor:
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            decoded, mean, log_variance = (t.float() for t in self.forward(b.u, b.noise))
        error = autoencoding_error(b.u, decoded, mean, log_variance, power=self.config.power, weight=self.config.kl)
        return error.mean()

    def save(self, path: Path) -> None:
        tensors, facts = self.state()
        facts["autoencoder"] = self.model.config.to_dict()
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"scoreinv": json.dumps(facts)})

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            ValueError: the file holds another autoencoder, something else, or other averages.
        """
        facts = _facts(path)
        found = facts.get("autoencoder")
        if not isinstance(found, dict) or AutoencoderConfig.from_dict(found) != self.model.config:
            raise ValueError(
                f"{path}: holds the autoencoder {found}, this run asks for {self.model.config.to_dict()}; give another --out"
            )
        if len(facts["training"]["ema"]) != len(self.averages):
            raise ValueError(f"{path}: holds averages of decay {facts['training']['ema']}, not {self.config.ema}")
        self.restore(read_tensors(path, self.processes.device), facts)

    def best_average(self, images: Sequence[Slice]) -> KLAutoencoder:
        """The average that reproduces these images best; the first where there are none."""
        if not images or len(self.averages) == 1:
            return self.averages[0]
        return max(self.averages, key=lambda average: autoencoding_psnr(average, images))


class LatentTrainer(Trainer):
    """A prior's training run on latents.

    Args:
        network: of the denoiser, its channels those of the latents.
        config: how to train; crops are of images.
        data: images [HU].
        autoencoder: what makes the latents.
        sha256: checksum of its file, which the state keeps.
        processes: where to compute.

    Raises:
        ValueError: the network has other channels than the latents, or crops have sides that it does not take.
    """

    def __init__(
        self, network: UNetConfig, config: TrainConfig, data: ImageSet, autoencoder: KLAutoencoder, sha256: str,
        *, processes: Processes = ALONE,
    ) -> None:  # fmt: skip
        if network.channels != autoencoder.config.latent_channels:
            raise ValueError(
                f"the network takes {network.channels} channels, the latents have {autoencoder.config.latent_channels}; "
                "leave channels out of the network's settings"
            )
        multiple = autoencoder.config.factor * network.multiple
        for name in ("crop", "whole"):
            if (side := getattr(config, name)) % multiple:
                raise ValueError(
                    f"{name} must be a multiple of {multiple} pixels ({autoencoder.config.factor} a latent pixel, of which the "
                    f"network takes multiples of {network.multiple}), got {side}"
                )
        super().__init__(network, config, data, processes=processes)
        self.autoencoder, self.sha256 = autoencoder.to(processes.device), sha256

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of one step: the prior's own crops, encoded."""
        b = super().batch(step)
        rng = np.random.default_rng([self.config.seed, step, 1])  # the crops' is [seed, step]
        with torch.no_grad():
            mean, std = self.autoencoder.standardised(b.x0)
        shape = (len(b) * self.processes.count, *mean.shape[1:])
        spread, noise = (
            self.processes.part(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))) for _ in range(2)
        )
        return Batch(mean + std * spread, b.pixel_mm, b.box, b.sigma, noise)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = super().state()
        return tensors, facts | {"autoencoder_sha256": self.sha256}

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            ValueError: as for `Trainer.load`, or the state is of latents of another autoencoder.
        """
        found = _facts(path).get("autoencoder_sha256")
        if found != self.sha256:
            raise ValueError(
                f"{path}: holds a prior of latents of the autoencoder {str(found)[:12]}, this run has {self.sha256[:12]}; "
                "give another --out"
            )
        super().load(path)

    def best_latent_average(self, images: Sequence[Tensor]) -> EDMDenoiser:
        """The average that denoises these latents (c, h, w) best; the first where there are none."""
        if not images or len(self.averages) == 1:
            return self.averages[0]
        return max(self.averages, key=lambda average: sum(latent_psnr(average, images)))


def _facts(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return dict(json.loads((file.metadata() or {}).get("scoreinv", "{}")))


def autoencoding_psnr(model: KLAutoencoder, images: Sequence[Slice]) -> float:
    """PSNR of dec(m(u)) [dB], mean over images; u clipped to [-1, 1], range 2."""

    def there_and_back(u: Tensor, sigma: Tensor, pixel_mm: Tensor) -> Tensor:
        return model.decode(model.encode(u[:, 0]))[:, None]

    return denoising_psnr(there_and_back, images, (0.0,))[0]


@torch.no_grad()
def latent_psnr(denoise: EDMDenoiser, images: Sequence[Tensor], sigmas: Sequence[float] = LATENT_SIGMAS) -> list[float]:
    """−10 log10 of the mean squared error of D(z₀ + σ n, σ) for each σ [dB], mean over latents; the same noise at every call.

    Args:
        denoise: D.
        images: standardised latents, each (c, h, w) with sides that the network takes.
        sigmas: noise levels.
    """
    out = []
    for sigma in sigmas:
        rng, total = torch.Generator().manual_seed(round(1e4 * sigma)), 0.0
        for z in images:
            noisy = z + sigma * torch.randn(z.shape, generator=rng).to(z)
            error = denoise(noisy[None], z.new_tensor([sigma]))[0] - z
            total -= 10 * math.log10(max(float(error.square().mean()), 1e-12))
        out.append(total / len(images))
    return out


def train_autoencoder_run(
    run: AutoencoderRun, folder: Path, *, validation: Sequence[Slice] = (), training: Sequence[Slice] = (), **limits: Any
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Run to the end of the schedule; yields a row of figures after every step.

    Args:
        run: its `step` advances.
        folder: where state and log go.
        validation: slices of patients that are not trained on: `psnr_0` of the first average.
        training: slices that are: `train_psnr_0`.
        limits: of `descent.descend`.
    """
    parts = (("", validation), ("train_", training))
    yield from descend(
        run, folder, lambda: {f"{prefix}psnr_0": autoencoding_psnr(run.averages[0], s) for prefix, s in parts if s}, **limits
    )  # fmt: skip


def train_latent_run(
    run: LatentTrainer, folder: Path, *, validation: Sequence[Tensor] = (), training: Sequence[Tensor] = (), **limits: Any
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """As `train_autoencoder_run`, with latents (c, h, w) of slices and `psnr_<σ>` of `latent_psnr`."""

    def figures() -> dict[str, float]:
        return {
            f"{prefix}psnr_{s:g}": value
            for prefix, images in (("", validation), ("train_", training))
            if images
            for s, value in zip(LATENT_SIGMAS, latent_psnr(run.averages[0], images), strict=True)
        }

    yield from descend(run, folder, figures, **limits)
