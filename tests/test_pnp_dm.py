"""Split Gibbs sampling against its stationary law, which is known for Gaussian priors."""

from __future__ import annotations

import pytest
import torch
from test_gaussian_draws import MATRIX, UNEVEN, Rows, assert_drawn_from, exact, gaussian, problems, ratios
from torch import Generator, Tensor

from scoreinv.posterior.pnp_dm import PnPDM
from scoreinv.priors.denoiser import Counted
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior


def rng() -> Generator:
    return Generator().manual_seed(1)


def split_posterior(prior: GaussianPrior, y: Tensor, noise_std: float | Tensor, rho: float) -> GaussianPrior:
    """Eq. (4): the posterior with the data's covariance Σ_y + ρ² A Aᵀ."""
    std = torch.as_tensor(noise_std, dtype=torch.float64).expand(3)
    noise = (std**2).diag() + rho**2 * MATRIX @ MATRIX.T
    gain = prior.covariance @ MATRIX.T @ torch.linalg.inv(MATRIX @ prior.covariance @ MATRIX.T + noise)
    covariance = prior.covariance - gain @ MATRIX @ prior.covariance
    return GaussianPrior(prior.mean + gain @ (y - MATRIX @ prior.mean), (covariance + covariance.T) / 2)


@pytest.mark.parametrize("noise_std", [0.0, 0.5, UNEVEN], ids=["noise-free", "even", "uneven"])
@pytest.mark.parametrize("rho", [0.5, 1.5])
def test_held_at_one_rho_it_samples_the_split_posterior(noise_std: float | Tensor, rho: float) -> None:
    prior, (one, many) = gaussian(), problems(noise_std, 4000)
    method = PnPDM(Rows(prior), n_sweeps=25, prior_steps=30, rho_max=rho, rho_min=rho)
    law = split_posterior(prior, one.y[0], noise_std, rho)
    draws = method(many, rng())[0]
    assert_drawn_from(law, draws, slack=0.06)
    if rho > 1:  # far enough from the exact posterior for the test to tell them apart
        with pytest.raises(AssertionError):
            assert_drawn_from(exact(prior, one), draws, slack=0.06)


def test_becomes_exact_as_rho_falls() -> None:
    """Annealed from far above to ρ = 1.5, 0.5 and 0.05."""
    prior, (one, many) = gaussian(), problems(UNEVEN, 4000)
    law, mismatch = exact(prior, one), []
    for rho in (1.5, 0.5, 0.05):
        method = PnPDM(Rows(prior), n_sweeps=60, prior_steps=20, rho_max=5.0, rho_min=rho, decay=0.92)
        draws = method(many, rng())[0]
        mismatch.append(float((torch.cov(draws.T) - law.covariance).norm() / law.covariance.norm()))
    assert mismatch[0] > 2 * mismatch[1] > 2 * mismatch[2]
    assert_drawn_from(law, draws, slack=0.06)


def test_bias_that_the_docstring_states() -> None:
    prior, (one, many) = gaussian(), problems(0.5, 4000)
    variance, distance = ratios(exact(prior, one), PnPDM(Rows(prior))(many, rng())[0])
    assert variance == pytest.approx(1.03, abs=0.03) and distance < 0.1


def test_two_modes_get_their_weights() -> None:
    """y sees the first of two pixels; the second has modes at ±2.5: both are found, with variance 0.35² within each."""
    means = torch.tensor([[a, b] for a in (-2.5, 2.5) for b in (-2.5, 2.5)], dtype=torch.float64)
    covariances = (0.35**2 * torch.eye(2, dtype=torch.float64)).repeat(4, 1, 1)
    prior = GaussianMixturePrior(torch.ones(4, dtype=torch.float64), means, covariances)
    _, many = problems(0.3, 2000, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    x = PnPDM(Rows(prior))(type(many)(many.A, torch.full_like(many.y, 2.5), 0.3), rng())[0]
    assert float(x[:, 0].var()) == pytest.approx(0.0519, rel=0.2)
    assert float((x[:, 1] > 0).double().mean()) == pytest.approx(0.5, abs=0.06)
    assert float((x[:, 1].abs() - 2.5).var()) == pytest.approx(0.1225, rel=0.2)


def test_noise_free_data_are_met_as_far_as_rho_lets_them() -> None:
    _, many = problems(0.0, 500)

    def misfit(rho: float) -> float:
        x = PnPDM(Rows(gaussian()), rho_min=rho, n_sweeps=60, decay=0.85)(many, rng())
        return float((many.A(x) - many.y).square().mean().sqrt())

    assert misfit(0.1) == pytest.approx(2 * misfit(0.05), rel=0.1)


def test_cost() -> None:
    prior = Counted(Rows(gaussian()))
    PnPDM(prior, n_sweeps=4, prior_steps=3)(problems(0.5, 2)[1], rng())
    assert prior.n_evaluations == 12


@pytest.mark.parametrize(
    ("settings", "words"), [({"decay": 0.0}, "decay"), ({"rho_min": 0.0}, "rho_min"), ({"n_sweeps": 0}, "n_sweeps")]
)
def test_settings_that_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PnPDM(Rows(gaussian()), **settings)  # type: ignore[arg-type]
