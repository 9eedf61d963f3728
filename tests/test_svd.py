"""The dense SVD against torch's own, and DDRM's step against its published rules, one singular direction at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoreinv.operators.ct import ParallelBeamCT, equispaced_angles
from scoreinv.operators.dense import Matrix
from scoreinv.posterior import svd
from scoreinv.posterior.ddnm import DDNMPlus
from scoreinv.posterior.ddrm import DDRM
from scoreinv.posterior.svd import spectrum
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


MATRICES = {"wide": random(3, 6), "tall": random(6, 4), "rank 2": random(5, 2) @ random(2, 6, seed=1)}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("uniform", [True, False])
def test_it_is_the_svd(name: str, uniform: bool) -> None:
    matrix = MATRICES[name]
    m, n = matrix.shape
    std = torch.full((2, m), 0.3, dtype=torch.float64)
    if not uniform:
        std = 0.1 + torch.rand(2, m, generator=seeded(3), dtype=torch.float64)
    y = random(2, m, seed=4)
    found = spectrum(Problem(Matrix(matrix), y, std))
    for b in range(2):
        root = std[b].min() / std[b]
        expected = torch.linalg.svdvals(root[:, None] * matrix)
        got = found.values[b].sort(descending=True).values
        torch.testing.assert_close(got, torch.where(expected > 1e-9, expected, 0), atol=1e-7, rtol=1e-7)
        V = found.vectors[int(found.which[b])]
        torch.testing.assert_close((V * found.values[b] ** 2) @ V.T, matrix.T @ (root[:, None] ** 2 * matrix))
        torch.testing.assert_close(V.T @ V, (found.values[b] > 0).double().diag(), atol=1e-6, rtol=0)
        best = torch.linalg.pinv(root[:, None] * matrix, rtol=1e-9) @ (root * y[b])
        torch.testing.assert_close(V @ found.data[b], best, atol=1e-6, rtol=1e-6)
    x = random(2, n, seed=5)
    inside = found.image(found.coordinates(x), (n,))
    torch.testing.assert_close(found.image(found.coordinates(inside), (n,)), inside)
    torch.testing.assert_close(Matrix(matrix)(inside), Matrix(matrix)(x))


def test_members_with_the_same_weights_share_one() -> None:
    std = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.4, 0.6]], dtype=torch.float64)
    found = spectrum(Problem(Matrix(MATRICES["wide"]), random(3, 3), std))
    assert len(found.vectors) == 2 and int(found.which[0]) == int(found.which[2]) != int(found.which[1])


def test_it_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Matrix(random(3, 5, seed=9))
    first = spectrum(Problem(operator, random(1, 3), 0.1))
    monkeypatch.setattr(svd, "_decomposed", None)
    second = spectrum(Problem(operator, random(1, 3), 0.5))
    torch.testing.assert_close(first.data, second.data)


def test_small_singular_values_count_as_none_in_float32() -> None:
    operator = Matrix(torch.diag(torch.tensor([1.0, 1e-7, 1e-3])))
    y = torch.ones(1, 3)
    assert (spectrum(Problem(operator, y)).values > 0).sum() == 2
    assert (spectrum(Problem(operator, y.double())).values > 0).sum() == 2
    assert (spectrum(Problem(Matrix(torch.diag(torch.tensor([1.0, 1e-4]))), y[:, :2])).values > 0).all()


@pytest.mark.parametrize("make", [DDRM, lambda prior: DDNMPlus(prior, filter="svd")])
def test_large_operators_are_refused(make: type) -> None:
    for side, views, size in (
        (65, 23, r"4225 pixels: .* \(2093, 4225\) .* 0.066 GiB"),
        (64, 400, r"4096 pixels: .* 1.1 GiB"),
    ):
        operator = ParallelBeamCT((side, side), equispaced_angles(views), 91, 1.0, 1.0)
        asked = Problem(operator, torch.zeros(operator.out_shape))
        with pytest.raises(ValueError, match=rf"at most 4096 pixels and 1 GiB, got {size}; take .* dds"):
            make(lambda x, sigma: x)(asked, seeded(0))


# DDRM


SINGULAR = torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("eta_b", [1.0, 0.6])
@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.8), (0.9, 0.3), (0.2, 0.05), (0.05, 0.0)])
def test_the_step_is_the_published_one(sigma: float, sigma_next: float, eta_b: float) -> None:
    """Singular values 2, ½ and 0 and σ_y = 0.2: noise of 0.1 and 0.4 in the first two, against eqs. 7 and 8 by hand."""
    operator, y, eta, n = Matrix(SINGULAR.diag()[:2]), torch.tensor([[1.0, -0.7]]).double(), 0.85, 4000
    x = torch.tensor([0.4, 2.0, -0.3], dtype=torch.float64)
    method = DDRM(lambda x, sigma: 0.5 * x, eta=eta, eta_b=eta_b)
    step = method.step(Problem(operator, y, 0.2).repeated(n))
    streams = [seeded(k) for k in range(n)]
    levels = (torch.tensor(s, dtype=torch.float64) for s in (sigma, sigma_next))
    got = step(method.prior, x.expand(n, 3), *levels, streams)
    kept = math.sqrt(1 - eta**2)
    for i, noise in enumerate((0.1, 0.4, math.inf)):
        clean = float(x[i]) / 2
        if math.isinf(noise):
            mean, std = clean + kept * sigma_next * clean / sigma, eta * sigma_next
        elif sigma_next < noise:
            datum = float(y[0, i] / SINGULAR[i])
            mean, std = clean + kept * sigma_next * (datum - clean) / noise, eta * sigma_next
        else:
            datum = float(y[0, i] / SINGULAR[i])
            mean, std = (1 - eta_b) * clean + eta_b * datum, math.sqrt(sigma_next**2 - eta_b**2 * noise**2)
        assert float(got[:, i].mean()) == pytest.approx(mean, abs=4 * std / n**0.5 + 1e-12)
        assert float(got[:, i].std()) == pytest.approx(std, rel=0.05, abs=1e-12)
    assert float(torch.corrcoef(got.T).fill_diagonal_(0).abs().max()) < 0.07 or sigma_next == 0


def test_the_start_knows_the_data() -> None:
    """N(ȳ, σ_max² − σ_i²) where σ_i <= σ_max, else N(0, σ_max²)."""
    operator, y = Matrix(torch.diag(torch.tensor([2.0, 0.001, 1.0]))[:2]), torch.tensor([[40.0, 5.0]]).double()
    asked = Problem(operator, y, 0.2).repeated(4000)
    method = DDRM(lambda x, sigma: x)
    x, _ = method.begin(asked, torch.tensor(20.0, dtype=torch.float64), [seeded(k) for k in range(4000)])
    for i, mean in enumerate((20.0, 0.0, 0.0)):
        assert float(x[:, i].mean()) == pytest.approx(mean, abs=4 * 20 / 4000**0.5)
        assert float(x[:, i].std()) == pytest.approx(20.0, rel=0.05)


def test_ddrm_of_a_rotated_problem_is_rotated() -> None:
    """The method does not know pixels: in law. Mean over draws for a prior N(0, I)."""
    turn = torch.linalg.qr(random(3, 3, seed=2))[0]
    prior = GaussianPrior(torch.zeros(3).double(), torch.eye(3).double())
    y, options = torch.tensor([1.0, -0.7]).double(), {"samples": 3000, "n_levels": 8}
    straight = DDRM(prior, **options)(Problem(Matrix(SINGULAR.diag()[:2]), y, 0.2), seeded(0))
    turned = DDRM(prior, **options)(Problem(Matrix(SINGULAR.diag()[:2] @ turn.T), y, 0.2), seeded(1)) @ turn
    torch.testing.assert_close(straight.mean(0), turned.mean(0), atol=0.08, rtol=0)
    torch.testing.assert_close(straight.T.cov(), turned.T.cov(), atol=0.06, rtol=0)
