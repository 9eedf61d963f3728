"""Latent DAPS against exact posteriors: a linear decoder with Gaussian latents is a Gaussian prior of images in closed form."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from exact_moments import moments
from principal_draws import principal_draws
from torch import Generator, Tensor

from scoreinv.operators.dense import Matrix
from scoreinv.posterior.daps import DAPS
from scoreinv.posterior.gaussian_draws import gaussian_draw
from scoreinv.posterior.latent_daps import LatentDAPS, _Perturbed, latent_draw, linearised
from scoreinv.priors.denoiser import Rescaled
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.latent import Identity, LatentPrior
from scoreinv.problem import Problem
from scoreinv.sampling.loop import member_streams

F64 = torch.float64


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@dataclass(frozen=True, eq=False)
class Decoder:
    """x = offset + W z for 4 latents and 8 pixels, or with `bend` x = offset + W (z + bend sin z)."""

    bend: float = 0.0

    @property
    def W(self) -> Tensor:  # noqa: N802 (the letter of the formulas)
        return torch.randn(8, 4, generator=seeded(5), dtype=F64) / 2

    @property
    def offset(self) -> Tensor:
        return torch.linspace(-1, 1, 8, dtype=F64)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        if image_shape != (8,):
            raise ValueError(f"expected images of 8 pixels, got {image_shape}")
        return (2, 2)

    def encode(self, x: Tensor) -> Tensor:
        return ((x - self.offset) @ torch.linalg.pinv(self.W).T).reshape(-1, 2, 2)

    def decode(self, z: Tensor) -> Tensor:
        z = z.flatten(1)
        return self.offset + (z + self.bend * z.sin()) @ self.W.T


def white(variances: Tensor | None = None) -> GaussianPrior:
    """Latents N(0, I), or of other variances."""
    variances = torch.ones(4, dtype=F64) if variances is None else variances
    return GaussianPrior(torch.zeros(2, 2, dtype=F64), variances.diag())


def example(latents: GaussianPrior, residual: float, noise_std: float | Tensor = 0.3) -> tuple[LatentPrior, Problem, GaussianPrior]:  # fmt: skip
    """Three data of eight pixels, and the exact law of the image given them."""
    decoder = Decoder()
    covariance = decoder.W @ latents.covariance @ decoder.W.T + residual**2 * torch.eye(8, dtype=F64)
    images, A = GaussianPrior(decoder.offset, covariance), Matrix(torch.randn(3, 8, generator=seeded(4), dtype=F64))
    y = A(principal_draws(images, 1, seeded(6))[0]) + torch.as_tensor(noise_std) * torch.randn(
        3, generator=seeded(7), dtype=F64
    )
    problem = Problem(A, y, noise_std)
    return LatentPrior(latents, decoder, residual), problem, images.posterior(problem)


UNEVEN = torch.tensor([0.1, 0.3, 0.6], dtype=F64)


@pytest.mark.parametrize("residual", [0.0, 0.2])
@pytest.mark.parametrize("noise_std", [0.3, UNEVEN])
def test_white_latents_and_a_linear_decoder_are_exact(residual: float, noise_std: float | Tensor) -> None:
    """Mean and covariance of the draws, without drawing, are those of the posterior of the image, for any number of levels and rounds."""
    prior, problem, exact = example(white(), residual, noise_std)
    for n_levels, rounds in ((3, 1), (6, 2)):
        method = LatentDAPS(prior, n_levels=n_levels, rounds=rounds, iterations=30)
        mean, covariance = moments(method, problem)
        torch.testing.assert_close(mean, exact.mean, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(covariance, exact.covariance, rtol=1e-3, atol=2e-3)


def variance_ratio(method: LatentDAPS, problem: Problem, exact: GaussianPrior) -> tuple[float, float]:
    """Trace of the covariance over the exact one, and the mean's error in exact standard deviations."""
    mean, covariance = moments(method, problem)
    off = (mean - exact.mean).square().sum() / exact.covariance.trace()
    return float(covariance.trace() / exact.covariance.trace()), float(off.sqrt())


