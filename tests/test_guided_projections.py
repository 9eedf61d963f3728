"""DDNM, DDNM+, DDRM, DiffPIR, DDS as published, RePaint, FlowDPS, Flower: what all must keep, and what each draws.

Moments are exact, by impulse responses (`exact_moments`), not estimated from draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from exact_moments import moments
from torch import Tensor

from scoreinv.operators.ct import ParallelBeamCT, equispaced_angles
from scoreinv.operators.dense import Matrix
from scoreinv.operators.fbp import fbp
from scoreinv.operators.masking import Masking
from scoreinv.posterior.ddnm import DDNM, FILTERS, DDNMPlus
from scoreinv.posterior.ddrm import DDRM
from scoreinv.posterior.dds import DDS, DDSPublished
from scoreinv.posterior.diffpir import DiffPIR
from scoreinv.posterior.flow import FlowDPS, Flower
from scoreinv.posterior.repaint import RePaint
from scoreinv.posterior.stepwise import Stepwise
from scoreinv.priors.denoiser import Denoiser, Rescaled
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import Ancestral
from scoreinv.streams import normal


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(d: int = 4) -> GaussianPrior:
    return GaussianPrior(torch.linspace(-1, 1, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))


def correlated(d: int = 4) -> GaussianPrior:
    root = torch.randn(d, d, generator=seeded(5), dtype=torch.float64) / d**0.5
    return GaussianPrior(white(d).mean, root @ root.T + 0.05 * torch.eye(d, dtype=torch.float64))


ROTATION = torch.linalg.qr(torch.randn(4, 4, generator=seeded(1), dtype=torch.float64))[0]
A = Matrix(torch.tensor([[2.0, 0], [0, 0.5]], dtype=torch.float64) @ ROTATION[:, :2].T)
"""Singular values 2 and ½ on the first two columns of the rotation, nothing on the others."""


def problem(prior: GaussianPrior, std: float) -> Problem:
    noise = torch.randn(2, generator=seeded(4), dtype=torch.float64)
    return Problem(A, A(prior.draw(1, seeded(3))[0]) + std * noise, std)


def compared(method: Callable[[Denoiser], object], prior: GaussianPrior, std: float) -> tuple[Tensor, Tensor]:
    """Variance over the posterior's, and error of the mean in its standard deviations, along the rotation's columns; both
    in their own unit where the posterior has no variance."""
    asked = problem(prior, std)
    exact = prior.posterior(asked)
    mean, covariance = moments(method(prior), asked)
    variance, true = ((ROTATION.T @ c @ ROTATION).diagonal() for c in (covariance, exact.covariance))
    true = torch.where(true > 1e-9, true, 1)
    return variance / true, ROTATION.T @ (mean - exact.mean) / true.sqrt()


# What each draws


BIASED = {
    "DDNM": (lambda p: DDNM(p, n_levels=20), (0.0, 0.0, 0.69), 0.32),
    "DDNM+ ridge": (lambda p: DDNMPlus(p, n_levels=20), (0.10, 0.10, 0.69), 0.20),
    "DDNM+ svd": (lambda p: DDNMPlus(p, n_levels=20, filter="svd"), (0.05, 0.03, 0.69), 0.24),
    "DDRM": (lambda p: DDRM(p, n_levels=20), (0.30, 0.27, 0.63), 0.02),
    "DDS": (lambda p: DDS(p, n_levels=20, sigma_max=20.0), (0.60, 0.58, 0.69), 0.07),
    "DDS published": (lambda p: DDSPublished(p, n_levels=20, sigma_max=20.0), (0.01, 1.58, 0.63), 0.92),
    "DiffPIR": (lambda p: DiffPIR(p, n_levels=20), (1.19, 0.96, 0.76), 0.01),
    "DiffPIR 7": (lambda p: DiffPIR(p, n_levels=20, lam=7.0), (4.34, 2.24, 0.76), 0.43),
    "FlowDPS": (lambda p: FlowDPS(p, n_levels=20), (8.21, 0.59, 0.66), 0.16),
    "Flower mean": (lambda p: Flower(p, n_levels=20, refinement="mean"), (0.34, 0.42, 0.44), 0.00),
}
"""The numbers of the modules' heads: variance over exact variance where the singular value is 2, ½ and 0; largest error of the mean."""


