"""Controllable generation: exact moments on Gaussians, what must stay exactly, files in and out, and what bad input is told."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_moments import moments
from PIL import Image
from principal_draws import principal_draws
from torch import Generator, Tensor

from scoreinv.cli import main, parser
from scoreinv.editing import TASKS, SDEdit, colourise, inpaint, posterior_method
from scoreinv.files.editing import in_gamut, read_colour, read_gray
from scoreinv.files.images import read_image
from scoreinv.files.reconstruction import read_reconstruction
from scoreinv.operators.dense import Matrix
from scoreinv.operators.grayscale import REC_709, ColourTransform, Grayscale
from scoreinv.operators.masking import Masking
from scoreinv.posterior.imputation import Imputation
from scoreinv.posterior.mmps import MMPS
from scoreinv.posterior.repaint import RePaint
from scoreinv.priors.checkpoint import save_prior
from scoreinv.priors.classifier import Classifier, ClassifierConfig, save_classifier
from scoreinv.priors.colour import CHANNELS, Padded, Rotated, gaussian_colours
from scoreinv.priors.conditional import ConditionalConfig, ConditionalDenoiser, save_conditional
from scoreinv.priors.conditional_training import ClassifierRun, ConditionalTraining, labelled
from scoreinv.priors.denoiser import Rescaled
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.problem import Problem
from scoreinv.sampling.sdedit import sdedit
from scoreinv.sampling.steps import Ancestral, Step, heun
from scoreinv.testing import check_operator


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


# the orthonormal coordinates of colour


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own, in forward mode
@pytest.mark.parametrize("weights", [REC_709, (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (-0.3, 0.2, 5.0)])
def test_colour_transform_is_orthogonal(weights: tuple[float, float, float]) -> None:
    A = ColourTransform((3, 4, 5), weights)
    check_operator(A)
    torch.testing.assert_close(A.matrix @ A.matrix.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)
    x = torch.randn(2, 3, 4, 5, generator=seeded(0), dtype=torch.float64)
    torch.testing.assert_close(A(A(x)), x, rtol=0, atol=1e-14)  # a reflection
    first = (torch.tensor(weights, dtype=torch.float64)[:, None, None] * x).sum(1) / A.length
    torch.testing.assert_close(A(x)[:, 0], first, rtol=0, atol=1e-14)
    single = x.float()
    assert float((A.H(A(single)) - single).abs().max()) < 1e-6


def test_first_coordinate_is_the_luminance_of_grayscale() -> None:
    A = Grayscale((3, 4, 5))
    x = torch.randn(3, 4, 5, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(A.coordinates().length * A.coordinates()(x)[:1], A(x), rtol=0, atol=1e-14)


def test_colour_transform_of_no_weights_is_refused() -> None:
    for weights in ((0, 0, 0), (1, 2), (1, 2, float("nan"))):
        with pytest.raises(ValueError, match="three finite numbers"):
            ColourTransform((3, 4, 5), weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ColourTransform: image_shape must be \(3, H, W\)"):
        ColourTransform((1, 4, 5))


# the exact colour prior, and priors in other coordinates


def test_exact_colour_prior() -> None:
    prior = gaussian_colours(2, 3, mean=(0.1, 0.2, 0.3), std=0.4, length=1.5)
    cov = prior.covariance.reshape(3, 2, 3, 3, 2, 3)
    for i, j in ((0, 0), (0, 2), (1, 2)):
        near = float(torch.exp(torch.tensor(-(1 + 4) / (2 * 1.5**2))))
        assert float(cov[i, 0, 0, j, 1, 2]) == pytest.approx(0.16 * CHANNELS[i][j] * near)
    assert prior.mean[:, 1, 2].tolist() == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="positive"):
        gaussian_colours(2, 0)


def test_a_rotated_prior_is_that_of_rotated_images() -> None:
    prior, Q = gaussian_colours(2, 2, mean=(0.5, 0.0, -0.5)), Grayscale((3, 2, 2)).coordinates()
    turn = torch.kron(Q.matrix, torch.eye(4, dtype=torch.float64))
    exact = GaussianPrior(Q(prior.mean), turn @ prior.covariance @ turn.T)
    x, sigma = torch.randn(5, 3, 2, 2, generator=seeded(2), dtype=torch.float64), torch.tensor(0.3)
    torch.testing.assert_close(Rotated(prior, Q)(x, sigma), exact(x, sigma))
    assert Rotated(Rescaled(prior, 0.0, 2.0), Q).scale == 2.0


@pytest.mark.parametrize("shape", [(5, 3, 7, 10), (5, 7, 10), (1, 3, 8, 8)])
def test_a_network_of_certain_sides_on_any(shape: tuple[int, ...]) -> None:
    seen = []

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x * sigma.reshape(-1, *[1] * (x.ndim - 1))

    x, sigma = torch.randn(shape, generator=seeded(3), dtype=torch.float64), torch.arange(1.0, 1 + shape[0])
    out = Padded(network, 4, chunk=2)(x, sigma)
    torch.testing.assert_close(out, x * sigma.reshape(-1, *[1] * (x.ndim - 1)).double(), atol=1e-6, rtol=1e-6)
    assert out.dtype == x.dtype and {s[-2:] for s in seen} <= {(8, 12), (8, 8)} and max(s[0] for s in seen) <= 2


# SDEdit against closed forms

ROOT = torch.randn(4, 4, generator=seeded(5), dtype=torch.float64) / 2
SMALL = GaussianPrior(torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64), ROOT @ ROOT.T + 0.05 * torch.eye(4))
GUIDE = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class Guided:
    """SDEdit with the call of a method, so that its exact moments can be taken; the data are the guide."""

    strength: float
    step: str
    n_levels: int
    samples: int = 1

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        edit = SDEdit(SMALL, self.samples, self.strength, self.step, self.n_levels, sigma_min=0.002)
        return edit(problem.y, rng)


@pytest.mark.parametrize("step", ["heun", "ancestral"])
def test_sdedit_draws_what_its_head_says(step: str) -> None:
    """Mean and covariance, eqs. (2) and (3) of `sampling.sdedit`; the error falls with the number of levels."""
    strength, errors = 0.7, []
    values, vectors = torch.linalg.eigh(SMALL.covariance)
    gain = values / (values + strength**2)
    slope = gain.sqrt() if step == "heun" else gain
    variance = strength**2 * (gain if step == "heun" else gain + gain**2)
    mean = SMALL.mean.flatten() + vectors @ (slope * (vectors.T @ (GUIDE - SMALL.mean).flatten()))
    covariance = vectors @ torch.diag(variance) @ vectors.T
    for n in (20, 80):
        got_mean, got = moments(Guided(strength, step, n), Problem(Masking(torch.ones(2, 2)), GUIDE))
        errors.append(max(float((got_mean - mean).abs().max()), float((got - covariance).abs().max())))
    assert errors[1] < 0.5 * errors[0], errors
    assert errors[1] < {"heun": 3e-3, "ancestral": 0.04}[step], errors


def test_sdedit_in_the_unit_of_the_prior() -> None:
    rescaled = Rescaled(SMALL, 3.0, 0.5)
    plain = sdedit(SMALL, GUIDE, 0.6, 3, seeded(0), n_levels=6)
    torch.testing.assert_close(sdedit(rescaled, 3 + 0.5 * GUIDE, 0.6, 3, seeded(0), n_levels=6), 3 + 0.5 * plain)


@pytest.mark.parametrize("step", [None, heun, Ancestral(0.5)])
def test_sdedit_keeps_what_it_must_and_each_draw_is_its_own(step: Step | None) -> None:
    kept = torch.tensor([[True, False], [False, True]])
    three = sdedit(SMALL, GUIDE, 0.5, 3, seeded(1), n_levels=8, step=step, kept=kept)
    assert torch.equal(three[:, kept], GUIDE[kept].expand(3, 2))
    assert (three[:, ~kept] != GUIDE[~kept]).all()
    torch.testing.assert_close(sdedit(SMALL, GUIDE, 0.5, 2, seeded(1), n_levels=8, step=step, kept=kept), three[:2])
    free = sdedit(SMALL, GUIDE, 0.5, 3, seeded(1), n_levels=8, step=step)
    assert (free != three).all(), "the kept pixels were not heard of by the others"


def test_sdedit_says_what_it_expects() -> None:
    for strength in (0.0, 0.005, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="0 < sigma_min <= strength"):
            sdedit(SMALL, GUIDE, strength, 1, seeded(0))
    with pytest.raises(ValueError, match="n of at least 1"):
        sdedit(SMALL, GUIDE, 0.5, 0, seeded(0))
    with pytest.raises(ValueError, match="no step is named 'huen'"):
        SDEdit(SMALL, step="huen")


# posterior methods against exact posteriors

COLOURS = gaussian_colours(2, 2, mean=(0.2, 0.0, -0.2))
GRAY = Grayscale((3, 2, 2))
COLOUR_PROBLEM = Problem(GRAY, GRAY(principal_draws(COLOURS, 1, seeded(1))[0]), 0.0)
OPEN = slice(4, None)
"""The two coordinates of colour that a gray image leaves open."""


def rotated_problem() -> Problem:
    mask = torch.zeros(3, 2, 2)
    mask[0] = 1
    Q = GRAY.coordinates()
    return Problem(Masking(mask), torch.cat([COLOUR_PROBLEM.y / Q.length, torch.zeros(2, 2, 2).double()]), 0.0)


def in_coordinates(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    turn = torch.kron(GRAY.coordinates().matrix, torch.eye(4, dtype=torch.float64))
    return turn @ mean.flatten(), turn @ covariance @ turn.T


def compared(mean: Tensor, covariance: Tensor) -> tuple[float, float]:
    """Error of the mean in posterior standard deviations, and the covariance's relative error, of what a gray image leaves open."""
    exact = COLOURS.posterior(COLOUR_PROBLEM)
    true_mean, true = in_coordinates(exact.mean, exact.covariance)
    bias = ((mean - true_mean)[OPEN] / true.diagonal()[OPEN].sqrt()).abs().max()
    torch.testing.assert_close(mean[:4], true_mean[:4], rtol=0, atol=1e-6)
    assert float(covariance[:4].abs().max()) < 1e-6, "the luminance varies"
    return float(bias), float((covariance - true)[OPEN, OPEN].norm() / true[OPEN, OPEN].norm())


