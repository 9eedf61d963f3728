"""Guidance towards a class, on mixtures of Gaussians where the class of a noisy image has a closed form."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_sampling import streams
from torch import Generator, Tensor

from scoreinv.priors.classes import ClassMixture, given
from scoreinv.priors.denoiser import Denoiser
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior
from scoreinv.priors.losses.ddpm import Chain, noise_of_denoiser
from scoreinv.sampling.classification import classify
from scoreinv.sampling.ddpm import LearnedVariance, large_variance
from scoreinv.sampling.discrete import DiscreteVP, linear_betas
from scoreinv.sampling.guided import ClassGradient, ClassifierFree, ClassifierGuided, ShiftedMean
from scoreinv.sampling.levels import respaced
from scoreinv.sampling.likelihood import FlowLikelihood
from scoreinv.sampling.loop import last, sample
from scoreinv.sampling.steps import Ancestral, euler
from scoreinv.streams import normal

WIDE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
TWO = GaussianMixturePrior(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.tensor([[1.0, -0.5], [-0.5, 0.8]], dtype=torch.float64),
    torch.stack([0.2 * torch.eye(2, dtype=torch.float64), WIDE / 4]),
)
ONE = GaussianPrior(torch.tensor([-0.3, -0.6], dtype=torch.float64), WIDE)
PRIOR = ClassMixture(torch.tensor([0.7, 0.3]), (TWO, ONE))
SIGMAS = (0.05, 0.6, 4.0)


@pytest.fixture
def x(rng: Generator) -> Tensor:
    return 1.5 * torch.randn(6, 2, generator=rng, dtype=torch.float64)


def normal_density(x: Tensor, mean: Tensor, covariance: Tensor, sigma: float) -> Tensor:
    law = torch.distributions.MultivariateNormal(mean, covariance + sigma**2 * torch.eye(2, dtype=torch.float64))
    density: Tensor = law.log_prob(x).exp()  # type: ignore[no-untyped-call]
    return density


def densities(x: Tensor, sigma: float) -> Tensor:
    """p_σ(x | c), (batch, 2), without the library."""
    two = sum(
        w * normal_density(x, m, c, sigma) for w, m, c in zip(TWO.weights, TWO.means, TWO.covariances, strict=True)
    )
    return torch.stack([torch.as_tensor(two), normal_density(x, ONE.mean, ONE.covariance, sigma)], dim=1)


# the closed forms


@pytest.mark.parametrize("sigma", SIGMAS)
def test_class_of_a_noisy_image(sigma: float, x: Tensor) -> None:
    joint = densities(x, sigma) * torch.tensor([0.7, 0.3], dtype=torch.float64)
    level = torch.tensor(sigma)
    torch.testing.assert_close(PRIOR.classify(x, level).exp(), joint / joint.sum(1, keepdim=True), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(PRIOR.log_density(x, level), joint.sum(1).log(), atol=1e-6, rtol=1e-6)
    for c, part in enumerate((TWO, ONE)):
        gradient = ClassGradient(PRIOR.classify, c)(x, level)
        torch.testing.assert_close(gradient, (part(x, level) - PRIOR(x, level)) / sigma**2, atol=1e-9, rtol=1e-6)


def test_members_have_classes_of_their_own(x: Tensor) -> None:
    c, level = torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor(0.6)
    expected = torch.where(c[:, None] == 0, TWO(x, level), ONE(x, level))
    torch.testing.assert_close(PRIOR.given(c)(x, level), expected)
    torch.testing.assert_close(ClassifierGuided(PRIOR, ClassGradient(PRIOR.classify, c))(x, level), expected)
    torch.testing.assert_close(ClassifierFree(PRIOR, c)(x, level), expected)
    levels = torch.linspace(0.1, 2, 6)
    torch.testing.assert_close(PRIOR.given(1)(x, levels), ONE(x, levels))
    assert given(PRIOR, None) is PRIOR


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("strength", [0.0, 1.0, 3.5])
def test_both_guidances_have_the_score_of_the_tilted_law(strength: float, sigma: float, x: Tensor) -> None:
    """∇ ln [p_σ(x) p(c | x, σ)^s], by differentiating the densities; s = 1 is the class, s = 0 the prior."""
    level, weights = torch.tensor(sigma, dtype=torch.float64), torch.tensor([0.7, 0.3], dtype=torch.float64)
    point = x.clone().requires_grad_()
    joint = densities(point, sigma) * weights
    total = joint.sum(1)
    tilted = total.log() + strength * (joint[:, 1] / total).log()
    (score,) = torch.autograd.grad(tilted.sum(), point)
    expected = x + sigma**2 * score
    by_classifier = ClassifierGuided(PRIOR, ClassGradient(PRIOR.classify, 1), strength)
    for guided in (by_classifier, ClassifierFree(PRIOR, 1, strength)):
        torch.testing.assert_close(guided(x, level), expected, atol=1e-6, rtol=1e-6)
    if strength < 2:
        exact = ONE if strength else PRIOR
        torch.testing.assert_close(ClassifierFree(PRIOR, 1, strength)(x, level), exact(x, level), rtol=0, atol=0)


# the algorithms, in the paper's coordinates

CHAIN = DiscreteVP.of(linear_betas(1000))
KEPT = Chain(CHAIN.alphas_cumprod)


class WithVariance:
    """A prior that has learnt v = 0.3."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return PRIOR(x, sigma)

    def with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return PRIOR(x, sigma), torch.full_like(x, 0.3)


