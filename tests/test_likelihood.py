"""The likelihood by the flow and DDPM's bound, held against exact densities."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Generator, Tensor

from scoreinv.priors.adapters.parametrisation import Parametrised
from scoreinv.priors.denoiser import Denoiser, Rescaled
from scoreinv.priors.divergence import Projection, gaussian, rademacher
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior
from scoreinv.priors.fourier import StationaryPrior, matern
from scoreinv.priors.losses.ddpm import Chain, DiscretisedGaussian, fixed_variance, noise_of_denoiser
from scoreinv.sampling.discrete import DiscreteVE, DiscreteVP, linear_betas
from scoreinv.sampling.likelihood import FlowLikelihood, LogLikelihood, Quantisation, chain_bits, dequantised
from scoreinv.streams import split

MILLIBIT = 1e-3


def gaussian_prior(d: int, seed: int) -> GaussianPrior:
    rng = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=rng, dtype=torch.float64) / d**0.5
    mean = 2 * torch.randn(d, generator=rng, dtype=torch.float64)
    return GaussianPrior(mean, root @ root.T + 0.05 * torch.eye(d, dtype=torch.float64))


PARTS = [gaussian_prior(3, k) for k in range(3)]
MIXTURE = GaussianMixturePrior(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.stack([p.mean for p in PARTS]),
    torch.stack([p.covariance for p in PARTS]),
)
IMAGES = StationaryPrior(torch.full((12, 12), 0.3, dtype=torch.float64), matern((12, 12), std=0.4, length=2.0) + 0.01)


def streams(n: int, seed: int = 0) -> list[Generator]:
    return split(torch.Generator().manual_seed(seed), n)


def bits_apart(
    found: LogLikelihood, prior: GaussianPrior | GaussianMixturePrior | StationaryPrior, x: Tensor
) -> Tensor:
    """|ln p − exact ln p_σ| in bits per dimension, at the σ of the flow's beginning."""
    exact = prior.log_density(x, torch.tensor(0.002, dtype=torch.float64))
    return (found.log_density - exact).abs() / (x[0].numel() * math.log(2))


@pytest.mark.parametrize("prior", [gaussian_prior(6, 5), MIXTURE], ids=["gaussian", "mixture"])
def test_exact_trace_gives_the_exact_density(prior: GaussianPrior | GaussianMixturePrior, rng: Generator) -> None:
    x = torch.cat([prior.draw(4, rng), prior.mean[None] + 3])  # and one image that is not the prior's
    found = FlowLikelihood(prior, probes=None, tolerance=2e-5)(x, streams(5))
    apart = bits_apart(found, prior, x)
    bits = -found.log_density / (x[0].numel() * math.log(2))
    assert (apart[:4] < MILLIBIT).all() and apart[4] < MILLIBIT * bits[4] and bits[4] > 1.5 * bits[:4].max()
    assert (found.standard_error == 0).all() and len(found.n_evaluations) == 5
    torch.testing.assert_close(found.shares.flatten(1).sum(1), found.log_density)


def test_the_tolerance_is_kept(rng: Generator) -> None:
    x = MIXTURE.draw(3, rng)
    for tolerance, allowed in ((1e-3, 1e-2), (1e-5, 3e-4)):
        found = FlowLikelihood(MIXTURE, probes=None, tolerance=tolerance)(x, streams(3))
        assert (bits_apart(found, MIXTURE, x) < allowed).all()


def test_a_prior_that_finds_out_the_level_by_itself(rng: Generator) -> None:
    """Such as NCSNv2's: at an image without noise it says what it likes, whatever level it is told."""
    known, x = gaussian_prior(6, 5), gaussian_prior(6, 5).draw(3, rng)

    def blind(z: Tensor, sigma: Tensor) -> Tensor:
        seen = z.square().mean(-1, keepdim=True).sqrt()
        return torch.where((seen < 0.5) & (sigma.reshape(-1, 1) > 10), 1e3, known(z, sigma))

    one, other = (FlowLikelihood(p, probes=None)(x, streams(3)).log_density for p in (known, blind))
    assert torch.equal(one, other)


def test_nothing_depends_on_the_scaled_coordinate(rng: Generator) -> None:
    """n² = σ² + σ_d² is a change of variables: σ_d changes the cost alone."""
    x = MIXTURE.draw(2, rng)
    found = [
        FlowLikelihood(MIXTURE, probes=None, data_std=s, tolerance=1e-6)(x, streams(2)).log_density for s in (0.1, 2.0)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=1e-3)


