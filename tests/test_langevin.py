"""Langevin dynamics against the laws that they leave alone, and NCSNv2's techniques against its published figures."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from test_sampling import PRIOR, moments_within_four_standard_errors, start, streams
from torch import Generator, Tensor, nn
from torch.distributions import MultivariateNormal

from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior
from scoreinv.sampling import ncsn
from scoreinv.sampling.langevin import AnnealedLangevin, MetropolisLangevin, UnadjustedLangevin
from scoreinv.sampling.levels import geometric
from scoreinv.sampling.loop import last, sample
from scoreinv.streams import normal

EYE = torch.eye(2, dtype=torch.float64)
LINE = GaussianPrior(torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([0.5, 2.0], dtype=torch.float64)))
MIXTURE = GaussianMixturePrior(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[1.5, 0.5], [-0.5, 0.0]], dtype=torch.float64),
    torch.stack([0.3 * EYE, torch.diag(torch.tensor([0.4, 1.0], dtype=torch.float64))]),
)
SIGMA = torch.tensor(0.5, dtype=torch.float64)


def exact_draws(prior: GaussianPrior | GaussianMixturePrior, n: int) -> Tensor:
    rng = Generator().manual_seed(3)
    x = prior.draw(n, rng)
    return x + SIGMA * torch.randn(x.shape, generator=rng, dtype=torch.float64)


# one level


@pytest.mark.parametrize("prior", [LINE, MIXTURE], ids=["gaussian", "mixture"])
def test_metropolis_leaves_the_law_alone_where_unadjusted_steps_do_not(
    prior: GaussianPrior | GaussianMixturePrior,
) -> None:
    """From exact draws, with a step size that is far too long."""
    n = 2000
    x = exact_draws(prior, n)
    covariance = prior.covariance + SIGMA**2 * EYE
    adjusted = MetropolisLangevin(0.6, n_steps=25)(prior, x, SIGMA, SIGMA, streams(n))
    assert (adjusted != x).any(dim=1).double().mean() > 0.9
    moments_within_four_standard_errors(adjusted, prior.mean, covariance)
    plain = UnadjustedLangevin(0.6, n_steps=25)(prior, x, SIGMA, SIGMA, streams(n))
    with pytest.raises(AssertionError):
        moments_within_four_standard_errors(plain, prior.mean, covariance)


def test_metropolis_goes_to_the_law() -> None:
    """From one point far off."""
    n = 2000
    x = MetropolisLangevin(0.4, n_steps=60)(LINE, torch.full((n, 2), 3.0).double(), SIGMA, SIGMA, streams(n))
    moments_within_four_standard_errors(x, LINE.mean, LINE.covariance + SIGMA**2 * EYE)


def test_unadjusted_steps_go_to_the_law_that_the_head_states() -> None:
    """Variance λ / (1 − ε / (2 λ)) along a direction where the level's is λ."""
    n, step_size = 1500, 0.6
    x = UnadjustedLangevin(step_size, n_steps=60)(LINE, exact_draws(LINE, n), SIGMA, SIGMA, streams(n))
    variance = LINE.covariance.diagonal() + SIGMA**2
    moments_within_four_standard_errors(x, LINE.mean, torch.diag(variance / (1 - step_size / (2 * variance))))