def paper_gradient(x_t: Tensor, kept: Tensor, c: int) -> Tensor:
    """∇ of ln p(c | x_t) with respect to x_t."""
    point = x_t.clone().requires_grad_()
    chosen = PRIOR.classify(point / kept.sqrt(), (1 / kept - 1).sqrt())[:, c]
    (gradient,) = torch.autograd.grad(chosen.sum(), point)
    return gradient


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_algorithm_1_as_in_the_paper(variance: Any, x: Tensor) -> None:
    """μ + s Σ ∇ ln p(c | x_t) with DDPM's μ and Σ of step t, for x_t in DDPM's coordinate."""
    k, strength = 300, 2.5
    kept, before = KEPT.alphas_cumprod[k - 1], KEPT.alphas_cumprod[k - 2]
    t, x_t = torch.full((6,), k), kept.sqrt() * x
    large, small = (v[0] for v in KEPT.log_variances(t))
    log_variance = {"small": small, "large": large, "learned": 0.3 * large + 0.7 * small}[variance]
    mean = KEPT.model_mean(x_t, noise_of_denoiser(PRIOR, KEPT)(x_t, t), t)
    mean = mean + strength * log_variance.exp() * paper_gradient(x_t, kept, 0)
    expected = mean + (log_variance / 2).exp() * normal(streams(6), x)
    sigma, sigma_next = ((1 / a - 1).sqrt() for a in (kept, before))
    step = ShiftedMean(ClassGradient(PRIOR.classify, 0), strength, variance)
    found = step(WithVariance(), x, sigma, sigma_next, streams(6))
    torch.testing.assert_close(before.sqrt() * found, expected, atol=1e-9, rtol=1e-7)
    unguided: Any = {"small": Ancestral(), "large": large_variance, "learned": LearnedVariance()}[variance]
    none = dataclasses.replace(step, strength=0.0)(WithVariance(), x, sigma, sigma_next, streams(6))
    torch.testing.assert_close(none, unguided(WithVariance(), x, sigma, sigma_next, streams(6)))
    end = step(WithVariance(), x, sigma, torch.tensor(0.0), streams(6))
    torch.testing.assert_close(end, PRIOR(x, sigma))


def test_algorithm_2_as_in_the_paper(x: Tensor) -> None:
    """ε̂ = ε − √(1 − ᾱ) s ∇ ln p(c | x_t), then DDIM's step with ε̂."""
    strength, k, to = 2.5, 700, 600
    kept, before = KEPT.alphas_cumprod[k - 1], KEPT.alphas_cumprod[to - 1]
    x_t = kept.sqrt() * x
    noise = noise_of_denoiser(PRIOR, KEPT)(x_t, torch.full((6,), k))
    noise = noise - (1 - kept).sqrt() * strength * paper_gradient(x_t, kept, 0)
    expected = before.sqrt() * (x_t - (1 - kept).sqrt() * noise) / kept.sqrt() + (1 - before).sqrt() * noise
    guided = ClassifierGuided(PRIOR, ClassGradient(PRIOR.classify, 0), strength)
    sigma, sigma_next = ((1 / a - 1).sqrt() for a in (kept, before))
    torch.testing.assert_close(before.sqrt() * euler(guided, x, sigma, sigma_next, []), expected, atol=1e-9, rtol=1e-7)


def exact_moments(part: GaussianPrior | GaussianMixturePrior) -> tuple[Tensor, Tensor]:
    return part.mean, part.covariance


@pytest.mark.parametrize("algorithm", ["1", "2"])
def test_algorithms_draw_from_the_class(algorithm: str) -> None:
    """Half of the draws of each class: means and covariances within four standard errors of the exact ones."""
    n = 600
    c = torch.arange(2).repeat_interleave(n)
    rngs, sigmas = streams(2 * n), respaced(200, CHAIN)
    x = sigmas[0] * normal(rngs, torch.zeros(2 * n, 2, dtype=torch.float64))
    gradient = ClassGradient(PRIOR.classify, c)
    if algorithm == "1":
        draws = last(sample(PRIOR, x, sigmas, step=ShiftedMean(gradient), rngs=rngs))
    else:
        draws = last(sample(ClassifierGuided(PRIOR, gradient), x, sigmas, step=euler, rngs=rngs))
    for k, part in enumerate((TWO, ONE)):
        mean, covariance = exact_moments(part)
        mine = draws[c == k]
        off = mine - mean
        products = (off[:, :, None] * off[:, None, :]).flatten(1)
        for values, expected in ((mine, mean), (products, covariance.flatten())):
            z = (values.mean(0) - expected) / (values.std(0) / n**0.5)
            assert (z.abs() < 4).all(), (k, z)
    assert float((TWO.mean - ONE.mean).abs().max()) > 10 * n**-0.5  # the classes do differ


