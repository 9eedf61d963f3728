"""Large images in tiles: nothing lost, no seams, and every tile knows its place."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import NetworkPrior
from scoreinv.priors.network import EDMDenoiser, UNetConfig, positions
from scoreinv.priors.tiles import OVERLAP, Tiles

SHAPES = [(64, 64), (100, 64), (65, 200), (257, 190)]


@pytest.mark.parametrize("shape", SHAPES)
def test_cut_and_blended_an_image_is_itself(shape: tuple[int, int], rng: Generator) -> None:
    x = torch.randn(3, *shape, generator=rng)
    tiles = Tiles.covering(*shape, 64)
    cut = tiles.cut(x)
    assert cut.shape == (3 * len(tiles.corners()), *tiles.size) and max(tiles.size) <= 64
    torch.testing.assert_close(tiles.blended(cut), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_cover_the_image_and_overlap(shape: tuple[int, int]) -> None:
    tiles = Tiles.covering(*shape, 64)
    for starts, size, length in ((tiles.tops, tiles.size[0], shape[0]), (tiles.lefts, tiles.size[1], shape[1])):
        assert starts[0] == 0 and starts[-1] + size == length
        assert all(size - (b - a) >= OVERLAP * size - 1 for a, b in itertools.pairwise(starts))


def test_weights_leave_no_seams() -> None:
    """Tiles that disagree by one step are joined by a ramp: no two neighbouring pixels differ by more than its slope."""
    tiles = Tiles.covering(64, 100, 64)
    one, two = torch.zeros(1, 64, 64), torch.ones(1, 64, 64)
    blended = tiles.blended(torch.cat([one, two]))[0]
    overlap = 64 - (tiles.lefts[1] - tiles.lefts[0])
    assert float(blended.diff(dim=1).abs().max()) <= 1 / overlap + 1e-6
    assert blended[0, 0] == 0 and blended[0, -1] == 1


def test_tiles_know_their_place() -> None:
    tiles = Tiles.covering(65, 200, 64)
    _, boxes = tiles.labels(torch.tensor([0.1, 0.2]))
    whole = positions(torch.tensor([[-1.0, -1.0, 1.0, 1.0]]), 65, 200)[0]
    for channel in (0, 1):
        expected = tiles.cut(whole[channel].repeat(2, 1, 1))
        torch.testing.assert_close(positions(boxes, *tiles.size)[:, channel], expected)


def test_noise_levels_follow_their_images() -> None:
    tiles = Tiles.covering(100, 64, 64)
    sigma, _ = tiles.labels(torch.tensor([0.1, 0.2, 0.3]))
    assert sigma.tolist() == pytest.approx([0.1, 0.2, 0.3] * 2)


class Local(torch.nn.Module):
    """In the network's place: looks at one pixel, its noise level and the position it is told."""

    config = UNetConfig(widths=(16, 16), attention=())

    def forward(self, x: Tensor, sigma: Tensor, pixel_mm: float | None, box: Tensor) -> Tensor:
        return x * sigma.reshape(-1, 1, 1, 1) + positions(box, *x.shape[-2:]).sum(1, keepdim=True)


@pytest.mark.parametrize("shape", [(100, 70), (101, 67)])
def test_a_local_prior_is_the_same_whole_and_in_tiles(shape: tuple[int, int], rng: Generator) -> None:
    x, sigma = torch.randn(2, *shape, generator=rng), torch.tensor([0.5, 2.0])
    whole = NetworkPrior(Local(), largest=200)(x, sigma)  # type: ignore[arg-type]
    tiled = NetworkPrior(Local(), largest=64)(x, sigma)  # type: ignore[arg-type]
    torch.testing.assert_close(tiled, whole)


def test_largest_is_a_limit(rng: Generator) -> None:
    seen: list[tuple[int, ...]] = []
    model = EDMDenoiser(UNetConfig(widths=(16, 16), attention=(), embedding=16)).eval().requires_grad_(False)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    out = NetworkPrior(model, largest=64, chunk=2)(torch.randn(1, 130, 90, generator=rng), torch.tensor(0.3))
    assert out.shape == (1, 130, 90) and out.isfinite().all()
    assert {s[-2:] for s in seen} == {(64, 64)} and max(s[0] for s in seen) == 2
    with pytest.raises(ValueError, match="largest >= 16"):
        NetworkPrior(model, largest=8)
