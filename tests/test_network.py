"""The score network: shapes, preconditioning, and that a batch is nothing but its members."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Generator, Tensor

from scoreinv.priors.blocks import BLOCKS
from scoreinv.priors.network import HIGHEST, EDMDenoiser, UNetConfig, positions

SMALL = UNetConfig(widths=(16, 64), attention=(1,), embedding=32)


def untrained(config: UNetConfig = SMALL) -> EDMDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EDMDenoiser(config).eval().requires_grad_(False)


def trained(config: UNetConfig = SMALL) -> EDMDenoiser:
    """A network none of whose weights is zero, as at the end of training."""
    model, rng = untrained(config), torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.add_(0.05 * torch.randn(p.shape, generator=rng))
    return model


def test_at_initialisation_it_is_c_skip_x(rng: Generator) -> None:
    """The head starts at zero, so that F = 0 and D = σ_d² / (σ² + σ_d²) x: the best linear denoiser of white images."""
    x = torch.randn(3, 1, 8, 12, generator=rng)
    sigma = torch.tensor([0.01, 0.5, 20.0])
    expected = 0.25 / (sigma**2 + 0.25)
    torch.testing.assert_close(untrained()(x, sigma), expected.reshape(3, 1, 1, 1) * x)


def test_preconditioning_formulas(rng: Generator) -> None:
    """c_in, c_noise, c_out and c_skip of the module's head, with a stand-in for the U-Net that shows its inputs."""
    model = untrained(dataclasses.replace(SMALL, sigma_data=0.3))
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, pixel_mm: Tensor, box: Tensor) -> Tensor:
            seen.append((x, c_noise))
            return torch.full_like(x, 7.0)

    model.unet = Spy()  # type: ignore[assignment]
    x, sigma, sd = torch.randn(1, 1, 4, 4, generator=rng), 0.8, 0.3
    out = model(x, torch.tensor(sigma))
    total = sigma**2 + sd**2
    torch.testing.assert_close(seen[0][0], x / math.sqrt(total))
    torch.testing.assert_close(seen[0][1], torch.tensor([math.log(sigma) / 4]))
    torch.testing.assert_close(out, sd**2 / total * x + sigma * sd / math.sqrt(total) * 7)


def test_beyond_the_highest_level_it_answers_as_there(rng: Generator) -> None:
    """Its part of D, without c_skip x, is a function of x/σ: the network is told of no level that training did not meet."""
    x, model = torch.randn(2, 1, 8, 8, generator=rng), trained()

    def part(sigma: float) -> Tensor:
        return model(sigma * x, torch.tensor(sigma)) - 0.25 / (sigma**2 + 0.25) * sigma * x

    for factor in (1.01, 2.0, 12.5):
        torch.testing.assert_close(part(factor * HIGHEST), part(HIGHEST), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sigma", [1e-4, 1e-8, 0.0])
def test_without_noise_it_changes_nothing(sigma: float, rng: Generator) -> None:
    x = torch.randn(2, 1, 8, 8, generator=rng)
    torch.testing.assert_close(trained()(x, torch.tensor(sigma)), x, atol=1e-3, rtol=0)


DEEP = UNetConfig(channels=3, widths=(16, 32, 48), unshuffle=1, attention=(), blocks=2)
KINDS = [dataclasses.replace(SMALL, block=block, blocks=2) for block in BLOCKS]


@pytest.mark.parametrize("config", [DEEP, *KINDS], ids=["deep", *BLOCKS])
def test_shapes_and_multiples(config: UNetConfig, rng: Generator) -> None:
    model, m = trained(config), config.multiple
    assert m == config.unshuffle * 2 ** (len(config.widths) - 1)
    for h, w in ((m, m), (m, 3 * m), (4 * m, 2 * m)):
        x = torch.randn(2, config.channels, h, w, generator=rng)
        out = model(x, torch.tensor(0.5))
        assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()


def test_a_batch_is_its_members(rng: Generator) -> None:
    model = trained()
    x, sigma = torch.randn(4, 1, 16, 16, generator=rng), torch.tensor([0.01, 0.1, 1.0, 10.0])
    together = model(x, sigma)
    alone = torch.cat([model(x[k : k + 1], sigma[k]) for k in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[:1], model(x[:1], sigma[1]), atol=1e-3)  # the noise level does matter


@pytest.mark.parametrize("config", KINDS, ids=list(BLOCKS))
def test_blocks_do_nothing_before_training(config: UNetConfig, rng: Generator) -> None:
    block = untrained(config).unet.encoder[1][0]  # type: ignore[index]
    x, e = torch.randn(2, 64, 8, 8, generator=rng), torch.randn(2, 32, generator=rng)
    expected = x * math.sqrt(0.5) if config.block == "residual" else x
    torch.testing.assert_close(block(x, e), expected)


@pytest.mark.parametrize("config", KINDS, ids=list(BLOCKS))
def test_recomputed_gradients_are_the_same(config: UNetConfig, rng: Generator) -> None:
    model, x = trained(config).requires_grad_(True), torch.randn(2, 1, 8, 8, generator=rng)
    gradients = []
    for recompute in (False, True):
        model.unet.recompute = recompute
        model.zero_grad()
        (model(x, torch.tensor(0.5)) ** 2).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_pixel_size_may_be_unknown(rng: Generator) -> None:
    """None, NaN and one size for all are allowed; a size changes the answer, and each image has its own."""
    model, x, sigma = trained(), torch.randn(2, 1, 16, 16, generator=rng), torch.tensor(0.5)
    unknown = model(x, sigma)
    torch.testing.assert_close(model(x, sigma, math.nan), unknown)
    fine, coarse = model(x, sigma, 0.45), model(x, sigma, 0.98)
    assert not torch.allclose(fine, coarse, atol=1e-3) and not torch.allclose(fine, unknown, atol=1e-3)
    mixed = model(x, sigma, torch.tensor([0.45, math.nan]))
    torch.testing.assert_close(mixed, torch.stack([fine[0], unknown[1]]))


def test_positions_are_those_of_pixel_centres() -> None:
    """The quarter at the bottom right of an image of 4 x 8 pixels knows itself as such."""
    whole = positions(torch.tensor([[-1.0, -1.0, 1.0, 1.0]]), 4, 8)
    assert whole.shape == (1, 2, 4, 8)
    torch.testing.assert_close(whole[0, 0, :, 3], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    torch.testing.assert_close(whole[0, 1, 1, :3], torch.tensor([-0.875, -0.625, -0.375]))
    quarter = positions(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 2, 4)
    torch.testing.assert_close(quarter, whole[:, :, 2:, 4:])


def test_config_survives_json_values() -> None:
    config = UNetConfig(widths=(16, 64), attention=(1,), sigma_data=0.4)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    assert UNetConfig.from_dict(plain) == config
    with pytest.raises(TypeError, match="width"):
        UNetConfig.from_dict({"width": [64]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (20, 64)}, "multiples of 16"),
        ({"widths": ()}, "multiples of 16"),
        ({"attention": (2,)}, r"between 0 and 1.*attention=\[\]"),
        ({"attention": (0,)}, "multiple of 64"),
        ({"blocks": 0}, "at least 1"),
        ({"block": "dense"}, "one of residual, plain, gated, got 'dense'"),
        ({"sigma_data": 0.0}, "positive"),
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes)  # type: ignore[arg-type]
