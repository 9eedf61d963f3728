"""Every score-matching loss on the plane: how near the learnt score is to the exact one, and draws by Langevin steps from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from gallery import plane
from gallery.draw import Panel, cloud, panels
from gallery.measures import sliced_wasserstein
from gallery.setting import Outcome, Setting
from gallery.training import Criterion, LossRun, PlaneConfig, PlaneNetwork, learnt
from scoreinv.priors.divergence import gaussian, rademacher
from scoreinv.priors.losses.denoising import denoising, noise_conditional
from scoreinv.priors.losses.score_matching import implicit, score_of_energy, sliced, sliced_variance_reduced
from scoreinv.sampling.langevin import UnadjustedLangevin
from scoreinv.sampling.levels import geometric
from scoreinv.sampling.loop import member_streams
from scoreinv.streams import normal

SIGMA = 0.12
"""Of denoising at one level."""
LEVELS = geometric(10, SIGMA, 5.0)[:-1]
REACH = {"mixture": plane.REACH, "swiss roll": 2.6}
STEPS, N_STEPS = {"mixture": 2e-2, "swiss roll": 4e-3}, 400
"""Size, below twice the smallest variance, and number of the Langevin steps."""


def _one_level(net: Any, x: Tensor, rngs: Sequence[Generator]) -> Tensor:
    return denoising(lambda x_t, sigma: net(x_t), x, SIGMA, rngs)


def _many_levels(net: Any, x: Tensor, rngs: Sequence[Generator]) -> Tensor:
    return noise_conditional(net, x, LEVELS, rngs)


def _energy(net: Any, x: Tensor, rngs: Sequence[Generator]) -> Tensor:
    return sliced_variance_reduced(score_of_energy(net), x, rngs)


LOSSES: dict[str, tuple[PlaneConfig, Criterion]] = {
    "implicit (Hyvärinen)": (PlaneConfig(), lambda net, x, rngs: implicit(net, x)),
    "sliced, Gaussian": (PlaneConfig(), lambda net, x, rngs: sliced(net, x, rngs, draw=gaussian)),
    "sliced, random signs": (PlaneConfig(), lambda net, x, rngs: sliced(net, x, rngs, draw=rademacher)),
    "sliced, variance-reduced": (PlaneConfig(), sliced_variance_reduced),
    "denoising, one level": (PlaneConfig(), _one_level),
    "denoising, many levels": (PlaneConfig(levelled=True), _many_levels),
    "energy-based": (PlaneConfig(outputs=1), _energy),
}
"""Network and loss, by name."""


def trained(setting: Setting, name: str, law: str) -> Any:
    """The network of a loss after its training on a law."""
    config, criterion = LOSSES[name]
    settings = plane.training(setting.steps(4000))
    run = LossRun(lambda: PlaneNetwork(config), settings, plane.points(plane.laws()[law]), criterion)
    slug = name.split(" (")[0].replace(", ", "-").replace(" ", "-")
    return learnt(run, setting.work / f"plane-{slug}-{law.split()[0]}-{settings.steps}")


def score(name: str, net: Any) -> Any:
    """S(x) of points (n, 1, 2): at the smallest level where there are many."""
    if LOSSES[name][0].outputs == 1:
        return score_of_energy(net)
    if LOSSES[name][0].levelled:
        return lambda x: net(x, LEVELS[-1].float())
    return net


def level_of(name: str) -> float:
    """σ of the law whose score is learnt."""
    return SIGMA if "denoising" in name else 0.0


@torch.no_grad()
def langevin(s: Any, step_size: float, n: int, n_steps: int, seed: int = 1) -> Tensor:
    """Draws by unadjusted Langevin steps from a broad Gaussian."""
    rngs = member_streams(Generator().manual_seed(seed), n, 1)
    x = 1.2 * normal(rngs, torch.zeros(n, *plane.SHAPE))
    one = torch.ones(())
    return UnadjustedLangevin(step_size, n_steps)(lambda x, sigma: x + sigma**2 * s(x), x, one, one, rngs)


@torch.no_grad()
def fisher(s: Any, sigma: float, n: int) -> float:
    """E‖S − S*‖² / E‖S*‖² under the mixture with noise σ."""
    prior, rng = plane.ring(), Generator().manual_seed(5)
    x = prior.draw(n, rng)
    x = x + sigma * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    exact = prior.score(x, torch.tensor(sigma))
    return float((s(x.float()).double() - exact).square().sum() / exact.square().sum())


def run(setting: Setting) -> Outcome:
    """Every loss on both laws."""
    figures, numbers, shown = {}, {}, []
    n = setting.draws(800, 40)
    data = {law: draw(n, Generator().manual_seed(9)) for law, draw in plane.laws().items()}
    floor = {
        law: sliced_wasserstein(draw(n, Generator().manual_seed(10)), data[law]) for law, draw in plane.laws().items()
    }
    for law in data:
        shown.append(Panel("Data", f"{law}; two sets {floor[law]:.3f} apart", cloud(data[law], REACH[law])))
    for name in LOSSES:
        found = {}
        for law in data:
            s = score(name, trained(setting, name, law))
            x = langevin(s, STEPS[law], n, setting.count(N_STEPS, 20))
            found[law] = sliced_wasserstein(x, data[law])
            words = f"{law}; {found[law]:.3f} from the data"
            if law == "mixture":
                error = fisher(s, level_of(name), setting.count(4000, 100))
            shown.append(Panel(name[0].upper() + name[1:], words, cloud(x, REACH[law])))
        figures[name] = (
            f"relative error of the score {error:.3f}; draws {found['mixture']:.3f} (mixture) and {found['swiss roll']:.3f} "
            f"(swiss roll) from the data"
        )
        numbers[name] = {"score_error": error, "sliced_wasserstein": found}
    order = [*shown[::2], *shown[1::2]]
    panels(setting.picture("plane_losses"), order, len(LOSSES) + 1, width=1.95, gap=0.14)
    return Outcome(figures, {**numbers, "floor": floor})
