"""Training of the score network by denoising score matching over all noise levels.

    ln σ ~ N(P_mean, P_std²),   x = x₀ + σ n,   L = E[ λ(σ) ‖D(x, σ) − x₀‖² ],   λ = (σ² + σ_d²) / (σ σ_d)²

(Karras et al. 2022, arXiv:2206.00364, eq. 2 and table 1.) Step k draws all of its randomness from (seed, k): a run that is
killed and resumed goes through the same batches as one that was not.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from scoreinv.files.atomic import replacing
from scoreinv.priors.crops import ImageSet, draw_crops
from scoreinv.priors.network import EDMDenoiser, UNetConfig

VALIDATION_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: length of the learning-rate schedule.
        batch_size: crops a step.
        crop: side of a crop [pixels].
        whole: side of the crops in the last part of training, so that attention sees there what it sees at test time.
        whole_fraction: that part of the steps; the batch shrinks so that a step keeps its number of pixels.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up, before the cosine decay to lr / 100.
        ema: decay of the exponential moving average of the weights, reached gradually.
        clip: gradient norm above which gradients are scaled down.
        p_mean, p_std: ln σ ~ N(p_mean, p_std²).
        seed: of everything random.
        bfloat16: autocast to bfloat16, worth it where the processor has the instructions.
        compile: torch.compile the network (needs a C++ compiler on CPU).
    """

    steps: int = 20_000
    batch_size: int = 8
    crop: int = 128
    whole: int = 256
    whole_fraction: float = 0.15
    lr: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    clip: float = 1.0
    p_mean: float = -1.4
    p_std: float = 1.5
    seed: int = 0
    bfloat16: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop", "whole", "warmup"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not (self.lr > 0 and self.clip > 0 and self.p_std > 0):
            raise ValueError(f"lr, clip and p_std must be positive, got {self.lr}, {self.clip} and {self.p_std}")
        if not (0 <= self.ema < 1 and 0 <= self.whole_fraction <= 1):
            got = f"{self.ema} and {self.whole_fraction}"
            raise ValueError(f"expected 0 <= ema < 1 and 0 <= whole_fraction <= 1, got {got}")


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine from lr to lr / 100."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1.0)))
    return config.lr * min((step + 1) / config.warmup, 1.0) * (0.01 + 0.99 * cosine)


def denoising_loss(
    model: Callable[[Tensor, Tensor], Tensor], x0: Tensor, sigma: Tensor, noise: Tensor, sigma_data: float
) -> Tensor:
    """λ(σ) ‖D(x₀ + σ n, σ) − x₀‖² averaged over pixels and batch; x0 and noise (batch, C, H, W), sigma (batch,)."""
    s = sigma.reshape(-1, 1, 1, 1)
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    return (weight * (model(x0 + s * noise, sigma) - x0) ** 2).mean()