@pytest.mark.parametrize("draw", [rademacher, gaussian])
def test_hutchinson_is_unbiased_along_the_flow(draw: Projection, rng: Generator) -> None:
    """One image with many projections, which share its flow."""
    x = IMAGES.draw(1, rng)
    found = FlowLikelihood(IMAGES, probes=60, draw=draw, tolerance=1e-3)(x, streams(1, 3))
    exact = float(IMAGES.log_density(x, torch.tensor(0.002)))
    error = float(found.standard_error)
    assert abs(float(found.log_density) - exact) < 4 * error + 0.3
    assert 0 < error < 0.1 * x.numel()


def test_random_signs_are_exact_for_pixels_that_do_not_depend_on_each_other(rng: Generator) -> None:
    prior = GaussianPrior(torch.zeros(5, dtype=torch.float64), torch.diag(torch.tensor([4.0, 1, 0.3, 0.1, 2]).double()))
    x = prior.draw(2, rng)
    found = FlowLikelihood(prior, probes=3)(x, streams(2))
    assert (bits_apart(found, prior, x) < MILLIBIT).all() and (found.standard_error < 1e-6).all()
    assert FlowLikelihood(prior)(x, streams(2)).standard_error.isnan().all()


def test_a_rescaled_prior_has_the_density_of_its_unit(rng: Generator) -> None:
    """ln p(shift + scale u) = ln p(u) − d ln scale; bits do not change when the step changes along."""
    x = MIXTURE.draw(2, rng)
    shift, scale = 0.7, 0.0193
    plain = FlowLikelihood(MIXTURE, probes=None)(x, streams(2))
    scaled = FlowLikelihood(Rescaled(MIXTURE, shift, scale), probes=None)(shift + scale * x, streams(2))
    torch.testing.assert_close(scaled.log_density, plain.log_density - 3 * math.log(scale), rtol=0, atol=1e-3)
    steps = [Quantisation(-20.0, 20.0, 0.5), Quantisation(shift - 20 * scale, shift + 20 * scale, 0.5 * scale)]
    whole = (x / 0.5).round() * 0.5
    a = dequantised(FlowLikelihood(MIXTURE, probes=None), whole, streams(2), steps[0])
    b = dequantised(FlowLikelihood(Rescaled(MIXTURE, shift, scale), probes=None), shift + scale * whole, streams(2), steps[1])  # fmt: skip
    torch.testing.assert_close(a.bits, b.bits, rtol=0, atol=1e-3)


def exact_density(prior: GaussianPrior) -> object:
    """In place of a flow, which would take the same value to a millibit."""

    def likelihood(x: Tensor, rngs: object) -> LogLikelihood:
        at = prior.log_density(x, torch.zeros(()))
        return LogLikelihood(at[:, None].expand(-1, x[0].numel()) / x[0].numel(), torch.zeros(len(x)), (1,) * len(x))

    return likelihood


