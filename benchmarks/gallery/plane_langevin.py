"""Langevin dynamics three ways: unadjusted, with Metropolis' rule on a trained energy, and annealed, where modes lie far apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from gallery import plane
from gallery.draw import Panel, cloud, density, panels
from gallery.measures import sliced_wasserstein
from gallery.plane_losses import trained
from gallery.setting import Outcome, Setting
from scoreinv.priors.exact import GaussianMixturePrior
from scoreinv.priors.losses.score_matching import score_of_energy
from scoreinv.sampling import ncsn
from scoreinv.sampling.langevin import AnnealedLangevin, MetropolisLangevin, UnadjustedLangevin
from scoreinv.sampling.levels import geometric
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.streams import normal

REACH = 9.0
HEAVY = 0.8
"""Weight of the mode on the upper right of `apart`."""


class EnergyPrior:
    """A trained energy as a prior without noise: D such that its score is −∇E, and ln p but for a constant."""

    def __init__(self, energy: Any) -> None:
        self.energy, self.score = energy, score_of_energy(energy)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x + sigma**2 * self.score(x)

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """−E, (batch,) in float64, whatever the level."""
        out: Tensor = -self.energy(x).double()
        return out


def apart() -> GaussianMixturePrior:
    """Two Gaussians of weights 0.2 and 0.8 at (−5, −5) and (5, 5) (Song, Ermon 2019, arXiv:1907.05600, sec. 3.2.2)."""
    means = torch.tensor([[[-5.0, -5.0]], [[5.0, 5.0]]], dtype=torch.float64)
    weights = torch.tensor([1 - HEAVY, HEAVY], dtype=torch.float64)
    return GaussianMixturePrior(weights, means, torch.eye(2, dtype=torch.float64).expand(2, 2, 2))


@torch.no_grad()
def acceptance(prior: Any, step: MetropolisLangevin, x: Tensor, seed: int = 2) -> float:
    """Mean probability of acceptance at draws x."""
    rngs = member_streams(Generator().manual_seed(seed), len(x), 1)
    one = torch.ones((), dtype=x.dtype)
    proposed = UnadjustedLangevin(step.step_size)(prior, x, one, one, rngs)
    return float(step.log_acceptance(prior, x, proposed, one).exp().mean())


@torch.no_grad()
def run(setting: Setting) -> Outcome:
    """Unadjusted against Metropolis at one step size on a trained energy; one level against many on modes far apart."""
    n, n_steps, size = setting.draws(1000, 40), setting.count(200, 10), 0.12
    energy = EnergyPrior(trained(setting, "energy-based", "mixture"))
    data = plane.ring().draw(n, Generator().manual_seed(9)).float()
    one = torch.ones(())

    def chain(step: Any) -> Tensor:
        rngs = member_streams(Generator().manual_seed(1), n, 1)
        out: Tensor = step(energy, 1.5 * normal(rngs, torch.zeros(n, *plane.SHAPE)), one, one, rngs)
        return out

    unadjusted, metropolis = UnadjustedLangevin(size, n_steps), MetropolisLangevin(size, n_steps)
    draws = {"Langevin": chain(unadjusted), "MALA": chain(metropolis)}
    found = {name: sliced_wasserstein(x, data) for name, x in draws.items()}
    floor = sliced_wasserstein(plane.ring().draw(n, Generator().manual_seed(10)).float(), data)
    rate = acceptance(energy, metropolis, draws["MALA"])

    prior = apart()
    start = 8 * (2 * torch.rand(n, *plane.SHAPE, generator=Generator().manual_seed(4), dtype=torch.float64) - 1)
    rngs = member_streams(Generator().manual_seed(3), n, 1)
    still = torch.tensor(0.01, dtype=torch.float64)
    alone = UnadjustedLangevin(0.05, n_steps)(prior, start, still, still, rngs)
    top = ncsn.largest_distance(prior.draw(200, Generator().manual_seed(0)))
    levels, step = geometric(30, 0.1, top), AnnealedLangevin(0.1, setting.count(30, 2))
    first = levels[0] * normal(rngs, start)
    annealed = last(sample(prior, first, levels, step=step, rngs=rngs))
    share = {name: float((x.sum((1, 2)) > 0).double().mean()) for name, x in (("alone", alone), ("annealed", annealed))}
    figures = {
        "Langevin": f"ε = {size}, trained energy: {found['Langevin']:.3f} from the data ({floor:.3f} for two sets of data)",
        "MALA": f"the same ε, {100 * rate:.0f} % accepted: {found['MALA']:.3f} from the data",
        "annealed Langevin": (
            f"share of the mode of weight {HEAVY}: {share['annealed']:.3f}, by one level {share['alone']:.3f} "
            f"(standard error {(HEAVY * (1 - HEAVY) / n) ** 0.5:.3f})"
        ),
    }
    ring, far = plane.ring(), prior
    here = density(lambda x: ring.log_density(x, torch.tensor(0.0)), plane.REACH)
    there = density(lambda x: far.log_density(x, torch.tensor(0.0)), REACH)
    panels(
        setting.picture("plane_langevin"),
        [
            Panel("Langevin", f"trained energy, ε = {size}: {found['Langevin']:.3f} from the data", cloud(draws["Langevin"], plane.REACH, behind=here)),
            Panel("Metropolis-adjusted", f"{100 * rate:.0f} % accepted: {found['MALA']:.3f} from the data", cloud(draws["MALA"], plane.REACH, behind=here)),
            Panel("Langevin, modes far apart", f"{share['alone']:.2f} in the mode of weight {HEAVY}", cloud(alone, REACH, behind=there)),
            Panel("Annealed Langevin", f"{share['annealed']:.2f} in the mode of weight {HEAVY}; {len(levels) - 1} levels", cloud(annealed, REACH, behind=there)),
        ],
        4,
        width=2.5,
    )  # fmt: skip
    return Outcome(figures, {"sliced_wasserstein": found, "acceptance": rate, "share": share, "floor": floor})