def test_colourisation_by_the_exact_method_gives_the_exact_posterior() -> None:
    """MMPS has the exact posterior denoiser of a Gaussian; Heun's steps follow its flow."""
    mean, covariance = moments(MMPS(COLOURS, n_levels=50, sigma_max=200.0, step="heun", iterations=12), COLOUR_PROBLEM)
    bias, error = compared(*in_coordinates(mean, covariance))
    assert bias < 0.01 and error < 0.02


def test_colourisation_by_repaint_in_orthonormal_coordinates() -> None:
    """20 levels leave a fifth of the variance out, as everywhere in repaint's table; without resampling the mean is off."""
    prior = Rotated(COLOURS, GRAY.coordinates())
    once, often = (
        compared(*moments(RePaint(prior, n_levels=20, jump_length=1, resamplings=n), rotated_problem())) for n in (1, 4)
    )
    assert once[0] > 0.1 and often[0] < 0.06 and often[1] < 0.4


def test_imputation_of_luminance_is_imputation_of_the_first_coordinate() -> None:
    """Replacing with Aᵀ / s² and replacing a channel of the rotated image are one thing."""
    plain = moments(Imputation(COLOURS, n_levels=15, snr=0), COLOUR_PROBLEM)
    turned = moments(Imputation(Rotated(COLOURS, GRAY.coordinates()), n_levels=15, snr=0), rotated_problem())
    torch.testing.assert_close(in_coordinates(*plain), turned, rtol=1e-6, atol=1e-8)


