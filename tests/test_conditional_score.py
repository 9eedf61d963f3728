"""Draws from p(x | y) by a score network trained on pairs: exact where the network is, and better than FBP after seconds of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_moments import moments
from test_learned import DATA, SHORT, SIDE, TRAINED_ON, V, sinogram, write_images
from torch import Generator, Tensor

from scoreinv import cli, configure, plugins
from scoreinv.baselines import learned
from scoreinv.baselines.learned import Network, Scaled, geometry, load_network, network_class, save_network
from scoreinv.baselines.learned_conditional import STEPS, ConditionalScore, ConditionalScoreNetwork
from scoreinv.baselines.supervised import SupervisedRun, reconstruction_psnr, train
from scoreinv.metrics import psnr, window
from scoreinv.operators.dense import Matrix
from scoreinv.priors.denoiser import Denoiser
from scoreinv.priors.exact import GaussianPrior
from scoreinv.problem import Problem
from scoreinv.units import MU_WATER_PER_MM

SMALL: dict[str, Any] = {"widths": (16, 32), "unshuffle": 1, "embedding": 32}


def disturbed() -> ConditionalScoreNetwork:
    """A network none of whose weights is zero, as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ConditionalScoreNetwork(**SMALL)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=Generator().manual_seed(p.numel())))
    return made


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "conditional_score.safetensors"
    save_network("conditional_score", disturbed(), path, {"geometry": geometry(TRAINED_ON)})
    return str(path)


# The exact network


class Exact(Network):
    """The denoiser of p(u | g) for a Gaussian prior of u = v - 1 and noise of one level, in closed form."""

    def __init__(self, prior: GaussianPrior, std: float) -> None:
        super().__init__()
        self.prior, self.std = prior, std

    def forward(self, problem: Scaled, g: Tensor) -> Tensor:
        raise NotImplementedError

    def given(self, problem: Scaled, g: Tensor) -> tuple[Denoiser, Tensor]:
        K = Matrix(problem.A.matrix / problem.norm, image_shape=problem.A.in_shape)  # type: ignore[attr-defined]
        one = torch.ones(K.in_shape)
        posterior = self.prior.posterior(Problem(K, g[0] - K(one), self.std))
        return posterior, problem.adjoint(g) - 1


