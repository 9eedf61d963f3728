"""`scoreinv score`: usual images get usual scores, implanted oddities raise them where they are."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from pydicom.data import get_testdata_file
from torch import Generator, Tensor

from scoreinv.cli import main
from scoreinv.files.images import read_image
from scoreinv.image_score import ImageScore, score_tensor, words
from scoreinv.priors.checkpoint import save_prior
from scoreinv.priors.denoiser import NetworkPrior
from scoreinv.priors.fourier import StationaryPrior, matern
from scoreinv.priors.network import EDMDenoiser, UNetConfig
from scoreinv.priors.residuals import excess, smoothed, squared_residuals, unusual_map, usual_from_psnr
from scoreinv.priors.shipped import load_network, prior_card
from scoreinv.score_picture import score_picture

SIDE, SIGMAS = 32, (0.05, 0.2, 0.5)
PRIOR = StationaryPrior(
    torch.zeros(SIDE, SIDE, dtype=torch.float64), matern((SIDE, SIDE), std=0.25, length=6.0, smoothness=2.0) + 1e-4
)


def draws(n: int, seed: int) -> list[Tensor]:
    """Images of the prior in whole HU."""
    found = PRIOR.draw(n, torch.Generator().manual_seed(seed)).clamp(-1, 1)
    return [(1000 * u).round() / 1000 for u in found]


def with_checkerboard(u: Tensor, top: int, left: int, side: int = 10) -> Tensor:
    board = torch.tensor([[0.4 if (i // 2 + j // 2) % 2 else -0.4 for j in range(side)] for i in range(side)])
    out = u.clone()
    out[top : top + side, left : left + side] = board.to(u)
    return (1000 * out).round() / 1000


def with_shuffled_patches(u: Tensor, side: int = 8) -> Tensor:
    n, m = u.shape[0] // side, u.shape[1] // side
    patches = u.reshape(n, side, m, side).permute(0, 2, 1, 3).reshape(n * m, side, side)
    order = torch.randperm(n * m, generator=torch.Generator().manual_seed(2))
    return patches[order].reshape(n, m, side, side).permute(0, 2, 1, 3).reshape(u.shape)


def scored(u: Tensor, **settings: int) -> ImageScore:
    reference = [(PRIOR, v) for v in draws(20, 1)]
    return score_tensor(PRIOR, u, SIGMAS, reference=reference, **settings)


def test_the_oddities_raise_both_scores_of_an_exact_prior() -> None:
    u = draws(1, 6)[0]
    usual = scored(u, draws=2)
    assert 0.8 < usual.excess < 1.2 and usual.bits is not None
    for odd in (with_checkerboard(u, 4, 18), with_shuffled_patches(u)):
        found = scored(odd, draws=2)
        assert found.bits is not None and found.bits.bits > usual.bits.bits + 0.3
        assert found.excess > 1.3 * usual.excess
        shares = found.percentiles()
        assert shares is not None and shares[1] == 100 and min(shares[0][1:]) == 100
        assert "this image is UNUSUAL" in "\n".join(words(found, 2))


def test_images_of_the_prior_are_rarely_called_unusual() -> None:
    """Their percentiles are those of one more image of the same law."""
    found = [scored(u, draws=0) for u in draws(60, 11)]
    shares = [f.percentiles() for f in found]
    overall = [s[1] for s in shares if s is not None]
    assert len(overall) == 60 and abs(np.mean(overall) - 50) < 4 * 100 / 12**0.5 / 60**0.5 + 100 / 12**0.5 / 20**0.5
    called = sum("UNUSUAL" in "\n".join(words(f, 0)) for f in found)
    assert called <= 8 and any("not unusual among them" in "\n".join(words(f, 0)) for f in found)


def test_the_map_shows_where() -> None:
    u = with_checkerboard(draws(1, 5)[0], 4, 18)
    found = scored(u, draws=0)
    assert found.bits is None and "Likelihood" not in "\n".join(words(found, 0))
    row, column = divmod(int(found.unusual.argmax()), SIDE)
    assert 4 <= row < 14 and 18 <= column < 28
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    outside[0:20, 12:32] = False
    assert found.unusual[7:11, 21:25].min() > 2 * found.unusual[outside].max()


def test_the_expected_residual_of_an_exact_prior_is_usual(rng: Generator) -> None:
    """E (D − x₀)² = σ² tr J / d, here the mean of λ σ² / (λ + σ²) over the spectrum."""
    images = draws(30, 3)
    found = torch.stack([squared_residuals(PRIOR, u, SIGMAS, rng).mean((1, 2)) for u in images])
    s = torch.tensor(SIGMAS, dtype=torch.float64)[:, None, None] ** 2
    expected = (PRIOR.spectrum * s / (PRIOR.spectrum + s)).mean((1, 2))
    assert ((found.mean(0) - expected).abs() < 4 * found.std(0) / 30**0.5 + 0.02 * expected).all()


def test_residuals_in_units_of_the_usual() -> None:
    usual = torch.tensor([usual_from_psnr(40.0), usual_from_psnr(20.0)], dtype=torch.float64)
    torch.testing.assert_close(usual, torch.tensor([4e-4, 4e-2], dtype=torch.float64))
    residuals = usual[:, None, None] * torch.full((2, 12, 12), 9.0, dtype=torch.float64)
    torch.testing.assert_close(unusual_map(residuals, usual), torch.full((12, 12), 9.0, dtype=torch.float64))
    assert excess(residuals, usual) == pytest.approx(3.0)
    spike = torch.zeros(20, 20, dtype=torch.float64)
    spike[10, 10] = 81.0
    assert smoothed(spike)[6, 14] == pytest.approx(1.0) and smoothed(spike)[5, 10] == 0
    torch.testing.assert_close(smoothed(torch.ones(20, 20)), torch.ones(20, 20))


def test_a_score_is_the_same_for_the_same_seed() -> None:
    u = draws(1, 7)[0]
    one, two, other = (scored(u, draws=1, seed=s) for s in (0, 0, 1))
    torch.testing.assert_close(one.residuals, two.residuals, rtol=0, atol=0)
    assert one.bits is not None and two.bits is not None and other.bits is not None
    assert one.bits.bits == two.bits.bits != other.bits.bits


# From the command line


@pytest.fixture
def flat_prior(tmp_path: Path) -> Path:
    """An untrained network: D = c_skip x is that of independent pixels N(0, 0.5²), whose bits are known."""
    torch.manual_seed(0)
    model = EDMDenoiser(UNetConfig(widths=(16, 16), attention=()))
    card = {"validation_psnr_db": {"0.1": 20.0, "0.5": 14.0}}
    save_prior(model, tmp_path / "flat.safetensors", card, half=False)
    return tmp_path / "flat.safetensors"


def test_the_command_says_the_bits_of_independent_pixels(
    tmp_path: Path, flat_prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hu = np.random.default_rng(0).normal(0, 300, (24, 20)).round().clip(-1000).astype(np.float32)
    np.save(tmp_path / "image.npy", hu)
    picture = tmp_path / "map.png"
    base = ["score", str(tmp_path / "image.npy"), "--pixel-mm", "1.5", "--prior", str(flat_prior)]
    assert main([*base, "--draws", "2", "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "image.npy, 24 x 20 pixels of 1.5 mm, under the prior flat" in out
    found = float(out.split("Likelihood: ")[1].split()[0])
    variance = 500.0**2 + 2.0**2  # the flow begins at a noise of 2 HU
    bits = (hu**2).mean() / variance / 2 / math.log(2) + math.log2(2 * math.pi * variance) / 2
    assert found == pytest.approx(float(bits), abs=0.01)
    assert "± 0.000 bits per pixel, in steps of 1 HU" in out and "with 2 gradients each" in out
    # D is clipped to [-1, 1]: at σ = 0.1 hardly, the error is that of shrinking towards 0
    shrink = 0.25 / (0.25 + 0.01)
    rms = 1000 * math.sqrt((shrink * 0.1) ** 2 + (1 - shrink) ** 2 * float((hu**2).mean()) / 1e6)
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["100"])
    assert float(row[1]) == pytest.approx(rms, rel=0.1) and float(row[2]) == pytest.approx(200.0)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_compares_with_a_reference(
    tmp_path: Path, flat_prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "others.h5", "w") as file:
        file["hu"] = rng.normal(0, 100, (6, 16, 16)).astype(np.int16)
        file["patient"], file["pixel_mm"] = list("aabbcc"), np.full(6, 1.4, np.float32)
    np.save(tmp_path / "image.npy", rng.normal(0, 900, (16, 16)).clip(-1000).astype(np.int16))
    base = ["score", str(tmp_path / "image.npy"), "--pixel-mm", "1.4", "--prior", str(flat_prior), "--draws", "0"]
    assert main([*base, "--reference", str(tmp_path / "others.h5")]) == 0
    out = capsys.readouterr().out
    assert "percentile" in out and "100 % of the 6 reference slices err less: this image is UNUSUAL" in out
    assert main(base) == 0
    assert "--reference says how much slices differ" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path: Path, flat_prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str) -> str:
        assert main(["score", *arguments]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    np.save(tmp_path / "volume.npy", np.zeros((3, 16, 16), np.float32))
    np.save(tmp_path / "huge.npy", np.full((16, 16), 1e5, np.float32))
    options = ["--pixel-mm", "1", "--prior", str(flat_prior)]
    assert "holds 3 slices; choose one with --slice" in error(str(tmp_path / "volume.npy"), *options)
    assert "values in [-1, 32.767]" in error(str(tmp_path / "huge.npy"), *options)
    assert "draws must be 0 or more" in error(str(tmp_path / "volume.npy"), "--slice", "0", "--draws", "-1", *options)
    assert "does not exist" in error(str(tmp_path / "volume.npy"), "--picture", str(tmp_path / "no" / "x.png"))
    bare = tmp_path / "bare.safetensors"
    save_prior(load_network(flat_prior), bare, {})
    assert "give reference slices" in error(
        str(tmp_path / "volume.npy"), "--slice", "0", "--pixel-mm", "1", "--prior", str(bare)
    )


def test_the_picture_needs_maps_of_the_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unusual \(3, 3\) is not shaped like hu \(4, 4\)"):
        score_picture(tmp_path / "x.png", hu=torch.zeros(4, 4), unusual=torch.zeros(3, 3))


def test_the_shipped_prior_finds_a_checkerboard_in_a_real_slice() -> None:
    """64 x 64 pixels of the slice that comes with pydicom."""
    ct = read_image(str(get_testdata_file("CT_small.dcm")))
    u = torch.from_numpy(ct.hu[0, 32:96, 32:96]).round() / 1000
    prior = NetworkPrior(load_network(), ct.pixel_mm)
    figures = {float(k): usual_from_psnr(v) for k, v in prior_card()["validation_psnr_db"].items()}
    usual = torch.tensor(list(figures.values()))
    plain, odd, shuffled = (
        score_tensor(prior, v, tuple(figures), usual=usual, draws=0)
        for v in (u, with_checkerboard(u, 20, 20, 16), with_shuffled_patches(u))
    )
    assert odd.excess > 1.15 * plain.excess and shuffled.excess > 1.15 * plain.excess
    row, column = divmod(int(odd.unusual.argmax()), 64)
    assert 20 <= row < 36 and 20 <= column < 36