def test_imputation_tends_to_the_posterior_of_independent_coordinates() -> None:
    """There nothing is to be learnt of the known ones: what is left is the predictor's own error, which falls with the levels."""
    prior = GaussianPrior(torch.zeros(3, 1, 1).double(), 0.25 * torch.eye(3).double())
    A = Grayscale((3, 1, 1))
    problem = Problem(A, torch.full((1, 1, 1), 0.3).double(), 0.0)
    exact = prior.posterior(problem)
    errors = []
    for n in (40, 160):
        mean, covariance = moments(Imputation(prior, n_levels=n, snr=0), problem)
        torch.testing.assert_close(mean, exact.mean.flatten(), rtol=0, atol=2e-3)
        errors.append(float((covariance - exact.covariance).norm() / exact.covariance.norm()))
    assert errors[1] < 0.4 * errors[0] and errors[1] < 0.1, errors


def test_imputation_with_noise_leaves_the_data_below_their_noise() -> None:
    prior = GaussianPrior(torch.zeros(2).double(), torch.eye(2).double())
    problem = Problem(Masking([1, 0]), torch.tensor([1.0, 0.0]).double(), 0.5)
    exact = prior.posterior(problem)
    mean, covariance = moments(Imputation(prior, n_levels=80, snr=0), problem)
    assert float(mean[0]) == pytest.approx(float(exact.mean[0]), abs=0.05)
    assert float(covariance[0, 0]) == pytest.approx(float(exact.covariance[0, 0]), rel=0.35)


def test_imputation_with_a_corrector_keeps_the_data_and_draws_alone_what_it_draws_in_a_batch() -> None:
    method = Imputation(COLOURS, n_levels=6, samples=3)
    both = Problem(GRAY, torch.stack([COLOUR_PROBLEM.y, -COLOUR_PROBLEM.y]), 0.0)
    x = method(both, seeded(0))
    torch.testing.assert_close(GRAY(x), both.y.expand(3, *both.y.shape))
    torch.testing.assert_close(method(COLOUR_PROBLEM, seeded(0)), x[:, 0])


def test_imputation_refuses_what_it_cannot_replace() -> None:
    problem = Problem(Matrix([[1.0, 0.0], [1.0, 1.0]]), torch.zeros(2), 0.0)
    with pytest.raises(ValueError, match=r"must be orthogonal .* Matrix are not; DDNM"):
        Imputation(SMALL)(problem, seeded(0))
    with pytest.raises(ValueError, match="snr >= 0"):
        Imputation(SMALL, snr=-1.0)


