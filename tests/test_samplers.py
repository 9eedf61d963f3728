"""Samplers against the papers' formulas in the papers' coordinates, and against what they should draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from test_sampling import PRIOR, moments_within_four_standard_errors, rows, start, streams
from torch import Generator, Tensor

from scoreinv.priors.adapters.parametrisation import Parametrised
from scoreinv.priors.denoiser import Denoiser, Rescaled
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior
from scoreinv.sampling.ddpm import LearnedVariance, large_variance
from scoreinv.sampling.discrete import DiscreteVP, linear_betas
from scoreinv.sampling.langevin import AnnealedLangevin
from scoreinv.sampling.levels import geometric, in_time, karras, respaced
from scoreinv.sampling.loop import last, sample
from scoreinv.sampling.pndm import PNDM
from scoreinv.sampling.processes import VE, VP, FlowMatching, SubVP
from scoreinv.sampling.reverse_sde import EulerMaruyama, ReverseDiffusion
from scoreinv.sampling.steps import (
    Ancestral,
    Churn,
    DPMSolver2M,
    Langevin,
    PredictorCorrector,
    Step,
    euler,
    finished,
    heun,
    reverse_diffusion,
)
from scoreinv.sampling.unconditional import generate
from scoreinv.streams import normal

CHAIN = DiscreteVP.of(linear_betas(1000))
MIXTURE = GaussianMixturePrior(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[2.0, 0.5, 0.0], [-1.0, 0.0, 0.5]], dtype=torch.float64),
    torch.stack([0.3 * torch.eye(3, dtype=torch.float64), PRIOR.covariance / 4]),
)


# order of convergence


@pytest.mark.parametrize(("name", "order"), [("equal in σ", 4), ("geometric", 2), ("in time of VP", 2)])
def test_order_of_pndm(name: str, order: int) -> None:
    """Levels equally spaced in σ make it a Runge-Kutta and Adams-Bashforth method of order 4."""
    vp, highest, lowest = VP(), 4.0, 0.75
    x = start(5, highest)
    exact = PRIOR.flow(x, torch.tensor(highest), torch.tensor(lowest))
    errors = []
    for n in (20, 40, 80, 160):
        t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        if name == "equal in σ":
            step, sigmas = PNDM(lambda a, b: (a + b) / 2), highest + t * (lowest - highest)
        elif name == "geometric":
            step, sigmas = PNDM(), geometric(n + 1, lowest, highest)[:-1]
        else:
            ends = vp.time(torch.tensor([highest, lowest]))
            step, sigmas = PNDM(vp.middle), vp.sigma(torch.lerp(ends[0], ends[1], t))
        errors.append((last(sample(PRIOR, x, sigmas, step=step, rngs=streams(5))) - exact).norm())
    slopes = -torch.stack(errors).log2().diff()
    assert abs(slopes[-1] - order) < 0.2, slopes
    assert errors[-1] < 2e-3


def test_pndm_makes_a_fresh_start() -> None:
    x, sigmas, step = start(2, 5.0), karras(8, 0.1, 5.0), PNDM()
    first = last(sample(PRIOR, x, sigmas, step=step, rngs=streams(2)))
    abandoned = sample(PRIOR, 2 * x, sigmas, step=step, rngs=streams(2))
    next(abandoned)
    torch.testing.assert_close(last(sample(PRIOR, x, sigmas, step=step, rngs=streams(2))), first)
    alone = last(sample(PRIOR, x[1:], sigmas, step=PNDM(), rngs=streams(1)))
    torch.testing.assert_close(alone, first[1:])
    two = last(sample(PRIOR, x, torch.tensor([5.0, 0.0]), step=PNDM(), rngs=streams(2)))
    torch.testing.assert_close(two, PRIOR(x, torch.tensor(5.0)))


# what is drawn


def in_time_between(process: VE | VP, n: int, lowest: float = 0.05, highest: float = 10.0) -> Tensor:
    first, final = process.time(torch.tensor([highest, lowest], dtype=torch.float64)).tolist()
    return process.sigma(torch.linspace(first, final, n, dtype=torch.float64))


GEOMETRIC = geometric(250, 0.05, 10.0)[:-1]
VE_50, VP_20, SUB = VE(0.01, 50.0), VP(), SubVP()
SAMPLERS: dict[str, tuple[Callable[[], Step], Tensor]] = {
    "euler": (lambda: euler, GEOMETRIC),
    "heun": (lambda: heun, GEOMETRIC[::5]),
    "churn": (lambda: Churn(0.3), GEOMETRIC[::2]),
    "dpm_solver_2m": (DPMSolver2M, GEOMETRIC[::2]),
    "pndm": (lambda: PNDM(VP_20.middle), in_time_between(VP_20, 120)),
    "ddim, eta 0.5": (lambda: Ancestral(0.5), GEOMETRIC),
    "ancestral": (lambda: Ancestral(1.0), GEOMETRIC),
    "large variance": (lambda: large_variance, in_time_between(VP_20, 400)),
    "reverse diffusion": (lambda: reverse_diffusion, GEOMETRIC),
    "reverse diffusion, VP": (lambda: ReverseDiffusion(VP_20), in_time_between(VP_20, 400)),
    "reverse diffusion, sub-VP": (lambda: ReverseDiffusion(SUB), in_time_between(SUB, 400)),
    "euler-maruyama, VE": (lambda: EulerMaruyama(VE_50), in_time_between(VE_50, 400)),
    "euler-maruyama, VP": (lambda: EulerMaruyama(VP_20), in_time_between(VP_20, 400)),
    "euler-maruyama, sub-VP": (lambda: EulerMaruyama(SUB), in_time_between(SUB, 400)),
    "predictor-corrector": (lambda: PredictorCorrector(reverse_diffusion, Langevin(0.16)), GEOMETRIC),
    "predictor-corrector, VP": (
        lambda: PredictorCorrector(ReverseDiffusion(VP_20), Langevin(0.16)),
        in_time_between(VP_20, 250),
    ),
}


def mixed(x: Tensor, sigma: Tensor) -> Tensor:
    """The mixture's denoiser on images of 100 rows, as `rows` is the Gaussian's."""
    return MIXTURE(x.reshape(-1, 3), sigma).reshape(x.shape)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_have_the_mean_and_covariance_of_their_level(name: str, kind: str) -> None:
    """From exact draws at the first level to exact ones at the last, those of N(μ, Σ + σ² I) and of the mixture like it."""
    make, sigmas = SAMPLERS[name]
    prior, denoise = (PRIOR, rows) if kind == "gaussian" else (MIXTURE, mixed)
    rng = Generator().manual_seed(1)
    x = prior.draw(4000, rng) + sigmas[0] * torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    got = last(sample(denoise, x.reshape(40, 100, 3), sigmas, step=make(), rngs=streams(40)))
    covariance = prior.covariance + sigmas[-1] ** 2 * torch.eye(3, dtype=torch.float64)
    moments_within_four_standard_errors(got.reshape(-1, 3), prior.mean, covariance)


FROM_NOISE: dict[str, tuple[Step, Tensor]] = {
    "ddpm, 500 of 1000 steps": (Ancestral(1.0), respaced(500, CHAIN)),
    "ddim, 250 of 1000 steps": (euler, respaced(250, CHAIN)),
    "flow matching": (heun, in_time(100, FlowMatching())),
    "sub-VP SDE": (finished(EulerMaruyama(SUB)), in_time(500, SUB)),
    "annealed Langevin": (AnnealedLangevin(0.3, 5), geometric(250, 0.02, 50.0)),
}


@pytest.mark.parametrize("name", FROM_NOISE)
def test_from_pure_noise_to_images(name: str) -> None:
    """Whole runs, from the noise that a process ends in to level 0."""
    step, sigmas = FROM_NOISE[name]
    noise = torch.randn(4000, 3, generator=Generator().manual_seed(2), dtype=torch.float64)
    got = last(sample(rows, (sigmas[0] * noise).reshape(40, 100, 3), sigmas, step=step, rngs=streams(40)))
    moments_within_four_standard_errors(got.reshape(-1, 3), PRIOR.mean, PRIOR.covariance)


# the papers' formulas, in the papers' coordinate x_t = √ᾱ x


def in_the_chain(i: int, previous: int, n: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, σ and σ' of two steps of a chain, and x_t, ᾱ, ᾱ', ε of the network there."""
    a, a_next = CHAIN.alphas_cumprod[[i, previous]]
    sigma, sigma_next = ((1 - a) / a).sqrt(), ((1 - a_next) / a_next).sqrt()
    x = start(n, float(sigma))
    eps = (x - PRIOR(x, sigma)) / sigma
    return x, sigma, sigma_next, a.sqrt() * x, a, a_next, eps


