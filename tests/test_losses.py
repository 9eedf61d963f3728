"""Score-matching losses and DDPM's bound, held against closed forms of Gaussians."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from scoreinv.priors.divergence import (
    Field,
    Projection,
    gaussian,
    projections,
    rademacher,
    with_diagonal,
    with_estimate,
)
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.losses import ddpm
from scoreinv.priors.losses.ddpm import (
    Chain,
    DiscretisedGaussian,
    bound,
    fixed_variance,
    gaussian_density,
    hybrid,
    learned_variance,
    noise_of_denoiser,
    random_term,
    simple,
)
from scoreinv.priors.losses.denoising import (
    Times,
    denoising,
    noise_conditional,
    score_of_denoiser,
    sub_vp_likelihood_times,
    time_continuous,
    uniform_times,
    vp_likelihood_times,
)
from scoreinv.priors.losses.score_matching import implicit, score_of_energy, sliced, sliced_variance_reduced
from scoreinv.sampling.processes import VP, SubVP
from scoreinv.streams import split

COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, -0.2], [0.0, -0.2, 0.3]], dtype=torch.float64)
PRIOR = GaussianPrior(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), COVARIANCE)


def streams(n: int, seed: int = 0) -> list[Generator]:
    """One generator n times over: members are independent, and thousands of them cheap."""
    return [torch.Generator().manual_seed(seed)] * n


def quadrature(covariance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Points and weights of N(mean, covariance), exact for polynomials of degree 9 in each direction."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    z = torch.tensor(list(itertools.product(nodes, repeat=3)), dtype=torch.float64)
    w = torch.tensor([math.prod(p) for p in itertools.product(weights / weights.sum(), repeat=3)], dtype=torch.float64)
    return mean + z @ torch.linalg.cholesky(covariance).T, w


def all_signs() -> Projection:
    """In place of random signs: the eight vectors of signs in turn, so that a mean of eight is the expectation."""
    turn = itertools.cycle(itertools.product((-1.0, 1.0), repeat=3))
    return lambda rngs, like: torch.tensor(next(turn), dtype=like.dtype).expand_as(like)


def linear(precision: Tensor, mean: Tensor) -> Callable[..., Tensor]:
    return lambda x, *_: -(x - mean) @ precision.T


OnClean = Callable[[Field, Tensor, Sequence[Generator]], Tensor]
CLEAN: dict[str, OnClean] = {
    "implicit": lambda s, x, rngs: implicit(s, x),
    "sliced": lambda s, x, rngs: sliced(s, x, rngs, draw=all_signs(), n=8),
    "variance-reduced": lambda s, x, rngs: sliced_variance_reduced(s, x, rngs, draw=all_signs(), n=8),
}


@pytest.mark.parametrize("name", CLEAN)
def test_the_true_score_of_a_gaussian_minimises(name: str) -> None:
    """Exact expectations by quadrature: no gradient at the true score, the closed form there, more around it."""
    x, w = quadrature(COVARIANCE, PRIOR.mean)
    loss = CLEAN[name]
    precision = torch.linalg.inv(COVARIANCE).requires_grad_()
    mean = PRIOR.mean.clone().requires_grad_()
    value = (w * loss(linear(precision, mean), x, streams(len(x)))).sum()
    torch.testing.assert_close(value, -precision.trace() / 2)  # −½ E‖∇ ln p‖² = −½ tr Σ⁻¹
    for gradient in torch.autograd.grad(value, (precision, mean)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    rng = torch.Generator().manual_seed(1)
    for _ in range(3):
        other = linear(precision.detach() + 0.1 * torch.randn(3, 3, generator=rng), PRIOR.mean + 0.1)
        assert (w * loss(other, x, streams(len(x)))).sum() > value + 1e-3


@pytest.mark.parametrize("draw", [rademacher, gaussian])
@torch.no_grad()
def test_sliced_is_implicit_on_average_and_less_noisy_with_its_variance_reduced(
    draw: Projection, rng: Generator
) -> None:
    """One image, many projections; a score that is not linear and whose Jacobian is not symmetric."""
    a = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    score = lambda z: torch.tanh(z @ a.T) - z  # noqa: E731
    x = torch.tensor([[0.6, -1.4, 2.2]], dtype=torch.float64)
    exact, n = float(implicit(score, x)), 4000
    many = x.expand(n, 3)
    plain, reduced = (f(score, many, streams(n), draw=draw) for f in (sliced, sliced_variance_reduced))
    for found in (plain, reduced):
        assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / n**0.5
    assert reduced.std() < 0.9 * plain.std()


def test_exact_diagonal_and_its_estimates(rng: Generator) -> None:
    a = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    x = torch.randn(3, 2, 2, generator=rng, dtype=torch.float64)
    field = lambda z: torch.sin(z.flatten(1) @ a.T).reshape(z.shape)  # noqa: E731
    value, diagonal = with_diagonal(field, x)
    jacobian = a * torch.cos(x.flatten(1) @ a.T)[:, :, None]
    torch.testing.assert_close(diagonal.flatten(1), jacobian.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(value, field(x))
    for draw in (rademacher, gaussian):
        n = 4000
        _, found = with_estimate(field, x, projections(draw, n, streams(3), x))
        assert ((found.mean(0) - diagonal).abs() < 4.5 * found.std(0) / n**0.5).all()
    scale = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64).reshape(2, 2)
    _, found = with_estimate(lambda z: scale * z, x, projections(rademacher, 1, streams(3), x))
    torch.testing.assert_close(found[0], scale.expand(3, 2, 2))  # random signs are exact for diagonal J


def test_hutchinsons_variance_is_the_one_in_the_head(rng: Generator) -> None:
    a = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    h, n = (a + a.T) / 2, 20_000
    x = torch.zeros(n, 3, dtype=torch.float64)
    for draw, expected in ((gaussian, 2 * (h**2).sum()), (rademacher, 2 * ((h - h.diag().diag()) ** 2).sum())):
        _, found = with_estimate(lambda z: z @ a.T, x, projections(draw, 1, streams(n), x))
        assert found[0].sum(1).var() == pytest.approx(float(expected), rel=0.08)


def test_energies_have_the_score_minus_their_gradient() -> None:
    x, w = quadrature(COVARIANCE, PRIOR.mean)
    precision = torch.linalg.inv(COVARIANCE).requires_grad_()

    def energy(z: Tensor) -> Tensor:
        off = z - PRIOR.mean
        return ((off @ precision) * off).sum(1) / 2

    torch.testing.assert_close(score_of_energy(energy)(x), PRIOR.score(x, torch.zeros(())))
    value = (w * implicit(score_of_energy(energy), x)).sum()
    torch.testing.assert_close(value, -precision.trace() / 2)
    (gradient,) = torch.autograd.grad(value, precision)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    with torch.no_grad():
        assert not implicit(score_of_energy(energy), x).requires_grad


def test_a_network_of_energies_learns_from_every_loss(rng: Generator) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1)).double()
    score = score_of_energy(lambda z, *_: net(z)[:, 0])
    x = PRIOR.draw(4, rng)
    losses = [implicit(score, x), sliced(score, x, streams(4)), denoising(score, x, 0.5, streams(4))]
    for loss in losses:
        gradients = torch.autograd.grad(loss.sum(), [net[0].weight, net[2].weight])
        assert all(g.abs().max() > 1e-6 for g in gradients)
    with pytest.raises(ValueError, match="4 members have as many energies"):
        score_of_energy(lambda z: z.sum())(x)


# denoising


def mean_gradients(loss: Tensor, parameters: Sequence[Tensor], groups: int = 50) -> list[tuple[Tensor, Tensor]]:
    """Of the mean loss, each with its standard error over groups of members."""
    parts = [torch.autograd.grad(g.mean(), parameters, retain_graph=True) for g in loss.chunk(groups)]
    stacked = [torch.stack(p) for p in zip(*parts, strict=True)]
    return [(g.mean(0), g.std(0) / groups**0.5) for g in stacked]


def test_denoising_is_minimal_at_the_score_of_the_noisy_images(rng: Generator) -> None:
    n, sigma = 20_000, 0.7
    x = PRIOR.draw(n, rng)
    noisy = COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64)
    for off, small in ((0.0, True), (0.3, False)):
        precision = (torch.linalg.inv(noisy) + off).requires_grad_()
        mean = PRIOR.mean.clone().requires_grad_()
        loss = denoising(linear(precision, mean), x, sigma, streams(n, 1))
        found = [(g / error).abs().max() for g, error in mean_gradients(loss, (precision, mean))]
        assert max(found) < 4.5 if small else max(found) > 20


@torch.no_grad()
def test_denoising_is_implicit_on_the_noisy_images_and_a_constant(rng: Generator) -> None:
    """For any score, here one that is wrong: E implicit under N(μ, Σ + σ² I), exactly, plus d / 2σ²."""
    n, sigma = 40_000, 0.7
    score = linear(torch.tensor([[0.5, 0.2, 0], [0, 1, 0.1], [0.3, 0, 0.7]], dtype=torch.float64), PRIOR.mean + 0.2)
    points, w = quadrature(COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64), PRIOR.mean)
    expected = float((w * implicit(score, points)).sum()) + 3 / (2 * sigma**2)
    loss = denoising(score, PRIOR.draw(n, rng), sigma, streams(n, 1))
    error = float(loss.std()) / n**0.5
    assert error < 0.02 and abs(float(loss.mean()) - expected) < 4 * error


def test_noise_conditional_is_minimal_at_every_level(rng: Generator) -> None:
    n, sigmas = 30_000, torch.tensor([2.0, 0.5, 0.1], dtype=torch.float64)
    x = torch.randn(n, 2, generator=rng, dtype=torch.float64)
    slopes = (1 / (1 + sigmas**2)).requires_grad_()

    def score(x_t: Tensor, sigma: Tensor) -> Tensor:
        level = (sigma[:, None] - sigmas).abs().argmin(1)
        assert torch.isin(sigma, sigmas).all()
        return -slopes[level, None] * x_t

    ((gradient, error),) = mean_gradients(noise_conditional(score, x, sigmas, streams(n, 1)), [slopes])
    assert ((gradient / error).abs() < 4.5).all() and (error > 0).all()
    # weighted by σ², the loss at the minimum is ½ d E(σ S + z)² = ½ d / (1 + σ²) at each level
    expected = float((1 / (1 + sigmas**2)).mean())
    assert float(noise_conditional(score, x, sigmas, streams(n, 2)).detach().mean()) == pytest.approx(
        expected, rel=0.03
    )


T_MIN = 1e-3
LIKELIHOOD_TIMES = {
    "vp": (VP(), vp_likelihood_times(VP().beta, VP().integral, T_MIN, 1.0)),
    "sub-vp": (SubVP(), sub_vp_likelihood_times(SubVP().beta, SubVP().integral, T_MIN, 1.0)),
}


@pytest.mark.parametrize("name", LIKELIHOOD_TIMES)
def test_likelihood_times_follow_their_density(name: str) -> None:
    """The rate is g² / σ² of the process, the normalisation its integral by quadrature, the draws' law its own."""
    process, times = LIKELIHOOD_TIMES[name]

    def rate(t: float) -> float:
        at = torch.tensor(t, dtype=torch.float64)
        return float((process.diffusion(at) / process.std(at)) ** 2)

    edges = np.geomspace(T_MIN, 1.0, 30)
    parts = [quad(rate, a, b)[0] for a, b in itertools.pairwise(edges)]
    assert times.total == pytest.approx(sum(parts), rel=1e-8)
    t = torch.tensor([0.002, 0.1, 0.9], dtype=torch.float64)
    torch.testing.assert_close(times.density(t), torch.tensor([rate(v) / sum(parts) for v in t.tolist()]).double())
    n = 20_000
    drawn = np.sort(times.draw(streams(n)).numpy())
    empirical, exact = np.searchsorted(drawn, edges) / n, np.concatenate([[0], np.cumsum(parts)]) / sum(parts)
    assert np.abs(empirical - exact).max() < 1.6 / n**0.5  # Kolmogorov and Smirnov, 1 %
    assert drawn.min() >= T_MIN and drawn.max() <= 1.0


