"""check_denoiser: exact priors keep every law, its figures are what they say, and each broken law shows in its own figure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import NetworkPrior, Rescaled
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.testing import DenoiserFigures, DenoiserReport, check_denoiser

SHAPE, D = (4, 5), 20
SIGMAS = (1e-3, 0.3, 1.0, 300.0)
EXACT = {
    "asymmetry": 1e-7, "divergence": 1e-9, "calibration": 1e-3, "displacement": 1.02, "spread": 1.02, "far_spread": 0.05,
    "batch": 1e-9, "gradient": 1e-3,
}  # fmt: skip
"""What an exact prior keeps in float64 with 800 images of its own; calibration beyond three standard errors."""


def smooth(scale: float = 1.0) -> Tensor:
    """A covariance of pixels whose correlation falls with their distance."""
    row, column = (t.flatten().double() for t in torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij"))
    return scale * torch.exp(-((row[:, None] - row) ** 2 + (column[:, None] - column) ** 2) / 3)


def gaussian(covariance: Tensor | None = None) -> GaussianPrior:
    mean = torch.linspace(-1, 1, D, dtype=torch.float64).reshape(SHAPE)
    return GaussianPrior(mean, smooth() if covariance is None else covariance)


def mixture() -> GaussianMixturePrior:
    means = torch.stack([gaussian().mean, -gaussian().mean + 0.5])
    return GaussianMixturePrior(torch.tensor([0.3, 0.7]), means, torch.stack([smooth(0.4), smooth(0.1)]))


EXACT_PRIORS: list[GaussianPrior | GaussianMixturePrior] = [gaussian(), mixture()]


def report(prior: Callable[[Tensor, Tensor], Tensor], images: Tensor | None = None) -> DenoiserReport:
    images = gaussian().draw(800, torch.Generator().manual_seed(1)) if images is None else images
    return check_denoiser(prior, images, sigmas=SIGMAS, rng=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("prior", EXACT_PRIORS, ids=lambda p: type(p).__name__)
def test_exact_priors_keep_every_law(prior: GaussianPrior | GaussianMixturePrior, rng: Generator) -> None:
    found = report(prior, prior.draw(800, rng))
    found.require(**EXACT)
    found.require()
    for f in found.figures:
        assert f.asymmetry < 1e-12 * max(1, f.sigma**2)  # J is of the order of σ⁻², rounding is not
        assert f.displacement == pytest.approx(math.sqrt(1 - f.divergence), abs=0.02)
        assert 0 < f.standard_error < 0.05 * f.divergence
    assert found.figures[0].displacement < 0.1


@pytest.mark.parametrize("prior", EXACT_PRIORS, ids=lambda p: type(p).__name__)
def test_in_single_precision_too(prior: GaussianPrior | GaussianMixturePrior, rng: Generator) -> None:
    check_denoiser(prior, prior.draw(400, rng).float(), sigmas=(0.01, 0.3, 3.0)).require(asymmetry=1e-4, batch=1e-4)


def test_figures_of_a_gaussian_are_its_eigenvalues() -> None:
    """Independent pixels: random signs then give the trace without error, and all else is known."""
    variance = torch.linspace(0.1, 2, D, dtype=torch.float64)
    prior = gaussian(torch.diag(variance))
    for f in report(prior, prior.draw(800, torch.Generator().manual_seed(3))).figures:
        kept = variance / (variance + f.sigma**2)
        assert f.divergence == pytest.approx(float(kept.mean()), rel=1e-12)
        assert f.calibration == pytest.approx(1, abs=0.05)
        assert f.displacement == pytest.approx(float((1 - kept).mean().sqrt()), rel=0.03)
        assert f.spread == pytest.approx(float((kept * variance).sum() / variance.sum()) ** 0.5, rel=0.03)


def test_asymmetry_is_that_of_the_jacobian() -> None:
    matrix = torch.randn(D, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = float((matrix - matrix.T).norm() / matrix.norm())
    figures = report(linear(matrix)).figures
    assert np.mean([f.asymmetry for f in figures]) == pytest.approx(expected, rel=0.02)
    assert np.mean([f.divergence for f in figures]) == pytest.approx(float(matrix.trace()) / D, abs=0.03)


def test_flips_are_measured_against_the_correction() -> None:
    """D(x) = x + b: turning back moves b, and the correction is b."""
    left = torch.zeros(SHAPE, dtype=torch.float64)
    left[:, 0] = 1.0  # by a flip of columns it comes to lie elsewhere: ‖F b − b‖² = 2 ‖b‖²; a flip of rows keeps it
    for f in report(lambda x, sigma: x + left).figures:
        assert f.flip == pytest.approx(1.0)
    for f in report(lambda x, sigma: x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)).figures:
        assert f.flip == 0


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_images_of_any_shape(shape: tuple[int, ...], rng: Generator) -> None:
    d = math.prod(shape)
    prior = GaussianPrior(torch.zeros(shape, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    check_denoiser(prior, prior.draw(500, rng), sigmas=SIGMAS).require(**EXACT, flip=1e-9)


def test_one_image_leaves_what_needs_two_open(rng: Generator) -> None:
    found = check_denoiser(gaussian(), gaussian().draw(1, rng), sigmas=(0.3,))
    assert math.isnan(found.figures[0].spread) and math.isnan(found.figures[0].standard_error)
    found.require(displacement=2)
    assert "nan" in str(found)


def test_the_unit_of_the_images_does_not_matter() -> None:
    images = gaussian().draw(50, torch.Generator().manual_seed(1))
    a, b = report(gaussian(), images), report(Rescaled(gaussian(), 3.0, 0.02), 3 + 0.02 * images)
    for f, g in zip(a.figures, b.figures, strict=True):
        assert dataclasses.astuple(g) == pytest.approx(dataclasses.astuple(f), rel=1e-4, abs=1e-9)


def linear(matrix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, sigma: (x.flatten(1) @ matrix.to(x).T).reshape(x.shape)


def numpy_gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian()(torch.from_numpy(x.numpy()), sigma)


@pytest.mark.parametrize("closed", [numpy_gaussian, torch.no_grad()(gaussian()), torch.inference_mode()(gaussian())])
def test_without_a_gradient_differences_take_its_place(closed: Callable[[Tensor, Tensor], Tensor]) -> None:
    found, expected = report(closed), report(gaussian())
    assert math.isnan(found.gradient) and "no gradient" in str(found) and expected.gradient < 1e-6
    found.require(**EXACT)
    for f, g in zip(found.figures, expected.figures, strict=True):
        assert dataclasses.astuple(f) == pytest.approx(dataclasses.astuple(g), rel=1e-4, abs=1e-6)


def test_it_works_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        assert report(gaussian()) == report(gaussian())
        assert not math.isnan(report(gaussian()).gradient)


# Networks


@pytest.fixture(scope="module")
def network() -> EDMDenoiser:
    """Tiny, with attention, and no weight zero."""
    rng = torch.Generator().manual_seed(0)
    config = UNetConfig(widths=(16, 64), block="residual", attention=(1,), embedding=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EDMDenoiser(config).eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return model


def test_gradients_pass_through_a_network_prior(network: EDMDenoiser, rng: Generator) -> None:
    """Against its whole Jacobian, at an image that has to be padded."""
    prior, images = Rescaled(NetworkPrior(network), 0.02, 0.02), 0.02 + 0.01 * torch.randn(1, 6, 7, generator=rng)
    seen: list[Tensor] = []

    def spy(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x.detach())
        return prior(x, sigma)

    found = check_denoiser(spy, images, sigmas=(0.01,), probes=64)
    assert found.name == "spy" and found.gradient < 5e-3 and found.batch < 1e-4
    point = next(x for x in reversed(seen) if len(x) == 1 and torch.equal(x, seen[-1].flip(-1)))
    jacobian = torch.func.jacrev(lambda x: prior(x, torch.tensor(0.01)))(point).reshape(42, 42)
    figures = found.figures[0]
    assert figures.asymmetry == pytest.approx(float((jacobian - jacobian.T).norm() / jacobian.norm()), rel=0.1)
    assert figures.divergence == pytest.approx(float(jacobian.trace()) / 42, rel=0.05)
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_images_one_after_another_give_the_same(
    network: EDMDenoiser, rng: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(3, 8, 8, generator=rng)
    together = check_denoiser(NetworkPrior(network), images, sigmas=(0.1, 1.0))
    monkeypatch.setattr("scoreinv.testing.denoisers.PIXELS_AT_ONCE", 1)
    apart = check_denoiser(NetworkPrior(network), images, sigmas=(0.1, 1.0))
    for f, g in zip(together.figures, apart.figures, strict=True):
        assert dataclasses.astuple(g) == pytest.approx(dataclasses.astuple(f), rel=1e-3, abs=1e-6)


# Broken priors, each with what its figure is called in the message


def column(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


SKEW = torch.randn(D, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def asymmetric(x: Tensor, sigma: Tensor) -> Tensor:
    """The correction D − x turned a little: J gets an antisymmetric part, and its trace stays."""
    return x + linear(torch.eye(D) + 0.02 * (SKEW - SKEW.T))(gaussian()(x, sigma) - x, sigma)


def biased(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian()(x, sigma) + 0.003


def wrong_scale(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian()(x, 1.3 * sigma)


def overconfident(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian(0.5 * smooth())(x, sigma)


def of_the_batch(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian()(x, sigma) + 0.01 * column(sigma, x) * torch.sin(x.mean(0)).detach()


def of_the_first_sigma(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian()(x, sigma.flatten()[0])


def detached(x: Tensor, sigma: Tensor) -> Tensor:
    out = gaussian()(x, sigma)
    return 0.5 * x + (out - 0.5 * x).detach()


def expansive(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian()(x, sigma) + 0.1 * (x - gaussian().mean)


def never_constant(x: Tensor, sigma: Tensor) -> Tensor:
    """A guess that follows the noise however strong that is, as a sampler's would."""
    return gaussian()(x / column(sigma, x).clamp(min=1), sigma.clamp(max=1))