class Learned:
    """A prior whose network has learnt where between its bounds the variance lies."""

    def __init__(self, v: Tensor) -> None:
        self.v = v

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return PRIOR(x, sigma)

    def with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return PRIOR(x, sigma), self.v


@pytest.mark.parametrize(("i", "previous"), [(1, 0), (400, 399), (999, 998), (500, 450)])
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm(variance: str, i: int, previous: int) -> None:
    """Ho et al. 2020, algorithm 2, with β = 1 − ᾱ_t / ᾱ_t' where steps are left out; Nichol, Dhariwal 2021, eq. 15."""
    x, sigma, sigma_next, x_t, a, a_next, eps = in_the_chain(i, previous)
    beta = 1 - a / a_next
    mean = (x_t - beta / (1 - a).sqrt() * eps) / (1 - beta).sqrt()
    tilde = beta * (1 - a_next) / (1 - a)
    v = torch.rand(x.shape, generator=Generator().manual_seed(5), dtype=torch.float64)
    exponent = {"small": torch.zeros_like(v), "large": torch.ones_like(v), "learned": v}[variance]
    std = (exponent * beta.log() + (1 - exponent) * tilde.log()).exp().sqrt()
    step = {"small": Ancestral(1.0), "large": large_variance, "learned": LearnedVariance()}[variance]
    got = step(Learned(v), x, sigma, sigma_next, streams(4))
    torch.testing.assert_close(a_next.sqrt() * got, mean + std * normal(streams(4), x))
    torch.testing.assert_close(step(Learned(v), x, sigma, torch.zeros_like(sigma), streams(4)), PRIOR(x, sigma))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("i", "previous"), [(1, 0), (500, 450), (999, 0)])
