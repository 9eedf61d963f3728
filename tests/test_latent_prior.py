"""Priors of latents: their parts, their training, their files, and the commands from images to a reconstruction."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from scoreinv.cli import main
from scoreinv.operators.dense import Matrix
from scoreinv.posterior.dps import DPS
from scoreinv.posterior.latent_daps import LatentDAPS
from scoreinv.priors.autoencoder import AutoencoderConfig, KLAutoencoder, save_autoencoder
from scoreinv.priors.crops import ImageSet
from scoreinv.priors.denoiser import Counted, Rescaled, scale_of
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.latent import (
    Identity,
    LatentNetwork,
    LatentPrior,
    RescaledImages,
    is_latent,
    latents,
    load_latent_prior,
    save_latent_prior,
)
from scoreinv.priors.latent_training import LatentTrainer, latent_psnr, train_latent_run
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.priors.parallel import Processes
from scoreinv.priors.shipped import ct_prior, image_prior, prior_card
from scoreinv.priors.training import TrainConfig
from scoreinv.problem import Problem
from scoreinv.sampling.unconditional import generate

AUTOENCODER = AutoencoderConfig(factor=2, latent_channels=2, widths=(4, 4))
NETWORK = UNetConfig(channels=2, widths=(16, 16), unshuffle=1, attention=(), embedding=16, sigma_data=1.0)
SHORT = TrainConfig(steps=8, batch_size=2, crop=8, whole=16, warmup=2, ema=(0.9, 0.5))


@pytest.fixture(scope="module")
def data() -> ImageSet:
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 300, (4, 8, 8)).repeat(4, axis=1).repeat(4, axis=2)
    return ImageSet(list(coarse.astype(np.int16)), ["a", "a", "b", "c"])


@pytest.fixture(scope="module")
def autoencoder(data: ImageSet) -> KLAutoencoder:
    torch.manual_seed(0)
    model = KLAutoencoder(AUTOENCODER).requires_grad_(False)
    model.standardise([torch.from_numpy(image[None, None] / 1000).float() for image in data.images])
    return model


def trainer(data: ImageSet, autoencoder: KLAutoencoder, config: TrainConfig = SHORT, sha: str = "one") -> LatentTrainer:
    return LatentTrainer(NETWORK, config, data, autoencoder, sha)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# Parts


@dataclasses.dataclass(frozen=True)
class Halved(Identity):
    """Images (4,) of latents (4,): twice as large."""

    def encode(self, x: Tensor) -> Tensor:
        return x / 2

    def decode(self, z: Tensor) -> Tensor:
        return 2 * z


def test_wrapped_priors_have_latents() -> None:
    """In 1/mm, counted: the parts are those of the prior inside, images and the residual have the unit outside."""
    inner = LatentPrior(lambda z, sigma: z / (1 + sigma**2), Halved(), residual_std=0.1)
    counted = Counted(Rescaled(inner, 0.02, 0.02))
    found, z = latents(counted), torch.ones(3, 4)
    torch.testing.assert_close(found.autoencoder.decode(z), torch.full((3, 4), 0.02 + 0.02 * 2))
    torch.testing.assert_close(found.autoencoder.encode(found.autoencoder.decode(z)), z)
    assert found.autoencoder.latent_shape((4,)) == (4,) and found.residual_std == pytest.approx(0.002)
    torch.testing.assert_close(found.denoiser(z, torch.tensor(1.0)), z / 2)
    assert counted.n_evaluations == 3 and scale_of(found.denoiser) == 1
    pixels = GaussianPrior(torch.zeros(4), torch.eye(4))
    plain = latents(Rescaled(pixels, 1.0, 3.0))
    assert plain.denoiser is pixels and isinstance(plain.autoencoder, RescaledImages) and plain.residual_std == 0
    assert latents(inner) is inner


def test_methods_for_images_refuse_latents(autoencoder: KLAutoencoder) -> None:
    prior = LatentPrior(lambda z, sigma: z, autoencoder)
    problem = Problem(Matrix(torch.eye(64), image_shape=(8, 8)), torch.zeros(64), 0.1)
    with pytest.raises(ValueError, match=r"one of latents and denoises no images: take a method .*latent_daps"):
        DPS(Rescaled(prior, 0.02, 0.02))(problem, seeded())
    odd = Problem(Matrix(torch.eye(63), image_shape=(9, 7)), torch.zeros(63), 0.1)
    with pytest.raises(ValueError, match=r"multiples of 2, got \(9, 7\)"):
        LatentDAPS(prior)(odd, seeded())


def test_a_network_takes_latents_of_any_size(rng: Generator) -> None:
    """Padded and cropped; a batch gives what its members give alone."""
    torch.manual_seed(0)
    model = EDMDenoiser(NETWORK).eval().requires_grad_(False)
    torch.nn.init.normal_(model.unet.head[-1].weight, std=0.1)  # type: ignore[arg-type, union-attr]
    prior, z, sigma = LatentNetwork(model), torch.randn(2, 2, 5, 8, generator=rng), torch.tensor([0.3, 2.0])
    whole = prior(z, sigma)
    assert whole.shape == z.shape
    torch.testing.assert_close(prior(z[1:], sigma[1:]), whole[1:], rtol=1e-4, atol=1e-5)
    padded = torch.cat([z, z[:, :, [3]]], dim=2)
    torch.testing.assert_close(model(padded, sigma)[:, :, :5], whole)
    assert prior(z.double(), sigma).dtype == torch.float64
    for wrong in (z[:, 0], z[:, :1]):
        with pytest.raises(ValueError, match=r"expected latents \(batch, 2, h, w\)"):
            prior(wrong, sigma)


def test_images_of_a_latent_prior_are_decoded_draws(autoencoder: KLAutoencoder) -> None:
    exact = GaussianPrior(torch.zeros(2, 4, 4), torch.eye(32))
    prior = LatentPrior(exact, autoencoder)
    images = generate(prior, (8, 8), 3, seeded())
    torch.testing.assert_close(images, autoencoder.decode(generate(exact, (2, 4, 4), 3, seeded())))
    in_mm = generate(Rescaled(prior, 0.02, 0.02), (8, 8), 3, seeded())
    torch.testing.assert_close(in_mm, 0.02 + 0.02 * images)


# Training


def test_batches_are_encoded_crops(data: ImageSet, autoencoder: KLAutoencoder) -> None:
    """Of unit standard deviation over many, a function of seed and step, and shared among processes."""
    config = dataclasses.replace(SHORT, batch_size=64, crop=16, whole_fraction=0.0)
    run = trainer(data, autoencoder, config)
    b = run.batch(3)
    assert b.x0.shape == b.noise.shape == (64, 2, 8, 8) and not b.x0.requires_grad
    again = trainer(data, autoencoder, config).batch(3)
    assert torch.equal(again.x0, b.x0) and torch.equal(again.noise, b.noise) and not torch.equal(run.batch(4).x0, b.x0)
    assert float(torch.cat([run.batch(k).x0 for k in range(8)]).std()) == pytest.approx(1, abs=0.15)
    assert float(b.noise.std()) == pytest.approx(1, abs=0.05)
    shares = [
        LatentTrainer(NETWORK, config, data, autoencoder, "one", processes=Processes(torch.device("cpu"), k, 2)).batch(
            3
        )
        for k in range(2)
    ]
    for name in ("x0", "noise", "sigma"):
        whole = getattr(b, name)
        for k, share in enumerate(shares):
            torch.testing.assert_close(getattr(share, name), whole[k::2], rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(data: ImageSet, autoencoder: KLAutoencoder, tmp_path: Path) -> None:
    slices = [torch.zeros(2, 4, 4)]
    whole = trainer(data, autoencoder)
    rows = list(train_latent_run(whole, tmp_path / "whole", validation=slices, validate_every=4))
    for until in (3, None):
        part = trainer(data, autoencoder)
        list(train_latent_run(part, tmp_path / "parts", validation=slices, validate_every=4, until=until))
    a, b = whole.averages[0].state_dict(), part.averages[0].state_dict()
    assert part.step == 8 and [k for k in a if not torch.equal(a[k], b[k])] == []
    assert rows[-1]["psnr_0.5"] == latent_psnr(whole.averages[0], slices)[2]
    assert whole.best_latent_average(slices) in whole.averages
    with pytest.raises(ValueError, match=r"latents of the autoencoder one, this run has other; give another --out"):
        trainer(data, autoencoder, sha="other").load(tmp_path / "parts" / "state.safetensors")


def test_latent_psnr_of_what_does_nothing() -> None:
    """The error is σ²: −20 log10 σ dB."""
    found = latent_psnr(lambda x, sigma: x, [torch.zeros(2, 64, 64)], (0.1, 2.0))  # type: ignore[arg-type]
    assert found == pytest.approx([20.0, -6.02], abs=0.2)


def test_networks_and_crops_that_do_not_fit(data: ImageSet, autoencoder: KLAutoencoder) -> None:
    with pytest.raises(ValueError, match="takes 3 channels, the latents have 2"):
        LatentTrainer(dataclasses.replace(NETWORK, channels=3), SHORT, data, autoencoder, "one")
    with pytest.raises(ValueError, match=r"whole must be a multiple of 4 pixels \(2 a latent pixel"):
        trainer(data, autoencoder, dataclasses.replace(SHORT, whole=18))


# Files


@pytest.fixture
def saved(autoencoder: KLAutoencoder, tmp_path: Path) -> Path:
    """A latent prior of random weights in a folder of its own."""
    folder = tmp_path / "latent"
    folder.mkdir()
    save_autoencoder(autoencoder, folder / "autoencoder.safetensors", {})
    sha = json.loads((folder / "autoencoder.json").read_text())["sha256"]
    torch.manual_seed(1)
    save_latent_prior(EDMDenoiser(NETWORK), folder / "prior.safetensors", {"description": "small"}, sha)
    return folder / "prior.safetensors"


def test_a_file_and_back(saved: Path, autoencoder: KLAutoencoder) -> None:
    prior, card = load_latent_prior(saved)
    z = torch.randn(1, 2, 4, 4, generator=seeded())
    torch.testing.assert_close(prior.autoencoder.decode(z), autoencoder.decode(z))
    assert prior.denoiser(z, torch.tensor(0.5)).shape == z.shape and prior.residual_std == autoencoder.residual_std
    assert is_latent(saved) and not is_latent(saved.with_name("autoencoder.safetensors")) and not is_latent(saved.with_name("x"))  # fmt: skip
    assert isinstance(image_prior(saved), LatentPrior) and prior_card(saved)["sha256"] == card["sha256"]
    assert latents(ct_prior(saved, mu_water_per_mm=0.02)).residual_std == pytest.approx(0.02 * prior.residual_std)
    with pytest.raises(ValueError, match=r"written to a \.safetensors file"):
        save_latent_prior(EDMDenoiser(NETWORK), saved.with_suffix(".pt"), {}, "one")


def test_another_autoencoder_is_refused(saved: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    save_autoencoder(KLAutoencoder(AUTOENCODER), tmp_path / "other.safetensors", {})
    with pytest.raises(
        ValueError, match=r"was trained on latents of the autoencoder \w{12}, and .*other.safetensors is"
    ):
        load_latent_prior(saved, autoencoder=tmp_path / "other.safetensors")
    shutil.copy(tmp_path / "other.json", saved.with_name("autoencoder.json"))
    with pytest.raises(ValueError, match="checksum differs"):
        load_latent_prior(saved)
    saved.with_name("autoencoder.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"autoencoder\.json: no such file \(an autoencoder is"):
        load_latent_prior(saved)


def test_a_prior_of_images_is_no_latent_prior(saved: Path) -> None:
    values = json.loads(saved.with_suffix(".json").read_text())
    saved.with_suffix(".json").write_text(json.dumps(values | {"format": "scoreinv-prior-1"}))
    with pytest.raises(ValueError, match="expected format 'scoreinv-latent-prior-1', got 'scoreinv-prior-1'"):
        load_latent_prior(saved)


# The commands


def write_images(path: Path, patients: str, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["hu"] = rng.integers(-1000, 1000, (len(patients), 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.int16)
        file["patient"] = list(patients)
        file["pixel_mm"] = 2.0
    return path


def test_from_images_to_a_reconstruction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train-autoencoder, train --latent, sample, simulate, reconstruct; what does not fit is one line and exit code 2."""
    images, others = write_images(tmp_path / "a.h5", "ab", 0), write_images(tmp_path / "b.h5", "c", 1)
    common: list[Any] = ["--validation", others, "--quiet", "--set", "batch_size=2", "--set", "warmup=2", "--set", "crop=16"]  # fmt: skip

    def run(*words: Any) -> tuple[int, str]:
        code = main([str(w) for w in words])
        return code, capsys.readouterr().err

    coder, prior = tmp_path / "coder" / "autoencoder.safetensors", tmp_path / "latent" / "prior.safetensors"
    small = ["--network", "factor=2", "--network", "widths=[4,4]", "--network", "latent_channels=2"]
    assert run("train-autoencoder", images, "--out", coder.parent, "--steps", 4, "--validate-every", 2, *common, *small) == (0, "")  # fmt: skip
    card = json.loads(coder.with_suffix(".json").read_text())
    assert card["steps"] == 4 and card["autoencoding_psnr_db"] > 0 and card["residual_hu"] > 0
    assert (coder.parent / "log.png").is_file() and (coder.parent / "autoencoder.md").is_file()
    small = ["--network", "widths=[16,16]", "--network", "attention=[]", "--set", "whole=32"]
    latent = ["train", images, "--out", prior.parent, "--latent", coder, "--steps", 3, "--validate-every", 2, *common, *small]  # fmt: skip
    assert run(*latent) == (0, "")
    assert json.loads(prior.with_suffix(".json").read_text())["network"]["channels"] == 2
    assert run(*latent, "--start", "ct-256")[0] == 2
    assert run("sample", "--prior", prior, "--out", tmp_path / "sheet.png", "--samples", 2, "--side", 16, "--quiet") == (0, "")  # fmt: skip
    code, error = run("sample", "--prior", prior, "--out", tmp_path / "sheet.png", "--samples", 2, "--side", 15, "--quiet")  # fmt: skip
    assert code == 2 and "multiples of 2, got (15, 15)" in error
    scan = tmp_path / "scan.h5"
    assert run("simulate", others, "--slice", 0, "--views", 6, "--noise", 0.01, "--out", scan)[0] == 0
    recon = ["reconstruct", scan, "--prior", prior, "--out", tmp_path / "recon.h5", "--quiet"]
    quick = ["--set", "n_levels=3", "--set", "iterations=5"]
    assert run(*recon, "--method", "latent_daps", "--samples", 2, *quick)[0] == 0
    code, error = run(*recon, "--method", "dps", "--set", "n_levels=3")
    assert code == 2 and "denoises no images" in error and "\n" not in error.strip()
    code, error = run("score", others, "--slice", 0, "--prior", prior, "--draws", 0)
    assert code == 2 and "scoreinv-latent-prior-1" in error
