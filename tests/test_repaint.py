"""RePaint: its schedule, its known pixels, and its way to the posterior."""

from __future__ import annotations

import pytest
import torch
from exact_moments import moments
from principal_draws import principal_draws
from torch import Tensor

from scoreinv.operators.dense import Matrix
from scoreinv.operators.masking import Masking
from scoreinv.posterior.repaint import RePaint, _known
from scoreinv.priors.denoiser import Counted
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ROOT = torch.randn(4, 4, generator=seeded(5), dtype=torch.float64) / 2
PRIOR = GaussianPrior(torch.linspace(-1, 1, 4, dtype=torch.float64), ROOT @ ROOT.T + 0.05 * torch.eye(4).double())
MASK = Masking([1, 1, 0, 0])


def problem(std: float) -> Problem:
    truth = principal_draws(PRIOR, 1, seeded(3))[0]
    noise = torch.randn(4, generator=seeded(4), dtype=torch.float64)
    return Problem(MASK, MASK(truth + std * noise), std)


def compared(std: float, **options: int) -> tuple[Tensor, Tensor]:
    """Variance over the posterior's and error of the mean in its standard deviations, pixel by pixel."""
    exact = PRIOR.posterior(problem(std))
    mean, covariance = moments(RePaint(PRIOR, **options), problem(std))
    true = exact.covariance.diagonal()
    true = torch.where(true > 1e-9, true, 1)
    return covariance.diagonal() / true, (mean - exact.mean) / true.sqrt()


def test_more_resampling_comes_nearer_to_the_posterior() -> None:
    """The numbers of the module's head; known pixels are those of the data throughout."""
    errors, ratios = [], []
    for n in (1, 5, 20):
        variance, bias = compared(0.0, n_levels=20, jump_length=1, resamplings=n)
        torch.testing.assert_close(torch.stack([variance[:2], bias[:2]]), torch.zeros(2, 2).double())
        errors.append(float(bias.abs().max()))
        ratios.append(float(variance.max()))
    assert errors == pytest.approx([0.91, 0.42, 0.13], abs=0.01)
    assert ratios == pytest.approx([1.62, 1.00, 0.75], abs=0.01)


def test_noisy_known_pixels_keep_to_their_data() -> None:
    """Going up and down below σ_y would lose the data but for the bridge: then the variance is 20 times too large."""
    variance, bias = compared(0.1, n_levels=20, jump_length=1, resamplings=10)
    assert float(bias.abs().max()) < 0.2
    assert (variance > 0.5).all() and (variance < 1.0).all()


def test_independent_pixels_are_sampled_as_by_ancestral_steps() -> None:
    """Nothing to resample for: the unknown ones do not depend on the known ones, and 40 levels give 0.83 of the variance."""
    prior = GaussianPrior(PRIOR.mean, torch.eye(4).double())
    for resamplings in (1, 3):
        method = RePaint(prior, n_levels=40, jump_length=3, resamplings=resamplings)
        mean, covariance = moments(method, problem(0.0))
        torch.testing.assert_close(mean[2:], prior.mean[2:], atol=3e-3, rtol=0)
        assert float(covariance[2, 3].abs()) < 1e-9
        if resamplings == 1:
            assert float(covariance[2, 2]) == pytest.approx(0.828, abs=1e-3)


def test_schedule() -> None:
    seen: list[float] = []

    def spy(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma))
        return 0 * x

    RePaint(spy, n_levels=6, jump_length=2, resamplings=2)(problem(0.0), seeded(0))
    index = [round(int((karras(6, 0.01, 20.0) - s).abs().argmin())) for s in seen]
    assert index == [0, 1, 0, 1, 2, 3, 2, 3, 4, 4, 5]


@pytest.mark.parametrize(("n", "jump", "resamplings"), [(7, 3, 4), (1, 2, 5), (5, 10, 3)])
def test_number_of_evaluations(n: int, jump: int, resamplings: int) -> None:
    prior = Counted(PRIOR)
    RePaint(prior, n_levels=n, jump_length=jump, resamplings=resamplings)(problem(0.0), seeded(0))
    assert prior.n_evaluations == (n - 1) * resamplings + 1


def test_known_pixels_at_a_level() -> None:
    """Noise of the level in all: data whose own noise is larger than that are not put in."""
    std = torch.tensor([0.3, 2.0, 0.3, 0.3], dtype=torch.float64)
    y = torch.tensor([[5.0, 5.0, 0.0, 0.0]], dtype=torch.float64)
    known = _known(Problem(MASK, y, std[None]).repeated(4000))
    x = known.replaced(
        torch.full((4000, 4), 9.0).double(), torch.tensor(0.5).double(), [seeded(k) for k in range(4000)]
    )
    assert float(x[:, 0].mean()) == pytest.approx(5.0, abs=0.03)
    assert float(x[:, 0].var()) == pytest.approx(0.5**2 - 0.3**2, rel=0.1)
    torch.testing.assert_close(x[:, 1:], torch.full((4000, 3), 9.0).double())


@pytest.mark.parametrize("high", [0.4, 1.0, 3.0])
def test_the_way_up_is_a_bridge(high: float) -> None:
    """A path from x₀ at noise 0 through y at noise 1, cut at 0.2 and at a higher level: the second given the first and y."""
    low, n = 0.2, 4000
    y = torch.tensor([[1.5, 0, 0, 0]], dtype=torch.float64)
    known = _known(Problem(Masking([1, 0, 0, 0]), y, 1.0).repeated(n))
    x = torch.full((n, 4), -0.5, dtype=torch.float64)
    got = known.raised(x, *(torch.tensor(s).double() for s in (low, high)), [seeded(k) for k in range(n)])
    above = max(high, 1.0) ** 2 - low**2
    covariance = min(high, 1.0) ** 2 - low**2  # of a Brownian path's values at `high` and at 1, from its value at `low`
    at_y = 1 - low**2
    mean = -0.5 + covariance / at_y * 2.0
    variance = (high**2 - low**2 if high < 1 else above) - covariance**2 / at_y
    assert float(got[:, 0].mean()) == pytest.approx(mean, abs=4 * (variance / n) ** 0.5 + 1e-9)
    assert float(got[:, 0].var()) == pytest.approx(variance, rel=0.1, abs=1e-9)
    assert float(got[:, 1].var()) == pytest.approx(high**2 - low**2, rel=0.1)


def test_other_operators_are_refused() -> None:
    with pytest.raises(ValueError, match=r"RePaint: .* must be Masking, got Matrix; DDNM does the like"):
        RePaint(PRIOR)(Problem(Matrix(torch.eye(4)), torch.zeros(4)), seeded(0))