def test_ddim(eta: float, i: int, previous: int) -> None:
    """Song, Meng, Ermon 2020, eqs. 12 and 16; eta 0 is Euler's step on x_t / √ᾱ, eta 1 the ancestral step above."""
    x, sigma, sigma_next, x_t, a, a_next, eps = in_the_chain(i, previous)
    fresh = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
    expected = a_next.sqrt() * (x_t - (1 - a).sqrt() * eps) / a.sqrt() + (1 - a_next - fresh**2).sqrt() * eps
    expected = expected + fresh * normal(streams(4), x)
    got = Ancestral(eta)(PRIOR, x, sigma, sigma_next, streams(4))
    torch.testing.assert_close(a_next.sqrt() * got, expected)
    if eta == 0:
        torch.testing.assert_close(a_next.sqrt() * euler(PRIOR, x, sigma, sigma_next, streams(4)), expected)


def test_large_variance_is_exact_for_standard_normal_images() -> None:
    prior, n = GaussianPrior(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)), 4000
    sigmas = torch.tensor([20.0, 3.0, 0.5], dtype=torch.float64)  # two steps are enough, whatever their length
    x = (1 + sigmas[0] ** 2).sqrt() * torch.randn(n, 2, generator=Generator().manual_seed(0), dtype=torch.float64)
    got = last(sample(prior, x, sigmas, step=large_variance, rngs=streams(n)))
    moments_within_four_standard_errors(got, prior.mean, (1 + sigmas[-1] ** 2) * prior.covariance)