def test_inpainting_by_the_exact_method_gives_the_exact_posterior() -> None:
    unknown = torch.tensor([[True, False], [True, False]])
    problem = Problem(Masking(~unknown), torch.where(unknown, 0, GUIDE), 0.0)
    exact = SMALL.posterior(problem)
    mean, covariance = moments(MMPS(SMALL, n_levels=80, sigma_max=200.0, step="heun", iterations=6), problem)
    torch.testing.assert_close(mean, exact.mean.flatten(), rtol=0, atol=5e-3)
    torch.testing.assert_close(covariance, exact.covariance, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", ["imputation", "repaint", "ddnm", "dps", "red_diff"])
def test_known_pixels_and_luminance_stay_exactly(name: str) -> None:
    """Whatever a method leaves of them."""
    prior = gaussian_colours(3, 4)
    few = {"n_levels": 4}

    def build(p: Any) -> Any:
        return posterior_method(name, few, p)

    image = prior.draw(1, seeded(2))[0].float()
    unknown = torch.zeros(3, 4, dtype=torch.bool)
    unknown[1:, 2] = True
    draws = inpaint(build(prior), image, unknown, seeded(0))
    assert torch.equal(draws[0][:, ~unknown], image[:, ~unknown])
    assert (draws[0][:, unknown] != image[:, unknown]).all()
    gray = Grayscale((3, 3, 4))(image)[0]
    colours = colourise(build, prior, gray, seeded(0), rotate=name == "repaint")
    torch.testing.assert_close(Grayscale((3, 3, 4))(colours)[0, 0], gray, rtol=0, atol=5e-7)
    assert float((colours[0, 0] - colours[0, 2]).abs().max()) > 1e-3, "no colour"


# files


def test_colours_that_cannot_be_shown_keep_their_luminance() -> None:
    rgb = torch.randn(4, 3, 8, 8, generator=seeded(4)) * 0.6 + 0.5
    A = Grayscale((3, 8, 8))
    shown = in_gamut(rgb)
    assert float(shown.min()) >= 0 and float(shown.max()) <= 1
    torch.testing.assert_close(A(shown), A(rgb).clamp(0, 1), rtol=0, atol=1e-6)
    inside = torch.rand(3, 8, 8, generator=seeded(5))
    torch.testing.assert_close(in_gamut(inside), inside)


NETWORK = UNetConfig(channels=3, widths=(16, 16), attention=(), unshuffle=1, embedding=16, sigma_data=0.3)
"""Untrained its last layer is 0, and D = x s² / (s² + σ²), the exact denoiser of independent numbers N(0, s²)."""


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("priors")
    for name, channels in (("colour", 3), ("gray", 1), ("two", 2)):
        config = UNetConfig(**{**NETWORK.to_dict(), "channels": channels})
        save_prior(EDMDenoiser(config), folder / f"{name}.safetensors", {"description": "exact: independent numbers"})
    return {name: str(folder / f"{name}.safetensors") for name in ("colour", "gray", "two")}


FEW = ["--set", "n_levels=3", "--quiet"]
BOX = ["--box", "2", "1", "3", "4"]
HOLE = np.zeros((9, 11), dtype=bool)
HOLE[1:5, 2:5] = True
"""The box in an image of 9 rows and 11 columns, no multiple of what the network takes."""


def noise_picture(shape: tuple[int, ...], dtype: Any = np.uint8, high: int = 256, low: int = 0) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def edit(task: str, image: Path, out: Path, *options: str) -> Path:
    assert main(["edit", task, str(image), "--out", str(out), *FEW, *options]) == 0
    return out


def test_eight_bit_gray_and_hu_come_back_as_they_were(tmp_path: Path, priors: dict[str, str]) -> None:
    """PNG, int16 TIFF, .npy: in the hole something else, around it the same values in the same places."""
    gray, hu = noise_picture((9, 11)), noise_picture((9, 11), np.int16, 2000, -1000)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    out = edit("inpaint", tmp_path / "gray.png", tmp_path / "out.png", *BOX, "--prior", priors["gray"])
    after = np.asarray(Image.open(out))
    assert np.array_equal(after[~HOLE], gray[~HOLE]) and (after[HOLE] != gray[HOLE]).mean() > 0.8
    np.save(tmp_path / "hu.npy", hu)
    import tifffile

    tifffile.imwrite(tmp_path / "hu.tif", hu)
    for source in ("hu.npy", "hu.tif"):
        for result in ("out.npy", "out.tif"):
            out = edit(
                "inpaint", tmp_path / source, tmp_path / result, *BOX, "--prior", priors["gray"], "--samples", "2"
            )
            after = read_image(out, 1.0).hu
            assert after.shape == (2, 9, 11)
            assert np.array_equal(after[:, ~HOLE], np.stack([hu[~HOLE]] * 2)) and (after[:, HOLE] != hu[HOLE]).all()


def test_reconstruction_file_of_a_dicom_slice(tmp_path: Path) -> None:
    pydicom_data = pytest.importorskip("pydicom.data")
    source = Path(str(pydicom_data.get_testdata_file("CT_small.dcm")))
    box = ["--box", "40", "60", "8", "6", "--prior", "ct-256-fast", "--set", "resamplings=1", "--samples", "2"]
    picture = tmp_path / "p.png"
    out = edit("inpaint", source, tmp_path / "out.h5", *box, "--picture", str(picture))
    result = read_reconstruction(out)
    hu, hole = read_image(source), np.zeros((128, 128), dtype=bool)
    hole[60:66, 40:48] = True
    assert result.mean_hu is not None and result.pixel_mm == pytest.approx(hu.pixel_mm)
    np.testing.assert_allclose(result.mean_hu.numpy()[~hole], hu.hu[0][~hole], atol=1e-3)
    assert result.settings["task"] == "inpaint" and result.settings["unknown_pixels"] == 48
    assert result.settings["method"] == "repaint" and len(result.settings["prior"]["sha256"]) == 64
    assert result.settings["network_evaluations_per_image"] == 3
    assert result.std is not None and (result.std[torch.from_numpy(hole)] > 0).all()
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("depth", ["8 bits", "16 bits"])
def test_colour_pictures_come_back_as_they_were(tmp_path: Path, priors: dict[str, str], depth: str) -> None:
    import tifffile

    if depth == "8 bits":
        rgb, source, result = noise_picture((9, 11, 3)), tmp_path / "rgb.png", tmp_path / "out.png"
        Image.fromarray(rgb).save(source)
    else:
        rgb, source, result = noise_picture((9, 11, 3), np.uint16, 65536), tmp_path / "rgb.tif", tmp_path / "out.tif"
        tifffile.imwrite(source, rgb, photometric="rgb")
    mask = Image.fromarray((255 * HOLE).astype(np.uint8))
    mask.save(tmp_path / "mask.png")
    out = edit("inpaint", source, result, "--mask", str(tmp_path / "mask.png"), "--prior", priors["colour"])
    after = np.asarray(Image.open(out)) if depth == "8 bits" else tifffile.imread(out)
    assert after.dtype == rgb.dtype and np.array_equal(after[~HOLE], rgb[~HOLE])
    assert (after[HOLE] != rgb[HOLE]).mean() > 0.8


def test_photographs_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    rgb = noise_picture((4, 6, 3))
    picture = Image.fromarray(rgb)
    tags = picture.getexif()
    tags[0x0112] = 6  # rotate by 90 degrees clockwise to show
    picture.save(tmp_path / "camera.png", exif=tags)
    values = read_colour(tmp_path / "camera.png").values
    np.testing.assert_allclose(values.permute(1, 2, 0).numpy(), np.rot90(rgb, -1) / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "rgb"])
