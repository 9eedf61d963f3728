"""The KL autoencoder against closed forms: the divergence, the evidence of a linear model, principal components; and its training."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from scoreinv.phantoms import random_ellipses, rasterise
from scoreinv.priors.autoencoder import (
    AutoencoderConfig,
    KLAutoencoder,
    autoencoding_error,
    kl_divergence,
    load_autoencoder,
    log_weights,
    save_autoencoder,
)
from scoreinv.priors.crops import ImageSet
from scoreinv.priors.latent_training import (
    AutoencoderRun,
    AutoencoderTraining,
    autoencoding_psnr,
    train_autoencoder_run,
)
from scoreinv.priors.validation import Slice, read_log

F64 = torch.float64
SMALL = AutoencoderConfig(factor=2, latent_channels=2, widths=(8, 8))
SHORT = AutoencoderTraining(steps=12, batch_size=2, crop=16, warmup=2, ema=(0.9, 0.5))


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """Ellipses in water, of three patients."""
    rng = torch.Generator().manual_seed(0)
    images = [(1000 * ellipses(rng, 32)).round().to(torch.int16).numpy() for _ in range(6)]
    return ImageSet(images, ["a", "a", "a", "b", "b", "c"])


def ellipses(rng: Generator, side: int) -> Tensor:
    """An image of u, (side, side)."""
    return rasterise(random_ellipses(rng, width_mm=side, n_ellipses=8, value=1.0), (side, side)).float() - 1


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# Closed forms


def test_divergence_is_that_of_gaussians(rng: Generator) -> None:
    mean, log_variance = (torch.randn(5, 3, 2, 2, generator=rng, dtype=F64) for _ in range(2))
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def linear_model(noise_std: float) -> tuple[KLAutoencoder, Tensor, Tensor]:
    """A linear autoencoder of 2 x 2 blocks whose encoder is the posterior of its decoder's model; W (4, 2), with orthogonal
    columns, and the offset (4,)."""
    model = KLAutoencoder(AutoencoderConfig(factor=2, latent_channels=2, widths=())).double().requires_grad_(False)
    directions, _ = torch.linalg.qr(torch.randn(4, 2, generator=seeded(3), dtype=F64))
    W, offset = directions * torch.tensor([0.5, 0.2], dtype=F64), torch.full((4,), -0.3, dtype=F64)
    total = (W**2).sum(0) + noise_std**2
    gain = (W / total).T
    encoder, decoder = model.encoder[0], model.decoder[0]
    encoder.weight[:2], encoder.bias[:2] = gain.reshape(2, 1, 2, 2), -gain @ offset
    encoder.weight[2:], encoder.bias[2:] = 0, (noise_std**2 / total).log()
    decoder.weight[:], decoder.bias[:] = W.T.reshape(2, 1, 2, 2), -0.3
    return model, W, offset


def test_the_best_encoder_of_a_linear_decoder_gives_the_evidence_in_every_draw() -> None:
    """The bound is tight, and has no variance, where q is the posterior; 4 x 6 pixels are six independent blocks."""
    s = 0.1
    model, W, offset = linear_model(s)
    u = 0.5 * torch.randn(3, 1, 4, 6, generator=seeded(1), dtype=F64)
    noise = torch.randn(3, 2, 2, 3, generator=seeded(2), dtype=F64)
    blocks = torch.nn.functional.unfold(u, 2, stride=2).transpose(1, 2)
    law = torch.distributions.MultivariateNormal(offset, W @ W.T + s**2 * torch.eye(4, dtype=F64))
    evidence = law.log_prob(blocks).sum(1)
    torch.testing.assert_close(log_weights(model, u, noise, s), evidence)
    with torch.no_grad():  # any other encoder is below it on average
        model.encoder[0].bias += 0.2
    many = log_weights(model, u.repeat(4000, 1, 1, 1), torch.randn(12000, 2, 2, 3, generator=seeded(4), dtype=F64), s)
    bound, error = many.reshape(-1, 3).mean(0), many.reshape(-1, 3).std(0) / math.sqrt(4000)
    assert ((bound + 5 * error) < evidence).all()


def test_the_loss_is_the_bound_but_for_a_constant() -> None:
    """−(2 s² / d) times the bound, for β = 2 s² and squares: on average over ε, with 5 standard errors."""
    s = 0.2
    model, _, _ = linear_model(s)
    with torch.no_grad():
        model.encoder[0].bias += 0.1
    u = 0.5 * torch.randn(1, 1, 2, 2, generator=seeded(1), dtype=F64).expand(20000, 1, 2, 2)
    noise = torch.randn(20000, 2, 1, 1, generator=seeded(2), dtype=F64)
    loss = autoencoding_error(u, *model(u, noise), power=2, weight=2 * s**2)
    weights = log_weights(model, u, noise, s)
    constant = 4 * math.log(s * math.sqrt(2 * math.pi))
    difference = 4 / (2 * s**2) * loss + constant + weights
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(20000)
    first = autoencoding_error(u, *model(u, noise), power=1, weight=0.0)
    torch.testing.assert_close(first, (u - model(u, noise)[0]).abs().mean((1, 2, 3)))


def blocks_of(variances: list[float], n: int) -> tuple[np.ndarray, np.ndarray]:
    """HU images of 8 x 8 pixels of independent 2 x 2 blocks, and their directions: mean, rows, columns, checkers."""
    h = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
    z = np.random.default_rng(0).standard_normal((n, 4, 4, 4)) * np.sqrt(variances)
    blocks = (z @ h).reshape(n, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(n, 8, 8)
    return np.round(1000 * blocks).astype(np.int16), h


def test_a_trained_linear_autoencoder_is_probabilistic_pca() -> None:
    """The columns of its decoder span the leading directions and have the lengths √(λ − s²)."""
    variances, s = [0.36, 0.12, 0.01, 0.004], 0.2
    images, h = blocks_of(variances, 200)
    names = [str(k) for k in range(len(images))]
    config = AutoencoderTraining(
        steps=400, batch_size=8, crop=8, zoom=0, power=2, kl=2 * s**2, lr=5e-2, warmup=10, clip=100.0, ema=(0.9,)
    )
    run = AutoencoderRun(
        AutoencoderConfig(factor=2, latent_channels=2, widths=()), config, ImageSet(list(images), names)
    )
    for _ in range(400):
        run.advance()
    W = run.averages[0].decoder[0].weight.reshape(2, 4).double().numpy() @ h.T  # in the basis of the directions
    _, lengths, right = np.linalg.svd(W)
    assert np.abs(right[:2, 2:]).max() < 0.05
    empirical = (images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4) / 1000 @ h.T).var(0)[:2]
    assert lengths == pytest.approx(np.sqrt(empirical - s**2), rel=0.08)


# The network


def test_latents_depend_on_what_is_near_them(rng: Generator) -> None:
    """Those of a crop are the crop of those: no normalisation ties distant pixels together."""
    model = KLAutoencoder(AutoencoderConfig(factor=4, latent_channels=3, widths=(4, 4, 4)))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=rng)
    u = torch.randn(1, 96, 64, generator=rng)
    with torch.no_grad():
        whole, part = model.encode(u), model.encode(u[:, 16:80])
        torch.testing.assert_close(whole[:, :, 4:20][:, :, 6:-6], part[:, :, 6:-6], rtol=1e-4, atol=1e-5)
        decoded, piece = model.decode(whole), model.decode(whole[:, :, 4:20])
    torch.testing.assert_close(decoded[:, 16:80][:, 24:-24], piece[:, 24:-24], rtol=1e-4, atol=1e-5)
    assert whole.shape == (1, 3, 24, 16) and decoded.shape == u.shape
    torch.testing.assert_close(model.encode(torch.cat([u, -u]))[0], whole[0], rtol=1e-4, atol=1e-5)


def test_latents_are_standardised(rng: Generator) -> None:
    """Mean 0 and variance 1 of draws from q over the images, and the image stays the same."""
    model, _, _ = linear_model(0.3)
    images = 0.5 * torch.randn(400, 1, 8, 8, generator=rng, dtype=F64)
    before = model.decode(model.encode(images[:, 0]))
    model.standardise([images[:200], images[200:]])
    mean, std = model.standardised(images)
    assert mean.mean((0, 2, 3)) == pytest.approx(torch.zeros(2), abs=1e-9)
    assert (mean.var((0, 2, 3), correction=0) + (std**2).mean((0, 2, 3))) == pytest.approx(torch.ones(2), abs=1e-9)
    torch.testing.assert_close(model.decode(model.encode(images[:, 0])), before)
    assert model.residual_std == pytest.approx(float((before - images[:, 0]).square().mean().sqrt()))


@pytest.mark.parametrize("shape", [(65, 64), (64, 30), (3, 64, 64), (64,)])
def test_other_sides_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 4, got \("):
        KLAutoencoder().latent_shape(shape)
    with pytest.raises(ValueError, match=r"got \(65, 64\); crop or pad them, such as to \(64, 64\)"):
        KLAutoencoder().encode(torch.zeros(1, 65, 64))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"factor": 3}, "2, 4, 8 or 16, got 3"),
        ({"widths": (8, 8)}, "factor 4 has 3 resolutions"),
        ({"widths": (8, 0, 8)}, "positive widths"),
        ({"latent_channels": 0}, "at least 1, got 0"),
    ],
)
def test_networks_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AutoencoderConfig(**settings)  # type: ignore[arg-type]


# The run


def weights(run: AutoencoderRun) -> dict[str, Tensor]:
    return {f"{n}.{k}": v.clone() for n, a in enumerate(run.averages) for k, v in a.state_dict().items()}


def test_images_come_back_better_after_training(data: ImageSet) -> None:
    config = dataclasses.replace(SHORT, steps=60, lr=3e-3, crop=32, batch_size=4)
    run = AutoencoderRun(SMALL, config, data)
    held_out = [Slice(ellipses(seeded(9), 32)), Slice(ellipses(seeded(10), 32))]
    before = autoencoding_psnr(run.averages[1], held_out)
    for _ in range(60):
        run.advance()
    assert autoencoding_psnr(run.averages[1], held_out) > before + 6
    assert run.best_average(held_out) in run.averages


def test_a_resumed_run_ends_with_the_same_bits(data: ImageSet, tmp_path: Path) -> None:
    slices = [Slice(torch.zeros(16, 16))]
    whole = AutoencoderRun(SMALL, SHORT, data)
    list(train_autoencoder_run(whole, tmp_path / "whole", validation=slices, validate_every=4))
    for until in (5, None):
        part = AutoencoderRun(SMALL, SHORT, data)
        list(train_autoencoder_run(part, tmp_path / "parts", validation=slices, validate_every=4, until=until))
    assert part.step == whole.step == 12
    a, b = weights(whole), weights(part)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert [r["step"] for r in read_log(tmp_path / "parts" / "log.csv")] == ["4", "5", "8", "12"]
    assert len(part.history) == 2
    torch.manual_seed(5)  # has no influence
    assert all(torch.equal(whole.batch(3).u, AutoencoderRun(SMALL, SHORT, data).batch(3).u) for _ in range(2))
    with pytest.raises(ValueError, match=r"holds the autoencoder .* give another --out"):
        AutoencoderRun(dataclasses.replace(SMALL, latent_channels=3), SHORT, data).load(tmp_path / "parts" / "state.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="averages of decay"):
        AutoencoderRun(SMALL, dataclasses.replace(SHORT, ema=(0.9,)), data).load(tmp_path / "parts" / "state.safetensors")  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"power": 3}, "power must be 1 or 2"), ({"kl": -1.0}, "kl not negative"), ({"zoom": 2.0}, "zoom must lie"), ({"steps": 0}, "steps")],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SHORT, **settings)  # type: ignore[arg-type]


def test_crops_fit_the_factor(data: ImageSet) -> None:
    with pytest.raises(ValueError, match="crop must be a multiple of the factor 2, got 15"):
        AutoencoderRun(SMALL, dataclasses.replace(SHORT, crop=15), data)


# The file


def test_a_file_and_back(tmp_path: Path, rng: Generator) -> None:
    model = KLAutoencoder(SMALL)
    u = torch.randn(2, 1, 8, 8, generator=rng)
    model.standardise([u])
    save_autoencoder(model, tmp_path / "a.safetensors", {"description": "small"})
    loaded, card = load_autoencoder(tmp_path / "a.safetensors")
    assert torch.equal(loaded.encode(u[:, 0]), model.encode(u[:, 0])) and loaded.residual_std == model.residual_std
    assert card["network"]["factor"] == 2 and not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(ValueError, match=r"written to a \.safetensors file, got '.pt'"):
        save_autoencoder(model, tmp_path / "a.pt", {})
    values = json.loads((tmp_path / "a.json").read_text())
    values["network"]["widths"] = [8, 16]
    (tmp_path / "a.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="describes no autoencoder that these weights fit"):
        load_autoencoder(tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text(json.dumps(values | {"format": "scoreinv-prior-1"}))
    with pytest.raises(ValueError, match="expected format 'scoreinv-autoencoder-1', got 'scoreinv-prior-1'"):
        load_autoencoder(tmp_path / "a.safetensors")
