"""Training of the score network by denoising score matching over all noise levels.

    ln σ ~ N(P_mean, P_std²),   x = x₀ + σ n,   L = E[ λ(σ) ‖D(x, σ) − x₀‖² ],   λ = (σ² + σ_d²) / (σ σ_d)²       (1)

(Karras et al. 2022, arXiv:2206.00364, eq. 2 and table 1.) With learned weights the loss of a noise level is measured in
units of what is usual there (Karras et al. 2024, arXiv:2312.02696, eq. 22):

    L = E[ e^(−a(σ)) λ(σ) ‖D(x, σ) − x₀‖² + a(σ) ]                                                                (2)

Step k draws all of its randomness from (seed, k): a run that is killed and resumed goes through the same batches as one
that was not, and several processes share the batch that one alone would draw.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scoreinv.files.atomic import replacing
from scoreinv.priors.blocks import FourierFeatures, start_at_zero
from scoreinv.priors.crops import ImageSet, draw_crops
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.priors.parallel import ALONE, Processes
from scoreinv.priors.validation import VALIDATION_SIGMAS, Slice, denoising_psnr, read_log, write_log


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
        for name in ("steps", "batch_size", "crop", "whole", "warmup", "lr_reference"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not (self.lr > 0 and self.clip > 0 and self.p_std > 0):
            raise ValueError(f"lr, clip and p_std must be positive, got {self.lr}, {self.clip} and {self.p_std}")
        for name in ("whole_fraction", "zoom"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not self.ema or not all(0 <= decay < 1 for decay in self.ema):
            raise ValueError(f"expected one or more decays 0 <= ema < 1, got {self.ema}")
        for name, known in (("decay", ("cosine", "power")), ("weighting", ("edm", "learned"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {getattr(self, name)!r}")


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine from lr to lr / 100, or the power decay."""
    warm = min((step + 1) / config.warmup, 1.0)
    if config.decay == "power":
        return config.lr * warm / math.sqrt(max(step / config.lr_reference, 1.0))
    cosine = 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1.0)))
    return config.lr * warm * (0.01 + 0.99 * cosine)


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


