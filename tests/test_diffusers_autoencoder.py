"""`AutoencoderKL` of diffusers as ours: the same numbers as the library's own calls, and our divergence against its own."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from scoreinv.operators.dense import Matrix
from scoreinv.posterior.latent_daps import LatentDAPS, linearised
from scoreinv.priors.adapters.diffusers_autoencoder import DiffusersAutoencoder, load_diffusers_autoencoder
from scoreinv.priors.autoencoder import kl_divergence
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.latent import LatentPrior
from scoreinv.problem import Problem

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture
def library() -> Any:
    module = pytest.importorskip("diffusers", reason="diffusers is an optional extra")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return module


def small(library: Any, channels: int, shift: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = library.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
        scaling_factor=0.3,
        shift_factor=shift,
    )
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shift", [None, 0.2])
def test_the_same_numbers_as_its_own_calls(library: Any, channels: int, shift: float | None, rng: Generator) -> None:
    model = small(library, channels, shift)
    ours, x = DiffusersAutoencoder(model), torch.randn(2, channels, 8, 12, generator=rng)
    law = model.encode(x).latent_dist
    z = (law.mode() - (shift or 0.0)) * 0.3
    images = x[:, 0] if channels == 1 else x
    torch.testing.assert_close(ours.encode(images), z)
    decoded = model.decode(z / 0.3 + (shift or 0.0)).sample
    torch.testing.assert_close(ours.decode(z), decoded[:, 0] if channels == 1 else decoded)
    assert ours.latent_shape(tuple(images.shape[1:])) == tuple(z.shape[1:]) == (2, 4, 6)
    torch.testing.assert_close(kl_divergence(law.mean, law.logvar), law.kl())
    for wrong in ((9, 8), (channels + 1, 8, 8), (8,)):
        with pytest.raises(ValueError, match="sides that are multiples of 2, got"):
            ours.latent_shape(wrong)


def test_a_latent_method_with_it(library: Any, rng: Generator) -> None:
    """Its decoder can be linearised twice over, and solves a small problem."""
    ours, z = DiffusersAutoencoder(small(library, 1)), torch.randn(1, 2, 2, 2, generator=rng)
    _, push, pull = linearised(ours.decode, z)
    v, u = torch.randn(1, 2, 2, 2, generator=rng), torch.randn(1, 4, 4, generator=rng)
    torch.testing.assert_close((push(v) * u).sum(), (v * pull(u)).sum(), rtol=1e-4, atol=1e-5)
    prior = LatentPrior(GaussianPrior(torch.zeros(2, 2, 2), torch.eye(8)), ours)
    problem = Problem(Matrix(torch.eye(16)[:5], image_shape=(4, 4)), 0.1 * torch.ones(5), 0.1)
    draws = LatentDAPS(prior, samples=2, n_levels=4)(problem, Generator().manual_seed(0))
    assert draws.shape == (2, 4, 4) and draws.isfinite().all()


def test_from_a_folder(library: Any, tmp_path: Path, rng: Generator) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        load_diffusers_autoencoder(tmp_path)
    model = small(library, 1)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    x = torch.randn(1, 4, 4, generator=rng)
    loaded = load_diffusers_autoencoder(tmp_path)
    torch.testing.assert_close(loaded.encode(x), DiffusersAutoencoder(model).encode(x))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(ImportError, match=r"pip install 'scoreinv\[diffusers\]'"):
            load_diffusers_autoencoder(tmp_path)
