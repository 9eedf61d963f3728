"""Images that a prior makes up: drawn from the right distribution, and told from remembered ones."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Generator

from scoreinv.cli import main
from scoreinv.contact_sheet import contact_sheet
from scoreinv.priors.crops import ImageSet
from scoreinv.priors.denoiser import Rescaled
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.memorisation import nearest
from scoreinv.sampling.unconditional import generate


def test_samples_of_a_gaussian_prior_have_its_mean_and_covariance() -> None:
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    covariance = a @ a.T / 4 + 0.1 * torch.eye(4, dtype=torch.float64)
    mean = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
    n = 4000
    x = generate(GaussianPrior(mean, covariance), (2, 2), n, torch.Generator().manual_seed(0)).double().reshape(n, 4)
    spread = covariance.diagonal().sqrt()
    assert ((x.mean(0) - mean.flatten()).abs() < 5 * spread / n**0.5).all()
    scale = spread[:, None] * spread
    assert ((x.T.cov() - covariance).abs() / scale).max() < 5 * (2 / n) ** 0.5


def test_a_sample_depends_on_seed_and_number_alone(rng: Generator) -> None:
    prior = GaussianPrior(torch.zeros(4), torch.eye(4))
    three, two = (generate(prior, (4,), n, torch.Generator().manual_seed(1), n_levels=4) for n in (3, 2))
    torch.testing.assert_close(three[:2], two)
    assert not torch.equal(three, generate(prior, (4,), 3, torch.Generator().manual_seed(2), n_levels=4))


def test_samples_come_in_the_unit_of_the_prior() -> None:
    """Shifted and scaled the samples are the same ones, shifted and scaled."""
    prior = GaussianPrior(torch.full((4,), 2.0), torch.eye(4))
    plain = generate(prior, (4,), 5, torch.Generator().manual_seed(0), n_levels=8)
    scaled = generate(Rescaled(prior, 0.02, 0.03), (4,), 5, torch.Generator().manual_seed(0), n_levels=8)
    torch.testing.assert_close(scaled, 0.02 + 0.03 * plain, rtol=1e-3, atol=1e-5)


@pytest.fixture
def training() -> ImageSet:
    rng = np.random.default_rng(0)
    smooth = rng.normal(0, 300, (5, 8, 8)).repeat(16, axis=1).repeat(16, axis=2)
    return ImageSet(list(smooth.astype(np.int16)), ["a", "a", "b", "b", "c"])


def test_a_remembered_image_is_found_in_any_flip(training: ImageSet, rng: Generator) -> None:
    images = [torch.from_numpy(training.images[k]).float() / 1000 for k in (3, 1)]
    remembered = images[0].flip(-1) + 0.02 * torch.randn(128, 128, generator=rng)
    new = torch.from_numpy(np.random.default_rng(9).normal(0, 0.3, (8, 8)).repeat(16, 0).repeat(16, 1)).float()
    found = nearest([remembered, images[1], new], training)
    assert found[0].index == 3 and found[0].flips == (-1,) and found[0].distance_hu < 20
    assert found[1].index == 1 and found[1].flips == () and found[1].distance_hu == 0
    by_hand = 1000 * min(
        float((new.clamp(-1, 1) - torch.from_numpy(i).float().flip(f) / 1000).square().mean().sqrt())
        for i in training.images
        for f in ((), (-1,), (-2,), (-2, -1))
    )
    assert found[2].distance_hu == pytest.approx(by_hand, rel=0.02) and by_hand > 200


@pytest.mark.parametrize("n", [1, 5])
def test_contact_sheet(tmp_path: Path, n: int) -> None:
    images = [torch.full((16, 16), 100.0 * k) for k in range(n)]
    contact_sheet(tmp_path / "alone.png", images)
    contact_sheet(tmp_path / "pairs.png", images, images, ["x"] * n, title="A title")
    sizes = [len((tmp_path / name).read_bytes()) for name in ("alone.png", "pairs.png")]
    assert sizes[0] < sizes[1]
    with pytest.raises(ValueError, match=f"{n} samples, but {n + 1} captions"):
        contact_sheet(tmp_path / "x.png", images, (), ["x"] * (n + 1))
    with pytest.raises(ValueError, match="no samples"):
        contact_sheet(tmp_path / "x.png", [])


def test_sample_command(tmp_path: Path, training: ImageSet, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["hu"], file["patient"] = np.stack(training.images), training.patients
    sheet, data = tmp_path / "sheet.png", str(tmp_path / "t.h5")
    base = ["sample", "--out", str(sheet), "--samples", "2", "--side", "32"]
    assert main([*base, "--training", data, "--validation", data]) == 0
    assert "HU from the nearest training image (median); slices of 3 other patients: 0 HU" in capsys.readouterr().out
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert main([*base, "--pixel-mm", "1.4"]) == 0 and "2 samples" in capsys.readouterr().out
