"""Adapters that bring priors to the one interface D(x, σ)."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from scoreinv.priors.denoiser import Counted, NetworkPrior, PoseAverage, Rescaled, pad_to_multiple, scale_of
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.network import EDMDenoiser, UNetConfig


@pytest.fixture(scope="module")
def model() -> EDMDenoiser:
    """A tiny network of multiple 8 whose weights are not zero anywhere."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EDMDenoiser(UNetConfig(widths=(16, 16, 16), attention=(), embedding=16)).eval().requires_grad_(False)
    for p in network.parameters():
        p.copy_(0.1 * torch.randn(p.shape, generator=rng))
    return network


def test_rescaled_gaussian_is_the_gaussian_of_the_rescaled_images(rng: Generator) -> None:
    """If u ~ N(m, C), then x = a + b u ~ N(a + b m, b² C): an identity that fails if σ or x is scaled the wrong way."""
    root = torch.randn(6, 6, generator=rng, dtype=torch.float64)
    mean, cov, a, b = torch.randn(2, 3, generator=rng, dtype=torch.float64), root @ root.T, 0.0193, 0.4
    adapted, exact = Rescaled(GaussianPrior(mean, cov), a, b), GaussianPrior(a + b * mean, b**2 * cov)
    x = torch.randn(4, 2, 3, generator=rng, dtype=torch.float64)
    for sigma in (torch.tensor(0.3), torch.tensor([0.01, 0.1, 1.0, 10.0])):
        torch.testing.assert_close(adapted(x, sigma), exact(x, sigma))
    assert scale_of(adapted) == b and scale_of(exact) == 1


def test_rescaled_twice_is_rescaled_once() -> None:
    def prior(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x) + sigma

    x, sigma = torch.linspace(-2, 2, 5).reshape(1, 5), torch.tensor(0.7)
    once = Rescaled(prior, 2 + 3 * 0.5, 3 * 4.0)
    torch.testing.assert_close(Rescaled(Rescaled(prior, 0.5, 4.0), 2.0, 3.0)(x, sigma), once(x, sigma))
    torch.testing.assert_close(Rescaled(prior, 0.0, 1.0)(x, sigma), prior(x, sigma))


@pytest.mark.parametrize("shape", [(37, 50), (1, 5), (5, 1), (1, 1), (8, 16), (7, 9)])
def test_network_takes_images_of_any_size(model: EDMDenoiser, shape: tuple[int, int], rng: Generator) -> None:
    x = torch.randn(2, *shape, generator=rng)
    out = NetworkPrior(model)(x, torch.tensor(0.5))
    assert out.shape == x.shape and out.isfinite().all()
    padded = pad_to_multiple(x, 8)
    height, width = (
        2 * p / n - 1 for p, n in zip(padded.shape[1:], shape, strict=True)
    )  # padding lies outside the box
    box = torch.tensor([[-1, -1, height, width]] * 2)
    expected = model(padded[:, None], torch.tensor(0.5), None, box)[:, 0, : shape[0], : shape[1]]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_network_on_its_own_sizes_is_not_padded(model: EDMDenoiser, rng: Generator) -> None:
    x = torch.randn(1, 16, 8, generator=rng)
    direct = model(x[:, None], torch.tensor([0.2]))[:, 0]
    torch.testing.assert_close(NetworkPrior(model)(x, torch.tensor(0.2)), direct, atol=1e-5, rtol=1e-5)


def test_padding_reflects_and_repeats_where_there_is_too_little() -> None:
    row = torch.arange(5.0).reshape(1, 1, 5)
    assert pad_to_multiple(row, 4).shape == (1, 4, 8)
    assert pad_to_multiple(row, 8)[0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert pad_to_multiple(row, 16)[0, 7].tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]
    assert pad_to_multiple(torch.ones(1, 1, 1), 8).eq(1).all()
    assert pad_to_multiple(row.expand(1, 5, 5), 5).shape == (1, 5, 5)