@pytest.mark.parametrize(("step", "n_levels"), [("heun", 80), ("dpm_solver_2m", 100)])
def test_with_the_exact_network_it_draws_from_the_posterior(
    step: str, n_levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and covariance, by impulse responses: no Monte Carlo error. Data and images in units of their own."""
    rng, unit, noise = Generator().manual_seed(0), 0.02, 0.004
    root = torch.randn((9, 9), generator=rng) / 6
    A = Matrix(torch.randn((5, 9), generator=rng), image_shape=(3, 3))
    prior = GaussianPrior(unit * torch.linspace(0.5, 1.5, 9).reshape(3, 3), unit**2 * (root @ root.T))
    own = GaussianPrior(prior.mean / unit - 1, prior.covariance / unit**2)
    y = A(prior.draw(1, rng)[0]) + noise * torch.randn(5, generator=rng)
    problem = Problem(A, y, noise)
    exact_network = Exact(own, noise / (unit * Scaled(A).norm))
    monkeypatch.setattr(
        ConditionalScore, "opened", lambda self, flat: (exact_network, Scaled(A), flat.y / (self.unit * Scaled(A).norm))
    )
    method = ConditionalScore(unit=unit, step=step, n_levels=n_levels, sigma_max=300.0, sigma_min=0.001)
    mean, covariance = moments(method, problem)
    exact = prior.posterior(problem)
    spread = float(exact.covariance.diagonal().max()) ** 0.5
    assert float((mean - exact.mean.flatten()).abs().max()) < 0.02 * spread
    assert float((covariance - exact.covariance).norm() / exact.covariance.norm()) < 0.02
    prior_off = float((prior.mean - exact.mean).abs().max())
    assert prior_off > 0.5 * spread  # the data say something


# As a method


def test_shapes_seeds_and_members(weights: str, rng: Generator) -> None:
    x = MU_WATER_PER_MM * (V + 0.1 * torch.rand((2, SIDE, SIDE), generator=rng))
    problem = Problem(TRAINED_ON, TRAINED_ON(x))
    method = ConditionalScore(weights, samples=3, n_levels=3)
    draws = method(problem, Generator().manual_seed(1))
    assert draws.shape == (3, 2, SIDE, SIDE) and not draws.requires_grad and draws.isfinite().all()
    assert torch.equal(method(problem, Generator().manual_seed(1)), draws)
    assert not torch.equal(draws[0], draws[1])
    fewer = dataclasses.replace(method, samples=2)(problem, Generator().manual_seed(1))
    torch.testing.assert_close(fewer, draws[:2])
    alone = method(Problem(TRAINED_ON, problem.y[0]), Generator().manual_seed(1))
    torch.testing.assert_close(alone, draws[:, 0])
    double = method(Problem(TRAINED_ON, problem.y.double()), Generator().manual_seed(1))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), draws)


def test_the_network_hears_the_data(weights: str) -> None:
    network, card = load_network("conditional_score", Path(weights))
    assert card["network"] == disturbed().settings
    problem, g = Scaled(TRAINED_ON), sinogram(TRAINED_ON, V)
    out, other = network(problem, g), network(problem, 2 * g)
    assert out.shape == (1, SIDE, SIDE) and torch.equal(network(problem, g), out)
    assert float((out - other).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("step", STEPS)
def test_steps(step: str, weights: str) -> None:
    problem = Problem(TRAINED_ON, TRAINED_ON(MU_WATER_PER_MM * V))
    found = ConditionalScore(weights, samples=1, n_levels=2, step=step)(problem, Generator().manual_seed(0))
    assert found.shape == (1, SIDE, SIDE) and found.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"step": "huen"}, "no step is named 'huen'; known: ancestral, dpm_solver_2m, euler, heun"),
        ({"samples": 0}, "samples and n_levels of at least 1"),
        ({"n_levels": 0}, "samples and n_levels of at least 1"),
        ({"sigma_min": 9.0}, "0 < sigma_min < sigma_max"),
        ({"unit": 0.0}, "unit must be positive"),
        ({"sample": 3}, "Did you mean 'samples'"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        configure.method("conditional_score", settings, lambda: pytest.fail("needs no prior"))


def test_what_is_refused(weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="p_std must be positive"):
        ConditionalScoreNetwork(p_std=0.0)
    A = Matrix(torch.eye(64), image_shape=(8, 8))
    with pytest.warns(UserWarning, match="another geometry"), pytest.raises(ValueError, match="no method fbp"):
        ConditionalScore(weights)(Problem(A, torch.ones(64)), Generator())
    monkeypatch.setattr(learned, "files", lambda _: tmp_path / "none")
    with pytest.raises(ValueError, match=r"scoreinv train-baseline conditional_score .*--set weights="):
        ConditionalScore()(Problem(TRAINED_ON, torch.ones(TRAINED_ON.out_shape)), Generator())
    assert network_class("conditional_score") is ConditionalScoreNetwork
    assert plugins.get("methods", "conditional_score") is ConditionalScore


# Training


def test_the_loss_is_that_of_the_denoiser() -> None:
    """Before training D = σ_d² u / (σ² + σ_d²), whose weighted error has the mean E[(u₀² / σ_d² + σ² / σ_d² ...)] in closed form."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = ConditionalScoreNetwork(**SMALL, p_mean=0.3, p_std=0.8)
    n, sd = 400, 0.5
    v = V[None].expand(n, SIDE, SIDE)
    with torch.no_grad():
        loss = fresh.loss(Scaled(TRAINED_ON), sinogram(TRAINED_ON, V), v, Generator().manual_seed(0))
    rng = Generator().manual_seed(0)
    variance = torch.exp(2 * (0.3 + 0.8 * torch.randn(n, generator=rng))).double()
    size = (V - 1).double().square().mean()
    # D - u₀ = (σ_d² σ n − σ² u₀) / (σ² + σ_d²), so that E λ (D − u₀)² = (σ_d² + σ² u₀² / σ_d²) / (σ² + σ_d²)
    expected = ((sd**2 + variance * size / sd**2) / (variance + sd**2)).mean()
    assert float(loss) == pytest.approx(float(expected), rel=0.01)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def run(until: int, folder: str) -> SupervisedRun:
        config = dataclasses.replace(SHORT, steps=4)
        made = SupervisedRun("conditional_score", SMALL, config, DATA, TRAINED_ON)
        list(train(made, tmp_path / folder, validation=[V], until=until, validate_every=2))
        return made

    straight, _, resumed = run(4, "straight"), run(2, "halves"), run(4, "halves")
    for a, b in ((straight.model, resumed.model), (straight.averages[0], resumed.averages[0])):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_one_image_is_learned(tmp_path: Path) -> None:
    """Noise-free data of one image in four orientations: in seconds, its mean and its draws are clearly better than FBP."""
    config = dataclasses.replace(SHORT, steps=200, batch_size=4, noise=(0.0,), lr=5e-3, warmup=10)
    run = SupervisedRun("conditional_score", SMALL, config, DATA, TRAINED_ON)
    losses = [run.advance()[0] for _ in range(config.steps)]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    problem, truth = Scaled(TRAINED_ON), window(1000 * (V[None] - 1))
    hu = [1000 * (problem.fbp(sinogram(TRAINED_ON, V), w) - 1) for w in ("ramp", "hann")]
    fbp = max(float(psnr(window(x), truth, 1.0)) for x in hu)
    (mean,) = reconstruction_psnr(run.averages[0], problem, [V], [0.0])
    path = tmp_path / "conditional_score.safetensors"
    save_network("conditional_score", run.averages[0], path, {"geometry": geometry(TRAINED_ON)})
    data = Problem(TRAINED_ON, TRAINED_ON(MU_WATER_PER_MM * V))
    draws = ConditionalScore(str(path), samples=2)(data, Generator().manual_seed(0))
    drawn = [float(psnr(window(1000 * (x[None] / MU_WATER_PER_MM - 1)), truth, 1.0)) for x in draws]
    assert min(mean, *drawn) > fbp + 2, (mean, drawn, fbp)


def test_train_by_command_then_reconstruct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, others = write_images(tmp_path / "a.h5", ["a", "b"]), write_images(tmp_path / "b.h5", ["c"])
    folder, scan = tmp_path / "run", tmp_path / "scan.h5"
    command = ["train-baseline", "conditional_score", str(images), "--validation", str(others), "--views", "8"]
    command += ["--out", str(folder), "--steps", "2", "--set", f"side={SIDE}", "--network", "widths=[16,32]"]
    command += ["--network", "embedding=32", "--geometry", "n_detectors=35", "--set", "warmup=1", "--quiet"]
    assert cli.main(command) == 0
    simulate = ["simulate", str(others), "--views", "8", "--detectors", "35", "--out", str(scan), "--quiet"]
    assert cli.main(simulate) == 0
    given = ["--set", f"weights={folder / 'conditional_score.safetensors'}", "--set", "n_levels=2"]
    out = tmp_path / "recon.h5"
    solve = ["reconstruct", str(scan), "--method", "conditional_score", "--samples", "3", "--out", str(out), "--quiet"]
    assert cli.main([*solve, *given]) == 0
    h5py = pytest.importorskip("h5py")
    with h5py.File(out) as file:
        assert file["samples"].shape == (3, SIDE, SIDE)
    capsys.readouterr()
    assert cli.main([*solve, *given, "--set", "step=huen"]) == 2
    assert "no step is named 'huen'" in capsys.readouterr().err
