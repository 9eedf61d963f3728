"""Colourisation: a small prior of pieces of scikit-image's colour pictures, and the colours that it gives to gray pieces it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gallery.draw import Panel, gray, panels, tiled
from gallery.setting import Outcome, Setting, pace
from gallery.training import LossRun, learnt
from scoreinv import plugins
from scoreinv.editing import colourise, posterior_method
from scoreinv.priors.colour import Padded
from scoreinv.priors.conditional import Condition
from scoreinv.priors.conditional_training import ConditionalTraining
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.priors.training import denoising_error

SIDE = 32
PICTURES = ("astronaut", "chelsea", "coffee", "rocket")
NETWORK = UNetConfig(channels=3, widths=(64, 128), attention=(1,), embedding=128)


def picture(name: str) -> Tensor:
    """A colour picture at a quarter of its resolution, (3, H, W) in [-1, 1]."""
    from skimage import data

    found: Any = getattr(data, name)()
    x = torch.from_numpy(np.ascontiguousarray(found[..., :3])).float().movedim(-1, 0) / 127.5 - 1
    return torch.nn.functional.avg_pool2d(x[None], 4)[0]


def held_out(x: Tensor) -> tuple[int, int]:
    """Row and column from which the piece at the lower right, which is not trained on, begins."""
    return x.shape[1] - SIDE - 8, (x.shape[2] - SIDE) // 2


def pieces() -> Tensor:
    """The pieces that are not trained on, (n, 3, 32, 32)."""
    found = []
    for x in map(picture, PICTURES):
        top, left = held_out(x)
        found.append(x[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(found)


def crops(rng: np.random.Generator, n: int, known: Sequence[Tensor]) -> tuple[Tensor, Condition]:
    """Random pieces that do not touch the held-out ones, mirrored at random."""
    out: list[Tensor] = []
    while len(out) < n:
        x = known[int(rng.integers(len(known)))]
        top, left = int(rng.integers(x.shape[1] - SIDE + 1)), int(rng.integers(x.shape[2] - SIDE + 1))
        apart = max(abs(a - b) for a, b in zip((top, left), held_out(x), strict=True)) >= SIDE
        if apart:
            piece = x[:, top : top + SIDE, left : left + SIDE]
            out.append(piece.flip(-1) if rng.random() < 0.5 else piece)
    return torch.stack(out), Condition()


def criterion(net: Any, x: Tensor, rngs: Sequence[Generator]) -> Tensor:
    """The loss of EDM."""
    z = torch.stack([torch.randn(x.shape[1:], generator=g) for g in rngs])
    sigma = torch.stack([(-1.0 + 1.4 * torch.randn((), generator=g)).exp() for g in rngs])
    return denoising_error(net(x + sigma[:, None, None, None] * z, sigma), x, sigma, NETWORK.sigma_data)


@torch.no_grad()
def run(setting: Setting) -> Outcome:
    """Train, take the colours of held-out pieces away, and draw new ones."""
    steps = setting.steps(5000)
    known = [picture(name) for name in PICTURES]
    training = ConditionalTraining(**pace(steps, 0.998), batch_size=8, lr=1e-3)
    net = learnt(
        LossRun(lambda: EDMDenoiser(NETWORK), training, lambda rng, n: crops(rng, n, known), criterion),
        setting.work / f"colours-{steps}",
    )
    prior, truth = Padded(net, NETWORK.multiple, 64), pieces()[: setting.count(4, 1)]
    A = plugins.get("operators", "grayscale")((3, SIDE, SIDE))
    samples = setting.count(3, 2)
    settings: dict[str, Any] = {"samples": samples, "n_levels": setting.count(30, 4)}
    draws = torch.stack(
        [
            colourise(
                lambda p: posterior_method("repaint", settings, p),
                prior,
                A(x)[0],
                Generator().manual_seed(k),
                rotate=True,
            )
            for k, x in enumerate(truth)
        ]
    )
    luminance = A(truth)
    kept = float((A(draws) - luminance[:, None]).abs().max())
    plain = A.H(luminance) / float(A.H(torch.ones(1, SIDE, SIDE)).square().sum(0).mean())
    without = float((plain - truth).square().mean().sqrt())
    single = float((draws - truth[:, None]).square().mean().sqrt())
    mean = float((draws.mean(1) - truth).square().mean().sqrt())
    rows = [("Held-out pieces", "not trained on", truth)]
    rows.append(("Their luminance", "all that the method is given", luminance.expand(-1, 3, -1, -1)))
    rows += [(f"Colours, draw {k + 1}", "of the same luminance", draws[:, k]) for k in range(samples)]
    shown = [Panel(heading, caption, gray(tiled((x.clamp(-1, 1) + 1) / 2, 2))) for heading, caption, x in rows]
    panels(setting.picture("colours"), shown, 5, width=2.2)
    figure = (
        f"luminance kept to {kept:.0e}; colours of held-out pieces err {single:.2f} in a draw and {mean:.2f} in the mean of {samples}, "
        f"{without:.2f} in the gray image (range 2)"
    )
    return Outcome({"colourisation": figure}, {"draw": single, "mean": mean, "gray": without})
