"""The probability flow on the plane: orders of its solvers, likelihood against the exact one, and encoding by two networks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gallery import plane
from gallery.draw import Panel, cloud, curves, panels
from gallery.setting import Outcome, Setting
from gallery.training import LossRun, PlaneConfig, PlaneNetwork, learnt
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.losses.denoising import time_continuous, uniform_times
from scoreinv.sampling.flow_ode import decode, encode
from scoreinv.sampling.levels import geometric
from scoreinv.sampling.likelihood import FlowLikelihood
from scoreinv.sampling.loop import last, sample
from scoreinv.sampling.pndm import PNDM
from scoreinv.sampling.processes import VE
from scoreinv.sampling.steps import DPMSolver2M, euler, heun
from scoreinv.streams import split

SOLVERS: dict[str, tuple[Any, int, int]] = {
    "Euler / DDIM(0)": (lambda: euler, 1, 0),
    "Heun": (lambda: heun, 2, 0),
    "DPM-Solver++(2M)": (DPMSolver2M, 1, 0),
    "PNDM": (PNDM, 1, 9),
}
"""What makes the step, evaluations a step, and those on top of them."""
PROCESS = VE(0.02, 30.0)
SWISS, MIXTURE = "swiss roll", "mixture"


class PlanePrior:
    """A network of scores with a noise level, as D(x, σ) of points (batch, 1, 2)."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = torch.as_tensor(sigma).to(x).reshape(-1).expand(len(x))
        out: Tensor = x + level[:, None, None] ** 2 * self.net(x.float(), level.float()).to(x)
        return out


def trained(setting: Setting, law: str, seed: int, width: int) -> PlanePrior:
    """A prior of a law by denoising score matching in the time of VE, all levels alike."""
    settings = replace(plane.training(setting.steps(5000)), seed=seed)
    times = uniform_times(PROCESS.t_min, 1.0)

    def criterion(net: Any, x: Tensor, rngs: Any) -> Tensor:
        return time_continuous(
            lambda x_t, t: net(x_t, PROCESS.sigma(t)), x, rngs,
            mean_scale=PROCESS.scale, std=PROCESS.std, weight=lambda t: PROCESS.std(t) ** 2, times=times,
        )  # fmt: skip

    config = PlaneConfig(levelled=True, width=width)
    run = LossRun(lambda: PlaneNetwork(config), settings, plane.points(plane.laws()[law]), criterion)
    name = f"flow-{law.split()[0]}-{seed}-{width}-{settings.steps}"
    return PlanePrior(learnt(run, setting.work / name))


def orders(steps: list[int]) -> dict[str, tuple[list[float], list[float], float]]:
    """Evaluations, errors at the end and the fitted order of each solver, on the exact flow of a Gaussian."""
    prior = GaussianPrior(
        torch.zeros(*plane.SHAPE, dtype=torch.float64), torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    )
    first, end = (torch.tensor(v, dtype=torch.float64) for v in (10.0, 0.1))
    x = first * torch.randn(64, *plane.SHAPE, generator=Generator().manual_seed(0), dtype=torch.float64)
    exact = prior.flow(x, first, end)
    found = {}
    for name, (make, each, more) in SOLVERS.items():
        errors = []
        for n in steps:
            levels = geometric(n + 1, float(end), float(first))[:-1]
            out = last(sample(prior, x, levels, step=make(), rngs=split(Generator(), len(x))))
            errors.append(float((out - exact).square().mean().sqrt()))
        slope = float(np.polyfit(np.log(steps[-3:]), np.log(errors[-3:]), 1)[0])
        found[name] = ([float(each * n + more) for n in steps], errors, -slope)
    return found