@pytest.mark.parametrize("method", ["repaint", "imputation", "ddnm"])
def test_colourised_pictures_have_the_luminance_of_the_gray_one(
    tmp_path: Path, priors: dict[str, str], kind: str, method: str
) -> None:
    gray = noise_picture((9, 11), np.uint8, 200, 50)
    saved = {"8 bits": gray, "16 bits": gray.astype(np.uint16) * 257, "rgb": np.stack([gray] * 3, axis=-1)}[kind]
    Image.fromarray(saved).save(tmp_path / "gray.png")
    options = ["--prior", priors["colour"], "--method", method]
    values = np.load(edit("colourise", tmp_path / "gray.png", tmp_path / "out.npy", *options, "--samples", "2"))
    assert values.shape == (2, 3, 9, 11) and values.std(axis=1).mean() > 0.01
    np.testing.assert_allclose(np.tensordot(values, REC_709, (1, 0)), np.stack([gray / 255] * 2), atol=1e-6)
    shown = ["--picture", str(tmp_path / "shown.png")]
    picture = np.asarray(Image.open(edit("colourise", tmp_path / "gray.png", tmp_path / "out.png", *options, *shown)))
    panels = np.asarray(Image.open(tmp_path / "shown.png").convert("RGB")).astype(int)
    assert (np.ptp(panels, axis=-1) > 20).mean() > 0.05, "no colour in the picture"
    assert np.abs(picture @ REC_709 - gray).max() < 0.51, "more than the rounding of red, green and blue"


def test_mean_of_colours_is_that_of_the_exact_posterior(tmp_path: Path, priors: dict[str, str]) -> None:
    """Of N(0, s²) numbers, in u = 2 p − 1: the mean is A⁺ y."""
    gray = noise_picture((9, 11))
    Image.fromarray(gray).save(tmp_path / "gray.png")
    options = ["--prior", priors["colour"], "--samples", "60", "--set", "resamplings=1", "--set", "sigma_max=3"]
    values = np.load(edit("colourise", tmp_path / "gray.png", tmp_path / "out.npy", *options, "--seed", "1"))
    w = np.array(REC_709)
    expected = w[:, None, None] / (w @ w) * (2 * (gray / 255.0) - 1)
    assert abs((2 * values.mean(axis=0) - 1 - expected)[:, 1:].mean(axis=(1, 2))).max() < 0.03


def test_several_pngs_and_seeds(tmp_path: Path, priors: dict[str, str]) -> None:
    Image.fromarray(noise_picture((9, 11))).save(tmp_path / "gray.png")
    options = [*BOX, "--prior", priors["gray"], "--samples", "2"]
    edit("inpaint", tmp_path / "gray.png", tmp_path / "out.png", *options)
    first, second = (np.asarray(Image.open(tmp_path / f"out-{k}.png")) for k in (1, 2))
    assert not (tmp_path / "out.png").exists() and (first != second).any()
    edit("inpaint", tmp_path / "gray.png", tmp_path / "again.png", *options)
    assert (tmp_path / "again-2.png").read_bytes() == (tmp_path / "out-2.png").read_bytes()
    alone = edit("inpaint", tmp_path / "gray.png", tmp_path / "one.png", *BOX, "--prior", priors["gray"])
    assert alone.read_bytes() == (tmp_path / "out-1.png").read_bytes()
    other = edit("inpaint", tmp_path / "gray.png", tmp_path / "s.png", *BOX, "--prior", priors["gray"], "--seed", "1")
    assert other.read_bytes() != alone.read_bytes()