@pytest.mark.parametrize("name", BIASED)
def test_the_biases_that_the_docstrings_name(name: str) -> None:
    method, ratios, error = BIASED[name]
    variance, bias = compared(method, white(), 0.2)
    torch.testing.assert_close(variance[:3], torch.tensor(ratios, dtype=torch.float64), atol=0.006, rtol=0)
    assert variance[2] == pytest.approx(float(variance[3]))
    assert float(bias.abs().max()) == pytest.approx(error, abs=0.006)


@pytest.mark.parametrize("std", [0.0, 0.2])
def test_flower_is_exact_for_white_images_whatever_the_levels(std: float) -> None:
    variance, bias = compared(lambda p: Flower(p, n_levels=4), white(), std)
    exact = [0.0, 0.0, 1.0, 1.0] if std == 0 else [1.0] * 4
    torch.testing.assert_close(variance, torch.tensor(exact, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(bias.abs().max()) < 1e-3  # the start, noise of σ_max without an image


def test_flower_tends_to_the_posterior_of_correlated_images() -> None:
    errors = [compared(lambda p: Flower(p, n_levels=n), correlated(), 0.0)[0][2:] - 1 for n in (20, 40, 80)]  # noqa: B023
    torch.testing.assert_close(torch.stack(errors)[:, 0], torch.tensor([0.28, 0.18, 0.11]).double(), atol=0.006, rtol=0)
    assert (errors[2] < 0.45 * errors[0]).all()


def test_ddnm_tends_to_the_posterior_of_white_images_without_noise() -> None:
    errors = []
    for n in (20, 40, 80):
        variance, bias = compared(lambda p: DDNM(p, n_levels=n), white(), 0.0)  # noqa: B023
        torch.testing.assert_close(variance[:2], torch.zeros(2).double(), atol=1e-6, rtol=0)
        assert float(bias.abs().max()) < 2e-3
        errors.append(1 - float(variance[2]))
    assert errors == pytest.approx([0.309, 0.172, 0.091], abs=0.001)
    flow, _ = compared(lambda p: DDNM(p, n_levels=20, step="heun"), white(), 0.0)
    torch.testing.assert_close(flow[2:], torch.ones(2).double(), atol=0.04, rtol=0)


@pytest.mark.parametrize(
    ("method", "eta"),
    [(DDRM(white(), n_levels=30), 0.85), (DiffPIR(white(), n_levels=30), 0.3**0.5),
     (Flower(white(), n_levels=30, refinement="mean"), 1.0), (DDSPublished(white(), n_levels=30), 0.85)],
)  # fmt: skip
def test_a_constant_share_of_noise_loses_variance(method: Stepwise, eta: float) -> None:
    """What is not measured follows the recursion of `stepwise`'s head, whose limit is (1 + κ) / 2."""

    def walked(sigmas: Tensor) -> float:
        kappa, v = (1 - eta**2) ** 0.5, float(sigmas[0]) ** 2
        for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            v = (1 + kappa * sigma * after) ** 2 / (1 + sigma**2) ** 2 * v + (eta * after) ** 2
        return v

    variance, _ = compared(lambda p: method, white(), 0.0)
    torch.testing.assert_close(variance[2:], torch.full((2,), walked(method.levels())).double())
    many = walked(karras(20_000, 0.01, 20.0))
    assert many == pytest.approx((1 + (1 - eta**2) ** 0.5) / 2, abs=2e-3)


# Special cases


NOISE_FREE = {
    "DDNM": DDNM, "DDNM+ ridge": DDNMPlus, "DDNM+ svd": lambda p, **o: DDNMPlus(p, filter="svd", **o), "DDRM": DDRM,
    "DDS published": DDSPublished, "DiffPIR": DiffPIR, "Flower": Flower,
}  # fmt: skip


@pytest.mark.parametrize("name", NOISE_FREE)
def test_noise_free_data_are_met(name: str) -> None:
    asked = problem(correlated(), 0.0)
    x = NOISE_FREE[name](correlated(), n_levels=8, samples=3)(asked, seeded(0))
    torch.testing.assert_close(A(x), asked.y.expand(3, 2), atol=1e-6, rtol=0)
    assert float(x.std(0).max()) > 0.1


def test_flow_dps_leaves_noise_free_data_unmet() -> None:
    """As its head says; the more levels, the less."""
    few, many = (compared(lambda p: FlowDPS(p, n_levels=n), white(), 0.0)[0][:2] for n in (20, 80))  # noqa: B023
    torch.testing.assert_close(few, torch.full((2,), 0.081).double(), atol=1e-3, rtol=0)
    assert (many < 0.75 * few).all()


@pytest.mark.parametrize("eta", [1.0, 0.6])
def test_without_noise_ddnm_ddnm_plus_and_dds_are_one(eta: float) -> None:
    asked, options = problem(correlated(), 0.0), {"n_levels": 8, "samples": 3, "eta": eta}
    expected = DDNM(correlated(), **options)(asked, seeded(0))
    for method in (NOISE_FREE["DDNM+ svd"], lambda p, **o: DDS(p, sigma_max=20.0, **o)):
        torch.testing.assert_close(method(correlated(), **options)(asked, seeded(0)), expected, atol=1e-6, rtol=0)
    in_law = moments(DDNMPlus(correlated(), **options), asked)  # its noise has another sign in what is measured
    torch.testing.assert_close(in_law, moments(DDNM(correlated(), **options), asked), atol=1e-6, rtol=0)


def test_diffpir_without_fresh_noise_is_dds_by_euler_steps() -> None:
    asked, options = problem(correlated(), 0.2), {"n_levels": 8, "samples": 3}
    got = DiffPIR(correlated(), lam=1.0, zeta=0.0, **options)(asked, seeded(0))
    expected = DDS(correlated(), step="euler", sigma_max=20.0, **options)(asked, seeded(0))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("filter", sorted(FILTERS))
def test_ddnm_plus_samples_the_prior_where_nothing_is_measured(filter: str) -> None:
    """Ancestral sampling, with the very same noise."""
    prior, asked = white(), problem(white(), 1e7)
    got = DDNMPlus(prior, n_levels=8, samples=3, filter=filter)(asked, seeded(0))
    rngs, sigmas = member_streams(seeded(0), 3, 1), karras(8, 0.01, 20.0)
    x = sigmas[0] * normal(rngs, torch.zeros(3, 4, dtype=torch.float64))
    expected = last(sample(prior, x, sigmas, step=Ancestral(), rngs=rngs))
    torch.testing.assert_close(got @ ROTATION[:, 2:], expected @ ROTATION[:, 2:], atol=1e-6, rtol=0)


# DDNM+: its filters


def filtered(filter: str, asked: Problem, clean: Tensor, z: Tensor, a: float, c: float, t: float) -> Tensor:
    batch = asked.flat().repeated(len(clean))
    numbers = (torch.tensor(v, dtype=torch.float64) for v in (a, c))
    return FILTERS[filter](batch, 20)(clean, z, *numbers, torch.full((len(clean),), t, dtype=torch.float64))


@pytest.mark.parametrize("filter", sorted(FILTERS))
@pytest.mark.parametrize("t", [0.02, 0.3, 1.0, 3.0, 50.0])
def test_data_noise_and_fresh_noise_add_up(filter: str, t: float) -> None:
    """Eq. (2): together they are white, of variance c², also for noise that is not uniform."""
    matrix = torch.randn(3, 5, generator=seeded(0), dtype=torch.float64)
    std = torch.tensor([0.1, 0.3, 0.7], dtype=torch.float64)
    c = 0.8
    a = c / (t * 0.1)
    zero, eye = torch.zeros(1, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    quiet = Problem(Matrix(matrix), torch.zeros(3, dtype=torch.float64), std)
    fresh = filtered(filter, quiet, zero.expand(5, 5), eye, a, c, t)
    one_by_one = [Problem(Matrix(matrix), row, std) for row in torch.diag(std)]
    from_data = torch.cat([filtered(filter, p, zero, zero, a, c, t) for p in one_by_one])
    total = fresh.T @ fresh + from_data.T @ from_data
    torch.testing.assert_close(total, c**2 * eye, atol=1e-9, rtol=0)
    assert float(from_data.abs().max()) > 0.01


@pytest.mark.parametrize("singular", [0.7, 3.0])
def test_the_filters_agree_where_singular_values_are_equal(singular: float) -> None:
    """Exactly for s t <= 1/2; before that the ridge takes between 4/5 and all of what the SVD takes."""
    turn = torch.linalg.qr(torch.randn(5, 5, generator=seeded(0), dtype=torch.float64))[0]
    y, clean, z = (torch.randn(n, generator=seeded(n), dtype=torch.float64) for n in (3, 5, 6))
    asked = Problem(Matrix(singular * turn[:3]), y, 0.1)
    for snr in (0.01, 0.2, 0.499, 0.7, 1.0, 2.0, 100.0):
        both = [filtered(f, asked, clean[None], 0 * z[None, :5], 1.0, 0.4, snr / singular) for f in ("ridge", "svd")]
        ratio = both[0] @ turn[:3].T / (both[1] @ turn[:3].T)
        assert (ratio > 0.7999).all() and (ratio < 1.0001).all()
        if snr < 0.5:
            torch.testing.assert_close(
                ratio, torch.ones_like(ratio), atol=2e-4, rtol=0
            )  # ‖A‖² comes by power iteration
            noisy = [filtered(f, asked, clean[None], z[None, :5], 1.0, 0.4, snr / singular) for f in ("ridge", "svd")]
            torch.testing.assert_close(noisy[0], noisy[1], atol=1e-3, rtol=0)
    assert float(ratio.max()) == pytest.approx(1.0, abs=1e-3)


def test_the_published_filter_singular_value_by_singular_value() -> None:
    """λ = min(1, s t) on the data's side of the estimate, by hand."""
    clean = torch.randn(1, 4, generator=seeded(2), dtype=torch.float64)
    asked, t = problem(white(), 0.2), 0.9
    got = filtered("svd", asked, clean, 0 * clean, 0.5, 0.3, t)
    apart = torch.linalg.pinv(A.matrix) @ (asked.y - A(clean[0]))
    gains = torch.tensor([1.0, 0.5 * t, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(got[0], 0.5 * ROTATION @ (gains * (ROTATION.T @ apart)))


# Laws of all


METHODS: dict[str, Callable[..., Callable[[Problem, torch.Generator], Tensor]]] = {
    **NOISE_FREE,
    "FlowDPS": FlowDPS,
    "Flower mean": lambda p, **o: Flower(p, refinement="mean", **o),
    "RePaint": lambda p, **o: RePaint(p, jump_length=2, resamplings=2, **o),
}
MASK = Masking([[1, 0, 1, 1], [0, 1, 0, 1]])


def asked_of(name: str) -> tuple[GaussianPrior, Problem]:
    """Images (2, 4), a batch of two, noise for each datum; masked for RePaint."""
    flat = correlated(8)
    prior = GaussianPrior(flat.mean.reshape(2, 4), flat.covariance)
    matrix = torch.randn(5, 8, generator=seeded(6), dtype=torch.float64)
    operator = MASK if name == "RePaint" else Matrix(matrix, (2, 4), (1, 5))
    noise = 0.1 + torch.rand(2, *operator.out_shape, generator=seeded(8), dtype=torch.float64)
    return prior, Problem(operator, operator(prior.draw(2, seeded(7))), noise)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_gives_what_its_members_give_alone(name: str) -> None:
    prior, asked = asked_of(name)
    std = torch.as_tensor(asked.noise_std)
    std = torch.stack([0 * std[0], std[1]])  # the first member is noise-free
    method = METHODS[name](prior, n_levels=6, samples=2)
    together = method(Problem(asked.A, asked.y, std), seeded(0))
    assert together.shape == (2, 2, 2, 4) and together.dtype == torch.float64
    alone = method(Problem(asked.A, asked.y[:1], std[:1]), seeded(0))
    torch.testing.assert_close(together[:, :1], alone, atol=1e-6, rtol=1e-6)
    without_batch = method(Problem(asked.A, asked.y[0], 0.0), seeded(0))
    torch.testing.assert_close(together[:, 0], without_batch, atol=1e-6, rtol=1e-6)
    more = METHODS[name](prior, n_levels=6, samples=3)(Problem(asked.A, asked.y, std), seeded(0))
    torch.testing.assert_close(more[:2], together)  # the seed law
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    assert not torch.allclose(method(asked, seeded(1)), method(asked, seeded(0)), atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("std", [0.0, 0.3])
def test_the_unit_does_not_matter(name: str, std: float) -> None:
    prior, asked = asked_of(name)
    scale = 0.0193
    options = {"n_levels": 6, "samples": 2}
    expected = METHODS[name](prior, **options)(Problem(asked.A, asked.y, std), seeded(0))
    rescaled = METHODS[name](Rescaled(prior, 0.0, scale), **options)
    got = rescaled(Problem(asked.A, scale * asked.y, scale * std), seeded(0))
    torch.testing.assert_close(got / scale, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"RePaint"}))  # a mask is a mask
def test_the_unit_of_the_data_does_not_matter(name: str) -> None:
    """7 A, 7 y and 7 σ_y say what A, y and σ_y say."""
    prior, asked = asked_of(name)
    method = METHODS[name](prior, n_levels=6)
    scaled = Matrix(7 * asked.A.matrix, (2, 4), (1, 5))
    got = method(Problem(scaled, 7 * asked.y, 7 * torch.as_tensor(asked.noise_std)), seeded(0))
    torch.testing.assert_close(got, method(asked, seeded(0)), atol=1e-3, rtol=1e-3)  # ‖A‖² comes by power iteration


@pytest.mark.parametrize("name", METHODS)
def test_noise_of_each_datum(name: str) -> None:
    """Equal numbers are as one; a datum with so much noise that it says nothing is as good as none."""
    prior, asked = asked_of(name)
    method = METHODS[name](prior, n_levels=6, samples=2)
    equal = torch.full_like(asked.y, 0.3)
    as_one = method(Problem(asked.A, asked.y, 0.3), seeded(0))
    torch.testing.assert_close(method(Problem(asked.A, asked.y, equal), seeded(0)), as_one, atol=1e-8, rtol=1e-8)
    assert not torch.allclose(method(asked, seeded(0)), as_one, atol=1e-3) or name in ("DDNM", "FlowDPS")
    if name in ("DDNM", "FlowDPS"):
        return  # they meet data of which there are fewer than pixels, however noisy they are
    equal[..., 1] = 1e6
    wrong = asked.y.clone()
    wrong[..., 1] += 5.0
    got, same = (method(Problem(asked.A, y, equal), seeded(0)) for y in (wrong, asked.y))
    torch.testing.assert_close(got, same, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["DDNM", "FlowDPS"])
def test_more_data_than_pixels_are_fitted_by_weighted_least_squares(name: str) -> None:
    matrix, y = (torch.randn(6, *shape, generator=seeded(k), dtype=torch.float64) for k, shape in enumerate([(4,), ()]))
    std = torch.tensor([0.1, 0.1, 0.3, 0.5, 0.9, 2.0], dtype=torch.float64)
    best = torch.linalg.lstsq(matrix / std[:, None], (y / std)[:, None]).solution[:, 0]

    def at_start(prior: Denoiser) -> Tensor:
        """The last of one step from a level so high that the estimate heeds data only."""
        return METHODS[name](prior, n_levels=1, sigma_max=1e9, sigma_min=1e8, iterations=10)(
            Problem(Matrix(matrix), y, std), seeded(0)
        )[0]

    torch.testing.assert_close(at_start(white()), best, atol=1e-6, rtol=1e-6)


# CT, in 1/mm


SIZE, MU_WATER = 24, 0.0193
FREQUENCY = torch.fft.fftfreq(SIZE, dtype=torch.float64)
SPECTRUM = 60 / (1 + ((FREQUENCY[:, None] ** 2 + FREQUENCY**2).sqrt() / 0.02) ** 3)


def wiener(u: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of stationary Gaussian images around air."""
    level = torch.as_tensor(sigma).double().reshape(-1, 1, 1) ** 2
    centred = torch.fft.fft2(u.double() + 1)
    return (torch.fft.ifft2(SPECTRUM / (SPECTRUM + level) * centred).real - 1).to(u.dtype)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"RePaint"}))
def test_defaults_work_on_ct(name: str) -> None:
    """8 views, 1 % noise, float32: the mean of 4 draws beats filtered back-projection."""
    prior = Rescaled(wiener, MU_WATER, MU_WATER)
    noise = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=seeded(7))
    truth = MU_WATER * torch.fft.ifft2(SPECTRUM.sqrt() * torch.fft.fft2(noise)).real.float()
    operator = ParallelBeamCT((SIZE, SIZE), equispaced_angles(8), 36, 1.5, 1.5)
    y = operator(truth)
    std = 0.01 * float(y.abs().mean())
    y = y + std * torch.randn(y.shape, generator=seeded(3))
    x = METHODS[name](prior, samples=4, n_levels=30)(Problem(operator, y, std), seeded(0))
    assert x.dtype == torch.float32

    def rmse(image: Tensor) -> float:
        return float((image - truth).square().mean().sqrt())

    assert rmse(x.mean(0)) < {"FlowDPS": 0.9, "DDS published": 0.85}.get(name, 0.75) * rmse(fbp(operator, y))
    misfit = math.sqrt(float((operator(x) - y).square().mean())) / std
    limit = {"FlowDPS": 40.0, "DDS published": 12.0}.get(name, 1.6)
    assert misfit < limit


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: DDNM(p, iterations=0), "DDNM: expected iterations"),
        (lambda p: DDNMPlus(p, filter="rigde"), "DDNMPlus: no filter is named 'rigde'; known: ridge, svd"),
        (lambda p: DDNMPlus(p, eta=0.0), "DDNMPlus: expected 0 < eta"),
        (lambda p: DDRM(p, eta=1.5), "DDRM: eta and eta_b"),
        (lambda p: DDRM(p, n_levels=0), "DDRM: expected n_levels of at least 1"),
        (lambda p: DiffPIR(p, zeta=-0.1), "DiffPIR: expected 0 <= zeta"),
        (lambda p: DDSPublished(p, gamma=0.0), "DDSPublished: expected"),
        (lambda p: RePaint(p, resamplings=0), "RePaint: expected jump_length and resamplings"),
        (lambda p: FlowDPS(p, shift=0.0), "FlowDPS: expected shift > 0"),
        (lambda p: Flower(p, refinement="both"), "Flower: expected .* draw, mean, got 10 and 'both'"),
        (lambda p: Flower(p, sigma_max=0.001), "Flower: expected 0 < sigma_min"),
    ],
)
def test_what_is_refused(make: Callable[[Denoiser], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(white())
