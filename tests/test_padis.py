"""The patch prior against whole-image denoisers, and PaDIS against the exact posterior."""

from __future__ import annotations

import pytest
import torch
from test_gaussian_draws import UNEVEN, Rows, exact, gaussian, problems, ratios, streams
from test_tiles import Local
from torch import Generator, Tensor

from scoreinv.posterior.guidance import with_gradient
from scoreinv.posterior.padis import Grid, PaDIS, PatchPrior
from scoreinv.priors.denoiser import Counted, NetworkPrior, Rescaled
from scoreinv.priors.network import positions
from scoreinv.problem import Problem

SHAPES = [(100, 70), (96, 64), (33, 130)]


def rng() -> Generator:
    return Generator().manual_seed(1)


def network() -> NetworkPrior:
    """Looks at one pixel, its noise level and the position it is told."""
    return NetworkPrior(Local(), largest=200)  # type: ignore[arg-type]


# the patch prior


@pytest.mark.parametrize("shape", SHAPES)
def test_a_local_prior_is_the_same_whole_and_in_patches(shape: tuple[int, int]) -> None:
    """Nothing is lost or moved, every patch knows its place and its member's noise level, wherever the image is laid."""
    x, sigma = torch.randn(3, *shape, generator=rng()), torch.tensor([0.5, 2.0, 1.0])
    prior = PatchPrior(network(), streams(3), patch=32)
    for _ in range(3):
        torch.testing.assert_close(prior(x, sigma), network()(x, sigma))


def test_units_and_counts_pass_through() -> None:
    x, sigma = torch.randn(2, 50, 40, generator=rng()), torch.tensor(0.01)
    rescaled = Rescaled(network(), 0.02, 0.02)
    counted = Counted(rescaled)
    prior = PatchPrior(counted, streams(2), patch=16)
    torch.testing.assert_close(prior(x, sigma), rescaled(x, sigma))
    assert counted.n_evaluations == 2 and prior.scale == 0.02


def test_a_small_image_is_denoised_whole() -> None:
    x = torch.randn(1, 1, 6, generator=rng(), dtype=torch.float64)
    whole = Rows(gaussian())
    torch.testing.assert_close(
        PatchPrior(whole, streams(1), patch=6)(x, torch.tensor(0.5)), whole(x, torch.tensor(0.5))
    )


