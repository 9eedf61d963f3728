"""What every training run has in common, a prior's and a learned baseline's alike: steps, averages, state, time, log.

Step k draws all of its randomness from (seed, k): a run that is killed and resumed goes through the same batches as one
that was not, and several processes share the batch that one alone would draw.
"""

from __future__ import annotations

import abc
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scoreinv.priors.parallel import Processes
from scoreinv.priors.validation import read_log, write_log


class Settings(Protocol):
    """What a run's own settings, a frozen dataclass, have among others."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def decay(self) -> str: ...
    @property
    def lr_reference(self) -> int: ...
    @property
    def ema(self) -> tuple[float, ...]: ...
    @property
    def clip(self) -> float: ...


def check_settings(config: Settings, counts: Sequence[str]) -> None:
    """Raise ValueError for settings that every run has and that cannot be; `counts` names whole numbers of at least 1."""
    for name in counts:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if not config.ema or not all(0 <= decay < 1 for decay in config.ema):
        raise ValueError(f"expected one or more decays 0 <= ema < 1, got {config.ema}")
    if config.decay not in ("cosine", "power"):
        raise ValueError(f"decay must be 'cosine' or 'power', got {config.decay!r}")


def learning_rate(config: Settings, step: int) -> float:
    """Linear warm-up, then half a cosine from lr to lr / 100, or the power decay."""
    warm = min((step + 1) / config.warmup, 1.0)
    if config.decay == "power":
        return config.lr * warm / math.sqrt(max(step / config.lr_reference, 1.0))
    cosine = 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1.0)))
    return config.lr * warm * (0.01 + 0.99 * cosine)


class Run(abc.ABC):
    """The state of a training run: weights, their averages, optimiser, step.

    Attributes:
        config: how to train.
        processes: this process among those of the run.
        model: the network; `averages` are copies that follow it, one for each decay of `config.ema`.
        parameters: all that learns, by name.
        step, seconds: how far it is, and how long that took.
        mean_loss: running mean.
        history: a row for each slice of training, see `begin_slice`.
        start: where it began.
    """

    config: Any
    processes: Processes
    model: nn.Module
    averages: Sequence[nn.Module]

    def begin(self, parameters: dict[str, nn.Parameter]) -> None:
        """Set up the optimiser and the counters."""
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=self.config.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.step, self.seconds, self.mean_loss = 0, 0.0, 1.0
        self.history: list[dict[str, Any]] = []
        self.start = "scratch"
        self.images_per_second = math.nan

    @abc.abstractmethod
    def batch(self, step: int) -> Sized:
        """This process's part of the batch of one step, which is a function of (seed, step) alone."""

    @abc.abstractmethod
    def loss(self, b: Any) -> Tensor:
        """The loss of a batch, a scalar."""

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs into one safetensors file, whole or not at all."""

    @abc.abstractmethod
    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote."""

    def modules(self) -> dict[str, nn.Module]:
        """What has weights, by the prefix of their names in the state."""
        return {"model": self.model, **{f"average{k}": average for k, average in enumerate(self.averages)}}

    def begin_slice(self) -> None:
        """Open a row of the history: a run is trained in slices, each with its own settings."""
        row = {"from_step": self.step, "to_step": self.step, "hours": 0.0, "start": self.start}
        row["processes"] = self.processes.count
        self.history = [*self.history, row | {"training": asdict(self.config)}]
        self._seconds_before = self.seconds

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of another run, averages included."""
        for module in (self.model, *self.averages):
            module.load_state_dict(weights)

    def go_on_from(self, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
        """Take the weights of a finished run and its history, as its card has it."""
        self.start_from(weights)
        self.history, self.start = [*card.get("history", [])], card["sha256"][:12]

    def spent(self) -> dict[str, Any]:
        """`steps` and `hours` of the whole history, for a card."""
        return {
            "steps": sum(h["to_step"] - h["from_step"] for h in self.history),
            "hours": round(sum(h["hours"] for h in self.history), 3),
        }

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
        self.images_per_second = self.processes.count * len(batch) / taken
        return loss.item(), norm.item()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain facts of a state file."""
        tensors = {f"{p}.{k}": v for p, module in self.modules().items() for k, v in module.state_dict().items()}
        names = list(self.parameters)
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{key}.{names[i]}": value for key, value in state.items()}
        if self.history:
            self.history[-1] |= {"to_step": self.step, "hours": (self.seconds - self._seconds_before) / 3600}
        facts = {
            "step": self.step, "seconds": self.seconds, "mean_loss": self.mean_loss, "history": self.history,
            "training": asdict(self.config),
        }  # fmt: skip
        return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, facts

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        for prefix, module in self.modules().items():
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


def read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    with safe_open(path, "pt", device=str(device)) as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (safe_open is no mapping)


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor in the memory layout of its parameter: the fused optimiser pairs them byte by byte."""
    return tensor if tensor.ndim < parameter.ndim else torch.empty_like(parameter).copy_(tensor)


def descend(
    run: Run, folder: Path, figures: Callable[[], dict[str, float]], *, until: int | None = None,
    hours: float = math.inf, checkpoint_minutes: float = 3.0, validate_every: int = 500,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Run to the end of the schedule; yields a row of figures after every step.

    Saves `folder/state.safetensors` every `checkpoint_minutes` and at the end, appends a row to `folder/log.csv` at every
    validation. A run that begins where a state lies goes on from it; rows of the log behind that state are dropped. A state
    that cannot be written (a full disk) is warned about, the last good one stays, and training goes on.

    Args:
        run: its `step` advances.
        folder: where state and log go.
        figures: what is known at a validation.
        until: stop at this step (default: the end of the schedule).
        hours: stop after so much time in this call.
        checkpoint_minutes: time between two saved states.
        validate_every: steps between two validations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, log = folder / "state.safetensors", folder / "log.csv"
    if state.is_file():
        run.load(state)
    run.begin_slice()
    rows = [r for r in read_log(log) if int(r["step"]) <= run.step]
    last = min(run.config.steps, until if until is not None else run.config.steps)
    started = saved = time.monotonic()
    while run.step < last and run.processes.agree(time.monotonic() - started < 3600 * hours):
        loss, norm = run.advance()
        run.mean_loss = loss if run.step == 1 else 0.99 * run.mean_loss + 0.01 * loss
        row: dict[str, Any] = {
            "step": run.step, "hours": run.seconds / 3600, "lr": learning_rate(run.config, run.step - 1),
            "loss": run.mean_loss, "gradient_norm": norm, "images_per_second": run.images_per_second,
        }  # fmt: skip
        if run.processes.main and (run.step % validate_every == 0 or run.step == last):
            row |= figures()
            rows.append({k: f"{v:.5g}" if isinstance(v, float) else str(v) for k, v in row.items()})
            _or_warn(lambda: write_log(log, rows))
        if run.processes.main and time.monotonic() - saved > 60 * checkpoint_minutes:
            _or_warn(lambda: run.save(state))
            saved = time.monotonic()
        yield row
    if run.processes.main:
        run.save(state)


def _or_warn(write: Callable[[], None]) -> None:
    """A write in the middle of training: a full disk must not end a run whose last state is safe."""
    try:
        write()
    except (OSError, SafetensorError) as error:
        warnings.warn(f"not saved ({error}); the last good state is kept and training goes on", stacklevel=3)
