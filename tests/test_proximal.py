"""The proximal map against dense linear algebra, and the whole method against exact Gaussian posteriors.

With D the denoiser of N(m, Σ), the proximal map of −σ² ln p, the image's iteration at a fixed level comes to rest where

    trust² AᵀWA (x − A⁺y) + Σ⁻¹ (x − m) = 0,

at the posterior mean for noise of σ_y / trust, whatever σ and the relaxation are.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from principal_draws import principal_draws
from torch import Generator, Tensor

from scoreinv.linop import LinearOperator
from scoreinv.posterior.proximal import Proximal, proximal_denoiser
from scoreinv.priors.denoiser import Counted, Rescaled
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem

F64 = torch.float64


@dataclasses.dataclass(frozen=True, eq=False)
class Dense(LinearOperator):
    """A matrix (data, pixels) on images of one row."""

    matrix: Tensor

    @property
    def in_shape(self) -> tuple[int, ...]:
        return (1, self.matrix.shape[1])

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[0],)

    def _forward(self, x: Tensor) -> Tensor:
        return x[..., 0, :] @ self.matrix.to(x).T

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y))[..., None, :]


def smooth_prior(pixels: int, mean: float = 0.3) -> GaussianPrior:
    """Neighbouring pixels are alike; the eigenvalues lie between 0.3 and 1.6."""
    i = torch.arange(pixels, dtype=F64)
    covariance = 0.35 * torch.exp(-(i[:, None] - i).abs() / 2) + 0.2 * torch.eye(pixels, dtype=F64)
    return GaussianPrior(torch.full((1, pixels), mean, dtype=F64), covariance)


def problem(
    rng: Generator, data: int, pixels: int, noise: float | Tensor, batch: int = 1
) -> tuple[Problem, GaussianPrior]:
    A, prior = Dense(torch.randn(data, pixels, generator=rng, dtype=F64) / pixels**0.5), smooth_prior(pixels)
    truth = principal_draws(prior, batch, rng)
    y = A(truth) + noise * torch.randn(batch, data, generator=rng, dtype=F64)
    return Problem(A, y, noise, truth), prior


# The proximal map


@pytest.mark.parametrize("noise", [0.05, torch.tensor(0.2, dtype=F64), "member", "weights"])
@pytest.mark.parametrize("sigma", [torch.tensor(0.7), torch.tensor([0.1, 0.5, 2.0])])
def test_many_steps_solve_the_equation_of_the_head(noise: float | Tensor | str, sigma: Tensor, rng: Generator) -> None:
    """(AᵀWA + ρ I) z = AᵀW y + ρ D solved densely, in the equivalent form with 1 / σ_y² and 1 / r²."""
    std: float | Tensor = noise if not isinstance(noise, str) else torch.tensor([[0.05], [0.1], [0.3]], dtype=F64)
    if noise == "weights":
        std = 0.05 + 0.4 * torch.rand(3, 6, generator=rng, dtype=F64)
    p, prior = problem(rng, 6, 9, std, batch=3)
    x = torch.randn(3, 1, 9, generator=rng, dtype=F64)
    z = proximal_denoiser(prior, p, trust=1.7, iterations=200)(x, sigma)
    D, A = prior(x, sigma)[:, 0], p.A.matrix  # type: ignore[attr-defined]
    for k in range(3):
        precision = torch.diag(torch.as_tensor(std, dtype=F64).expand(3, 6)[k] ** -2)
        strength = (1.7 * float(sigma.expand(3)[k])) ** -2
        left = A.T @ precision @ A + strength * torch.eye(9, dtype=F64)
        expected = torch.linalg.solve(left, A.T @ precision @ p.y[k] + strength * D[k])
        torch.testing.assert_close(z[k, 0], expected, atol=1e-7, rtol=1e-6)


def test_noise_free_it_projects_onto_the_data(rng: Generator) -> None:
    """ρ = 0: z = D + A⁺ (y − A D), the nearest image to D that fits."""
    p, prior = problem(rng, 5, 9, 0.0, batch=2)
    x, sigma = torch.randn(2, 1, 9, generator=rng, dtype=F64), torch.tensor(0.4)
    z = proximal_denoiser(prior, p, iterations=30)(x, sigma)
    D, A = prior(x, sigma), p.A.matrix  # type: ignore[attr-defined]
    torch.testing.assert_close(z[:, 0], D[:, 0] + (p.y - p.A(D)) @ torch.linalg.pinv(A).T, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(p.A(z), p.y, atol=1e-8, rtol=1e-6)


def test_a_batch_may_mix_noisy_and_noise_free_members(rng: Generator) -> None:
    std = torch.tensor([[0.0], [0.2]], dtype=F64)
    p, prior = problem(rng, 5, 9, std, batch=2)
    x, sigma = torch.randn(2, 1, 9, generator=rng, dtype=F64), torch.tensor(0.4)
    z = proximal_denoiser(prior, p, iterations=30)(x, sigma)
    for k, s in enumerate((0.0, 0.2)):
        alone = proximal_denoiser(prior, Problem(p.A, p.y[k : k + 1], s), iterations=30)(x[k : k + 1], sigma)
        torch.testing.assert_close(z[k : k + 1], alone, atol=1e-8, rtol=1e-6)


def test_without_information_it_is_the_prior(rng: Generator) -> None:
    p, prior = problem(rng, 5, 9, 1e6)
    x, sigma = torch.randn(1, 1, 9, generator=rng, dtype=F64), torch.tensor(0.4)
    torch.testing.assert_close(proximal_denoiser(prior, p)(x, sigma), prior(x, sigma), atol=1e-6, rtol=0)


# The method


def posterior_mean(prior: GaussianPrior, p: Problem, trust: float = 1.0) -> Tensor:
    members = [Problem(p.A, y, torch.as_tensor(p.noise_std) / trust) for y in p.y]
    return torch.stack([prior.posterior(member).mean for member in members])


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("sigma", [0.3, 0.7])
@pytest.mark.parametrize("relaxation", [1.0, 1.8])
@pytest.mark.parametrize("trust", [1.0, 0.6])
def test_image_rests_at_the_posterior_mean(
    noise: float, sigma: float, relaxation: float, trust: float, rng: Generator
) -> None:
    """The fixed point of the head, with exact CG (9 pixels); the levels still move by 1 % in all."""
    p, prior = problem(rng, 6, 9, noise, batch=2)
    method = Proximal(
        prior, samples=1, n_levels=400, iterations=9, relaxation=relaxation, trust=trust, sigma_max=1.01 * sigma, sigma_min=sigma,
        draw_sigma=2 * sigma,
    )  # fmt: skip
    torch.testing.assert_close(method(p, rng)[0], posterior_mean(prior, p, trust), atol=1e-4, rtol=0)


def test_relaxation_gets_there_sooner(rng: Generator) -> None:
    p, prior = problem(rng, 6, 9, 0.1, batch=8)
    exact = posterior_mean(prior, p)
    errors = [
        float((Proximal(prior, samples=1, n_levels=20, relaxation=a, trust=1.0)(p, rng)[0] - exact).norm())
        for a in (1.0, 1.8)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_default_settings_beat_the_prior_mean_and_the_data_alone(rng: Generator) -> None:
    """In 30 evaluations with the noise that they have the image is nearer to the posterior mean than either."""
    p, prior = problem(rng, 6, 9, 0.1, batch=8)
    exact = posterior_mean(prior, p)

    def error(image: Tensor) -> float:
        return float((image - exact).norm())

    image = Proximal(prior, samples=1, sigma_min=0.1, draw_sigma=0.2, sigma_max=1.0)(p, rng)[0]
    least_squares = (p.y @ torch.linalg.pinv(p.A.matrix).T)[:, None]  # type: ignore[attr-defined]
    assert error(image) < 0.5 * error(prior.mean.expand_as(exact)) and error(image) < 0.5 * error(least_squares)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_draws_vary_as_the_posterior_of_a_gaussian_prior(noise: float, rng: Generator) -> None:
    """With many levels from a high one, which forget that they all start from one image; pixels are correlated under the prior."""
    n = 1500
    p, prior = problem(rng, 3, 5, noise)
    method = Proximal(prior, samples=n, trust=1.0, draw_levels=150, draw_sigma=20.0, iterations=5)
    draws, exact = method(p, rng)[:, 0, 0], prior.posterior(Problem(p.A, p.y[0], noise)).covariance
    assert float((torch.cov(draws.T) - exact).norm()) < 0.1 * float(exact.norm())


@pytest.mark.parametrize("samples", [1, 3])
def test_noise_free_data_are_reproduced(samples: int, rng: Generator) -> None:
    p, prior = problem(rng, 6, 9, 0.0, batch=2)
    out = Proximal(prior, samples=samples)(p, rng)
    assert out.shape == (samples, 2, 1, 9)
    torch.testing.assert_close(p.A(out), p.y.expand(samples, 2, 6), atol=1e-6, rtol=1e-6)


def test_draws_follow_the_seed_and_differ_from_each_other(rng: Generator) -> None:
    p, prior = problem(rng, 6, 9, 0.1)
    method = Proximal(prior, samples=3)
    a, b, c = (method(p, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.allclose(a, c, atol=1e-3)
    assert not torch.allclose(a[0], a[1], atol=1e-3) and not torch.allclose(a[1], a[2], atol=1e-3)


def test_the_mean_of_the_draws_is_the_image(rng: Generator) -> None:
    p, prior = problem(rng, 6, 9, 0.1, batch=2)
    method = Proximal(prior, samples=3)
    draws = method(p, rng)
    torch.testing.assert_close(draws.mean(0), method.image(p))
    assert float(draws.std(0).min()) > 1e-3


@pytest.mark.parametrize("noise", [0.0, 0.1, "member", "weights"])
def test_a_member_does_not_depend_on_its_mates(noise: float | str, rng: Generator) -> None:
    """The first members of a batch are what they are in a smaller batch."""
    std: float | Tensor = noise if isinstance(noise, float) else torch.tensor([[0.05], [0.1], [0.3]], dtype=F64)
    if noise == "weights":
        std = 0.05 + 0.4 * torch.rand(3, 6, generator=rng, dtype=F64)
    p, prior = problem(rng, 6, 9, std, batch=3)
    first = Problem(p.A, p.y[:2], std[:2] if isinstance(std, Tensor) else std)
    for n in (4, 1):
        all_of_them, few = (Proximal(prior, samples=n)(q, torch.Generator().manual_seed(3)) for q in (p, first))
        torch.testing.assert_close(few, all_of_them[:, :2], atol=1e-6, rtol=1e-6)


def test_noise_free_members_take_fewer_cg_steps(rng: Generator) -> None:
    p, prior = problem(rng, 30, 40, torch.tensor([[0.0], [0.1]], dtype=F64), batch=2)
    method = Proximal(prior, samples=1, n_levels=5)
    together = method(p, rng)[0]
    for k, (noise, steps, tolerance) in enumerate(((0.0, 10, 1e-9), (0.1, 50, 5e-4))):
        alone = Problem(p.A, p.y[k : k + 1], noise)
        fixed = dataclasses.replace(method, iterations=steps)(alone, rng)[0]
        torch.testing.assert_close(together[k : k + 1], fixed, atol=tolerance, rtol=0)
        other = dataclasses.replace(method, iterations=9)(alone, rng)[0]
        assert float((fixed - other).abs().max()) > 1e-3


def test_few_cg_steps_do_where_the_data_say_little(rng: Generator) -> None:
    """Started from the last pull, eight steps a level leave 0.1 % where from z - u they leave 5 %."""
    gains = torch.logspace(0, -1.5, 40, dtype=F64)
    A = Dense(torch.diag(gains))
    y = A(torch.randn(4, 1, 40, generator=rng, dtype=F64)) + 0.01 * torch.randn(4, 40, generator=rng, dtype=F64)
    exact = (gains * y / (gains**2 + 1e-4))[:, None]  # for N(0, I)
    method = Proximal(lambda x, sigma: x / (1 + sigma**2), samples=1, trust=1.0, iterations=8)
    image = method(Problem(A, y, 0.01), rng)[0]
    assert float((image - exact).norm()) < 0.01 * float(exact.norm())


def test_one_sample_is_the_image(rng: Generator) -> None:
    p, prior = problem(rng, 6, 9, 0.1, batch=2)
    method = Proximal(prior, samples=1, n_levels=7)
    image = method.image(p)
    assert torch.equal(method(p, rng)[0], image)
    assert torch.equal(method(p, torch.Generator().manual_seed(99))[0], image)  # no randomness in it


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_batch_dimensions_come_back(batch: tuple[int, ...], rng: Generator) -> None:
    p, prior = problem(rng, 6, 9, 0.1, batch=6)
    n = int(torch.tensor(batch).prod()) if batch else 1
    shaped = Problem(p.A, p.y[:n].reshape(*batch, 6), torch.full((*batch, 1), 0.1, dtype=F64))
    out = Proximal(prior, samples=2, n_levels=3)(shaped, rng)
    assert out.shape == (2, *batch, 1, 9) and out.isfinite().all()
    image = Proximal(prior, samples=1, n_levels=3)(shaped, rng)
    flat = Proximal(prior, samples=1, n_levels=3)(Problem(p.A, p.y[:n], 0.1), rng)
    torch.testing.assert_close(image.reshape(n, 1, 9), flat[0])


def test_units_do_not_matter(rng: Generator) -> None:
    """The same problem in another unit of the images gives the same images in that unit."""
    p, prior = problem(rng, 6, 9, 0.1)
    plain = Proximal(prior, samples=2)(p, torch.Generator().manual_seed(1))
    small = Problem(p.A, 0.01 * p.y, 0.001)
    scaled = Proximal(Rescaled(prior, 0.0, 0.01), samples=2)(small, torch.Generator().manual_seed(1))
    torch.testing.assert_close(scaled / 0.01, plain, atol=1e-6, rtol=1e-6)


def test_cost_is_what_the_settings_say(rng: Generator) -> None:
    p, prior = problem(rng, 6, 9, 0.1, batch=2)
    for settings, cost in (({}, 30 + 4 * 10), ({"samples": 1, "n_levels": 9}, 9)):
        counted = Counted(prior)
        Proximal(counted, **settings)(p, rng)
        assert counted.n_evaluations == 2 * cost


def test_unseen_pixels_start_from_more_noise(rng: Generator) -> None:
    seen: list[float] = []

    def prior(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma))
        return x / (1 + sigma**2)

    half = torch.eye(4, dtype=F64)[:2]
    for A, first in ((Dense(torch.eye(4, dtype=F64)), 1.0), (Dense(half), 3.0)):
        seen.clear()
        y = torch.ones(1, A.out_shape[0], dtype=F64)
        Proximal(prior, samples=1)(Problem(A, y), rng)
        assert seen[0] == pytest.approx(first) and seen[-1] == pytest.approx(Proximal.sigma_min) and len(seen) == 30


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples": 0}, "at least 1"),
        ({"n_levels": 0}, "at least 1"),
        ({"sigma_min": 0.0}, "0 < sigma_min"),
        ({"sigma_min": 0.7, "draw_sigma": 0.6}, "sigma_min < draw_sigma"),
        ({"sigma_max": 0.005}, "sigma_min < sigma_max"),
        ({"relaxation": 2.0}, "relaxation < 2"),
        ({"trust": 0.0}, "trust > 0"),
    ],
)
def test_impossible_settings(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Proximal(smooth_prior(4), **settings)  # type: ignore[arg-type]