def test_reverse_diffusion_of_a_chain() -> None:
    """Song et al. 2021, algorithm 3 (VP): (2 − √(1 − β)) x + β S + √β z."""
    x, sigma, sigma_next, x_t, a, a_next, eps = in_the_chain(300, 299)
    beta = 1 - a / a_next
    expected = (2 - (1 - beta).sqrt()) * x_t - beta * eps / (1 - a).sqrt() + beta.sqrt() * normal(streams(4), x)
    got = ReverseDiffusion(CHAIN)(PRIOR, x, sigma, sigma_next, streams(4))
    torch.testing.assert_close(a_next.sqrt() * got, expected)
    torch.testing.assert_close(ReverseDiffusion(VP())(PRIOR, x, sigma, sigma_next, streams(4)), got)
    torch.testing.assert_close(
        ReverseDiffusion(VE())(PRIOR, x, sigma, sigma_next, streams(4)),
        reverse_diffusion(PRIOR, x, sigma, sigma_next, streams(4)),
    )


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
def test_euler_maruyama(name: str) -> None:
    """The discretised reverse SDE in x_t, with f, g and the score of x_t written out."""
    t, t_next = torch.tensor([0.5, 0.48], dtype=torch.float64)
    beta, B, B_next = 0.1 + 19.9 * t, *(0.1 * u + 19.9 * u**2 / 2 for u in (t, t_next))
    s, s_next = (-B / 2).exp(), (-B_next / 2).exp()
    if name == "vp":
        process, std, std_next, rate, g2 = VP(), (1 - s**2).sqrt(), (1 - s_next**2).sqrt(), -beta / 2, beta
    elif name == "sub-vp":
        process, std, std_next = SubVP(), 1 - s**2, 1 - s_next**2
        rate, g2 = -beta / 2, beta * (1 - (-2 * B).exp())
    else:
        s = s_next = torch.ones_like(t)
        process, std, std_next = VE(0.1, 10.0), 0.1 * 100**t, 0.1 * 100**t_next
        rate, g2 = torch.zeros_like(t), std**2 * 2 * math.log(100)
    sigma, sigma_next = std / s, std_next / s_next
    x = start(4, float(sigma))
    law = GaussianPrior(s * PRIOR.mean, s**2 * PRIOR.covariance + std**2 * torch.eye(3, dtype=torch.float64))
    score = law.score(s * x, torch.zeros(()))
    h = t - t_next
    expected = s * x - h * (rate * s * x - g2 * score) + (g2 * h).sqrt() * normal(streams(4), x)
    got = EulerMaruyama(process)(PRIOR, x, sigma, sigma_next, streams(4))
    torch.testing.assert_close(s_next * got, expected, rtol=1e-6, atol=1e-6)


def test_corrector_of_vp() -> None:
    """Song et al. 2021, algorithm 5: in x_t, ε = 2 α (r ‖z‖ / ‖S‖)², x + ε S + √(2 ε) z."""
    vp, snr = VP(), 0.2
    t = torch.tensor(0.7, dtype=torch.float64)
    s, sigma = vp.scale(t), vp.sigma(t)
    x, z = start(1, float(sigma)), normal(streams(1), torch.zeros(1, 3, dtype=torch.float64))
    score = (PRIOR(x, sigma) - x) / sigma**2 / s
    step_size = 2 * (1 - (0.1 + 19.9 * t) / 1000) * (snr * z.norm() / score.norm()) ** 2
    expected = s * x + step_size * score + (2 * step_size).sqrt() * z
    step = Langevin(snr, alpha=lambda sigma: 1 - vp.beta(vp.time(sigma)) / 1000)
    torch.testing.assert_close(s * step(PRIOR, x, sigma, sigma, streams(1)), expected)


def test_churn_is_algorithm_2_of_edm() -> None:
    x, sigma, after = start(3, 2.0), *torch.tensor([2.0, 1.2], dtype=torch.float64)
    raised = 2.0 * 1.3
    noisy = x + math.sqrt(raised**2 - 4.0) * 1.007 * normal(streams(3), x)
    slope = (noisy - PRIOR(noisy, torch.tensor(raised))) / raised
    end = noisy + (1.2 - raised) * slope
    expected = noisy + (1.2 - raised) * (slope + (end - PRIOR(end, after)) / 1.2) / 2
    got = Churn(0.3, noise=1.007, lowest=0.05, highest=50.0)(PRIOR, x, sigma, after, streams(3))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for outside in (Churn(0.3, lowest=2.1), Churn(0.3, highest=1.9), Churn(0.0)):
        torch.testing.assert_close(
            outside(PRIOR, x, sigma, after, streams(3)), heun(PRIOR, x, sigma, after, streams(3))
        )