def test_the_bias_of_other_latents() -> None:
    """Variances 0.5 to 1.5 where 1 is claimed: the figures of the module's head, and how levels mend them."""
    prior, problem, exact = example(white(torch.linspace(0.5, 1.5, 4, dtype=F64)), 0.2)
    few, off = variance_ratio(LatentDAPS(prior, n_levels=20, rounds=1, iterations=30), problem, exact)
    more, less_off = variance_ratio(LatentDAPS(prior, n_levels=80, rounds=1, iterations=30), problem, exact)
    assert few == pytest.approx(1.0, abs=0.08) and off < 0.1
    assert abs(more - 1) < abs(few - 1) or abs(more - 1) < 0.01
    assert less_off < max(off, 0.02)


def test_without_the_residual_latents_follow_what_they_cannot_make() -> None:
    """Data of images with a residual, solved as if there were none: the draws are too sure, and off."""
    prior, problem, exact = example(white(), 0.2)
    ratio, off = variance_ratio(LatentDAPS(prior, n_levels=6, residual=0.0, rounds=1, iterations=30), problem, exact)
    assert ratio < 0.75 and off > 0.05


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_a_prior_of_images_is_its_own_latents(noise_std: float) -> None:
    """Then this is DAPS with one evaluation a level and prior_std = 1, whatever the unit."""
    images = GaussianPrior(torch.zeros(8, dtype=F64), torch.linspace(0.5, 1.5, 8, dtype=F64).diag())
    _, problem, _ = example(white(), 0.0, noise_std)
    problem = Problem(problem.A, torch.stack([problem.y, -problem.y]), noise_std)
    theirs = DAPS(images, samples=3, ode_steps=1, prior_std=1.0, n_levels=10, iterations=20)(problem, seeded())
    ours = LatentDAPS(images, samples=3, n_levels=10)(problem, seeded())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    steps = {"samples": 2, "n_levels": 10, "ode_steps": 3, "prior_std": None}
    torch.testing.assert_close(
        LatentDAPS(images, **steps)(problem, seeded()), DAPS(images, **steps, iterations=20)(problem, seeded())
    )
    scaled = Problem(problem.A, 0.02 * problem.y + 0.02 * problem.A(torch.ones(8, dtype=F64)), 0.02 * noise_std)
    rescaled = LatentDAPS(Rescaled(images, 0.02, 0.02), samples=3, n_levels=10)(scaled, seeded())
    torch.testing.assert_close(rescaled, 0.02 + 0.02 * ours, rtol=1e-6, atol=1e-8)


# The draw


def test_one_round_of_the_identity_is_the_gaussian_draw() -> None:
    _, problem, _ = example(white(), 0.0)
    flat, centre = problem.flat().repeated(3), torch.randn(3, 8, generator=seeded(1), dtype=F64)
    plain = LatentPrior(white(), Identity())
    z, image = latent_draw(flat, plain, centre, 0.5, member_streams(seeded(), 3, 1), rounds=1, iterations=50)
    torch.testing.assert_close(z, gaussian_draw(flat, centre, 0.5, member_streams(seeded(), 3, 1)))
    assert torch.equal(z, image)
    with pytest.raises(ValueError, match="expected a positive spread"):
        latent_draw(flat, plain, centre, 0.0, member_streams(seeded(), 3, 1))


def test_a_decoder_is_linearised() -> None:
    decoder, z = Decoder(bend=0.6), torch.randn(2, 2, 2, generator=seeded(1), dtype=F64)
    image, push, pull = linearised(decoder.decode, z)
    torch.testing.assert_close(image, decoder.decode(z))
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: decoder.decode(v[None])[0].flatten(), z[k]).reshape(
            8, 4
        )
        v, u = torch.randn(2, 2, 2, generator=seeded(2), dtype=F64), torch.randn(2, 8, generator=seeded(3), dtype=F64)
        torch.testing.assert_close(push(v)[k], jacobian @ v[k].flatten())
        torch.testing.assert_close(pull(u)[k].flatten(), jacobian.T @ u[k])
        torch.testing.assert_close(push(v)[k], push(v)[k])  # a second time