@pytest.mark.parametrize("prior", [LINE, MIXTURE], ids=["gaussian", "mixture"])
def test_detailed_balance(prior: GaussianPrior | GaussianMixturePrior) -> None:
    """p(x) q(y | x) a(x → y) = p(y) q(x | y) a(y → x), with the densities and scores by torch.distributions and autograd."""
    components = [prior] if isinstance(prior, GaussianPrior) else list(prior.components)
    weights = torch.ones(1) if isinstance(prior, GaussianPrior) else prior.weights

    def log_p(x: Tensor) -> Tensor:
        laws = [MultivariateNormal(c.mean, c.covariance + SIGMA**2 * EYE).log_prob(x) for c in components]
        return torch.logsumexp(torch.stack(laws, dim=-1) + weights.double().log(), dim=-1)

    def log_q(y: Tensor, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(log_p(x).sum(), x)
        return MultivariateNormal(x.detach() + step.step_size * score, 2 * step.step_size * EYE).log_prob(y)

    step = MetropolisLangevin(0.7)
    x, y = exact_draws(prior, 400).chunk(2)
    there, back = step.log_acceptance(prior, x, y, SIGMA), step.log_acceptance(prior, y, x, SIGMA)
    forward, backward = log_p(x) + log_q(y, x), log_p(y) + log_q(x, y)
    torch.testing.assert_close(forward + there, backward + back)
    assert (
        torch.maximum(there, back) == 0
    ).all()  # one of the two ways is always taken: the largest acceptance there is
    assert (there < -0.1).any() and (back < -0.1).any()


def test_proposals_are_accepted_as_often_as_they_should_be() -> None:
    n, step = 4000, MetropolisLangevin(0.8)
    x = exact_draws(MIXTURE, n)
    y = UnadjustedLangevin(0.8)(MIXTURE, x, SIGMA, SIGMA, streams(n))  # the same noise, so the same proposals
    probability = step.log_acceptance(MIXTURE, x, y, SIGMA).exp()
    moved = step(MIXTURE, x, SIGMA, SIGMA, streams(n))
    accepted = (moved == y).all(dim=1)
    assert ((moved == x).all(dim=1) | accepted).all()
    off = accepted.double() - probability
    for group in (probability < 0.5, probability >= 0.5, probability > 0):
        spread = (probability * (1 - probability))[group].sum().sqrt()
        assert abs(off[group].sum()) < 4 * spread


def test_rejected_proposals_leave_nothing_behind() -> None:
    """Three steps are three times one step, which starts from the point alone."""
    x = exact_draws(MIXTURE, 300)
    rngs, one_by_one = streams(300), x
    for _ in range(3):
        one_by_one = MetropolisLangevin(0.8)(MIXTURE, one_by_one, SIGMA, SIGMA, rngs)
    torch.testing.assert_close(MetropolisLangevin(0.8, 3)(MIXTURE, x, SIGMA, SIGMA, streams(300)), one_by_one)


@pytest.mark.parametrize(
    "step",
    [UnadjustedLangevin(0.3, 4), MetropolisLangevin(0.3, 4), AnnealedLangevin(0.3, 4)],
    ids=lambda s: type(s).__name__,
)
def test_a_batch_gives_what_its_members_give_alone(step: Callable[..., Tensor]) -> None:
    x = exact_draws(MIXTURE, 3)
    together = step(MIXTURE, x, SIGMA, SIGMA, streams(3))
    torch.testing.assert_close(step(MIXTURE, x[1:2], SIGMA, SIGMA, streams(3)[1:2]), together[1:2])
    image = GaussianPrior(torch.zeros(2, 3), torch.eye(6))
    assert step(image, torch.zeros(5, 2, 3), SIGMA.float(), SIGMA.float(), streams(5)).shape == (5, 2, 3)


def test_what_is_asked_of_priors_and_settings() -> None:
    def no_density(x: Tensor, sigma: Tensor) -> Tensor:
        return x

    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"MetropolisLangevin: function has no log_density\(x, sigma\)"):
        MetropolisLangevin(0.1)(no_density, x, SIGMA, SIGMA, streams(1))
    with pytest.raises(ValueError, match="has no log_density"):
        MetropolisLangevin(0.1).log_acceptance(no_density, x, x, SIGMA)
    for kind in (UnadjustedLangevin, MetropolisLangevin, AnnealedLangevin):
        for settings in ((0.0, 1), (-1.0, 1), (0.1, 0)):
            with pytest.raises(ValueError, match=rf"{kind.__name__}: expected step_size > 0 and n_steps >= 1"):
                kind(*settings)
    with pytest.raises(ValueError, match="must be below 2, got 2"):
        AnnealedLangevin(2.0)


# annealed