def test_dequantised_bits_bound_those_of_the_probability(rng: Generator) -> None:
    """Pixels N(0, 1) in steps of δ: bits of the bins by Φ. Fine steps meet them, coarse ones lie above, less for more draws."""
    prior = GaussianPrior(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    for step, gap in ((0.05, 0.005), (2.0, 10.0)):
        x = (prior.draw(400, rng) / step).round() * step
        edges = norm.cdf(x.numpy()[..., None] + step * np.array([-0.5, 0.5]))
        exact = torch.from_numpy(-np.log2(edges[..., 1] - edges[..., 0])).mean(1)
        one, many = (
            dequantised(exact_density(prior), x, streams(400, 1), Quantisation(-40.0, 40.0, step), draws=k).bits - exact  # type: ignore[arg-type]
            for k in (1, 50)
        )
        assert abs(float(one.mean())) < gap
        if step == 2.0:
            error = float(one.std()) / 20
            assert one.mean() > 4 * error and abs(float(many.mean())) < 0.3 * float(one.mean())
    # at the flow itself: the constant is −log₂ δ
    x = torch.tensor([[0.1, -0.4]], dtype=torch.float64)
    found = dequantised(FlowLikelihood(prior, probes=None), x, streams(1), Quantisation(-4.0, 4.0, 0.001))
    by_hand = -float(norm.logpdf(x.numpy()).mean()) / math.log(2) - math.log2(0.001)
    assert float(found.bits) == pytest.approx(by_hand, abs=2e-3)
    torch.testing.assert_close(found.shares.mean(1), found.bits)


def test_a_batch_gives_what_its_members_give(rng: Generator) -> None:
    x = IMAGES.draw(2, rng)
    flow = FlowLikelihood(IMAGES, probes=2, tolerance=1e-2)
    together = flow(x, streams(2))
    alone = [flow(x[k : k + 1], streams(2)[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(together.log_density, torch.cat([a.log_density for a in alone]))
    assert together.n_evaluations == tuple(a.n_evaluations[0] for a in alone)
    assert not torch.equal(flow(x, streams(2, 1)).log_density, together.log_density)


def test_the_chains_bound_lies_above_the_exact_bits(rng: Generator) -> None:
    """A prior in our coordinate as a chain: above the exact bits of gray values, and nearer with more steps."""
    prior = GaussianPrior(torch.zeros(40, dtype=torch.float64), 0.09 * torch.eye(40, dtype=torch.float64))
    values = DiscretisedGaussian(-1.5, 1.5, 61)
    x = (prior.draw(100, rng) / values.step).round() * values.step
    edges = norm.cdf((x.numpy()[..., None] + values.step * np.array([-0.5, 0.5])) / 0.3)
    exact = torch.from_numpy(-np.log2(edges[..., 1] - edges[..., 0])).mean(1)
    gaps = []
    for n in (15, 100):
        chain = Chain((1 - linear_betas(n).clamp(max=0.9)).cumprod(0))
        gap = chain_bits(fixed_variance(noise_of_denoiser(prior, chain), chain), x, streams(100), chain, values) - exact
        gaps.append(float(gap.mean()))
        assert gaps[-1] > 4 * float(gap.std()) / 10
    assert gaps[1] < 0.5 * gaps[0]


# What has no likelihood


class Jumping:
    """A prior that says so."""

    continuous = False

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x


def in_discrete_time(labels: Literal["interpolated", "nearest"]) -> Parametrised:
    chain = DiscreteVP((1 - linear_betas(1000)).cumprod(0), labels)
    return Parametrised(lambda x, t: x, chain, "epsilon")


@pytest.mark.parametrize(
    "prior",
    [
        Jumping(),
        Rescaled(Jumping(), 0.0, 1.0),
        in_discrete_time("nearest"),
        Parametrised(lambda x, t: x, DiscreteVE(torch.tensor([1.0, 0.1])), "score"),
    ],
    ids=["says so", "wrapped", "nearest label", "levels"],
)
def test_priors_that_jump_are_refused(prior: Denoiser) -> None:
    with pytest.raises(ValueError, match="jumps from one noise level or call to another"):
        FlowLikelihood(prior)
    FlowLikelihood(in_discrete_time("interpolated"))


def test_what_cannot_be_is_refused() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    flow = FlowLikelihood(PARTS[0])
    with pytest.raises(ValueError, match="2 images need as many streams, got 1"):
        flow(x, streams(1))
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        flow(x * math.nan, streams(2))
    with pytest.raises(ValueError, match=r"floating-point images \(batch, \*image_shape\), got torch.int64 \(2, 3\)"):
        flow(x.long(), streams(2))
    with pytest.raises(ValueError, match="no gradient with respect to x"):
        FlowLikelihood(lambda z, s: PARTS[0](z.detach(), s))(x, streams(2))
    with pytest.raises(ValueError, match="not finite at sigma"):
        FlowLikelihood(lambda z, s: z * math.inf)(x + 1, streams(2))
    for settings in ({"sigma_min": 0.0}, {"data_std": 0.0}, {"probes": 0}, {"tolerance": 2.0}):
        with pytest.raises(ValueError, match="FlowLikelihood"):
            FlowLikelihood(PARTS[0], **settings)  # type: ignore[arg-type]


def test_images_of_other_values_are_refused() -> None:
    bytes_ = Quantisation(0.0, 255.0, 1.0)
    with pytest.raises(ValueError, match=r"values in \[0, 255\], got 0 to 256"):
        bytes_.check(torch.tensor([0.0, 256.0]))
    with pytest.raises(ValueError, match=r"whole steps of 1 from 0, a pixel is 0\.25 steps off"):
        bytes_.check(torch.tensor([0.0, 3.25]))
    with pytest.raises(ValueError, match="low < high"):
        Quantisation(1.0, 0.0, 0.1)
    with pytest.raises(ValueError, match="one draw or more"):
        dequantised(FlowLikelihood(PARTS[0]), torch.zeros(1, 3), streams(1), bytes_, draws=0)