def test_strokes(tmp_path: Path, priors: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A painting that a paint program saved in three equal channels; only what the mask shows changes; strength 0.5 by default."""
    gray = noise_picture((9, 11))
    Image.fromarray(np.stack([gray] * 3, axis=-1)).save(tmp_path / "stroke.png")
    options = ["--prior", priors["gray"], "--set", "step=heun"]
    out = edit("stroke", tmp_path / "stroke.png", tmp_path / "out.png", *options, *BOX, "--strength", "0.2")
    after = np.asarray(Image.open(out))
    assert np.array_equal(after[~HOLE], gray[~HOLE]) and (after[HOLE] != gray[HOLE]).mean() > 0.8
    settings = read_reconstruction(edit("stroke", tmp_path / "stroke.png", tmp_path / "out.h5", *options)).settings
    assert (settings["strength"], settings["step"], settings["method"]) == (0.5, "heun", "sdedit")
    assert "1 image by sdedit" in capsys.readouterr().out


def test_a_pipeline_of_diffusers_is_a_colour_prior(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "pipe" / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "pipe" / "scheduler")
    rgb = noise_picture((9, 11, 3))
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    out = edit("inpaint", tmp_path / "rgb.png", tmp_path / "out.h5", *BOX, "--prior", str(tmp_path / "pipe"))
    result = read_reconstruction(out)
    assert result.samples.shape == (1, 3, 9, 11) and result.mean_hu is None
    assert result.settings["prior"]["name"] == "pipe" and len(result.settings["prior"]["sha256"]) == 64
    np.testing.assert_allclose(result.samples[0].permute(1, 2, 0).numpy()[~HOLE], rgb[~HOLE] / 255, atol=1e-6)


def test_other_readers(tmp_path: Path) -> None:
    """Masks of one bit and .npy; gray with transparency; CT in colour commands is the display window."""
    Image.fromarray(noise_picture((4, 5))).convert("LA").save(tmp_path / "la.png")
    np.testing.assert_allclose(
        read_gray(tmp_path / "la.png").values.numpy(), -1000 + 2000 / 255 * noise_picture((4, 5)), atol=1e-3
    )


# towards a class


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A classifier that says dark (0) or bright (1), and untrained networks that could be told two classes, or none."""
    folder = tmp_path_factory.mktemp("classes")
    network = UNetConfig(**{**NETWORK.to_dict(), "channels": 1})
    save_classifier(_trained_classifier(network), folder / "brightness.safetensors", {"description": "dark or bright"})
    for name, channels in (("class-gray", 1), ("class-colour", 3)):
        config = UNetConfig(**{**NETWORK.to_dict(), "channels": channels})
        model = ConditionalDenoiser(ConditionalConfig(config, n_classes=2))
        save_conditional(model, folder / f"{name}.safetensors", {"description": "exact: independent numbers"})
    nothing = ConditionalDenoiser(ConditionalConfig(network, image_channels=1))
    save_conditional(nothing, folder / "no-classes.safetensors", {"description": "told an image"})
    return {p.stem: str(p) for p in folder.glob("*.safetensors")}


def _trained_classifier(network: UNetConfig) -> Classifier:
    """Of constant images -0.5 and 0.5 under noise: an easy task, a few steps are enough."""
    images = torch.cat([torch.full((8, 1, 8, 8), -0.5), torch.full((8, 1, 8, 8), 0.5)])
    labels = torch.arange(16) // 8
    config = ConditionalTraining(steps=60, batch_size=16, lr=3e-3, warmup=5, ema=(0.9,), p_mean=-0.7, p_std=1.0)
    run = ClassifierRun(ClassifierConfig(network, 2), config, labelled(images, labels))
    for _ in range(config.steps):
        run.advance()
    return run.averages[0]


def brightness(path: Path, where: np.ndarray | None = None) -> float:
    values = np.load(path).astype(float)
    return float(values.mean() if where is None else values[..., where].mean())


@pytest.mark.parametrize("task", ["stroke", "inpaint"])
def test_a_classifier_turns_the_prior(
    tmp_path: Path, priors: dict[str, str], classes: dict[str, str], task: str
) -> None:
    """Towards dark or bright, more so when asked for more, and not at all with strength 0; known pixels stay."""
    np.save(tmp_path / "x.npy", np.zeros((9, 11), np.int16))
    options = ["--prior", priors["gray"], *(BOX if task == "inpaint" else ["--strength", "2"])]
    of = ["--classifier", classes["brightness"], "--class"]
    where = HOLE if task == "inpaint" else None

    def run(name: str, *more: str) -> float:
        return brightness(edit(task, tmp_path / "x.npy", tmp_path / name, *options, *more), where)

    plain = run("plain.npy")
    assert run("off.npy", *of, "1", "--class-strength", "0") == plain
    dark, bright, brighter = (
        run("0.npy", *of, "0"),
        run("1.npy", *of, "1"),
        run("2.npy", *of, "1", "--class-strength", "4"),
    )
    assert dark < plain < bright < brighter
    if task == "inpaint":
        assert (np.load(tmp_path / "2.npy")[..., ~HOLE] == 0).all()


def test_a_prior_of_classes_needs_no_classifier(tmp_path: Path, classes: dict[str, str]) -> None:
    """Told a class or none; in colour too. Untrained, the class changes nothing, which the file's record says."""
    np.save(tmp_path / "x.npy", np.zeros((9, 11), np.int16))
    _save(noise_picture((9, 11, 3)))(tmp_path / "x.png")
    for image, name in (("x.npy", "class-gray"), ("x.png", "class-colour")):
        out = tmp_path / f"{name}.h5"
        edit("inpaint", tmp_path / image, out, *BOX, "--prior", classes[name], "--class", "1", "--class-strength", "2")
        record = (
            read_reconstruction(out).settings if name == "class-gray" else {"class": {"c": 1}, "prior": {"name": name}}
        )
        assert record["class"]["c"] == 1 and record["prior"]["name"] == name
    edit("inpaint", tmp_path / "x.npy", tmp_path / "none.npy", *BOX, "--prior", classes["class-gray"])


def test_samples_of_a_class(tmp_path: Path, priors: dict[str, str], classes: dict[str, str]) -> None:
    def sheet(name: str, *options: str) -> float:
        command = ["sample", "--out", str(tmp_path / name), "--side", "16", "--samples", "2", "--quiet", *options]
        assert main(command) == 0
        return float(np.asarray(Image.open(tmp_path / name).convert("L")).mean())

    of = ["--prior", priors["gray"], "--classifier", classes["brightness"], "--class-strength", "4", "--class"]
    assert sheet("dark.png", *of, "0") < sheet("bright.png", *of, "1")
    told = ["--prior", classes["class-gray"], "--class", "1"]
    assert sheet("told.png", *told) == sheet("again.png", *told)


@pytest.mark.parametrize(
    ("name", "kind"), [("brightness", "classifier of noisy images"), ("class-gray", "conditional prior")]
)
def test_info_says_what_they_are(
    classes: dict[str, str], capsys: pytest.CaptureFixture[str], name: str, kind: str, tmp_path: Path
) -> None:
    assert main(["info", classes[name]]) == 0
    assert re.match(rf"{name}.safetensors: {kind}, 0\.\d\d million weights\n", capsys.readouterr().out)
    for suffix in (".safetensors", ".json"):
        shutil.copy(Path(classes[name]).with_suffix(suffix), tmp_path / f"x{suffix}")
    with (tmp_path / "x.safetensors").open("ab") as file:
        file.write(b"0")
    assert main(["info", str(tmp_path / "x.safetensors")]) == 2
    assert "checksum differs" in capsys.readouterr().err


# what bad input is told


def _save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(array).save(path)


BAD: dict[str, tuple[list[str], str]] = {
    "mask of another size": (["inpaint", "gray.png", "--mask", "small.png"], "the mask has the shape (4, 5)"),
    "empty mask": (["inpaint", "gray.png", "--mask", "black.png"], "mask is empty"),
    "mask of everything": (["inpaint", "gray.png", "--mask", "white.png"], "covers everything"),
    "stroke with an empty mask": (["stroke", "gray.png", "--mask", "black.png"], "mask is empty"),
    "no mask": (["inpaint", "gray.png"], "give --mask MASK.png"),
    "mask that is no picture": (["inpaint", "gray.png", "--mask", "text.png"], "cannot be read as a picture"),
    "no such mask": (["inpaint", "gray.png", "--mask", "nothing.png"], "no such file"),
    "box outside": (["inpaint", "gray.png", "--box", "8", "0", "4", "4"], "inside the image of 11 x 9"),
    "box of nothing": (["inpaint", "gray.png", "--box", "1", "1", "0", "4"], "inside the image of 11 x 9"),
    "colour for a gray prior": (["inpaint", "rgb.png", *BOX], "is a colour picture"),
    "gray for a colour prior": (["inpaint", "gray.png", *BOX, "--prior", "colour"], "is a gray picture"),
    "HU for a colour prior": (["inpaint", "hu.npy", *BOX, "--prior", "colour"], "a picture is expected"),
    "colour to colourise": (["colourise", "rgb.png", "--prior", "colour"], "is a colour picture"),
    "colourise by a gray prior": (["colourise", "gray.png"], "needs a prior of colour images"),
    "prior of two channels": (["inpaint", "gray.png", *BOX, "--prior", "two"], "has 2 channels"),
    "no such prior": (["inpaint", "gray.png", *BOX, "--prior", "ct-255"], "no prior is named"),
    "folder that is no pipeline": (["inpaint", "gray.png", *BOX, "--prior", "."], "unet"),
    "sixteen bits of nothing": (["inpaint", "deep.png", *BOX], "Hounsfield units cannot be told"),
    "strength 0": (["stroke", "gray.png", "--strength", "0"], "between 0.01 and 80"),
    "strength too large": (["stroke", "gray.png", "--strength", "500"], "between 0.01 and 80"),
    "strength that is none": (["stroke", "gray.png", "--strength", "nan"], "strength should be a number"),
    "strength of inpaint": (["inpaint", "gray.png", *BOX, "--strength", "1"], "--strength is of stroke"),
    "method of stroke": (["stroke", "gray.png", "--method", "dps"], "--method is of inpaint and colourise"),
    "mask of colourise": (["colourise", "gray.png", "--mask", "white.png"], "--mask is of inpaint and stroke"),
    "no such task": (["colorise", "gray.png"], "Did you mean 'colourise'"),
    "no such method": (["inpaint", "gray.png", *BOX, "--method", "repiant"], "Did you mean 'repaint'"),
    "method without a prior": (["inpaint", "gray.png", *BOX, "--method", "cgls"], "has no prior"),
    "no such setting": (["inpaint", "gray.png", *BOX, "--set", "resampling=2"], "Did you mean 'resamplings'"),
    "no such step": (["stroke", "gray.png", "--set", "step=hun"], "no step is named 'hun'"),
    "draws of a method that has none": (
        ["inpaint", "gray.png", *BOX, "--method", "pnp_admm", "--samples", "2"],
        "no samples",
    ),
    "no samples": (["inpaint", "gray.png", *BOX, "--samples", "0"], "samples of at least 1"),
    "kind of result": (["inpaint", "gray.png", *BOX, "--out", "out.jpg"], "ends in one of"),
    "result in no folder": (["inpaint", "gray.png", *BOX, "--out", "no/out.png"], "does not exist"),
    "result over the input": (["inpaint", "gray.png", *BOX, "--out", "gray.png"], "is an input"),
    "several slices": (["inpaint", "volume.npy", *BOX], "choose one with --slice"),
    "no such image": (["inpaint", "nothing.png", *BOX], "no such file"),
    "device": (["inpaint", "gray.png", *BOX, "--device", "gpu"], "--device"),
    "class of a prior that knows none": (
        ["inpaint", "gray.png", *BOX, "--class", "0"],
        "expected a prior that knows classes",
    ),
    "class that there is not": (["stroke", "gray.png", "--class", "2", "--prior", "class-gray"], "class"),
    "class that the classifier has not": (
        ["stroke", "gray.png", "--class", "2", "--classifier", "brightness"],
        "class",
    ),
    "classifier without a class": (["stroke", "gray.png", "--classifier", "brightness"], "--classifier needs a class"),
    "strength without a class": (["stroke", "gray.png", "--class-strength", "2"], "--class-strength needs a class"),
    "negative strength": (
        ["stroke", "gray.png", "--class", "0", "--class-strength", "-1", "--prior", "class-gray"],
        "of at least 0",
    ),
    "prior for a classifier": (["stroke", "gray.png", "--class", "0", "--classifier", "gray"], "expected format"),
    "network told images": (["stroke", "gray.png", "--prior", "no-classes"], "was made without classes"),
    "classifier of gray images for colour": (
        ["stroke", "rgb.png", "--prior", "colour", "--class", "0", "--classifier", "brightness"],
        "is for images of 1 channel",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(
    tmp_path: Path,
    priors: dict[str, str],
    classes: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = {
        "gray": noise_picture((9, 11)), "rgb": noise_picture((9, 11, 3)), "small": noise_picture((4, 5)), "black": np.zeros((9, 11), np.uint8),
        "white": np.full((9, 11), 255, np.uint8), "deep": noise_picture((9, 11), np.uint16, 65536),
    }  # fmt: skip
    for name, pixels in pictures.items():
        _save(pixels)(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "hu.npy", noise_picture((9, 11), np.int16))
    np.save(tmp_path / "volume.npy", noise_picture((3, 9, 11), np.int16))
    arguments, words = BAD[case]
    arguments = [(priors | classes).get(a, a) for a in arguments]
    for option, value in (("--prior", priors["gray"]), ("--out", "out.png")):
        if option not in arguments:
            arguments += [option, value]
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(["edit", *arguments, *(FEW if "--set" not in arguments else ["--quiet"])]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and words in errors[0] and errors[0].startswith("scoreinv: error: "), errors
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    shutil.rmtree(tmp_path)


DOCS = (Path(__file__).parents[1] / "docs" / "editing.md").read_text(encoding="utf-8")


def test_the_page_on_editing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL):
        exec(compile(code, "editing.md", "exec"), {})  # noqa: S102 (our own page)
    assert "torch.Size([2, 3, 8, 8])" in capsys.readouterr().out
    commands = [
        line.split()[1:] for block in re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()
    ]
    assert {parser().parse_args(c).task for c in commands} == set(TASKS)