@pytest.mark.parametrize("residual", [0.0, 0.1])
def test_rounds_find_the_minimum_for_a_bent_decoder(residual: float) -> None:
    """(4) falls with every round, and its gradient is 0 in the end."""
    _, problem, _ = example(white(), 0.0, UNEVEN)
    flat, prior = problem.flat().repeated(6), LatentPrior(white(), Decoder(bend=0.8))
    centre, rngs = torch.randn(6, 2, 2, generator=seeded(1), dtype=F64), member_streams(seeded(), 6, 1)
    target = _Perturbed.of(flat, prior, centre, torch.full((6, 1, 1), 0.8, dtype=F64), residual, rngs)
    values = []
    for rounds in (1, 2, 3, 30):
        z, image = latent_draw(
            flat, prior, centre, 0.8, member_streams(seeded(), 6, 1), residual=residual, rounds=rounds, iterations=40,
            tolerance=1e-10,
        )  # fmt: skip
        w = ((z - target.v) / 0.8).flatten(1)
        if residual:
            assert target.e is not None
            w = torch.cat([w, (image - prior.autoencoder.decode(z) - target.e) / residual], dim=1)
        values.append(target.misfit(w))
    start = target.misfit(torch.zeros_like(w))
    for before, after in zip([start, *values], values, strict=False):
        assert (after <= before + 1e-12).all()
    point = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target.misfit(point).sum(), point)
    assert float(gradient.abs().max()) < 1e-5
    assert float((values[0] - values[-1]).max()) > 1e-4  # one round is not enough


def test_a_bent_decoder_near_the_truth() -> None:
    """Draws against a grid: two latents that are measured through sin, the mean of their law by quadrature."""
    A = Matrix(torch.tensor([[1.0, 0.5]], dtype=F64))

    @dataclass(frozen=True)
    class Bent(Identity):
        def decode(self, z: Tensor) -> Tensor:
            return z + 0.5 * z.sin()

    prior = LatentPrior(GaussianPrior(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)), Bent())
    problem = Problem(A, torch.tensor([1.5], dtype=F64), 0.3)
    grid = torch.cartesian_prod(*[torch.linspace(-5, 5, 401, dtype=F64)] * 2)
    x = prior.autoencoder.decode(grid)
    log_p = -0.5 * grid.square().sum(1) - 0.5 * ((A(x) - problem.y)[:, 0] / 0.3) ** 2
    p = torch.softmax(log_p, 0)
    mean = (p[:, None] * x).sum(0)
    std = (p[:, None] * (x - mean) ** 2).sum(0).sqrt()
    draws = LatentDAPS(prior, samples=2000, n_levels=30)(problem, seeded())
    assert ((draws.mean(0) - mean).abs() < 0.15 * std).all()
    assert (draws.std(0) / std - 1).abs().max() < 0.1


# What it takes and refuses


def test_noise_free_data_are_met() -> None:
    prior, problem, _ = example(white(), 0.0, 0.0)
    draws = LatentDAPS(prior, samples=2, n_levels=5)(problem, seeded())
    torch.testing.assert_close(problem.A(draws), problem.y.expand(2, 3), rtol=1e-3, atol=1e-3)


def test_a_batch_is_its_members(rng: Generator) -> None:
    prior, problem, _ = example(white(), 0.1)
    prior = dataclasses.replace(prior, autoencoder=Decoder(bend=0.5))
    both = Problem(problem.A, torch.stack([problem.y, 3 * problem.y, problem.y + 1]), 0.3)
    method = LatentDAPS(prior, samples=2, n_levels=8)
    draws = method(both, seeded())
    assert draws.shape == (2, 3, 8) and torch.equal(method(both, seeded()), draws)
    torch.testing.assert_close(method(problem, seeded())[:, :], draws[:, 0], rtol=1e-6, atol=1e-8)
    assert float((method(both, seeded(1)) - draws).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rounds": 0}, "rounds of at least 1, a whole number, got 0"),
        ({"prior_std": 0.0}, "prior_std > 0, got 0.0"),
        ({"residual": -0.1}, "residual >= 0, got -0.1"),
        ({"residual": math.nan}, "residual must be a number, got nan"),
        ({"sigma_max": 0.001}, "sigma_min <= sigma_max"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LatentDAPS(white(), **settings)  # type: ignore[arg-type]