@pytest.mark.parametrize("name", LIKELIHOOD_TIMES)
def test_likelihood_weighting_measures_the_divergence_of_two_laws(name: str, rng: Generator) -> None:
    """KL(p ‖ q) of two Gaussians from their scores along the process, eq. (4); and the same with uniform times."""
    process, important = LIKELIHOOD_TIMES[name]
    (m, v), (m_q, v_q) = (0.5, 0.3), (-0.2, 0.8)

    def score(mean: float, variance: float) -> Callable[[Tensor, Tensor], Tensor]:
        def at(x: Tensor, t: Tensor) -> Tensor:
            s, sigma = process.scale(t)[:, None], process.std(t)[:, None]
            return -(x - s * mean) / (s**2 * variance + sigma**2)

        return at

    def divergence(t: float) -> float:
        s, sigma = (float(f(torch.tensor(t, dtype=torch.float64))) for f in (process.scale, process.std))
        p, q = (Normal(s * a, math.sqrt(s**2 * b + sigma**2)) for a, b in ((m, v), (m_q, v_q)))
        return float(kl_divergence(p, q))

    n = 10_000
    x = m + math.sqrt(v) * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    expected = divergence(T_MIN) - divergence(1.0)
    spread = {}
    for label, times in (("important", important), ("uniform", uniform_times(T_MIN, 1.0))):
        losses = [
            time_continuous(
                score(*law), x, streams(n, 3), mean_scale=process.scale, std=process.std,
                weight=lambda t: process.diffusion(t) ** 2, times=times,
            )
            for law in ((m_q, v_q), (m, v))
        ]  # fmt: skip
        gap = losses[0] - losses[1]  # the same noise in both: their constant is gone
        assert abs(float(gap.mean()) - expected) < 4 * float(gap.std()) / n**0.5
        spread[label] = float(losses[1].std())
    assert expected > 0.3 and spread["important"] < 0.5 * spread["uniform"]


