"""Images and latents: the adaptive flow against exact flows, and against the same ODE in another process's coordinate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from test_sampling import PRIOR, moments_within_four_standard_errors
from torch import Generator, Tensor

from scoreinv.priors.adapters.parametrisation import Parametrised, predicted
from scoreinv.priors.denoiser import Counted, Rescaled
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior
from scoreinv.sampling.flow_ode import decode, encode, flow, interpolate, slerp
from scoreinv.sampling.processes import VP, Process, SubVP

EYE = torch.eye(2, dtype=torch.float64)
MIXTURE = GaussianMixturePrior(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.tensor([[2.0, 0.0], [-1.0, 0.5]], dtype=torch.float64),
    torch.stack([0.2 * EYE, 0.5 * EYE]),
)


def images(n: int) -> Tensor:
    return PRIOR.draw(n, Generator().manual_seed(4))


def test_flow_is_the_exact_one_up_and_down() -> None:
    x = images(3)
    for sigma, after in ((0.01, 20.0), (20.0, 0.01), (1.0, 1.0)):
        exact = PRIOR.flow(x, torch.tensor(sigma).double(), torch.tensor(after).double())
        torch.testing.assert_close(flow(PRIOR, x, sigma, after, tolerance=1e-8), exact, rtol=1e-6, atol=1e-6)
    rough = flow(PRIOR, x, 0.01, 20.0, tolerance=1e-2) - PRIOR.flow(x, torch.tensor(0.01), torch.tensor(20.0))
    fine = flow(PRIOR, x, 0.01, 20.0, tolerance=1e-5) - PRIOR.flow(x, torch.tensor(0.01), torch.tensor(20.0))
    assert rough.abs().max() > 10 * fine.abs().max()


def test_mixtures_flow_as_they_say_themselves() -> None:
    x = MIXTURE.draw(3, Generator().manual_seed(0))
    exact = MIXTURE.flow(x, torch.tensor(0.01), torch.tensor(10.0))
    torch.testing.assert_close(flow(MIXTURE, x, 0.01, 10.0, tolerance=1e-8), exact, rtol=1e-5, atol=1e-5)


def test_decoded_noise_has_the_law_of_the_prior() -> None:
    n, sigma_max = 200, 30.0
    spread = (PRIOR.covariance + sigma_max**2 * torch.eye(3, dtype=torch.float64)) / sigma_max**2
    z = torch.randn(n, 3, generator=Generator().manual_seed(0), dtype=torch.float64) @ torch.linalg.cholesky(spread).T
    x = decode(PRIOR, z + PRIOR.mean / sigma_max, sigma_min=0.02, sigma_max=sigma_max, tolerance=1e-4)
    moments_within_four_standard_errors(x, PRIOR.mean, PRIOR.covariance)


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
@pytest.mark.parametrize("process", [VP(), SubVP()], ids=["vp", "sub-vp"])
def test_latents_do_not_depend_on_process_and_network(process: Process, kind: str) -> None:
    """The flow dx_t = (f x_t − ½ g² S_t) dt of another process from a network of its own, by scipy: x_t = s x at its end."""
    sigma_min, sigma_max = 0.02, 20.0
    t_min, t_max = process.time(torch.tensor([sigma_min, sigma_max], dtype=torch.float64)).tolist()
    x = images(1)
    z = encode(PRIOR, x, sigma_min=sigma_min, sigma_max=sigma_max, tolerance=1e-8)

    def rate(t: float, flat: np.ndarray) -> np.ndarray:
        time = torch.tensor(t, dtype=torch.float64)
        s, std = process.scale(time), process.std(time)
        x_t = torch.from_numpy(flat)[None]
        law = GaussianPrior(s * PRIOR.mean, s**2 * PRIOR.covariance + std**2 * torch.eye(3, dtype=torch.float64))
        score = law.score(x_t, torch.zeros(()))
        slope = process.drift(x_t, time) - process.diffusion(time) ** 2 * score / 2
        return np.asarray(slope[0].numpy())

    start = process.scale(torch.tensor(t_min)) * x[0]
    solved = solve_ivp(rate, (t_min, t_max), start.numpy(), rtol=1e-8, atol=1e-10)
    end = torch.from_numpy(solved.y[:, -1]) / process.scale(torch.tensor(t_max))
    torch.testing.assert_close(z[0], end / sigma_max, rtol=1e-4, atol=1e-6)

    def network(x_t: Tensor, label: Tensor) -> Tensor:
        time = (label / 999.0).reshape(-1, 1, 1, 1)
        s, sigma = process.scale(time), process.sigma(time)
        clean = PRIOR((x_t / s).flatten(1), sigma.flatten()).reshape(x_t.shape)
        return predicted(kind, clean, x_t / s, sigma, s)  # type: ignore[arg-type]

    other = Parametrised(network, process, kind)  # type: ignore[arg-type]
    again = encode(other, x[:, None], sigma_min=sigma_min, sigma_max=sigma_max, tolerance=1e-8)
    torch.testing.assert_close(again[:, 0], z, rtol=1e-5, atol=1e-6)


def test_images_come_back_from_their_latents() -> None:
    x = MIXTURE.draw(3, Generator().manual_seed(1))
    z = encode(MIXTURE, x, tolerance=1e-7)
    assert z.abs().max() < 5 and (z[0] - z[1]).abs().max() > 1e-4
    torch.testing.assert_close(decode(MIXTURE, z, tolerance=1e-7), x, rtol=1e-3, atol=1e-3)


def test_units_are_the_priors() -> None:
    x = images(2)
    scaled = Rescaled(PRIOR, 0.02, 0.03)
    z = encode(PRIOR, x)
    torch.testing.assert_close(encode(scaled, 0.02 + 0.03 * x), z, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(decode(scaled, z), 0.02 + 0.03 * decode(PRIOR, z), rtol=1e-3, atol=1e-4)


def test_members_of_a_batch_are_alone() -> None:
    x, counted = images(3), Counted(PRIOR)
    together = encode(counted, x)
    torch.testing.assert_close(encode(PRIOR, x[1:2]), together[1:2])
    assert 60 < counted.n_evaluations < 3000
    assert encode(PRIOR, x.float()).dtype == torch.float32


def test_slerp_stays_on_the_circle() -> None:
    a, b = torch.tensor([[3.0, 0.0], [0.0, 0.0]]).double(), torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double()
    path = slerp(a, b, torch.tensor([0.0, 1 / 3, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[3], b)
    lengths = torch.tensor([3.0, 7 / 3, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.flatten(1).norm(dim=1), lengths)
    for k, angle in enumerate((0, math.pi / 6, math.pi / 4, math.pi / 2)):
        expected = lengths[k] * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        torch.testing.assert_close(path[k, 0], expected)
    torch.testing.assert_close(slerp(a, 2 * a, torch.tensor([0.5]))[0], 1.5 * a)


def test_interpolation_begins_and_ends_with_the_images() -> None:
    a, b = images(2)
    path = interpolate(PRIOR, a, b, 5, tolerance=1e-7)
    assert path.shape == (5, 3)
    torch.testing.assert_close(path[[0, 4]], torch.stack([a, b]), rtol=1e-3, atol=1e-3)
    latents = encode(PRIOR, path, tolerance=1e-7)
    torch.testing.assert_close(latents[2], slerp(latents[0], latents[4], torch.tensor([0.5]))[0], rtol=1e-3, atol=1e-5)


def test_what_is_refused() -> None:
    x = images(1)
    for levels in ((0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="flow: expected positive levels, got"):
            flow(PRIOR, x, *levels)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        encode(PRIOR, x, tolerance=0.0)
    with pytest.raises(ValueError, match="n of at least 2, the two ends, got 1"):
        interpolate(PRIOR, x[0], x[0], 1)
    with pytest.raises(ValueError, match="length 0"):
        slerp(x[0], torch.zeros(3).double(), torch.tensor([0.5]))
    with pytest.raises(ValueError, match="opposite"):
        slerp(x[0], -x[0], torch.tensor([0.5]))
