"""p(x | y) from pairs, the amortised rival: a score network that is given the FBP, against the small prior with a data step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from gallery import ct
from gallery.draw import Panel, gray, panels, tiled
from gallery.setting import Outcome, Setting, pace
from gallery.training import learnt
from scoreinv import configure, plugins
from scoreinv.baselines.learned import geometry, save_network
from scoreinv.baselines.learned_conditional import ConditionalScore
from scoreinv.baselines.supervised import SupervisedConfig, SupervisedRun
from scoreinv.priors.denoiser import Counted

NETWORK: dict[str, Any] = {"widths": (32, 64, 128), "unshuffle": 2, "embedding": 128}
RIVAL = "mmps"


def trained(setting: Setting) -> str:
    """Path of the weights."""
    steps = setting.steps(4000)
    config = SupervisedConfig(**pace(steps, 0.998), batch_size=4, side=ct.SIDE, noise=(ct.NOISE,), lr=1e-3)
    A = ct.scanner()
    folder = setting.work / f"ct-pairs-{steps}"
    network = learnt(SupervisedRun("conditional_score", NETWORK, config, ct.slices(setting).train, A), folder)
    path = folder / "conditional_score.safetensors"
    save_network("conditional_score", network, path, {"geometry": geometry(A)})
    return str(path)


@torch.no_grad()
def run(setting: Setting) -> Outcome:
    """The same data by both, and by FBP."""
    held = ct.slices(setting).held_out
    u = held[: setting.count(4, 1)]
    problem, samples = ct.scan(u), setting.count(8, 2)
    weights, counted = trained(setting), Counted(ct.prior(setting))
    pairs = ConditionalScore(weights, samples=samples)
    settings: dict[str, Any] = {"samples": samples, "n_levels": setting.count(20, 4)}
    methods = {
        "FBP": plugins.get("methods", "fbp")(window="hann"),
        "from pairs": pairs,
        f"prior and {RIVAL}": configure.method(RIVAL, settings, lambda: ct.in_mm(counted)),
    }
    draws = {name: method(problem, Generator().manual_seed(0)) for name, method in methods.items()}
    evaluations = {"from pairs": 2 * pairs.n_levels - 1, f"prior and {RIVAL}": counted.n_evaluations / samples / len(u)}
    figures_of: dict[str, dict[str, float]] = {}
    shown = [Panel("Held-out slices", ct.slices(setting).what.split(",")[0], gray(tiled(u, 2)))]
    for name, x in draws.items():
        mean: Tensor = ct.in_u(x.mean(0))
        figures_of[name] = {"mean": ct.psnr(mean, u), "draw": ct.psnr(ct.in_u(x[0]), u), "chi2": ct.chi2(problem, x)}
        more = (
            ""
            if name == "FBP"
            else f"; χ² of a draw {figures_of[name]['chi2']:.2f}, {evaluations[name]:.0f} evaluations"
        )
        shown.append(
            Panel(name[0].upper() + name[1:], f"{figures_of[name]['mean']:.1f} dB{more}", gray(tiled(mean, 2)))
        )
    panels(setting.picture("ct_pairs"), shown, 4, width=2.9)
    words = "; ".join(
        f"{name} {f['mean']:.1f} dB" + ("" if name == "FBP" else f" (a draw {f['draw']:.1f}, χ² {f['chi2']:.2f})")
        for name, f in figures_of.items()
    )
    return Outcome(
        {"paired training": f"{ct.VIEWS} views, {100 * ct.NOISE:g} % noise, mean of {samples} draws: {words}"},
        figures_of,
    )