class Trainer:
    """The state of a training run: weights, their averages, optimiser, step; saved and loaded as one file."""

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
        self.parameters = dict(learner.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        forward = processes.shared(learner)
        self.forward = torch.compile(forward) if config.compile else forward
        self.step, self.seconds, self.mean_loss = 0, 0.0, 1.0
        self.history: list[dict[str, Any]] = []
        self.start = "scratch"
        self.images_per_second = math.nan

    def begin_slice(self) -> None:
        """Open a row of the history: a run is trained in slices, each with its own settings."""
        row = {"from_step": self.step, "to_step": self.step, "hours": 0.0, "start": self.start}
        row["processes"] = self.processes.count
        self.history = [*self.history, row | {"training": asdict(self.config)}]
        self._seconds_before = self.seconds

    def _note_slice(self) -> None:
        if self.history:
            self.history[-1] |= {"to_step": self.step, "hours": (self.seconds - self._seconds_before) / 3600}

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of another run, averages included."""
        for module in (self.model, *self.averages):
            module.load_state_dict(weights)

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

    def advance(self) -> tuple[float, float]:
        """One step of the optimiser; returns the loss and the gradient's norm.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        started = time.perf_counter()
        batch = self.batch(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"training diverged at step {self.step}: gradient norm {norm}; lower the learning rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for decay, average in zip(self.config.ema, self.averages, strict=True):
                weight = 1 - min(decay, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(list(average.parameters()), list(self.model.parameters()), weight)
        self.step += 1
        taken = time.perf_counter() - started
        self.seconds += taken
        self.images_per_second = self.processes.count * len(batch.x0) / taken
        return loss.item(), norm.item()

    def _modules(self) -> dict[str, nn.Module]:
        averages = {f"average{k}": average for k, average in enumerate(self.averages)}
        return {"model": self.model, "usual": self.usual, **averages}

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs into one safetensors file, whole or not at all."""
        tensors = {f"{p}.{k}": v for p, module in self._modules().items() for k, v in module.state_dict().items()}
        names = list(self.parameters)
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{key}.{names[i]}": value for key, value in state.items()}
        self._note_slice()
        facts = {
            "step": self.step, "seconds": self.seconds, "mean_loss": self.mean_loss, "history": self.history,
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
            ValueError: the file holds another network or other averages.
        """
        with safe_open(path, "pt", device=str(self.processes.device)) as file:
            facts = json.loads(file.metadata()["scoreinv"])
            if UNetConfig.from_dict(facts["network"]) != self.model.config:
                raise ValueError(
                    f"{path}: holds the network {facts['network']}, this run asks for {self.model.config.to_dict()}"
                )
            if len(facts["training"]["ema"]) != len(self.averages):
                raise ValueError(f"{path}: holds averages of decay {facts['training']['ema']}, not {self.config.ema}")
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        for prefix, module in self._modules().items():
            mine = {k: v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
            module.load_state_dict({k.removeprefix(f"{prefix}."): v for k, v in mine.items()})
        state: dict[int, dict[str, Tensor]] = {}
        for i, name in enumerate(self.parameters):
            keys = {key: f"adam.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if keys["step"] in tensors:
                state[i] = {key: _laid_out(tensors[stored], self.parameters[name]) for key, stored in keys.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.seconds, self.mean_loss = facts["step"], facts["seconds"], facts["mean_loss"]
        self.history, self.start = facts["history"], f"state at step {self.step}"

    def best_average(self, images: Sequence[Slice]) -> EDMDenoiser:
        """The average that denoises these images best; the first where there are none."""
        if not images:
            return self.averages[0]
        return max(self.averages, key=lambda average: sum(denoising_psnr(average, images)))


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor in the memory layout of its parameter: the fused optimiser pairs them byte by byte."""
    return tensor if tensor.ndim < parameter.ndim else torch.empty_like(parameter).copy_(tensor)


def train(
    trainer: Trainer, folder: Path, *, validation: Sequence[Slice], training: Sequence[Slice] = (), until: int | None = None,
    hours: float = math.inf, checkpoint_minutes: float = 3.0, validate_every: int = 500,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Run from the trainer's step to the end of the schedule; yields a row of figures after every step.

    Saves `folder/state.safetensors` every `checkpoint_minutes` and at the end, appends a row to `folder/log.csv` at every
    validation. A run that begins where a state lies goes on from it; rows of the log behind that state are dropped. A state
    that cannot be written (a full disk) is warned about, the last good one stays, and training goes on.

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
    folder.mkdir(parents=True, exist_ok=True)
    state, log = folder / "state.safetensors", folder / "log.csv"
    if state.is_file():
        trainer.load(state)
    trainer.begin_slice()
    rows = [r for r in read_log(log) if int(r["step"]) <= trainer.step]
    last = min(trainer.config.steps, until if until is not None else trainer.config.steps)
    started = saved = time.monotonic()
    while trainer.step < last and trainer.processes.agree(time.monotonic() - started < 3600 * hours):
        loss, norm = trainer.advance()
        trainer.mean_loss = loss if trainer.step == 1 else 0.99 * trainer.mean_loss + 0.01 * loss
        row: dict[str, Any] = {
            "step": trainer.step, "hours": trainer.seconds / 3600, "lr": learning_rate(trainer.config, trainer.step - 1),
            "loss": trainer.mean_loss, "gradient_norm": norm, "images_per_second": trainer.images_per_second,
        }  # fmt: skip
        if trainer.processes.main and (trainer.step % validate_every == 0 or trainer.step == last):
            row |= _figures(trainer, validation, training)
            rows.append({k: f"{v:.5g}" if isinstance(v, float) else str(v) for k, v in row.items()})
            _or_warn(lambda: write_log(log, rows))
        if trainer.processes.main and time.monotonic() - saved > 60 * checkpoint_minutes:
            _or_warn(lambda: trainer.save(state))
            saved = time.monotonic()
        yield row
    if trainer.processes.main:
        trainer.save(state)


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


def _or_warn(write: Callable[[], None]) -> None:
    """A write in the middle of training: a full disk must not end a run whose last state is safe."""
    try:
        write()
    except (OSError, SafetensorError) as error:
        warnings.warn(f"not saved ({error}); the last good state is kept and training goes on", stacklevel=3)