class Trainer:
    """The state of a training run: weights, their average, optimiser, step; saved and loaded as one file."""

    def __init__(
        self, network: UNetConfig, config: TrainConfig, data: ImageSet, *, device: torch.device | str = "cpu"
    ) -> None:
        for name in ("crop", "whole"):
            side, multiple = getattr(config, name), network.multiple
            if side % multiple:
                raise ValueError(f"{name} must be a multiple of {multiple} pixels for this network, got {side}")
        self.config, self.data, self.device = config, data, torch.device(device)
        self.cumulative = np.cumsum(data.weights())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = EDMDenoiser(network).to(self.device)
            self.average = EDMDenoiser(network).to(self.device).requires_grad_(False).eval()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.step, self.seconds, self.mean_loss = 0, 0.0, 1.0

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """x₀ (batch, 1, side, side), σ (batch,) and noise of one step: a function of (seed, step) alone."""
        c = self.config
        side, n = c.crop, c.batch_size
        if step >= (1 - c.whole_fraction) * c.steps:
            side, n = c.whole, max(1, round(c.batch_size * (c.crop / c.whole) ** 2))
        rng = np.random.default_rng([c.seed, step])
        x0 = draw_crops(self.data, self.cumulative, rng, n, side)
        sigma = torch.from_numpy(np.exp(c.p_mean + c.p_std * rng.standard_normal(n))).float()
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
        return x0.to(self.device), sigma.to(self.device), noise.to(self.device)

    def advance(self) -> tuple[float, float]:
        """One step of the optimiser; returns the loss and the gradient's norm.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        started = time.perf_counter()
        x0, sigma, noise = self.batch(self.step)
        lr = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            loss = denoising_loss(self.forward, x0, sigma, noise, self.model.config.sigma_data)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"training diverged at step {self.step}: gradient norm {norm}; lower the learning rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return loss.item(), norm.item()

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs into one safetensors file, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        names = [name for name, _ in self.model.named_parameters()]
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{key}.{names[i]}": value for key, value in state.items()}
        facts = {
            "step": self.step, "seconds": self.seconds, "mean_loss": self.mean_loss,
            "network": self.model.config.to_dict(), "training": asdict(self.config),
        }  # fmt: skip
        with replacing(path) as temporary:
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
                temporary,
                {"scoreinv": json.dumps(facts)},
            )

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            ValueError: the file holds another network.
        """
        with safe_open(path, "pt", device=str(self.device)) as file:
            facts = json.loads(file.metadata()["scoreinv"])
            if UNetConfig.from_dict(facts["network"]) != self.model.config:
                raise ValueError(
                    f"{path}: holds the network {facts['network']}, this run asks for {self.model.config.to_dict()}"
                )
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        for prefix, module in (("model.", self.model), ("average.", self.average)):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for i, (name, _) in enumerate(self.model.named_parameters()):
            keys = {key: f"adam.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if keys["step"] in tensors:
                state[i] = {key: tensors[stored] for key, stored in keys.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.seconds, self.mean_loss = facts["step"], facts["seconds"], facts.get("mean_loss", 1.0)


@torch.no_grad()
def denoising_psnr(
    model: Callable[[Tensor, Tensor], Tensor], images: list[Tensor], sigmas: tuple[float, ...] = VALIDATION_SIGMAS
) -> list[float]:
    """PSNR of D(x₀ + σ n, σ) for each σ, mean over images; u clipped to [-1, 1], range 2; the same noise at every call.

    Args:
        model: the denoiser.
        images: (H, W) in u.
        sigmas: noise levels in u.
    """
    out = []
    for sigma in sigmas:
        rng = torch.Generator().manual_seed(round(1e4 * sigma))
        total = 0.0
        for x0 in images:
            noisy = x0 + sigma * torch.randn(x0.shape, generator=rng).to(x0)
            estimate = model(noisy[None, None], torch.full((1,), sigma).to(x0))[0, 0]
            mse = ((estimate.clamp(-1, 1) - x0.clamp(-1, 1)) ** 2).mean().item()
            total += 10 * math.log10(4 / max(mse, 1e-12))
        out.append(total / len(images))
    return out


def train(
    trainer: Trainer, folder: Path, *, validation: list[Tensor], until: int | None = None, hours: float = math.inf,
    checkpoint_minutes: float = 3.0, validate_every: int = 500,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Run from the trainer's step to the end of the schedule; yields a row of figures after every step.

    Saves `folder/state.safetensors` every `checkpoint_minutes` and at the end, appends a row to `folder/log.csv` at every
    validation. A run that begins where a state lies goes on from it; rows of the log behind that state are dropped.

    Args:
        trainer: the run; its `step` advances.
        folder: where state and log go.
        validation: (H, W) images in u.
        until: stop at this step (default: the end of the schedule).
        hours: stop after so much time in this call.
        checkpoint_minutes: time between two saved states.
        validate_every: steps between two validations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, log = folder / "state.safetensors", folder / "log.csv"
    if state.is_file():
        trainer.load(state)
    rows = [r for r in read_log(log) if int(r["step"]) <= trainer.step]
    last = min(trainer.config.steps, until if until is not None else trainer.config.steps)
    started = saved = time.monotonic()
    while trainer.step < last and time.monotonic() - started < 3600 * hours:
        loss, norm = trainer.advance()
        trainer.mean_loss = loss if trainer.step == 1 else 0.99 * trainer.mean_loss + 0.01 * loss
        row: dict[str, Any] = {
            "step": trainer.step, "hours": trainer.seconds / 3600, "loss": trainer.mean_loss, "gradient_norm": norm,
        }  # fmt: skip
        if trainer.step % validate_every == 0 or trainer.step == last:
            psnr = denoising_psnr(trainer.average, validation) if validation else []
            row |= {f"psnr_{s:g}": p for s, p in zip(VALIDATION_SIGMAS, psnr, strict=False)}
            rows.append({k: f"{v:.5g}" if isinstance(v, float) else str(v) for k, v in row.items()})
            _write_log(log, rows)
        if time.monotonic() - saved > 60 * checkpoint_minutes:
            trainer.save(state)
            saved = time.monotonic()
        yield row
    trainer.save(state)


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a training log, as text; none where there is no log yet."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write_log(path: Path, rows: list[dict[str, str]]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