def test_annealed_langevin_is_its_algorithm() -> None:
    """NCSNv2, algorithm 1: α = ε σ_i² / σ_L², x + α S + √(2 α) z, and x + σ_L² S at the end."""
    epsilon, sigma_last, x = 6.2e-6, 0.01, start(3, 0.3)
    sigma, zero = torch.tensor(0.3, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    alpha = epsilon * sigma**2 / sigma_last**2
    rngs, expected = streams(3), x
    for _ in range(2):
        expected = expected + alpha * PRIOR.score(expected, sigma) + (2 * alpha).sqrt() * normal(rngs, x)
    step = AnnealedLangevin(epsilon / sigma_last**2, 2)
    torch.testing.assert_close(step(PRIOR, x, sigma, sigma / 2, streams(3)), expected)
    finished = expected + sigma**2 * PRIOR.score(expected, sigma)
    torch.testing.assert_close(step(PRIOR, x, sigma, zero, streams(3)), finished)


def test_annealed_langevin_has_the_variance_that_gaussians_give_it() -> None:
    """v ← (1 − e σ² / (λ + σ²))² v + 2 e σ² at every step along a direction of variance λ: too large by a quarter here."""
    sigmas, e, n = geometric(30, 0.05, 20.0), 0.2, 1500
    variance = LINE.covariance.diagonal()
    v = sigmas[0] ** 2 * torch.ones(2, dtype=torch.float64)
    for sigma in sigmas[:-1].repeat_interleave(5):
        v = (1 - e * sigma**2 / (variance + sigma**2)) ** 2 * v + 2 * e * sigma**2
    assert (v / variance > 1.2).all()
    x = sigmas[0] * torch.randn(n, 2, generator=Generator().manual_seed(0), dtype=torch.float64)
    twice = torch.cat([sigmas[:-1], sigmas[-2:-1]])
    got = last(sample(LINE, x, twice, step=AnnealedLangevin(e, 5), rngs=streams(n)))
    moments_within_four_standard_errors(got, LINE.mean, torch.diag(v))


# NCSNv2's techniques


RATIO = (50 / 0.01) ** (1 / 231)


def test_published_figures_of_ncsnv2() -> None:
    """CIFAR-10: 3072 pixels, 232 levels from 50 to 0.01, T = 5, ε = 6.2e-6."""
    assert round(RATIO, 4) == 1.0376
    assert ncsn.overlap(RATIO, 3072) == pytest.approx(0.567, abs=5e-4)
    assert ncsn.variance_ratio(6.2e-6 / 0.01**2, RATIO, 5) == pytest.approx(1.055, abs=5e-4)


def test_levels_overlap_by_half() -> None:
    for pixels, low, high in ((3072, 0.01, 50.0), (64, 0.1, 5.0), (1, 0.1, 5.0)):
        n = ncsn.n_levels(pixels, low, high)
        overlaps = [ncsn.overlap((high / low) ** (1 / (k - 1)), pixels) for k in (n, n - 1) if k > 1]
        assert overlaps[0] >= 0.5 and all(o < 0.5 for o in overlaps[1:])
    assert ncsn.n_levels(3072, 0.01, 50.0, wanted=0.567) == pytest.approx(232, abs=1)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        ncsn.n_levels(10, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"overlap in \(0, 1\)"):
        ncsn.n_levels(10, 0.1, 1.0, wanted=1.0)


def test_overlap_is_that_of_the_shells() -> None:
    """The share of the radius's law at γ σ that lies within three deviations of the shell of σ, by simulation."""
    d, n = 400, 40_000
    ratio = 1.05
    rng = Generator().manual_seed(0)
    radius = ratio * torch.cat([torch.randn(4000, d, generator=rng).norm(dim=1) for _ in range(n // 4000)])
    inside = ((radius - math.sqrt(d)).abs() < 3 * ratio / math.sqrt(2)).double().mean()
    assert ncsn.overlap(ratio, d) == pytest.approx(float(inside), abs=0.01)


@pytest.mark.parametrize("n_steps", [1, 5, 20])
def test_best_step_size_makes_the_ratio_nearest_to_one(n_steps: int) -> None:
    found = ncsn.best_step_size(RATIO, n_steps)
    here = abs(ncsn.variance_ratio(found, RATIO, n_steps) - 1)
    others = [abs(ncsn.variance_ratio(k / 500, RATIO, n_steps) - 1) for k in range(1, 500)]
    assert 0 < found < 1 and here <= min(others) + 1e-9


def test_variance_ratio_is_what_a_level_leaves() -> None:
    """Images in one point, D = 0: draws of the last level after T steps at the next."""
    n, sigma, e, gamma = 20_000, 0.1, 0.2, 1.3
    x = gamma * sigma * torch.randn(1, n, generator=Generator().manual_seed(0), dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    got = AnnealedLangevin(e, 4)(lambda x, sigma: torch.zeros_like(x), x, level, level, streams(1))
    expected = ncsn.variance_ratio(e, gamma, 4)
    assert float(got.square().mean()) / sigma**2 == pytest.approx(expected, abs=4 * expected * math.sqrt(2 / n))


def test_settings_go_through_the_loop() -> None:
    levels, step = ncsn.settings(64, 0.01, 5.0, n_steps=3)
    assert len(levels) == ncsn.n_levels(64, 0.01, 5.0) + 1 and levels[-1] == 0
    assert step.n_steps == 3
    assert step.step_size == pytest.approx(ncsn.best_step_size(float(levels[3] / levels[4]), 3))


def test_largest_distance() -> None:
    images = torch.randn(600, 3, 4, generator=Generator().manual_seed(0))
    by_hand = max(float((a - b).norm()) for a in images[:1] for b in images)
    found = ncsn.largest_distance(images)
    assert found == pytest.approx(float(torch.pdist(images.flatten(1).double()).max())) and found >= by_hand
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        ncsn.largest_distance(images[:1])


def test_a_network_without_labels(rng: Generator) -> None:
    """S(x, σ) = s(x) / σ, so D = x + σ s(x)."""
    network = nn.Conv2d(1, 1, 3, padding=1)
    prior = ncsn.unconditional(network, 0.01, 10.0)
    x = torch.randn(2, 6, 6, generator=rng)
    for sigma in (0.05, 3.0):
        score = (prior(x, torch.tensor(sigma)) - x) / sigma**2
        torch.testing.assert_close(score, network(x[:, None])[:, 0] / sigma, rtol=1e-4, atol=1e-4)
    assert prior.levels == (0.01, 10.0)
    torch.testing.assert_close(prior(x.double(), torch.tensor(1.0)).float(), prior(x, torch.tensor(1.0)))