def test_patches_are_padded_by_air_as_noisy_as_the_image() -> None:
    """Of a constant image every pixel of another value is padding: mean `air`, standard deviation σ."""
    seen: list[Tensor] = []

    def spy(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return x

    x = torch.full((1, 40, 40), 9.0)
    assert torch.equal(PatchPrior(spy, streams(1), patch=32, air=2.0)(x, torch.tensor(0.1)), x)
    padding = seen[0][seen[0] != 9]
    assert seen[0].shape == (4, 32, 32) and len(padding) == 64**2 - 40**2
    assert float(padding.mean()) == pytest.approx(2, abs=0.01) and float(padding.std()) == pytest.approx(0.1, rel=0.1)


def test_places_are_drawn_anew_for_every_call_and_member() -> None:
    """A prior that averages over its patch shows where the patches lie."""
    x = torch.randn(2, 40, 40, generator=rng())

    def averages(x: Tensor, sigma: Tensor) -> Tensor:
        return x.mean((1, 2), keepdim=True).expand_as(x)

    def seams(image: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows and columns where a new patch begins."""
        rows, columns = image.diff(dim=0).abs().amax(1) > 0, image.diff(dim=1).abs().amax(0) > 0
        return tuple(rows.nonzero()[:, 0].tolist()), tuple(columns.nonzero()[:, 0].tolist())

    prior = PatchPrior(averages, streams(2), patch=16)
    found = [[seams(image) for image in prior(x, torch.tensor(1.0))] for _ in range(40)]
    assert len({s for call in found for s in call}) > 12 and any(a != b for a, b in found)
    starts = {rows for call in found for rows, _ in call}
    assert len(starts) == 9  # 48 - 40 + 1 places: seams after row 15 - top and 31 - top
    assert all(k + 1 in range(8, 17) or k + 1 in range(24, 33) for rows in starts for k in rows)


def test_patches_put_together_are_the_canvas() -> None:
    grid = Grid.of(20, 37, 16)
    canvas = torch.randn(2, *grid.shape, generator=rng())
    assert grid.shape == (32, 48)
    patches = grid.cut(canvas)
    torch.testing.assert_close(patches[5], canvas[0, 16:32, 32:48])
    torch.testing.assert_close(grid.joined(patches), canvas)


@pytest.mark.parametrize("place", [(0, 0), (3, 11), (12, 11)])
def test_boxes_continue_the_positions_of_the_image(place: tuple[int, int]) -> None:
    grid = Grid.of(20, 37, 16)
    told = grid.joined(positions(grid.boxes(place), 16, 16)[:, 0])
    whole = positions(torch.tensor([[-1.0, -1.0, 1.0, 1.0]]), 20, 37)[:, 0]
    torch.testing.assert_close(grid.taken(told, [place]), whole)


def test_gradients_pass() -> None:
    x = torch.randn(1, 40, 40, generator=rng(), dtype=torch.float64)
    _, transposed = with_gradient(PatchPrior(lambda x, sigma: x**2, streams(1), patch=16), x, torch.tensor(1.0))
    torch.testing.assert_close(transposed(torch.ones_like(x)), 2 * x)


def test_gradients_are_counted_an_image() -> None:
    counted = Counted(lambda x, sigma: x**2)
    x = torch.randn(2, 40, 40, generator=rng())
    _, transposed = with_gradient(PatchPrior(counted, streams(2), patch=16), x, torch.tensor(1.0))
    transposed(torch.ones_like(x))
    assert (counted.n_evaluations, counted.n_gradients) == (2, 2)


def test_images_that_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 images"):
        PatchPrior(network(), streams(1))(torch.zeros(2, 40, 40), torch.tensor(1.0))


# the method


@pytest.mark.parametrize("noise_std", [0.5, UNEVEN], ids=["even", "uneven"])
def test_near_the_posterior_of_a_gaussian_prior(noise_std: float | Tensor) -> None:
    """With an image that is one patch, as the docstring states."""
    prior, (one, many) = gaussian(), problems(noise_std, 2000)
    x = PaDIS(Rows(prior), patch=2000)(many, rng())[0]
    variance, distance = ratios(exact(prior, one), x)
    assert variance == pytest.approx(1.06, abs=0.04) and distance < 0.15


def test_more_levels_come_nearer() -> None:
    prior, (one, many) = gaussian(), problems(0.5, 2000)
    found = [PaDIS(Rows(prior), patch=2000, n_levels=n, steps=5)(many, rng())[0] for n in (10, 40, 200)]
    off = [abs(ratios(exact(prior, one), x)[0] - 1) for x in found]
    assert off[0] > 3 * off[1] > 6 * off[2]


def test_noise_free_data_are_approached() -> None:
    _, many = problems(0.0, 200)
    x = PaDIS(Rows(gaussian()), patch=200, guidance=4.0)(many, rng())
    assert float((many.A(x) - many.y).square().mean().sqrt()) < 0.01


def test_patches_of_independent_pixels_change_nothing_but_the_noise() -> None:
    """A prior that looks at single pixels N(0, 1): PaDIS in patches has the whole image's exact moments."""
    rows, one = 60, torch.ones(1, dtype=torch.float64)
    y = torch.linspace(-2, 2, 6, dtype=torch.float64).expand(rows, 6)
    A = type(problems(0.5, 1)[1].A)(torch.eye(6, dtype=torch.float64), rows)
    counted = Counted(lambda x, sigma: x / (1 + torch.as_tensor(sigma).reshape(-1, 1, 1) ** 2))
    x = PaDIS(counted, patch=4, samples=8)(Problem(A, y, 1.0), rng())
    torch.testing.assert_close(x.mean((0, 1)), y[0] / 2, rtol=0, atol=0.2 * float(one))
    assert float((x - y / 2).var()) == pytest.approx(0.5, rel=0.15)
    assert counted.n_evaluations == 8 * 1000


@pytest.mark.parametrize(
    ("settings", "words"), [({"guidance": 8.0}, r"\[0, 8\)"), ({"patch": 0}, "patch"), ({"steps": 0}, "steps")]
)
def test_settings_that_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PaDIS(network(), **settings)  # type: ignore[arg-type]