def run(setting: Setting) -> Outcome:
    """Solvers on the exact flow, and what the flow of trained networks is good for."""
    solved = orders([8, 16, 32, 64, 128][: setting.count(5, 3)])
    figures = {"orders of the solvers": ", ".join(f"{name} {order:.2f}" for name, (_, _, order) in solved.items())}

    mixture, roll, other = (
        trained(setting, MIXTURE, 0, 128),
        trained(setting, SWISS, 0, 128),
        trained(setting, SWISS, 1, 96),
    )
    n = setting.draws(100, 4)
    x = plane.ring().draw(n, Generator().manual_seed(21))
    low = PROCESS.sigma_min
    likelihood = FlowLikelihood(mixture, sigma_min=low, sigma_max=PROCESS.sigma_max, data_std=1.2, probes=None)
    log_p = likelihood(x, split(Generator().manual_seed(0), n)).log_density
    exact = plane.ring().log_density(x, torch.tensor(low))
    bits = (exact - log_p) / (2 * math.log(2))
    figures["likelihood by the flow"] = (
        f"mixture: {float(bits.mean()):+.3f} bits per dimension from the exact likelihood on average, {float(bits.std()):.3f} from "
        f"point to point"
    )
    n = setting.draws(400, 6)
    points = plane.swiss_roll(n, Generator().manual_seed(22)).double()
    latent, latent_2 = (
        encode(p, points, sigma_min=low, sigma_max=PROCESS.sigma_max, tolerance=1e-4) for p in (roll, other)
    )
    back = decode(roll, latent, sigma_min=low, sigma_max=PROCESS.sigma_max, tolerance=1e-4)
    lost = float((back - points).square().mean().sqrt())
    alike = float(torch.corrcoef(torch.stack([latent.flatten(), latent_2.flatten()]))[0, 1])
    fresh = torch.randn(n, *plane.SHAPE, generator=Generator().manual_seed(23), dtype=torch.float64)
    drawn = decode(roll, fresh, sigma_min=low, sigma_max=PROCESS.sigma_max, tolerance=1e-4)
    figures["encoding and decoding"] = f"swiss roll: points come back to {lost:.1e} (root mean square)"
    figures["identifiable encoding"] = f"latents of two networks of other widths and seeds: correlation {alike:.4f}"
    picture(setting, solved, points, latent, latent_2, drawn, (lost, alike))
    return Outcome(
        figures, {"orders": {k: v[2] for k, v in solved.items()}, "bits": float(bits.mean()), "correlation": alike}
    )


def picture(
    setting: Setting, solved: Any, points: Tensor, latent: Tensor, latent_2: Tensor, drawn: Tensor, words: Any
) -> None:
    """Encoding in colours that follow the roll, and errors of solvers against evaluations."""
    angle = torch.atan2(points[:, 0, 1], points[:, 0, 0])
    turn = (points.square().sum((1, 2)).sqrt() * 4 + angle) / 6
    lost, alike = words
    panels(
        setting.picture("plane_flow"),
        [
            Panel("Data", "swiss roll, coloured along it", cloud(points, 2.6, colours=turn, size=6)),
            Panel("Latents", f"encoded by the flow; back to {lost:.0e}", cloud(latent, 3.6, colours=turn, size=6)),
            Panel("Latents of another network", f"correlation {alike:.4f}", cloud(latent_2, 3.6, colours=turn, size=6)),
            Panel("Decoded noise", "draws of the learnt law", cloud(drawn, 2.6, size=6)),
        ],
        4,
        width=2.4,
    )
    lines = [(f"{name}, order {order:.2f}", n, e) for name, (n, e, order) in solved.items()]
    panels(
        setting.picture("orders"),
        [
            Panel(
                "Error of the solvers",
                "root mean square at the end of a Gaussian's flow, whose end is exact",
                curves(
                    lines,
                    x="evaluations of D",
                    y="error",
                    log="xy",
                    colours=("#0b4f8a", "#2a9d8f", "#e9a23b", "#d1495b"),
                ),
            )
        ],
        1,
        width=5.2,
        aspect=0.68,
        left=0.7,
        below=0.5,
    )