def test_chunks_do_not_matter(model: EDMDenoiser, rng: Generator) -> None:
    x, sigma = torch.randn(5, 9, 11, generator=rng), torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0])
    expected = NetworkPrior(model, chunk=5)(x, sigma)
    for chunk in (1, 2, 4):
        torch.testing.assert_close(NetworkPrior(model, chunk=chunk)(x, sigma), expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_close_and_dtype_follows_the_image(model: EDMDenoiser, rng: Generator) -> None:
    x, sigma = torch.randn(2, 16, 16, generator=rng), torch.tensor(0.3)
    full = NetworkPrior(model)(x, sigma)
    torch.testing.assert_close(NetworkPrior(model, bfloat16=True)(x, sigma), full, atol=0.05, rtol=0)
    double = NetworkPrior(model)(x.double(), sigma.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), full, atol=1e-5, rtol=1e-5)


def test_network_refuses_other_shapes(model: EDMDenoiser) -> None:
    with pytest.raises(ValueError, match=r"\(batch, H, W\), got shape \(8, 8\)"):
        NetworkPrior(model)(torch.zeros(8, 8), torch.tensor(1.0))


def test_counted_counts_images_and_changes_nothing(rng: Generator) -> None:
    def prior(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma**2)

    counted = Counted(Rescaled(prior, 1.0, 0.5))
    x = torch.randn(3, 4, 4, generator=rng)
    torch.testing.assert_close(counted(x, torch.tensor(0.5)), Rescaled(prior, 1.0, 0.5)(x, torch.tensor(0.5)))
    counted(x[:1], torch.tensor(0.5))
    assert counted.n_evaluations == 4 and scale_of(counted) == 0.5


def test_counted_counts_passes_backwards(rng: Generator) -> None:
    """Every vector-Jacobian product, also a second one of the same evaluation and one of another pose; their values are not touched."""
    counted = Counted(lambda x, sigma: x**2 / (1 + sigma**2))
    x = torch.randn(3, 4, 4, generator=rng).requires_grad_()
    out, v = counted(x, torch.tensor(1.0)), torch.randn(3, 4, 4, generator=rng)
    assert counted.n_gradients == 0
    for k in (1, 2):
        (product,) = torch.autograd.grad(out, x, v, retain_graph=True)
        torch.testing.assert_close(product, (v * x).detach())
        assert (counted.n_evaluations, counted.n_gradients) == (3, 3 * k)
    torch.autograd.grad(counted.posed(1)(x[:2], torch.tensor(1.0)).sum(), x)
    assert (counted.n_evaluations, counted.n_gradients) == (5, 8)
    with torch.no_grad():
        counted(x, torch.tensor(1.0))
    counted(x.detach(), torch.tensor(1.0)).requires_grad_().sum().backward()  # stops at the output
    assert (counted.n_evaluations, counted.n_gradients) == (11, 8)


def test_the_mean_over_flips_commutes_with_flips(model: EDMDenoiser, rng: Generator) -> None:
    x, sigma = torch.randn(2, 16, 24, generator=rng), torch.tensor([0.1, 1.0])
    plain, average = NetworkPrior(model), PoseAverage(NetworkPrior(model))
    for flip in ((-1,), (-2,), (-2, -1)):
        torch.testing.assert_close(average(x.flip(flip), sigma).flip(flip), average(x, sigma), rtol=1e-5, atol=1e-5)
        assert (plain(x.flip(flip), sigma).flip(flip) - plain(x, sigma)).abs().max() > 1e-3  # it does not by itself
    counted = Counted(plain)
    PoseAverage(counted, 8)(x, sigma)
    assert counted.n_evaluations == 2 * 8
    torch.testing.assert_close(PoseAverage(plain, 1)(x, sigma), plain(x, sigma))
    outside = PoseAverage(Rescaled(plain, 1.0, 0.5))(1 + 0.5 * x, 0.5 * sigma)
    torch.testing.assert_close(outside, 1 + 0.5 * average(x, sigma), rtol=1e-5, atol=1e-5)


def test_no_poses_to_average() -> None:
    with pytest.raises(ValueError, match="GaussianPrior knows of no poses"):
        PoseAverage(GaussianPrior(torch.zeros(4), torch.eye(4)))
    with pytest.raises(ValueError, match="1 to 32 poses, got 33"):
        PoseAverage(Rescaled(GaussianPrior(torch.zeros(4), torch.eye(4)), 0.0, 1.0), 33)
