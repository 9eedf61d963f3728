"""Networks of the gallery, and their training by any loss of the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from scoreinv.priors.conditional_training import ConditionalTraining, ExampleRun, Examples, NoisyBatch
from scoreinv.priors.denoiser import Denoiser
from scoreinv.priors.descent import Run, descend
from scoreinv.priors.network import WHOLE, UNet, UNetConfig
from scoreinv.progress import track
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.processes import Process
from scoreinv.sampling.steps import Step
from scoreinv.streams import normal, split

Criterion = Callable[[Any, Tensor, Sequence[Generator]], Tensor]
"""(network, clean images (n, C, H, W), a stream for each) -> the loss of each, (n,)."""


class LossRun(ExampleRun):
    """Training of a network by any loss of `priors.losses`; its `config` has `to_dict`."""

    def __init__(
        self, build: Callable[[], nn.Module], config: ConditionalTraining, examples: Examples, criterion: Criterion
    ) -> None:
        self.criterion = criterion
        super().__init__(build, config, examples)

    def loss(self, b: NoisyBatch) -> Tensor:
        streams = split(Generator().manual_seed(1_000_003 * self.config.seed + self.step), len(b))
        return self.criterion(self.model, b.x0, streams).mean()


@torch.enable_grad()
def learnt(run: Run, folder: Path) -> Any:
    """The average of the weights at the end of a run, which goes on from the state in its folder if there is one."""
    for _ in track(descend(run, folder, dict), folder.name, run.config.steps):
        pass
    average = run.averages[0]
    return average.eval().requires_grad_(False)


def score_of(prior: Denoiser, process: Process) -> Callable[[Tensor, Tensor], Tensor]:
    """S(x_t, t) = (D(x_t / s, σ) − x_t / s) / (s σ²), the score in a process's own coordinate."""

    def score(x_t: Tensor, t: Tensor) -> Tensor:
        s, sigma = (v.to(x_t).reshape(-1, 1, 1, 1) for v in (process.scale(t), process.sigma(t)))
        return (prior(x_t / s, sigma.flatten()) - x_t / s) / (s * sigma**2)

    return score


@torch.no_grad()
def drawn(
    prior: Denoiser,
    shape: tuple[int, ...],
    n: int,
    levels: Tensor,
    step: Step,
    *,
    seed: int = 0,
    finish: bool = True,
    chunk: int = 256,
) -> Tensor:
    """n draws (n, *shape) down the levels from pure noise, each depending on the seed and its number alone.

    Args:
        prior: D.
        shape: of an image.
        n: how many.
        levels: falling, the last 0.
        step: from one level to the next; where it cannot go to 0, see finish.
        seed: of everything random.
        finish: go to 0; else stop at the last positive level and denoise there.
        chunk: drawn together; the result does not depend on it.
    """
    rngs = member_streams(Generator().manual_seed(seed), n, 1)
    parts = []
    for k in range(0, n, chunk):
        streams = rngs[k : k + chunk]
        x = levels[0].float() * normal(streams, torch.zeros(len(streams), *shape))
        x = last(sample(prior, x, levels if finish else levels[:-1], step=step, rngs=streams))
        parts.append(x if finish else prior(x, levels[-2].float()))
    return torch.cat(parts)


class LabelledUNet(nn.Module):
    """The library's U-Net, told any label: a network (x_t, label) -> its prediction for `adapters.parametrisation.Parametrised`.

    Args:
        config: of the U-Net, for one channel.
        labels: the label that becomes 1; or "sigma" for labels σ, of which the network gets ¼ ln σ and x scaled to unit variance;
            or "none" for a network that is not told the level, and gets x scaled so with the norm it finds (labels are ignored).
        outputs: channels that it predicts; 2 with a variance.
    """

    def __init__(self, config: UNetConfig, labels: float | str, outputs: int = 1) -> None:
        super().__init__()
        self.config, self.labels, self.outputs = config, labels, outputs
        self.unet = UNet(UNetConfig.from_dict({**config.to_dict(), "channels": outputs}))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """x (n, 1, H, W), label (n,) -> (n, outputs, H, W)."""
        if self.labels == "sigma" or self.labels == "none":
            told = x.square().mean((1, 2, 3)).sqrt() if self.labels == "none" or label is None else label.to(x)
            norm = (told**2 + self.config.sigma_data**2).sqrt()
            x, c_noise = x / norm[:, None, None, None], told.clamp(min=1e-6).log() / 4
        else:
            assert label is not None and isinstance(self.labels, float)
            c_noise = label.to(x) / self.labels
        empty = x.new_zeros(len(x), self.outputs - 1, *x.shape[2:])
        unknown, whole = x.new_full((len(x),), math.nan), x.new_tensor(WHOLE).expand(len(x), 4)
        out: Tensor = self.unet(torch.cat([x, empty], dim=1), c_noise, unknown, whole)
        return out


@dataclass(frozen=True)
class PlaneConfig:
    """Of a network on points of the plane.

    Attributes:
        outputs: 2 for a score, 1 for an energy.
        levelled: told the noise level.
        width: of its three hidden layers.
        reach: standard deviation of the Gaussian that it is before training.
    """

    outputs: int = 2
    levelled: bool = False
    width: int = 128
    reach: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """The plain values."""
        return asdict(self)


class PlaneNetwork(nn.Module):
    """A smooth network on points (n, 1, 1, 2): the score −x / r² + f(x) or the energy ‖x‖² / 2 r² + f(x), r² = reach² + σ².

    Told the level, it is a denoising network: f stands for (S + x / r²) σ. Far out f fades, so that no path runs away.
    """

    def __init__(self, config: PlaneConfig) -> None:
        super().__init__()
        self.config, w = config, config.width
        n = 14 + 2 * config.levelled
        layers: list[nn.Module] = [nn.Linear(n, w), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(w, w), nn.SiLU()]
        last = nn.Linear(w, config.outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """The score, shaped like x, or the energy, (n,)."""
        c, points = self.config, x.reshape(-1, 2)
        level = points.new_zeros(len(points)) if sigma is None else sigma.to(points).reshape(-1).expand(len(points))
        square = (level**2 + c.reach**2)[:, None]
        place = points / square.sqrt()
        told = torch.cat([place, *(f(k * place) for k in (1.0, 2.0, 4.0) for f in (torch.sin, torch.cos))], dim=1)
        if c.levelled:
            ln = level.clamp(min=1e-6).log()[:, None]
            told = torch.cat([told, ln / 4, (ln * 1.5).sin()], dim=1)
        f = self.layers(told) / (1 + (place.square().sum(1, keepdim=True) / 16) ** 2)
        if c.outputs == 1:
            energy: Tensor = f[:, 0] + (points**2 / (2 * square)).sum(1)
            return energy
        score: Tensor = (f / level[:, None] if c.levelled else f) - points / square
        return score.reshape(x.shape)
