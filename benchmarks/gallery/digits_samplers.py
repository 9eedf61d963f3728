"""Every sampler on trained models of digits: Fréchet distance against evaluations of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from gallery import digits
from gallery.digits_models import HIGH, LOW, trained
from gallery.draw import Panel, curves, gray, panels, tiled
from gallery.setting import Outcome, Setting
from gallery.training import drawn
from scoreinv.priors.denoiser import Counted, Denoiser
from scoreinv.sampling.ddpm import LearnedVariance, large_variance
from scoreinv.sampling.discrete import DiscreteVP, cosine_betas, linear_betas
from scoreinv.sampling.flow_ode import decode
from scoreinv.sampling.levels import in_time, karras, respaced
from scoreinv.sampling.pndm import PNDM
from scoreinv.sampling.processes import VE, VP
from scoreinv.sampling.reverse_sde import EulerMaruyama, ReverseDiffusion
from scoreinv.sampling.steps import (
    Ancestral,
    Churn,
    DPMSolver2M,
    Langevin,
    PredictorCorrector,
    Step,
    euler,
    heun,
)

VE_, VP_ = VE(LOW, HIGH), VP()
LINEAR, COSINE = DiscreteVP.of(linear_betas(200)), DiscreteVP.of(cosine_betas(200))


class Sampler(NamedTuple):
    """A step on a model.

    Attributes:
        model: of `digits_models`.
        step: number of levels -> the step.
        levels: number of levels -> the levels.
        counts: numbers of levels that are tried.
        finish: goes to 0 by itself.
    """

    model: str
    step: Callable[[int], Step]
    levels: Callable[[int], Tensor]
    counts: tuple[int, ...]
    finish: bool = True


def _corrected(n: int) -> Step:
    return PredictorCorrector(ReverseDiffusion(VE_), Langevin(snr=0.1))


def _vp(n: int) -> Tensor:
    return in_time(n, VP_)


def _edm(n: int) -> Tensor:
    return karras(n, LOW, 40.0)


FEW, MANY = (6, 12, 25, 50), (12, 25, 50, 100)
SAMPLERS: dict[str, Sampler] = {
    "Euler-Maruyama": Sampler("VP SDE", lambda n: EulerMaruyama(VP_), _vp, MANY, False),
    "reverse diffusion": Sampler("VE SDE", lambda n: ReverseDiffusion(VE_), lambda n: in_time(n, VE_), MANY, False),
    "predictor-corrector": Sampler("VE SDE", _corrected, lambda n: in_time(n, VE_), (6, 12, 25, 50), False),
    "ancestral, small variance": Sampler("DDPM, L_simple", lambda n: Ancestral(1.0), lambda n: respaced(n, LINEAR), MANY),
    "ancestral, large variance": Sampler("DDPM, L_simple", lambda n: large_variance, lambda n: respaced(n, LINEAR), MANY),
    "ancestral, learned variance": Sampler("improved DDPM, hybrid", lambda n: LearnedVariance(), lambda n: respaced(n, COSINE), MANY),
    "DDIM, η = 0": Sampler("DDPM, L_simple", lambda n: euler, lambda n: respaced(n, LINEAR), FEW),
    "DDIM, η = 0.5": Sampler("DDPM, L_simple", lambda n: Ancestral(0.5), lambda n: respaced(n, LINEAR), FEW),
    "PNDM": Sampler("VP SDE", lambda n: PNDM(VP_.middle), _vp, FEW),
    "DPM-Solver++(2M)": Sampler("VP SDE", lambda n: DPMSolver2M(), _vp, FEW),
    "Heun (EDM)": Sampler("EDM", lambda n: heun, _edm, (4, 7, 13, 25)),
    "Heun with churn": Sampler("EDM", lambda n: Churn(gamma=min(0.4, 8 / n)), _edm, (4, 7, 13, 25)),
}  # fmt: skip
ODE = "probability-flow ODE (Runge-Kutta)"
GROUPS = {
    "Stochastic": [name for name in SAMPLERS if name.split()[0] in ("Euler-Maruyama", "reverse", "predictor-corrector", "ancestral,")],
    "Deterministic, and Heun with churn": [n for n in SAMPLERS if n.split()[0] in ("DDIM,", "PNDM", "DPM-Solver++(2M)", "Heun")],
}  # fmt: skip
COLOURS = ("#0b4f8a", "#2a9d8f", "#e9a23b", "#d1495b", "#8a5aa8", "#6b7480", "#8ab17d")


def measured(prior: Denoiser, sampler: Sampler, count: int, n: int) -> tuple[Tensor, float]:
    """Draws, and evaluations for each."""
    counted = CountedPrior(prior)
    x = drawn(counted, digits.SHAPE, n, sampler.levels(count), sampler.step(count), finish=sampler.finish)
    return x, counted.n_evaluations / n


class CountedPrior(Counted):
    """A counted prior that still gives its learned variance."""

    def with_variance(self, x: Tensor, sigma: Tensor) -> Any:
        """As that of the prior."""
        self.n_evaluations += len(x)
        inner: Any = self.denoiser
        return inner.with_variance(x, sigma)


def run(setting: Setting) -> Outcome:
    """Every sampler at several numbers of evaluations."""
    judge, n = digits.judge(setting), setting.draws(300, 8)
    figures: dict[str, str] = {}
    numbers: dict[str, Any] = {}
    best: dict[str, Tensor] = {}
    for name, sampler in SAMPLERS.items():
        _, prior = trained(setting, sampler.model)
        rows = []
        for count in sampler.counts[-setting.count(4, 1) :]:
            x, evaluations = measured(prior, sampler, count, n)
            rows.append((evaluations, judge.distance(x)))
        best[name] = x
        numbers[name] = rows
        words = ", ".join(f"{d:.2f} at {e:g}" for e, d in rows)
        figures[name] = f"digits, {sampler.model}: Fréchet {words} evaluations"
    _, prior = trained(setting, "EDM")
    counted = Counted(prior)
    z = torch.randn(n, *digits.SHAPE, generator=Generator().manual_seed(8))
    x = decode(counted, z, sigma_min=LOW, sigma_max=40.0, tolerance=1e-3)
    evaluations, distance = counted.n_evaluations / n, judge.distance(x)
    numbers[ODE] = [(evaluations, distance)]
    figures[ODE] = f"digits, EDM: Fréchet {distance:.2f} at {evaluations:.0f} evaluations on average"
    best[ODE] = x
    picture(setting, numbers, best, judge.floor)
    return Outcome(figures, {"rows": numbers, "floor": judge.floor, "n": n})


def picture(setting: Setting, numbers: dict[str, Any], best: dict[str, Tensor], floor: float) -> None:
    """Distance against evaluations, and draws."""
    plots = []
    for heading, names in GROUPS.items():
        lines = [(name, [e for e, _ in numbers[name]], [d for _, d in numbers[name]]) for name in names]
        if "churn" in heading:
            lines.append((ODE, [e for e, _ in numbers[ODE]], [d for _, d in numbers[ODE]]))
        ends = sorted({e for _, xs, _ in lines for e in xs})
        lines.append(("training digits", [ends[0], ends[-1]], [floor, floor]))
        draw = curves(
            lines,
            x="evaluations of the network",
            y="Fréchet distance",
            log="xy",
            dashed=["training digits"],
            legend=(0.5, 0.1),
            colours=(*COLOURS[: len(lines) - 1], "#1b1f24"),
        )
        plots.append(Panel(heading, "draws of digits from held-out digits; less is better", draw))
    panels(setting.picture("digits_samplers"), plots, 2, width=4.4, aspect=0.8, left=0.65, below=0.5)
    shown = [
        Panel(name.split(" (R")[0], f"{numbers[name][-1][0]:.0f} evaluations; Fréchet {numbers[name][-1][1]:.2f}", gray(tiled(x[:24].clamp(-1, 1), 8)))
        for name, x in best.items()
    ]  # fmt: skip
    panels(setting.picture("digits_draws"), shown, 5, width=2.5, aspect=3 / 8)
