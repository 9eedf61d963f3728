"""The published examples: their numbers, and their posteriors by other means."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from scoreinv.priors.exact import GaussianMixturePrior, dense
from scoreinv.priors.references import Reference, few_view_ct, four_modes, twenty_five_modes, two_modes


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


CASES: dict[str, Callable[[], Reference]] = {
    "four modes": lambda: four_modes(2.0),
    "25 modes, d = 8": lambda: twenty_five_modes(rng(), pixels=8, data=1),
    "25 modes, d = 80": lambda: twenty_five_modes(rng(), pixels=80, data=4),
    "two modes": lambda: two_modes(rng()),
}


def test_four_modes_has_the_published_variances() -> None:
    posterior = four_modes().posterior
    assert posterior.covariance.diagonal().tolist() == pytest.approx([0.0519, 6.3725], abs=5e-5)
    torch.testing.assert_close(posterior.mean, torch.tensor([2.5, 0.0], dtype=torch.float64))
    assert isinstance(posterior, GaussianMixturePrior)
    kept = posterior.weights > 1e-6  # the two at -2.5 cannot have been seen
    assert int(kept.sum()) == 2
    assert posterior.covariances[kept][:, 1, 1].tolist() == pytest.approx([0.1225, 0.1225])


@pytest.mark.parametrize(
    "make", [CASES["four modes"], CASES["25 modes, d = 8"], lambda: two_modes(rng(), noise_std=2.0)]
)
def test_posterior_by_weighing_draws_of_the_prior(make: Callable[[], Reference]) -> None:
    """Self-normalised importance sampling with the likelihood, for one pixel that the data leave open."""
    case, n = make(), 50_000
    x = case.prior.draw(n, rng(1))
    weights = torch.softmax(-((case.A(x) - case.y) ** 2).sum(1) / (2 * case.noise_std**2), dim=0)
    effective = float(1 / weights.square().sum())
    assert effective > 300
    moments = {1: case.posterior.mean[-1], 2: case.posterior.covariance[-1, -1] + case.posterior.mean[-1] ** 2}
    for power, expected in moments.items():
        got = weights @ x[:, -1] ** power
        spread = (weights @ (x[:, -1] ** power - got) ** 2).sqrt()
        assert abs(got - expected) < 5 * spread / effective**0.5


def test_twenty_five_modes_is_as_published() -> None:
    case = twenty_five_modes(rng(3), pixels=80, data=4)
    assert case.prior.means.shape == (25, 80) and case.A.out_shape == (4,)
    assert set(case.prior.means.flatten().tolist()) == {-16.0, -8.0, 0.0, 8.0, 16.0}
    torch.testing.assert_close(case.prior.means[:, :2].repeat(1, 40), case.prior.means)
    assert len(case.prior.means.unique(dim=0)) == 25
    torch.testing.assert_close(case.prior.covariances, torch.eye(80, dtype=torch.float64).expand(25, 80, 80))
    values = torch.linalg.svdvals(dense(case.A))
    assert float(values[-1]) > 0 and case.noise_std < float(values[0]) < 1
    again = twenty_five_modes(rng(3), pixels=80, data=4)
    assert torch.equal(again.y, case.y) and again.A == case.A
    assert twenty_five_modes(rng(4), pixels=80, data=4).A != case.A


def test_two_modes_differ_in_what_is_not_measured_only() -> None:
    case = two_modes(rng(), noise_std=0.2)
    assert (case.A.in_shape, case.A.out_shape) == ((16,), (14,))
    posterior = case.posterior
    assert isinstance(posterior, GaussianMixturePrior)
    torch.testing.assert_close(posterior.weights, torch.tensor([0.8, 0.2], dtype=torch.float64))
    variances = posterior.covariance.diagonal()
    torch.testing.assert_close(variances[:14], torch.full((14,), 1 / (1 + 1 / 0.2**2), dtype=torch.float64))
    torch.testing.assert_close(variances[14:], torch.full((2,), 1 + 0.8 * 0.2 * 9, dtype=torch.float64))


def test_few_view_ct_knows_of_smoothness_and_not_of_opposite_edges() -> None:
    case = few_view_ct(rng(), size=16, views=9)
    assert case.A.in_shape == (16, 16) and case.A.out_shape[0] == 9
    covariance = case.prior.covariance
    torch.testing.assert_close(covariance.diagonal(), torch.ones(256, dtype=torch.float64))
    assert 0.5 < float(covariance[0, 1]) < 0.9  # neighbours
    assert abs(float(covariance[0, 15])) < 0.05  # the two ends of a row
    deviation = case.posterior.covariance.diagonal().sqrt()
    assert 0.05 < float(deviation.mean()) < 0.8  # the data tell something, not all


def test_few_view_ct_is_made_for_32_pixels_and_23_views() -> None:
    case = few_view_ct(rng())
    assert case.A.in_shape == (32, 32) and case.A.out_shape[0] == 23
    clean = case.A(case.prior.draw(300, rng(1)))
    assert case.noise_std == pytest.approx(0.01 * float(clean.square().mean().sqrt()), rel=0.1)


@pytest.mark.parametrize("name", [*CASES, "ct"])
def test_simulated_problems_are_draws_of_the_prior_with_their_data(name: str) -> None:
    case = few_view_ct(rng(), size=8, views=5) if name == "ct" else CASES[name]()
    many = case.simulate(500, rng(2))
    assert many.truth is not None and many.y.shape == (500, *case.A.out_shape)
    residual: Tensor = (many.y - case.A(many.truth)) / case.noise_std
    assert residual.square().mean() == pytest.approx(1, abs=5 * (2 / residual.numel()) ** 0.5)
    assert torch.equal(many.truth, case.prior.draw(500, rng(2)))
    # the images' squared distance from the exact posterior mean is its variance, on average
    few = [case.prior.posterior(type(case.problem)(case.A, y, case.noise_std)) for y in many.y[:20]]
    off = torch.stack([t - law.mean for t, law in zip(many.truth, few, strict=False)]).flatten(1)
    ratio = off.square().sum() / sum(float(law.covariance.diagonal().sum()) for law in few)
    assert 0.5 < float(ratio) < 1.7


@pytest.mark.parametrize(("pixels", "data"), [(7, 1), (8, 0), (4, 5)])
def test_what_is_refused(pixels: int, data: int) -> None:
    with pytest.raises(ValueError, match=f"got {pixels} pixels and {data} data"):
        twenty_five_modes(rng(), pixels=pixels, data=data)
