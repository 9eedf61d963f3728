"""The forward processes: pictures of a digit on its way to noise, kernels against simulated paths, conversions against each other."""

from __future__ import annotations

import itertools
from typing import get_args

import torch
from torch import Generator, Tensor

from gallery import digits
from gallery.draw import Panel, curves, gray, panels, tiled
from gallery.setting import Outcome, Setting
from scoreinv.priors.adapters.parametrisation import Output, denoised, predicted
from scoreinv.sampling.discrete import DiscreteVP, cosine_betas, linear_betas
from scoreinv.sampling.levels import karras
from scoreinv.sampling.processes import VE, VP, FlowMatching, Process, SubVP

SDES: dict[str, Process] = {"VE SDE": VE(0.02, 10.0), "VP SDE": VP(), "sub-VP SDE": SubVP()}
FLOW = "flow matching"


def simulated(process: Process, x0: float, n: int, steps: int, t: float) -> tuple[float, float]:
    """Relative errors of the kernel's mean and standard deviation at t, against paths of the SDE by Euler-Maruyama."""
    rng, times = Generator().manual_seed(0), torch.linspace(0, t, steps + 1, dtype=torch.float64)
    first = process.std(times[0])  # that of VE begins at σ_min
    x = x0 + first * torch.randn(n, generator=rng, dtype=torch.float64)
    for now, later in itertools.pairwise(times):
        h, middle = later - now, (now + later) / 2
        noise = torch.randn(n, generator=rng, dtype=torch.float64)
        x = x + h * process.drift(x, middle.expand(n)) + process.diffusion(middle) * h.sqrt() * noise
    mean, std = float(process.scale(times[-1]) * x0), float(process.std(times[-1]))
    return abs(float(x.mean()) - mean) / std, abs(float(x.std()) / std - 1)


def conversions() -> float:
    """Largest relative error of D after D -> prediction -> D, over all kinds and levels of VP."""
    rng, process = Generator().manual_seed(0), VP()
    worst = 0.0
    for t in torch.linspace(0.01, 1, 12, dtype=torch.float64):
        sigma, s = process.sigma(t), process.scale(t)
        clean = torch.randn(64, generator=rng, dtype=torch.float64)
        x = clean + sigma * torch.randn(64, generator=rng, dtype=torch.float64)
        for kind in get_args(Output):
            there = predicted(kind, clean, x, sigma, s)
            back = denoised(kind, there, x, sigma, s)
            worst = max(worst, float((back - clean).abs().max() / clean.abs().max()))
    return worst


def noisy(process: Process, image: Tensor, times: Tensor) -> Tensor:
    """x_t of an image at some times, each divided by its own size so that it can be seen, (n, H, W)."""
    z = torch.randn(image.shape, generator=Generator().manual_seed(3))
    s, std = process.scale(times), process.std(times)
    x = s.reshape(-1, 1, 1) * image + std.reshape(-1, 1, 1) * z
    return (x / (s**2 + std**2).sqrt().reshape(-1, 1, 1)).float() / 1.6


def run(setting: Setting) -> Outcome:
    """All processes and chains."""
    figures = {}
    paths, steps = setting.count(40_000, 500), setting.count(1000, 50)
    for name, process in SDES.items():
        mean, std = simulated(process, 0.8, paths, steps, 0.7)
        figures[name] = f"{paths} simulated paths: mean off by {mean:.4f} std, std by {100 * std:.2f} %"
    chains = {"linear": DiscreteVP.of(linear_betas(1000)), "cosine": DiscreteVP.of(cosine_betas(4000))}
    table = torch.arange(50, 1001, 19) - 1
    times = (table + 1) / 1000
    close = float((chains["linear"].sigmas[table] / VP().sigma(times) - 1).abs().max())
    figures["DDPM chains"] = (
        f"linear, 1000 steps: σ up to {float(chains['linear'].sigmas[-1]):.0f}, within {100 * close:.1f} % of VP; "
        f"cosine, 4000: up to {float(chains['cosine'].sigmas[-1]):.0f}"
    )
    levels = karras(18, 0.002, 80.0)
    half = float((levels[:-1] > 1).double().mean())
    figures["EDM levels"] = f"18 levels from 80 to 0.002, {100 * half:.0f} % of them above 1"
    flow = FlowMatching()
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    straight = float((flow.scale(t) + flow.std(t) - 1).abs().max())
    there = float((flow.time(flow.sigma(t)) - t).abs().max())
    figures[FLOW] = f"s + σ_t = 1 to {max(straight, 1e-16):.0e}, time -> σ -> time to {max(there, 1e-16):.0e}"
    figures["conversions"] = f"score, ε, v, x₀ and velocity to D and back: {conversions():.0e}"
    picture(setting, chains)
    return Outcome(figures)


def picture(setting: Setting, chains: dict[str, DiscreteVP]) -> None:
    """A digit under every process, and its level over time."""
    image = digits.data().train[0]
    times = torch.tensor([0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9], dtype=torch.float64)
    t = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    shown = []
    for name, process in {**SDES, FLOW: FlowMatching()}.items():
        line = tiled(noisy(process, image, times.clamp(process.t_min, process.t_max)), len(times))
        shown.append(Panel(name, "time 0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9; each to one contrast", gray(line)))
    panels(setting.picture("processes"), shown, 2, width=4.6, aspect=0.14, gap=0.3)
    named = {**SDES, FLOW: FlowMatching()}
    levels = [(name, t.tolist(), p.sigma(t).tolist()) for name, p in named.items()]
    for name, chain in chains.items():
        n = len(chain.sigmas)
        at = torch.linspace(0, n - 1, 199).long()
        levels.append((f"DDPM, {name}", ((at + 1) / n).tolist(), chain.sigmas[at].tolist()))
    edm = karras(60, 0.002, 80.0)[:-1].flip(0)
    levels.append(("EDM, ρ = 7", torch.linspace(0, 1, 60).tolist(), edm.tolist()))
    kept = [(name, t.tolist(), p.scale(t).tolist()) for name, p in named.items()]
    panels(
        setting.picture("levels"),
        [
            Panel(
                "Noise level σ over time",
                "on the coordinate x = x₀ + σ n that all share",
                curves(levels, x="time", y="σ", log="y", marks=False, colours=COLOURS, dashed=["DDPM, linear"]),
            ),
            Panel(
                "What is left of the image",
                "the scale s of x_t = s x₀ + σ_t n",
                curves(kept, x="time", y="s", marks=False, colours=COLOURS, dashed=["sub-VP SDE"]),
            ),
        ],
        2,
        width=4.4,
        aspect=0.72,
        left=0.65,
        below=0.45,
    )


COLOURS = ("#0b4f8a", "#2b83ba", "#2a9d8f", "#e9a23b", "#d1495b", "#8a5aa8", "#6b7480")
