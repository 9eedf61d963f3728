"""Digits that are asked for: a class-conditional network, both classifier guidances against their scale, and generative classification."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from gallery import digits
from gallery.digits_models import trained
from gallery.draw import Panel, curves, gray, panels, tiled
from gallery.setting import Outcome, Setting
from gallery.training import drawn, learnt
from scoreinv.priors.classes import ClassPrior
from scoreinv.priors.classifier import Classifier, ClassifierConfig
from scoreinv.priors.conditional import ConditionalConfig
from scoreinv.priors.conditional_training import ClassifierRun, ConditionalRun, labelled
from scoreinv.sampling.classification import classify
from scoreinv.sampling.discrete import DiscreteVP, linear_betas
from scoreinv.sampling.guided import ClassGradient, ClassifierFree, ClassifierGuided, ShiftedMean
from scoreinv.sampling.levels import karras, respaced
from scoreinv.sampling.likelihood import FlowLikelihood
from scoreinv.sampling.steps import DPMSolver2M, euler
from scoreinv.streams import split

SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
CHAIN = DiscreteVP.of(linear_betas(200))
ALGORITHM_1, ALGORITHM_2 = "classifier guidance, algorithm 1", "classifier guidance, algorithm 2"
FREE = "classifier-free guidance"


def class_prior(setting: Setting) -> ClassPrior:
    """A network that is told the class, or not."""
    steps = setting.steps(6000)
    run = ConditionalRun(
        ConditionalConfig(digits.NETWORK, n_classes=digits.CLASSES),
        digits.training(steps, p_mean=-0.5, p_std=1.3, drop=0.15),
        labelled(digits.data().train, digits.data().labels),
    )
    return ClassPrior(learnt(run, setting.work / f"digits-classes-{steps}"))


def noisy_classifier(setting: Setting) -> Classifier:
    """A classifier that is told the noise level."""
    steps = setting.steps(4000)
    found = digits.data()
    run = ClassifierRun(
        ClassifierConfig(digits.NETWORK, digits.CLASSES),
        digits.training(steps, p_mean=-0.3, p_std=1.4, lr=1e-3),
        labelled(found.train, found.labels),
    )
    made: Classifier = learnt(run, setting.work / f"digits-classifier-{steps}")
    return made


def run(setting: Setting) -> Outcome:
    """Accuracy and distance against scale, and what the classes say of held-out digits."""
    judge = digits.judge(setting)
    n = setting.draws(250, 10)
    c = torch.arange(n) % digits.CLASSES
    prior, gradient = class_prior(setting), ClassGradient(noisy_classifier(setting), c)
    _, ddpm = trained(setting, "DDPM, L_simple")
    n_levels = setting.count(50, 4)
    chain, levels = respaced(n_levels, CHAIN), karras(setting.count(20, 3), 0.02, 40.0)

    def one(s: float) -> Tensor:
        return drawn(ddpm, digits.SHAPE, n, chain, ShiftedMean(gradient, s, "small"), chunk=n)

    def two(s: float) -> Tensor:
        return drawn(ClassifierGuided(ddpm, gradient, s), digits.SHAPE, n, chain, euler, chunk=n)

    def free(w: float) -> Tensor:
        return drawn(ClassifierFree(prior, c, w), digits.SHAPE, n, levels, DPMSolver2M(), chunk=n)

    table: dict[str, list[tuple[float, float, float]]] = {}
    sheets: dict[str, Tensor] = {}
    scales = SCALES[: setting.count(len(SCALES), 2)]
    for name, draw in ((ALGORITHM_1, one), (ALGORITHM_2, two), (FREE, free)):
        for scale in scales:
            x = draw(scale)
            table.setdefault(name, []).append((scale, judge.agreement(x, c), judge.distance(x)))
            sheets[f"{name}, {scale:g}"] = x
    figures = {
        "class-conditional network": f"told the class (w = 1): {words(table[FREE], scales.index(1.0) if 1.0 in scales else -1)}",
        **{name: against_scale(rows) for name, rows in table.items()},
    }
    m = setting.draws(40, 2)
    figures["generative classification"], right = classified(prior, m)
    against_scale_picture(setting.picture("digits_guidance"), table, judge.accuracy, judge.floor)
    picture(setting, table, sheets)
    return Outcome(figures, {"table": table, "right": right, "accuracy": judge.accuracy, "floor": judge.floor, "n": n})


def classified(prior: ClassPrior, n: int) -> tuple[str, float]:
    """Accuracy of the classes that make held-out digits most likely."""
    found = digits.data()
    likelihood: Any = functools.partial(FlowLikelihood, probes=1, tolerance=2e-2, sigma_min=0.2, sigma_max=12.0)
    said = classify(prior, found.held_out[:n], split(Generator().manual_seed(0), n), likelihood=likelihood)
    right = float((said.classes == found.truth[:n]).double().mean())
    return f"{100 * right:.0f} % of {n} held-out digits right, by likelihood alone", right


def words(rows: list[tuple[float, float, float]], k: int) -> str:
    """Such as "accuracy 0.98, Fréchet 0.41"."""
    return f"accuracy {rows[k][1]:.2f}, Fréchet {rows[k][2]:.2f}"


def against_scale(rows: list[tuple[float, float, float]]) -> str:
    """Accuracy at each scale."""
    return "accuracy " + ", ".join(f"{a:.2f} at {s:g}" for s, a, _ in rows)


def against_scale_picture(path: Path, table: Any, accuracy: float, floor: float) -> None:
    """Accuracy and distance against scale, next to those of held-out and of training digits."""
    scales = [scale for scale, _, _ in next(iter(table.values()))]
    dashed = {"held-out digits": accuracy, "training digits": floor}
    lines = {name: [([r[0] for r in rows], [r[k] for r in rows]) for k in (1, 2)] for name, rows in table.items()}
    plots = []
    for k, (heading, caption) in enumerate(PLOTS.items()):
        shown = [(name, *both[k]) for name, both in lines.items()]
        usual = list(dashed)[k]
        shown.append((usual, [scales[0], scales[-1]], [dashed[usual]] * 2))
        draw = curves(shown, x="scale s or w", y=heading, log="y" if k else "", dashed=[usual], colours=COLOURS)
        plots.append(Panel(heading, caption, draw))
    panels(path, plots, 2, width=4.4, aspect=0.75, left=0.65, below=0.5)


PLOTS = {
    "Accuracy": "share of draws that a classifier takes for the digit asked for",
    "Fréchet distance": "from held-out digits; too strong a scale costs diversity",
}
COLOURS = ("#0b4f8a", "#2a9d8f", "#d1495b", "#1b1f24")


def picture(setting: Setting, table: Any, sheets: dict[str, Tensor]) -> None:
    """Draws at three scales each."""
    shown = []
    for name, rows in table.items():
        for k in sorted({0, len(rows) // 2, len(rows) - 1}):
            scale = rows[k][0]
            shown.append(
                Panel(
                    f"{name[0].upper()}{name[1:]}",
                    f"scale {scale:g}; {words(rows, k)}",
                    gray(tiled(sheets[f"{name}, {scale:g}"][:40].clamp(-1, 1), 10)),
                )
            )
    panels(setting.picture("digits_classes"), shown, 3, width=3.4, aspect=0.4)