BROKEN: list[tuple[Callable[[Tensor, Tensor], Tensor], str, str]] = [
    (asymmetric, "asymmetry", "sigma 0.3"),
    (biased, "displacement", "sigma 0.001"),
    (wrong_scale, "calibration", "sigma 0.3"),
    (overconfident, "calibration", "sigma 1"),
    (of_the_batch, "a batch and its members", ""),
    (of_the_first_sigma, "a batch and its members", ""),
    (detached, "gradient and differences", ""),
    (expansive, "divergence", "sigma 0.001"),
    (never_constant, "spread of D", "sigma 300"),
]


def blamed(found: DenoiserReport) -> list[str]:
    """What `require` says is broken, a line each, by the bounds for exact priors."""
    with pytest.raises(AssertionError) as error:
        found.require(**EXACT)
    first, *lines = str(error.value).splitlines()
    assert first == f"{found.name} is no posterior mean of these images"
    return lines


@pytest.mark.parametrize(("prior", "figure", "where"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_law_shows_in_its_figure(prior: Callable[[Tensor, Tensor], Tensor], figure: str, where: str) -> None:
    assert any(line.startswith(where) and figure in line for line in blamed(report(prior)))


def test_what_holds_is_not_blamed() -> None:
    """A turned correction is asymmetric and nothing else, but for 300 σ, where D hardly depends on x and faults add up."""
    lines = [line for line in blamed(report(asymmetric)) if not line.startswith("sigma 300")]
    assert lines and all("asymmetry" in line for line in lines)


@pytest.mark.parametrize("name", [*EXACT, "flip"])
def test_every_bound_is_a_bound(name: str) -> None:
    """Far out of bounds in everything, and no complaint left once every bound but this one is loose."""
    figures = DenoiserFigures(1.0, 9.0, 9.0, 1.0, 0.0, 9.0, 9.0, 9.0)
    loose = dict.fromkeys((*EXACT, "spread", "flip"), math.inf)
    DenoiserReport("bad", (figures,), 9.0, 9.0).require(**loose)
    with pytest.raises(AssertionError) as error:
        DenoiserReport("bad", (figures,), 9.0, 9.0).require(**loose | {name: 0.0})
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (lambda x, sigma: x[..., :-1], r"the result has shape \(.*, 4, 4\)"),
        (lambda x, sigma: x[0], "the result has shape"),
        (lambda x, sigma: x.float(), "the result has dtype torch.float32"),
        (lambda x, sigma: x / 0, "not finite"),
    ],
)
def test_results_that_are_no_images_are_refused(prior: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        report(prior)


def test_faults_of_the_prior_come_through(network: EDMDenoiser) -> None:
    with pytest.raises(ValueError, match=r"expected images \(batch, H, W\)"):
        check_denoiser(NetworkPrior(network), torch.zeros(2, 5))
    with pytest.raises(RuntimeError, match="shape"):
        check_denoiser(lambda x, sigma: x @ torch.ones(3, 3, dtype=x.dtype), torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("images", "arguments"),
    [
        (torch.zeros(0, 4, 4), {}),
        (torch.zeros(4), {}),
        (torch.zeros(2, 4, dtype=torch.int16), {}),
        (torch.zeros(2, 4), {"sigmas": ()}),
        (torch.zeros(2, 4), {"sigmas": (0.0, 1.0)}),
        (torch.zeros(2, 4), {"probes": 1}),
    ],
)
def test_bad_arguments_are_named(images: Tensor, arguments: dict[str, tuple[float, ...] | int]) -> None:
    with pytest.raises(ValueError, match="check_denoiser: expected floating-point images"):
        check_denoiser(gaussian(), images, **arguments)  # type: ignore[arg-type]


def test_a_constant_keeps_the_laws_of_one_image(rng: Generator) -> None:
    """Where the law is a single image, D is that image: no error, no trace, nothing divided by nothing."""
    prior = gaussian(torch.zeros(D, D, dtype=torch.float64))
    found = check_denoiser(prior, prior.draw(5, rng), sigmas=(0.1, 1.0))
    found.require(displacement=1.5)
    assert all(f.divergence == f.error == f.spread == f.asymmetry == 0 for f in found.figures)


def test_the_report_is_a_table() -> None:
    text = str(report(gaussian()))
    header, line, *rows = text.splitlines()
    assert header.startswith("| sigma | asymmetry | tr J / d") and line.startswith("| --- ")
    assert [row.split(" ")[1] for row in rows[:4]] == ["0.001", "0.3", "1", "300"]
    assert {row.count("|") for row in (header, line, *rows[:4])} == {9}
    assert text.splitlines()[-1].startswith("GaussianPrior: a batch against its members")


def test_the_shipped_prior_keeps_what_a_network_can(data_folder: Path) -> None:
    """A quarter of real slices: the error that it claims is the error that it makes."""
    import h5py

    import scoreinv as si

    with h5py.File(data_folder / "ct" / "val.h5") as file:
        hu = torch.from_numpy(file["hu"][::16, 64:192, 64:192]).float()
    found = check_denoiser(si.ct_prior(), si.mu_from_hu(hu), sigmas=(0.05, 0.5), probes=2)
    found.require(asymmetry=1.0, calibration=0.3, flip=1.0)