# what else takes such denoisers


def test_likelihood_of_a_guided_denoiser(x: Tensor) -> None:
    """It has a gradient of its own: by the flow of D̃ the density is that of the class."""
    guided = ClassifierGuided(PRIOR, ClassGradient(PRIOR.classify, 1))
    found = FlowLikelihood(guided, probes=None, tolerance=1e-5)(x[:2], streams(2)).log_density
    torch.testing.assert_close(found, ONE.log_density(x[:2], torch.tensor(0.002)), atol=2e-3, rtol=0)


def test_generative_classification_is_bayes_rule(x: Tensor) -> None:
    x, level = x[:4], torch.tensor(0.002, dtype=torch.float64)
    exact = functools.partial(FlowLikelihood, probes=None, tolerance=1e-5)
    found = classify(PRIOR, x, streams(4), weights=torch.tensor([0.7, 0.3]), likelihood=exact)
    log_density = torch.stack([part.log_density(x, level) for part in (TWO, ONE)], dim=1)
    posterior = PRIOR.classify(x, level)
    torch.testing.assert_close(found.log_density, log_density, atol=5e-3, rtol=0)
    torch.testing.assert_close(found.log_posterior, posterior, atol=5e-3, rtol=0)
    assert torch.equal(found.classes, posterior.argmax(1)) and len(found.classes.unique()) == 2
    assert len(found.n_evaluations) == 4 and min(found.n_evaluations) > 40


def test_classification_of_members(x: Tensor) -> None:
    """One projection an image, the same for all classes: what it says of an image does not depend on the others."""
    together = classify(PRIOR, x[:3], streams(3))
    alone = classify(PRIOR, x[1:2], streams(3)[1:2])
    torch.testing.assert_close(together.log_density[1:2], alone.log_density)
    same = ClassMixture(torch.ones(2), (ONE, ONE))
    torch.testing.assert_close(classify(same, x[:1], streams(1)).log_posterior.exp(), torch.full((1, 2), 0.5).double())


# what is refused


def flat(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.zeros(len(x), 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, s: ClassifierFree(ONE, 0), "expected a prior that knows classes, got GaussianPrior"),
        (lambda x, s: ClassifierFree(PRIOR, 2), "ClassMixture: expected a class from 0 to 1, got 2"),
        (lambda x, s: ClassifierFree(PRIOR, None), "expected a class, .* got None"),
        (lambda x, s: ClassifierFree(PRIOR, torch.tensor([0, 1]), 2.0)(x, s), "a batch of 6 needs 1 class or 6, got 2"),
        (lambda x, s: ClassGradient(PRIOR.classify, -1)(x, s), "ClassGradient: expected a class from 0 to 1, got -1"),
        (lambda x, s: ClassGradient(PRIOR.classify, torch.tensor([0.5]))(x, s), "a class is a whole number"),
        (lambda x, s: ClassGradient(flat, 0)(x, s), "no gradient with respect to x"),
        (lambda x, s: ClassGradient(lambda x, s: x, 0)(x[:, None], s), r"expected ln p \(batch = 6, classes\), got \(6, 1, 2\)"),
        (lambda x, s: ShiftedMean(ClassGradient(PRIOR.classify, 0), variance="middle"), "'middle'"),
        (
            lambda x, s: ShiftedMean(ClassGradient(PRIOR.classify, 0), variance="learned")(PRIOR, x, s, s / 2, streams(6)),
            "ClassMixture has no with_variance",
        ),
        (lambda x, s: classify(ONE, x, streams(6)), "expected a prior that knows classes"),
        (lambda x, s: classify(PRIOR, x, streams(6), weights=torch.ones(3)), "positive weight for each of the 2 classes"),
        (lambda x, s: ClassMixture(torch.tensor([1.0, 0.0]), (ONE, TWO)), "one positive weight"),
    ],
)  # fmt: skip
def test_what_a_prior_or_a_classifier_lacks(call: Callable[[Tensor, Tensor], Any], words: str, x: Tensor) -> None:
    with pytest.raises(ValueError, match=words):
        call(x, torch.tensor(0.5, dtype=torch.float64))


def test_units_go_through(x: Tensor) -> None:
    from scoreinv.priors.denoiser import Rescaled, scale_of

    scaled: Denoiser = Rescaled(ONE, 1.0, 3.0)
    assert scale_of(ClassifierGuided(scaled, ClassGradient(PRIOR.classify, 0))) == 3
    assert scale_of(ClassifierFree(PRIOR, 0)) == 1
