"""Metrics against scikit-image, NumPy and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_solvers import Dense
from torch import Tensor

from scoreinv.metrics import chi_squared, coverage, psnr, rmse_hu, ssim, ssim_uniform, window
from scoreinv.problem import Problem


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_window_maps_its_ends_to_0_and_1_and_clips() -> None:
    assert window(torch.tensor([-2000.0, -1000, 0, 500, 1000, 3000])).tolist() == [0, 0, 0.5, 0.75, 1, 1]
    assert window(torch.tensor([-160.0, 240.0]), -160, 240).tolist() == [0, 1]
    with pytest.raises(ValueError, match="below"):
        window(torch.zeros(1), 1, 1)


def test_psnr_is_skimages_for_each_member() -> None:
    x, ref = images(2, 3, 16, 20), images(2, 3, 16, 20, seed=1)
    found = psnr(x, ref, 1.5)
    assert found.shape == (2, 3)
    for i in np.ndindex(2, 3):
        assert float(found[i]) == pytest.approx(
            peak_signal_noise_ratio(ref[i].double().numpy(), x[i].double().numpy(), data_range=1.5)
        )


def test_psnr_of_hu_by_hand_and_of_equals() -> None:
    ref = torch.zeros(8, 8)  # 200 HU off = 0.1 of the window = 20 dB
    assert float(psnr(window(ref + 200), window(ref), 1.0)) == pytest.approx(20, abs=1e-5)
    assert float(psnr(ref, ref, 1.0)) == float("inf")
    u, v = images(8, 8) * 2 - 1, images(8, 8, seed=1) * 2 - 1  # range 2 on [−1, 1] is range 1 on [0, 1]
    torch.testing.assert_close(psnr(u, v, 2.0), psnr(window(1000 * u), window(1000 * v), 1.0), rtol=1e-5, atol=1e-5)


def test_ssim_is_wangs_and_lodopabs() -> None:
    ref = images(2, 24, 31)
    x = ref + 0.1 * images(2, 24, 31, seed=1)
    for k in range(2):
        a, b = x[k].double().numpy(), ref[k].double().numpy()
        gauss = structural_similarity(
            a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(ssim(x, ref, 1.0)[k]) == pytest.approx(gauss, abs=1e-12)
        assert float(ssim_uniform(x, ref, 1.0)[k]) == pytest.approx(
            structural_similarity(a, b, data_range=1.0), abs=1e-12
        )
    assert not torch.allclose(ssim(x, ref, 1.0), ssim_uniform(x, ref, 1.0), atol=1e-4)
    torch.testing.assert_close(ssim(ref, ref, 1.0), torch.ones(2, dtype=torch.float64))


def test_ssim_by_its_formula() -> None:
    """Wang et al. 2004, eq. 13, with 11 x 11 Gaussian weights, on the valid part: written out with a convolution."""
    ref = images(20, 22).double()
    x = (ref + 0.2 * images(20, 22, seed=1)).clamp(0, 1)
    g = torch.exp(-(torch.arange(-5, 6).double() ** 2) / (2 * 1.5**2))
    kernel = torch.outer(g, g) / g.sum() ** 2

    def mean(t: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(t[None, None], kernel[None, None])[0, 0]

    mx, my, c1, c2 = mean(x), mean(ref), 0.01**2, 0.03**2
    vx, vy, cov = mean(x * x) - mx**2, mean(ref * ref) - my**2, mean(x * ref) - mx * my
    expected = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    torch.testing.assert_close(ssim(x, ref, 1.0), expected, rtol=1e-9, atol=1e-9)


def test_rmse_hu() -> None:
    hu = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 2000.0)])
    assert rmse_hu(hu, torch.tensor([30.0, -1000.0]).reshape(2, 1, 1).expand(2, 4, 4)).tolist() == [30, 3000]


@pytest.mark.parametrize("metric", [psnr, ssim, ssim_uniform])
def test_shapes_and_ranges_are_checked(metric: object) -> None:
    with pytest.raises(ValueError, match=r"\(1, 12, 12\) and \(12, 12\)"):
        metric(torch.zeros(1, 12, 12), torch.zeros(12, 12), 1.0)  # type: ignore[operator]
    with pytest.raises(ValueError, match="positive"):
        metric(torch.zeros(12, 12), torch.zeros(12, 12), 0.0)  # type: ignore[operator]


def test_chi_squared_of_the_truth_is_one_and_counts_misfit_in_units_of_the_noise() -> None:
    A = Dense(images(4000, 5))
    x = images(3, 5, seed=1)
    std = torch.tensor([[0.1], [1.0], [3.0]])
    noise = torch.randn(3, 4000, generator=torch.Generator().manual_seed(2))
    assert chi_squared(Problem(A, A(x) + std * noise, std), x) == pytest.approx(
        noise.square().mean(1).numpy(), rel=1e-3
    )
    uneven = torch.linspace(0.1, 2, 4000)
    assert chi_squared(Problem(A, A(x) + 2 * uneven, uneven), x) == pytest.approx(np.full(3, 4.0), rel=1e-3)


def test_chi_squared_without_noise_is_the_relative_residual_and_samples_lead() -> None:
    A = Dense(torch.eye(4))
    y = torch.ones(2, 4)
    samples = torch.stack([1.1 * y, 0.5 * y, y])
    found = chi_squared(Problem(A, y, 0.0), samples)
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.1], [0.5, 0.5], [0.0, 0.0]]).double(), rtol=1e-5, atol=1e-7)
    mixed = chi_squared(Problem(A, y, torch.tensor([[0.0], [0.5]])), 2 * y)
    torch.testing.assert_close(mixed, torch.tensor([1.0, 4.0]).double())
    with pytest.raises(ValueError, match="zero for some data"):
        chi_squared(Problem(A, y, torch.tensor([0.0, 1.0, 1.0, 1.0])), y)


def test_coverage_is_the_share_inside_weibulls_quantiles() -> None:
    samples, truth = images(24, 2, 6, 7), images(2, 6, 7, seed=1)
    low, high = np.quantile(samples.double().numpy(), [0.1, 0.9], axis=0, method="weibull")
    expected = ((truth.numpy() >= low) & (truth.numpy() <= high)).mean((-2, -1))
    assert coverage(samples, truth, 0.8).numpy() == pytest.approx(expected)


@pytest.mark.parametrize(("n", "level"), [(3, 0.5), (9, 0.8), (19, 0.9)])
def test_coverage_of_a_calibrated_sampler_is_the_level_even_with_few_draws(n: int, level: float) -> None:
    draws = torch.randn(n + 1, 300, 300, generator=torch.Generator().manual_seed(0))
    assert float(coverage(draws[1:], draws[0], level)) == pytest.approx(
        level, abs=4 * (level * (1 - level)) ** 0.5 / 300
    )


def test_coverage_says_how_many_samples_it_needs() -> None:
    with pytest.raises(ValueError, match="at least 19 samples, got 18"):
        coverage(torch.zeros(18, 4, 4), torch.zeros(4, 4), 0.9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        coverage(torch.zeros(18, 4, 4), torch.zeros(4, 4), 90)
    with pytest.raises(ValueError, match="expected samples"):
        coverage(torch.zeros(18, 4, 4), torch.zeros(1, 4, 4), 0.5)
