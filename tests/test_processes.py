"""Forward processes against their moments' differential equations, chains against the papers' formulas, conversions."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Generator, Tensor

from scoreinv.priors.adapters.parametrisation import Output, denoised, predicted
from scoreinv.sampling.discrete import DiscreteVP, cosine_betas, linear_betas
from scoreinv.sampling.levels import in_time, respaced
from scoreinv.sampling.processes import VE, VP, FlowMatching, Process, SubVP

PROCESSES: dict[str, Process] = {
    "ve": VE(0.01, 50.0),
    "vp": VP(),
    "sub-vp": SubVP(),
    "sub-vp, other betas": SubVP(0.5, 6.0),
    "flow matching": FlowMatching(),
}


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def moments(process: Process, t: float, t_next: float, mean: float, variance: float) -> tuple[float, float]:
    """Mean scale and variance at t_next, from those at t, by the equations of a linear SDE."""

    def rates(t: float, m: Any) -> list[float]:
        f, g = float(process.rate(number(t))), float(process.diffusion(number(t)))
        return [f * m[0], 2 * f * m[1] + g**2]

    solved = solve_ivp(rates, (t, t_next), [mean, variance], rtol=1e-10, atol=1e-14)
    return float(solved.y[0, -1]), float(solved.y[1, -1])


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("t", [0.1, 0.6, 0.97])
def test_kernels_solve_the_moment_equations(name: str, t: float) -> None:
    process = PROCESSES[name]
    start = float(process.std(number(0.0))) ** 2
    mean, variance = moments(process, 0.0, t, 1.0, start)
    assert float(process.scale(number(t))) == pytest.approx(mean, rel=1e-7)
    assert float(process.std(number(t))) == pytest.approx(math.sqrt(variance), rel=1e-7)
    assert float(process.sigma(number(t))) == pytest.approx(math.sqrt(variance) / mean, rel=1e-7)
    mean, variance = moments(process, t / 2, t, 1.0, 0.0)
    a, std = process.kernel(number(t / 2), number(t))
    assert float(a) == pytest.approx(mean, rel=1e-7)
    assert float(std) == pytest.approx(math.sqrt(variance), rel=1e-7)


def test_processes_are_those_of_the_papers() -> None:
    """Formulas of the papers, as they stand there."""
    t = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)
    ln_scale = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    torch.testing.assert_close(VP().std(t), (1 - torch.exp(2 * ln_scale)).sqrt())
    torch.testing.assert_close(SubVP().std(t), 1 - torch.exp(2 * ln_scale))
    torch.testing.assert_close(VE(0.01, 50.0).std(t), 0.01 * 5000**t)
    torch.testing.assert_close(VE(0.01, 50.0).diffusion(t), 0.01 * 5000**t * math.sqrt(2 * math.log(5000)))
    torch.testing.assert_close(VP().diffusion(t) ** 2, 0.1 + 19.9 * t)
    torch.testing.assert_close(
        SubVP().diffusion(t) ** 2, (0.1 + 19.9 * t) * (1 - torch.exp(-2 * (0.1 * t + 19.9 * t**2 / 2)))
    )
    x0, noise = torch.randn(2, 5, generator=Generator().manual_seed(0), dtype=torch.float64)
    for tau in (0.2, 0.7):
        x_tau = (1 - tau) * noise + tau * x0
        place = FlowMatching().at(FlowMatching().sigma(number(1 - tau)))
        torch.testing.assert_close(place.scale * (x0 + place.sigma * noise), x_tau)
        assert float(place.label) == pytest.approx(tau)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_reverse_starts_at_its_prior(name: str) -> None:
    process = PROCESSES[name]
    assert float(process.std(number(1.0 if name != "flow matching" else process.t_max))) == pytest.approx(
        process.prior_std, rel=0.05
    )
    assert float(process.scale(number(process.t_max))) < 0.2 or process.prior_std > 40


@pytest.mark.parametrize("name", PROCESSES)
def test_times_and_levels_are_inverse(name: str) -> None:
    process = PROCESSES[name]
    t = torch.linspace(0, process.t_max, 11, dtype=torch.float64)
    torch.testing.assert_close(process.time(process.sigma(t)), t, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(process.time(process.sigma(t).float()), t, rtol=1e-4, atol=1e-5)
    middle = process.middle(process.sigma(number(0.8)), process.sigma(number(0.3)))
    torch.testing.assert_close(process.time(middle), number(0.55))
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    for k in range(3):
        torch.testing.assert_close(process.drift(x, t[3:6])[k], process.rate(t[3 + k]) * x[k])


@pytest.mark.parametrize("name", [n for n in PROCESSES if n != "flow matching"])
def test_times_outside_a_process(name: str) -> None:
    process = PROCESSES[name]
    calls = [process.scale, process.sigma, process.std, process.rate, process.diffusion]
    for call in calls:
        for t in (-0.1, 1.1):
            with pytest.raises(
                ValueError, match=rf"{type(process).__name__}: expected times from 0 to 1, .* got the time"
            ):
                call(number(t))
    with pytest.raises(ValueError, match=r"levels from .* got the noise level 1000000"):
        process.time(1e6)  # type: ignore[arg-type]
    if name == "ve":
        with pytest.raises(ValueError, match=r"leave a step to level 0 out"):
            process.time(number(0.0))
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
            VE(2.0, 1.0)


# chains


def test_a_chain_goes_by_its_betas() -> None:
    """The products of single steps x_i = √(1 − β_i) x_{i−1} + √β_i ε."""
    for betas in (linear_betas(50), cosine_betas(50)):
        chain = DiscreteVP.of(betas)
        mean, variance = 1.0, 0.0
        for beta, sigma in zip(betas.tolist(), chain.sigmas.tolist(), strict=True):
            mean, variance = mean * math.sqrt(1 - beta), (1 - beta) * variance + beta
            assert sigma == pytest.approx(math.sqrt(variance) / mean, rel=1e-9)
    assert linear_betas(1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])


def test_the_linear_chain_tends_to_vp() -> None:
    n = 20_000
    t = torch.arange(1, n + 1, dtype=torch.float64)[::1000] / n
    torch.testing.assert_close(DiscreteVP.of(linear_betas(n)).sigmas[::1000], VP().sigma(t), rtol=2e-3, atol=1e-4)


def test_levels_of_chains_and_processes() -> None:
    chain = DiscreteVP.of(linear_betas(1000))
    levels = respaced(10, chain)
    torch.testing.assert_close(levels[:-1], chain.sigmas[[900, 800, 700, 600, 500, 400, 300, 200, 100, 0]])
    assert levels[-1] == 0 and len(levels) == 11
    torch.testing.assert_close(respaced(1000, chain)[:-1].flip(0), chain.sigmas)
    torch.testing.assert_close(chain.middle(levels[2], levels[3]), chain.sigmas[650])
    torch.testing.assert_close(chain.at(chain.sigmas[[3, 77]]).scale ** 2, chain.alphas_cumprod[[3, 77]])
    process = VP()
    torch.testing.assert_close(
        process.time(in_time(5, process)[:-1]),
        torch.tensor([1.0, 0.75025, 0.5005, 0.25075, 0.001], dtype=torch.float64),
    )
    assert in_time(5, process)[-1] == 0
    with pytest.raises(ValueError, match="1 to 1000 of the chain's 1000 steps, got n = 1001"):
        respaced(1001, chain)
    with pytest.raises(ValueError, match="at least one level, got n = 0"):
        in_time(0, process)


# conversions


@pytest.mark.parametrize("kind", get_args(Output))
def test_conversions(kind: Output, rng: Generator) -> None:
    """Definitions in terms of x₀ and ε."""
    x0, eps = torch.randn(2, 7, generator=rng, dtype=torch.float64)
    s, noise = number(0.8), number(0.3)
    x_t = s * x0 + noise * eps
    meant = {"epsilon": eps, "v": s * eps - noise * x0, "sample": x0, "score": -eps / noise, "velocity": x0 - eps}[kind]
    torch.testing.assert_close(denoised(kind, meant, x_t / s, noise / s, s), x0)
    torch.testing.assert_close(predicted(kind, x0, x_t / s, noise / s, s), meant)