def test_flow_matching_steps_are_those_of_its_velocity() -> None:
    """x_τ' = x_τ + (τ' − τ) v with v = E[x₀ − ε | x_τ] is Euler's step on x_τ / τ."""
    tau, tau_next = torch.tensor([0.3, 0.35], dtype=torch.float64)
    sigma, sigma_next = FlowMatching().sigma(1 - tau), FlowMatching().sigma(1 - tau_next)
    x = start(4, float(sigma))
    clean = PRIOR(x, sigma)
    velocity = clean - (tau * x - tau * clean) / (1 - tau)
    torch.testing.assert_close(
        tau_next * euler(PRIOR, x, sigma, sigma_next, streams(4)), tau * x + (tau_next - tau) * velocity
    )


# laws and errors


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_gives_what_its_members_give_alone(name: str) -> None:
    make, sigmas = SAMPLERS[name]
    x, sigmas = start(3, 10.0), sigmas[:: len(sigmas) // 6]
    together = last(sample(PRIOR, x, sigmas, step=make(), rngs=streams(3)))
    alone = last(sample(PRIOR, x[2:], sigmas, step=make(), rngs=streams(3)[2:]))
    torch.testing.assert_close(together[2:], alone)
    single = last(sample(PRIOR, x.float(), sigmas, step=make(), rngs=streams(3)))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), together, rtol=1e-3, atol=1e-3)


def test_samples_by_other_steps_come_in_the_unit_of_the_prior() -> None:
    """Steps that know a process work in the prior's own unit, whatever the unit of the images."""
    prior = GaussianPrior(torch.full((4,), 0.5), torch.eye(4))
    for step in (finished(EulerMaruyama(VP())), large_variance):

        def draw(prior: Denoiser, step: Step = step) -> Tensor:
            return generate(prior, (4,), 5, Generator().manual_seed(0), n_levels=12, sigma_min=0.1, step=step)

        plain = draw(prior)
        torch.testing.assert_close(draw(Rescaled(prior, 0.02, 0.03)), 0.02 + 0.03 * plain)
        assert plain.isfinite().all() and plain.std() > 0.3


def test_learned_variance_of_a_network(rng: Generator) -> None:
    """Networks of 2C channels: ε and v in [-1, 1], which is a share in [0, 1]."""

    def network(x_t: Tensor, label: Tensor) -> Tensor:
        return torch.cat([0.1 * x_t, torch.tanh(x_t)], dim=1)

    prior = Parametrised(network, CHAIN, "epsilon")
    x, sigma, after = torch.randn(2, 5, 5, generator=rng, dtype=torch.float64), *CHAIN.sigmas[[500, 450]]
    clean, share = prior.with_variance(x, sigma)
    torch.testing.assert_close(clean, prior(x, sigma))
    torch.testing.assert_close(share, (1 + torch.tanh(x / (1 + sigma**2).sqrt())) / 2)
    moved = LearnedVariance()(prior, x, sigma, after, streams(2)) - LearnedVariance()(
        prior, x, sigma, after, streams(2, 1)
    )
    assert moved.abs().max() > 0.1
    with pytest.raises(ValueError, match="predicts no variance"):
        Parametrised(lambda x, t: x, CHAIN, "epsilon").with_variance(x, sigma)
    with pytest.raises(ValueError, match=r"LearnedVariance: GaussianPrior has no with_variance"):
        LearnedVariance()(PRIOR, start(1, 1.0), sigma, after, streams(1))


@pytest.mark.parametrize("levels", [(1e3, 1.0), (1.0, 0.0)])
def test_levels_outside_the_process(levels: Sequence[float]) -> None:
    with pytest.raises(ValueError, match=r"times from 0 to 1, which are levels from 0\.01 to 50, got the noise level"):
        last(sample(PRIOR, start(1, 1.0), torch.tensor(levels), step=EulerMaruyama(VE(0.01, 50.0)), rngs=streams(1)))


@pytest.mark.parametrize(
    "settings", [{"noise": -1.0}, {"lowest": 2.0, "highest": 1.0}, {"lowest": -1.0}, {"gamma": 0.5}]
)
def test_churn_refuses(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Churn: "):
        Churn(**settings)
