"""The noise estimate on noise alone and on sinograms with exact line integrals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoreinv.noise import estimate_noise_std


def ellipses(views: int = 23, detectors: int = 363) -> Tensor:
    """A sinogram of a body with lungs, spine and a nodule: sums of exact line integrals of ellipses, (views,
    detectors)."""
    theta = torch.arange(views).double()[:, None] * math.pi / views
    u = torch.linspace(-1.42, 1.42, detectors, dtype=torch.float64)[None]
    y = torch.zeros(views, detectors, dtype=torch.float64)
    for value, x0, y0, a, b in [
        (1, 0, 0, 0.9, 0.65),
        (-0.8, -0.4, 0, 0.3, 0.4),
        (-0.8, 0.4, 0, 0.3, 0.4),
        (0.9, 0, -0.4, 0.1, 0.1),
        (0.9, 0.42, 0.1, 0.03, 0.03),
    ]:
        s2 = (a * theta.cos()) ** 2 + (b * theta.sin()) ** 2
        d = u - x0 * theta.cos() - y0 * theta.sin()
        y += 2 * value * a * b / s2 * (s2 - d**2).clamp(min=0).sqrt()
    return y


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [1e-4, 1.0, 50.0])
def test_pure_noise_is_found_within_three_per_cent(sigma: float) -> None:
    assert float(estimate_noise_std(sigma * noise(60, 400))) == pytest.approx(sigma, rel=0.03)


def test_polynomials_of_degree_five_are_not_noise() -> None:
    x = torch.linspace(-1, 1, 200, dtype=torch.float64)
    y = torch.stack([x**5 - x, 3 * x**4 + 7])
    assert float(estimate_noise_std(y)) < 1e-10
    torch.testing.assert_close(estimate_noise_std(y + 0.1 * noise(2, 200)), estimate_noise_std(0.1 * noise(2, 200)))


@pytest.mark.parametrize(("relative", "bias"), [(0.002, 0.19), (0.005, 0.14), (0.02, 0.06), (0.1, 0.01)])
def test_noise_of_a_phantom_is_found(relative: float, bias: float) -> None:
    """The edges of this phantom spoil a quarter of the differences; the spread of one estimate is 2.2 %."""
    y = ellipses()
    sigma = relative * y.mean()
    for seed in range(3):
        found = estimate_noise_std(y + sigma * noise(*y.shape, seed=seed))
        assert float(found) == pytest.approx(float(sigma) * (1 + bias), rel=0.07)


def test_noise_free_phantom_gives_next_to_nothing() -> None:
    y = ellipses()
    assert 0 <= float(estimate_noise_std(y) / y.mean()) < 2e-4


def test_edges_do_not_count_as_noise() -> None:
    y = 0.01 * noise(20, 200)
    spiked = y.clone()
    spiked[:, ::25] += 100  # spoils 7 of 25 differences
    assert float(estimate_noise_std(spiked)) < 2 * float(estimate_noise_std(y))
    assert float(spiked.std()) > 1000 * float(y.std())


def test_batch_is_its_members_and_dtype_follows() -> None:
    y = (noise(2, 3, 10, 50) * torch.tensor([1.0, 10, 100])[:, None, None]).float()
    together = estimate_noise_std(y)
    assert together.shape == (2, 3) and together.dtype == torch.float32
    for i in range(2):
        for j in range(3):
            assert torch.equal(together[i, j], estimate_noise_std(y[i, j]))


def test_too_few_detectors() -> None:
    with pytest.raises(ValueError, match="more than 6 detectors"):
        estimate_noise_std(torch.zeros(5, 6))