def test_weights_times_density_do_not_depend_on_the_times(rng: Generator) -> None:
    """With λ = σ² and uniform times the loss is half of DDPM's: ½ ‖σ S + z‖², times the length of the interval."""
    vp, n = VP(), 6
    x = torch.randn(n, 4, generator=rng, dtype=torch.float64)
    zero = lambda x_t, t: torch.zeros_like(x_t)  # noqa: E731
    times = uniform_times(0.2, 0.7)
    loss = time_continuous(
        zero, x, streams(n, 5), mean_scale=vp.scale, std=vp.std, weight=lambda t: vp.std(t) ** 2, times=times
    )
    g = streams(1, 5)[0]
    for _ in range(n):
        torch.rand((), generator=g, dtype=torch.float64)
    z = torch.stack([torch.randn(4, generator=g) for _ in range(n)]).double()
    torch.testing.assert_close(loss, 0.5 * (z**2).sum(1) / 2)


# DDPM


def chain(n: int) -> Chain:
    return Chain(torch.cumprod(1 - torch.linspace(0.1 / n, 20.0 / n, n, dtype=torch.float64).clamp(max=0.9), 0))


def exact_noise(of: Chain, mean: float, variance: float) -> ddpm.Network:
    """E[z | x_t] for pixels N(mean, variance)."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        kept = of.alphas_cumprod[t - 1][:, None]
        return (1 - kept).sqrt() * (x_t - kept.sqrt() * mean) / (kept * variance + 1 - kept)

    return network


def test_terms_are_the_closed_form_divergences(rng: Generator) -> None:
    """Each L_{t-1} against torch's divergence of two Gaussians, the first of them by Bayes' rule from its factors."""
    of, n = chain(20), 5
    x = torch.randn(n, 4, generator=rng, dtype=torch.float64)
    network = exact_noise(of, 0.3, 0.5)
    found = bound(fixed_variance(network, of), x, streams(n, 2), of, gaussian_density)
    noise = torch.Generator().manual_seed(2)
    alpha = of.alphas_cumprod
    for k in range(20):
        z = torch.stack([torch.randn(4, generator=noise) for _ in range(n)]).double()
        x_t = alpha[k].sqrt() * x + (1 - alpha[k]).sqrt() * z
        if k == 0:
            continue
        step = alpha[k] / alpha[k - 1]
        precision = 1 / (1 - alpha[k - 1]) + step / (1 - step)
        mean = (alpha[k - 1].sqrt() * x / (1 - alpha[k - 1]) + step.sqrt() * x_t / (1 - step)) / precision
        t = torch.full((n,), k + 1)
        guess = (x_t - (1 - step) / (1 - alpha[k]).sqrt() * network(x_t, t)) / step.sqrt()
        expected = kl_divergence(Normal(mean, precision**-0.5), Normal(guess, (1 - step).sqrt())).sum(1)
        torch.testing.assert_close(found.steps[k - 1], expected)
    last = kl_divergence(Normal(alpha[-1].sqrt() * x, (1 - alpha[-1]).sqrt()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(found.prior, last)
    torch.testing.assert_close(found.total, found.prior + found.decoder + found.steps.sum(0))


@pytest.mark.parametrize("discretised", [False, True])
def test_the_bound_lies_above_the_likelihood_and_meets_it(discretised: bool, rng: Generator) -> None:
    """Pixels N(0, 1) with Σ = β: the step back is the right one, and the bound the likelihood itself, image by image.
    With pixels of another variance it lies above, the less the more steps. Gray values: the same of their probabilities."""
    n, pixels, values = 25, 8000, DiscretisedGaussian(-6.0, 6.0, 601)
    gaps = {}
    for variance, steps in ((1.0, 20), (0.25, 20), (0.25, 100)):
        of = chain(steps)
        x = variance**0.5 * torch.randn(n, pixels, generator=rng, dtype=torch.float64)
        exact: Tensor = -Normal(0.0, variance**0.5).log_prob(x).sum(1)
        if discretised:
            x = (x / values.step).round() * values.step
            edges = np.stack([x.numpy() - values.step / 2, x.numpy() + values.step / 2]) / variance**0.5
            exact = torch.from_numpy(-np.log(norm.cdf(edges[1]) - norm.cdf(edges[0])).sum(1))
        decoder = values if discretised else gaussian_density
        reverse = fixed_variance(exact_noise(of, 0.0, variance), of)
        gap = (bound(reverse, x, streams(n, 1), of, decoder).total - exact) / pixels
        gaps[variance, steps] = (float(gap.mean()), float(gap.std()) / n**0.5)
    mean, error = gaps[1.0, 20]
    assert abs(mean) < 4 * error + 1e-3 and error < 0.005
    for key in ((0.25, 20), (0.25, 100)):
        assert gaps[key][0] > 4 * gaps[key][1]
    assert gaps[0.25, 100][0] < 0.5 * gaps[0.25, 20][0]


def test_a_random_term_is_the_bound_on_average(rng: Generator) -> None:
    of, n = chain(8), 20_000
    x = torch.tensor([[0.4, -0.9]], dtype=torch.float64).expand(n, 2)
    reverse = fixed_variance(exact_noise(of, 0.0, 0.5), of, "posterior")
    whole = bound(reverse, x[:5000], streams(5000, 1), of, gaussian_density)
    expected, found = whole.total - whole.prior, random_term(reverse, x, streams(n, 2), of, gaussian_density)
    error = math.hypot(float(expected.std()) / 5000**0.5, float(found.std()) / n**0.5)
    assert abs(float(found.mean() - expected.mean())) < 4 * error


def test_simple_is_minimal_at_the_mean_of_the_noise(rng: Generator) -> None:
    of, n = chain(10), 30_000
    x = 0.3 + 0.5**0.5 * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    slope = torch.ones(10, dtype=torch.float64, requires_grad=True)
    right = exact_noise(of, 0.3, 0.5)
    ((gradient, error),) = mean_gradients(
        simple(lambda x_t, t: slope[t - 1, None] * right(x_t, t), x, streams(n, 1), of), [slope]
    )
    assert ((gradient / error).abs() < 4.5).all()
    ((gradient, error),) = mean_gradients(
        simple(lambda x_t, t: 0.7 * slope[t - 1, None] * right(x_t, t), x, streams(n, 1), of), [slope]
    )
    assert ((gradient / error).abs() > 5).any()


def test_the_hybrid_loss_trains_the_mean_by_the_simple_loss_alone(rng: Generator) -> None:
    of, n = chain(12), 40
    x = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    of_noise = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    of_variance = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def network(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return of_noise * x_t, of_variance * torch.ones_like(x_t)

    both = hybrid(network, x, streams(n, 1), of, gaussian_density, weight=0.05)
    alone = simple(lambda x_t, t: network(x_t, t)[0], x, streams(n, 1), of)
    through_mean, through_variance = torch.autograd.grad(both.sum(), (of_noise, of_variance))
    torch.testing.assert_close(through_mean, torch.autograd.grad(alone.sum(), of_noise)[0])
    vlb = random_term(learned_variance(network, of), x, streams(n, 1), of, gaussian_density)
    torch.testing.assert_close(both, alone + 0.05 * vlb)
    of_vlb = torch.autograd.grad(vlb.sum(), (of_noise, of_variance))
    torch.testing.assert_close(through_variance, 0.05 * of_vlb[1])
    assert of_vlb[0].abs() > 1 and of_vlb[1].abs() > 1  # a gradient that was stopped, one that was not


def test_learned_variance_finds_the_right_one(rng: Generator) -> None:
    """Pixels N(0, v): the best Σ lies between β̃ and β; the gradient of the bound vanishes there."""
    of, n, variance = chain(6), 30_000, 0.25
    x = variance**0.5 * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    t = torch.arange(1, 7)
    beta, small = of.log_variances(t)
    kept = of.alphas_cumprod
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    of_x0 = before.sqrt() * beta.exp() / (1 - kept)
    smaller = beta.exp() * (1 - before) / (1 - kept)
    best = smaller + of_x0**2 * variance * (1 - kept) / (kept * variance + 1 - kept)
    v = ((best.log() - small) / (beta - small)).requires_grad_()
    noise = exact_noise(of, 0.0, variance)
    reverse = learned_variance(lambda x_t, t: (noise(x_t, t), v[t - 1, None].expand_as(x_t)), of)
    assert (v[1:] > 0).all() and (v[1:] < 1).all()
    ((gradient, error),) = mean_gradients(random_term(reverse, x, streams(n, 1), of, gaussian_density), [v])
    assert ((gradient / error).abs() < 4.5).all()


def test_discretised_gaussian_sums_to_one_and_is_exact() -> None:
    values = DiscretisedGaussian(-1.0, 1.0, 256)
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, std in ((0.0, 0.3), (0.9, 0.05), (-3.0, 0.2), (0.1234, 1e-3), (0.0, 50.0)):
        log_p = values(x, *(torch.tensor(v, dtype=torch.float64) for v in (mean, 2 * math.log(std))))
        torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0).double(), rtol=1e-9, atol=0)
        edges = (x.numpy()[:, None] + np.array([-0.5, 0.5]) * values.step - mean) / std
        edges[0, 0], edges[-1, 1] = -np.inf, np.inf
        by_hand = norm.cdf(edges[:, 1]) - norm.cdf(edges[:, 0])
        np.testing.assert_allclose(log_p.exp().numpy(), by_hand, rtol=1e-6, atol=1e-15)
    mean = torch.tensor(0.9, dtype=torch.float32, requires_grad=True)
    far = values(torch.tensor([-0.9]), mean, torch.tensor(2 * math.log(1e-3)))
    assert float(far.detach()) == pytest.approx(-0.5 * (1.8 - values.step / 2) ** 2 * 1e6, rel=1e-3)
    (gradient,) = torch.autograd.grad(far.sum(), mean)
    assert torch.isfinite(gradient) and gradient < 0


def test_noise_of_a_denoiser_is_that_of_its_chain(rng: Generator) -> None:
    of = chain(10)
    x, t = torch.randn(4, 3, generator=rng, dtype=torch.float64), torch.tensor([1, 4, 7, 10])
    prior = GaussianPrior(torch.full((3,), 0.3).double(), 0.5 * torch.eye(3).double())
    torch.testing.assert_close(noise_of_denoiser(prior, of)(x, t), exact_noise(of, 0.3, 0.5)(x, t))
    level = torch.tensor([0.1, 1.0, 2.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(score_of_denoiser(prior)(x, level), prior.score(x, level))


# what holds for all

OF = chain(5)
_VP = VP()
LOSSES: dict[str, Callable[[Tensor, Sequence[Generator]], Tensor]] = {
    "implicit": lambda x, rngs: implicit(torch.tanh, x),
    "sliced": lambda x, rngs: sliced(torch.tanh, x, rngs, n=2),
    "sliced, variance-reduced": lambda x, rngs: sliced_variance_reduced(torch.tanh, x, rngs, draw=gaussian),
    "denoising": lambda x, rngs: denoising(lambda z, s: torch.tanh(z), x, 0.4, rngs),
    "noise-conditional": lambda x, rngs: noise_conditional(
        lambda z, s: torch.tanh(z) / s[:, None, None], x, torch.tensor([1.0, 0.5, 0.1]), rngs
    ),
    "continuous": lambda x, rngs: time_continuous(
        lambda z, t: torch.tanh(z * t[:, None, None]), x, rngs, mean_scale=_VP.scale, std=_VP.std,
        weight=lambda t: _VP.diffusion(t) ** 2, times=LIKELIHOOD_TIMES["vp"][1],
    ),
    "simple": lambda x, rngs: simple(lambda z, t: torch.tanh(z), x, rngs, OF),
    "hybrid": lambda x, rngs: hybrid(lambda z, t: (torch.tanh(z), torch.sigmoid(z)), x, rngs, OF, gaussian_density),
    "random term": lambda x, rngs: random_term(fixed_variance(lambda z, t: z, OF), x, rngs, OF, gaussian_density),
    "bound": lambda x, rngs: bound(fixed_variance(lambda z, t: z, OF), x, rngs, OF, DiscretisedGaussian(-9, 9)).total,
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_gives_what_its_members_give(name: str, rng: Generator) -> None:
    x = torch.randn(3, 2, 2, generator=rng, dtype=torch.float64)
    loss = LOSSES[name]
    together = loss(x, split(torch.Generator().manual_seed(4), 3))
    alone = [loss(x[k : k + 1], split(torch.Generator().manual_seed(4), 3)[k : k + 1]) for k in range(3)]
    assert together.shape == (3,) and together.dtype == x.dtype
    torch.testing.assert_close(together, torch.cat(alone))
    again = loss(x, split(torch.Generator().manual_seed(4), 3))
    torch.testing.assert_close(together, again, rtol=0, atol=0)
    if name != "implicit":
        assert not torch.allclose(together, loss(x, split(torch.Generator().manual_seed(5), 3)))


def test_what_cannot_be_is_refused(rng: Generator) -> None:
    x = torch.randn(2, 3, generator=rng)
    with pytest.raises(ValueError, match=r"shaped like x \(2, 3\), got \(2,\)"):
        implicit(lambda z: z.sum(1), x)
    with pytest.raises(ValueError, match="no gradient with respect to x"):
        sliced(lambda z: z.detach(), x, streams(2))
    with pytest.raises(ValueError, match="2 members need as many streams, got 3"):
        sliced(torch.tanh, x, streams(3))
    with pytest.raises(ValueError, match="one or more a member, got 0"):
        sliced(torch.tanh, x, streams(2), n=0)
    with pytest.raises(ValueError, match="positive noise levels"):
        noise_conditional(lambda z, s: z, x, torch.tensor([1.0, 0.0]), streams(2))
    with pytest.raises(ValueError, match=r"no finite integral from 0\.0 to 1\.0; begin later"):
        vp_likelihood_times(_VP.beta, _VP.integral, 0.0, 1.0)
    with pytest.raises(ValueError, match="first < last"):
        Times(torch.ones_like, torch.ones_like, 1.0, 1.0)
    with pytest.raises(ValueError, match="decrease within"):
        Chain(torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match="'beta' or 'posterior', got 'gamma'"):
        fixed_variance(lambda z, t: z, OF, "gamma")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"values in \[-1, 1\], got .* to 3"):
        DiscretisedGaussian()(torch.tensor([0.0, 3.0]), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="n_values >= 2"):
        DiscretisedGaussian(n_values=1)
