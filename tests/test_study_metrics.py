"""The figures of a row: against scikit-image and closed forms; test_torchmetrics.py has the comparison with torchmetrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreinv import metrics
from scoreinv.problem import Problem, simulate
from scoreinv.study.computing import fit, scores
from scoreinv.study.operators import operator


@pytest.fixture
def pair(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A truth with air, lung, soft tissue, bone and a metal part beyond the window, and a reconstruction of it, in HU."""
    truth = torch.full((24, 32), -1000.0)
    truth[4:20, 4:28] = 40.0
    truth[6:10, 6:14] = -800.0
    truth[12:15, 20:24] = 700.0
    truth[16, 20:22] = 1500.0
    return truth + 30 * torch.randn(24, 32, generator=rng), truth


def test_scores_are_those_of_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    hu, truth = pair
    found = scores(hu[None], truth)
    u, v = ((t.double().clamp(-1000, 1000).numpy() + 1000) / 2000 for t in (hu, truth))
    x, y = ((t.double().numpy() + 1000) * 0.0193 for t in (hu, truth))  # attenuation, in any unit
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(v, u, data_range=1.0), abs=1e-4)
    assert found["psnr_range"] == pytest.approx(peak_signal_noise_ratio(y, x, data_range=2500 * 0.0193), abs=1e-4)
    gaussian: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert found["ssim"] == pytest.approx(structural_similarity(v, u, data_range=1.0, **gaussian), abs=1e-5)
    assert found["ssim_range"] == pytest.approx(structural_similarity(y, x, data_range=2500 * 0.0193), abs=1e-5)
    assert found["psnr"] != pytest.approx(found["psnr_range"], abs=0.1)


def test_classes_are_those_of_the_truth(pair: tuple[Tensor, Tensor]) -> None:
    hu, truth = pair
    found = scores(hu[None], truth)
    x, y = hu.double().numpy(), truth.double().numpy()
    for name, where in (("lung", y == -800), ("soft", y == 40), ("bone", y >= 700)):
        assert found[f"rmse_hu_{name}"] == pytest.approx(float(np.sqrt(np.mean((x - y)[where] ** 2))), rel=1e-6), name
    whole = float(np.sqrt(np.mean((x - y) ** 2)))
    assert found["rmse_hu"] == pytest.approx(whole, rel=1e-6)
    assert found["rmse_hu_lung"] != pytest.approx(whole, rel=1e-3)


def test_what_does_not_exist_is_none() -> None:
    flat = torch.zeros(9, 9)
    found = scores(flat[None] + 10, flat)
    assert found["rmse_hu_soft"] == pytest.approx(10.0) and found["psnr"] == pytest.approx(46.02, abs=0.01)
    absent = ("psnr_range", "ssim", "ssim_range", "rmse_hu_lung", "rmse_hu_bone", "calibration", "coverage_90")
    assert [k for k in absent if found[k] is not None] == []
    assert scores(flat[None], flat)["psnr"] is None  # infinite


def test_calibration_of_draws_with_a_known_law(rng: torch.Generator) -> None:
    """Draws from the law of the truth have ratio 1 and hold 90 %, whatever their number; half as wide ones have ratio
    √(¼ (1 + 1/n) / (1 + ¼ / n))."""
    truth = 50 * torch.randn(400, 400, generator=rng)
    where = torch.ones(400, 400, dtype=torch.bool)
    where[:100] = False
    for n in (2, 5, 30):
        draws = 50 * torch.randn(n, 400, 400, generator=rng)
        draws[:, :100] = 1e4  # which does not count
        assert float(metrics.calibration_ratio(draws, truth, where)) == pytest.approx(1, abs=0.01)
        assert float(metrics.coverage_of_normal(draws, truth, where, 0.9)) == pytest.approx(0.9, abs=0.005)
        narrow = math.sqrt(0.25 * (1 + 1 / n) / (1 + 0.25 / n))
        assert float(metrics.calibration_ratio(draws / 2, truth, where)) == pytest.approx(narrow, abs=0.01)
    with pytest.raises(ValueError, match="at least 2 samples"):
        metrics.calibration_ratio(truth[None], truth, where)
    with pytest.raises(ValueError, match="between 0 and 1"):
        metrics.coverage_of_normal(draws, truth, where, 90)


def test_a_batch_gives_what_its_members_give(rng: torch.Generator) -> None:
    draws, truth = torch.randn(3, 2, 8, 8, generator=rng), torch.randn(2, 8, 8, generator=rng)
    where = truth > 0
    for k in range(2):
        alone = metrics.calibration_ratio(draws[:, k], truth[k], where[k])
        torch.testing.assert_close(metrics.calibration_ratio(draws, truth, where)[k], alone)
        alone = metrics.rmse_hu_between(draws[0, k], truth[k], -0.5, 0.5)
        torch.testing.assert_close(metrics.rmse_hu_between(draws[0], truth, -0.5, 0.5)[k], alone)


def test_fit_to_the_data(rng: torch.Generator) -> None:
    A = operator({"name": "parallel_beam_ct", "n_views": 5}, (16, 16), 2.0)
    x = torch.rand(16, 16, generator=rng)
    problem = simulate(A, x, rng, relative_noise=0.05)
    found = fit(problem, torch.stack([x + 0.1, x - 0.1]))
    residual = A(x) - problem.y
    assert found["chi2"] == pytest.approx(float(residual.square().mean()) / float(problem.noise_std) ** 2, rel=1e-4)
    assert found["residual"] == pytest.approx(float(residual.norm() / problem.y.norm()), rel=1e-4)
    noise_free = fit(Problem(A, problem.y), x[None])
    assert noise_free == {"chi2": None, "residual": pytest.approx(found["residual"], rel=1e-5)}
