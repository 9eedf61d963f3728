"""Training: the loss is the one of the paper, a run is a function of its seed, and kill -9 changes nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Generator, Tensor

from scoreinv.files import atomic
from scoreinv.priors import training
from scoreinv.priors.checkpoint import load_prior
from scoreinv.priors.crops import AIR_HU, ImageSet, draw_crops
from scoreinv.priors.network import UNetConfig
from scoreinv.priors.parallel import Processes
from scoreinv.priors.run import train_prior
from scoreinv.priors.training import TrainConfig, Trainer, denoising_error, learning_rate, train
from scoreinv.priors.validation import VALIDATION_SIGMAS, Slice, denoising_psnr, read_log

NETWORK = UNetConfig(widths=(16, 32), attention=(), embedding=16)
SHORT = TrainConfig(steps=40, batch_size=2, crop=16, whole=32, warmup=5, ema=(0.9, 0.5))
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """Smooth random images of three patients."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 300, (6, 8, 8)).repeat(5, axis=1).repeat(5, axis=2)
    return ImageSet(list(coarse.astype(np.int16)), ["a", "a", "a", "a", "b", "c"])


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {f"{n}.{k}": v.clone() for n, a in enumerate(trainer.averages) for k, v in a.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


# The loss


def test_loss_of_a_linear_denoiser_of_gaussian_images() -> None:
    """x₀ ~ N(0, s²) and D = c x: E‖D − x₀‖² = (c − 1)² s² + c² σ², weighted by λ = (σ² + σ_d²) / (σ σ_d)²."""
    rng, n, s, c, sigma_data = torch.Generator().manual_seed(0), 200_000, 0.7, 0.8, 0.5
    x0, noise = (torch.randn((n, 1, 1, 1), generator=rng, dtype=torch.float64) for _ in range(2))
    for sigma in (0.1, 0.5, 2.0):
        levels = torch.full((n,), sigma, dtype=torch.float64)
        loss = denoising_error(c * (s * x0 + sigma * noise), s * x0, levels, sigma_data).mean()
        expected = ((c - 1) ** 2 * s**2 + c**2 * sigma**2) * (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        assert float(loss) == pytest.approx(expected, rel=5 * math.sqrt(2 / n))  # five standard errors


def test_loss_at_initialisation_is_one(rng: Generator) -> None:
    """What λ is made for: with F = 0 and images of standard deviation σ_d every noise level starts at a loss of 1."""
    x0, noise = (torch.randn((64, 1, 32, 32), generator=rng) for _ in range(2))
    for sigma in (0.01, 0.5, 30.0):
        denoised = 0.25 / (sigma**2 + 0.25) * (0.5 * x0 + sigma * noise)
        error = denoising_error(denoised, 0.5 * x0, torch.full((64,), sigma), 0.5)
        assert error.shape == (64,) and float(error.mean()) == pytest.approx(1, rel=0.05)


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(steps=1000, warmup=100, lr=2e-3)
    assert learning_rate(config, 0) == pytest.approx(2e-5)
    assert learning_rate(config, 49) == pytest.approx(1e-3 * (0.01 + 0.99 * 0.5 * (1 + math.cos(0.049 * math.pi))))
    assert learning_rate(config, 500) == pytest.approx(2e-3 * (0.01 + 0.99 / 2))
    assert learning_rate(config, 1000) == learning_rate(config, 5000) == pytest.approx(2e-5)
    assert all(learning_rate(config, k) > learning_rate(config, k + 1) for k in range(100, 999))


def test_denoising_psnr_against_its_formula() -> None:
    """The identity denoises nothing: the error is σ² where nothing is clipped, 20 log10(2 / σ) dB."""
    images = [Slice(torch.zeros(64, 64), 1.5), Slice(torch.full((64, 64), 0.3))]
    told: list[float] = []

    def identity(x: Tensor, sigma: Tensor, pixel_mm: Tensor) -> Tensor:
        told.append(float(pixel_mm))
        return x

    psnr = denoising_psnr(identity, images, (0.02, 0.1))
    assert psnr == pytest.approx([20 * math.log10(2 / 0.02), 20 * math.log10(2 / 0.1)], abs=0.2)
    assert psnr == denoising_psnr(identity, images, (0.02, 0.1))
    assert told[0] == 1.5 and math.isnan(told[1])


# The crops


def test_a_patient_weighs_the_root_of_its_slices(data: ImageSet) -> None:
    w = data.weights()
    per_patient = [w[:4].sum(), w[4], w[5]]
    assert w.sum() == pytest.approx(1) and per_patient == pytest.approx([2 / 4, 1 / 4, 1 / 4])
    assert data.n_patients == 3 and data.one_per_patient() == [2, 4, 5]
    constant = ImageSet([np.full((4, 4), 100 * k, np.int16) for k in range(6)], data.patients)
    crops = draw_crops(constant, np.cumsum(w), np.random.default_rng(0), 8000, 2).u
    share = torch.stack([(crops == 0.1 * k).float().mean() for k in range(6)]).numpy()
    assert np.abs(share - w).max() < 5 * math.sqrt(0.25 / 8000)


def test_crops_come_from_the_image_in_four_orientations() -> None:
    image = np.arange(30, dtype=np.int16).reshape(5, 6)
    crops = draw_crops(ImageSet([image], ["a"]), np.ones(1), np.random.default_rng(0), 2000, 3).u
    assert crops.shape == (2000, 1, 3, 3) and crops.dtype == torch.float32
    windows = [image[i : i + 3, j : j + 3] for i in range(3) for j in range(4)]
    allowed = {w[::v, ::h].tobytes() for w in windows for v in (1, -1) for h in (1, -1)}
    drawn = {(1000 * c[0]).round().to(torch.int16).numpy().tobytes() for c in crops}
    assert drawn == allowed


def test_small_images_are_surrounded_by_air() -> None:
    one = ImageSet([np.full((3, 7), 500, np.int16)], ["a"])
    crop = draw_crops(one, np.ones(1), np.random.default_rng(0), 1, 5).u[0, 0]
    assert (crop[:3] == 0.5).all() and (crop[3:] == AIR_HU / 1000).all()


def test_crops_know_their_place_and_pixels() -> None:
    """An image whose values are its own row and column: what a crop shows and what its box says must agree."""
    rows, columns = np.mgrid[:40, :60]
    data = ImageSet([(10 * rows).astype(np.int16), (10 * columns).astype(np.int16)], ["a", "b"], [0.5, 2.0])
    crops = draw_crops(data, np.array([0.5, 1.0]), np.random.default_rng(0), 400, 16)
    alone = (crops.box == torch.tensor([-1.0, -1.0, 1.0, 1.0])).all(1)
    assert 0.1 < alone.float().mean() < 0.3
    for u, (top, left, bottom, right) in zip(crops.u[~alone, 0], crops.box[~alone].tolist(), strict=True):
        axis, n, start, end = (0, 40, top, bottom) if float(u.std(0).max()) > 0 else (1, 60, left, right)
        shown = 100 * u.mean(1 - axis)  # the row or column numbers of the crop, maybe reversed
        expected = (torch.arange(16) + 0.5) / 16 * (end - start) * n / 2 + (start + 1) * n / 2 - 0.5
        flipped = n - 1 - expected
        assert torch.allclose(shown, expected, atol=1e-3) or torch.allclose(shown, flipped, atol=1e-3)
    sizes = crops.pixel_mm
    assert set(sizes[sizes.isfinite()].tolist()) == {0.5, 2.0} and 0.08 < sizes.isnan().float().mean() < 0.25


def test_zoomed_crops_have_other_pixels(rng: Generator) -> None:
    """A ramp of 10 HU a millimetre stays one: the slope in HU a pixel follows the pixel size that the crop reports."""
    ramp = np.broadcast_to((10 * 1.5 * np.arange(200)).astype(np.int16), (200, 200))
    crops = draw_crops(ImageSet([ramp], ["a"], [1.5]), np.ones(1), np.random.default_rng(0), 200, 32, zoom=0.5)
    known = crops.pixel_mm.isfinite()
    slope = 1000 * crops.u[known, 0, :, 4:-4].diff(dim=2).abs().mean((1, 2))
    torch.testing.assert_close(slope, 10 * crops.pixel_mm[known], rtol=0.02, atol=0)
    zoomed = (crops.pixel_mm[known] - 1.5).abs() > 1e-4
    assert 0.35 < zoomed.float().mean() < 0.6
    assert crops.pixel_mm[known].min() >= 0.74 and crops.pixel_mm[known].max() <= 1.9


def test_image_set_needs_names() -> None:
    with pytest.raises(ValueError, match="0 images and 0 names"):
        ImageSet([], [])
    with pytest.raises(ValueError, match="1 images and 2 names"):
        ImageSet([np.zeros((2, 2), np.int16)], ["a", "b"])


# The run


def test_same_seed_same_weights(data: ImageSet) -> None:
    before = torch.random.get_rng_state()
    runs = [Trainer(NETWORK, dataclasses.replace(SHORT, seed=seed), data) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's own randomness is left alone
    losses = []
    for k, run in enumerate(runs):
        torch.manual_seed(k)  # and has no influence
        losses.append([run.advance() for _ in range(4)])
    assert_equal(weights(runs[0]), weights(runs[1]))
    assert losses[0] == losses[1] != losses[2]


def test_the_loss_falls(data: ImageSet) -> None:
    """On one and the same batch before and after, so that luck in the noise levels plays no part."""
    run = Trainer(NETWORK, dataclasses.replace(SHORT, batch_size=8, steps=60, lr=3e-3, whole_fraction=0.0), data)
    batch = run.batch(1000)

    def loss() -> float:
        with torch.no_grad():
            return float(run.loss(batch))

    before = loss()
    for _ in range(60):
        run.advance()
    assert loss() < 0.9 * before


def test_learned_weights_find_the_usual_error(data: ImageSet) -> None:
    """With the network frozen, eq. (2) is least where e^a(σ) is the mean error at σ."""
    run = Trainer(NETWORK, dataclasses.replace(SHORT, weighting="learned", batch_size=64, whole_fraction=0), data)
    assert "usual.linear.weight" in run.parameters
    optimizer = torch.optim.Adam(run.usual.parameters(), lr=0.03)
    batches = [run.batch(k) for k in range(8)]
    for step in range(150):
        optimizer.zero_grad()
        run.loss(batches[step % 8]).backward()
        optimizer.step()
    with torch.no_grad():
        b = run.batch(100)
        denoised = run.model(b.x0 + b.sigma.reshape(-1, 1, 1, 1) * b.noise, b.sigma)
        error = denoising_error(denoised, b.x0, b.sigma, 0.5)
        scaled = error / run.usual(b.sigma).exp()
    for low, high in ((0.0, 0.2), (0.2, 0.6), (0.6, 99.0)):
        inside = (b.sigma >= low) & (b.sigma < high)
        assert float(scaled[inside].mean()) == pytest.approx(1, abs=0.35)


def test_power_decay() -> None:
    config = TrainConfig(steps=1000, warmup=10, lr=1e-3, decay="power", lr_reference=100)
    assert [learning_rate(config, k) for k in (0, 50, 100, 400)] == pytest.approx([1e-4, 1e-3, 1e-3, 5e-4])


def test_processes_share_a_batch(data: ImageSet) -> None:
    """The shares of two processes are together the batch of one, and the mean of their gradients is its gradient."""
    config = dataclasses.replace(SHORT, batch_size=4, whole_fraction=0)
    alone = Trainer(NETWORK, config, data)
    two = [Trainer(NETWORK, config, data, processes=Processes(torch.device("cpu"), k, 2)) for k in range(2)]
    whole, shares = alone.batch(3).x0, [run.batch(3).x0 for run in two]
    assert torch.equal(whole[0::2], shares[0]) and torch.equal(whole[1::2], shares[1])
    for run in (alone, *two):
        run.loss(run.batch(3)).backward()
    name = "unet.head.2.weight"
    gradients = [dict(run.model.named_parameters())[name].grad for run in (alone, *two)]
    torch.testing.assert_close(gradients[0], (gradients[1] + gradients[2]) / 2)  # type: ignore[operator]
    assert [run.processes.main for run in two] == [True, False]
    with pytest.raises(ValueError, match="batch of 3 cannot be shared by 2"):
        two[0].processes.part(torch.zeros(3))


def test_a_batch_is_a_function_of_seed_and_step(data: ImageSet) -> None:
    run = Trainer(NETWORK, SHORT, data)
    first, again, other = run.batch(3), Trainer(NETWORK, SHORT, data).batch(3), run.batch(4)
    for name in ("x0", "sigma", "noise", "box"):
        a, b, c = (getattr(batch, name) for batch in (first, again, other))
        assert torch.equal(a, b) and not torch.equal(a, c), name
    assert first.x0.shape == (2, 1, 16, 16)
    assert run.batch(34).x0.shape == (1, 1, 32, 32)  # the last 15 %: whole images, with as many pixels a step


def test_noise_levels_are_log_normal(data: ImageSet) -> None:
    run = Trainer(NETWORK, dataclasses.replace(SHORT, batch_size=1000), data)
    log_sigma = torch.cat([run.batch(k).sigma.log() for k in range(10)])
    assert float(log_sigma.mean()) == pytest.approx(-1.4, abs=5 * 1.5 / 100)
    assert float(log_sigma.std()) == pytest.approx(1.5, rel=0.05)


def test_average_is_the_exponential_moving_average(data: ImageSet) -> None:
    run = Trainer(NETWORK, SHORT, data)
    name = "unet.stem.weight"
    expected = [run.model.state_dict()[name].double() for _ in run.averages]
    for step in range(12):
        run.advance()
        new = run.model.state_dict()[name].double()
        for k, longest in enumerate((0.9, 0.5)):
            decay = min(longest, (1 + step) / (10 + step))
            expected[k] = decay * expected[k] + (1 - decay) * new
    for average, by_hand in zip(run.averages, expected, strict=True):
        torch.testing.assert_close(average.state_dict()[name].double(), by_hand, atol=1e-6, rtol=1e-4)
    assert not torch.equal(*(average.state_dict()[name] for average in run.averages))


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(data: ImageSet, tmp_path: Path) -> None:
    straight, first = Trainer(NETWORK, SHORT, data), Trainer(NETWORK, SHORT, data)
    list(train(straight, tmp_path / "a", validation=[], validate_every=10))
    list(train(first, tmp_path / "b", validation=[], validate_every=10, until=17))
    second = Trainer(NETWORK, SHORT, data)
    list(train(second, tmp_path / "b", validation=[], validate_every=10))
    assert_equal(weights(straight), weights(second))
    logs = [without_time(read_log(tmp_path / n / "log.csv")) for n in "ab"]
    assert [row["step"] for row in logs[1]] == ["10", "17", "20", "30", "40"]
    assert logs[0] == [row for row in logs[1] if row["step"] != "17"]


def test_validation_may_begin_in_the_middle_of_a_run(data: ImageSet, tmp_path: Path) -> None:
    images = [Slice(torch.zeros(16, 16))]
    for validation, until in (([], 2), (images, 4), ([], 6)):
        list(train(Trainer(NETWORK, SHORT, data), tmp_path, validation=validation, until=until, validate_every=2))
    rows = read_log(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert [bool(row["psnr_0.1"]) for row in rows] == [False, True, False]


def test_a_crash_while_saving_leaves_the_old_state(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the temporary file and its renaming: what lies there is whole, and a run goes on from it."""
    run, state = Trainer(NETWORK, SHORT, data), tmp_path / "state.safetensors"
    run.advance()
    run.save(state)
    old = state.read_bytes()

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", crash)
    run.advance()
    with pytest.raises(KeyboardInterrupt):
        run.save(state)
    assert state.read_bytes() == old
    again = Trainer(NETWORK, SHORT, data)
    again.load(state)
    assert again.step == 1
    again.advance()
    assert_equal(weights(again), weights(run))


def test_a_full_disk_does_not_end_training(data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is no room, training goes on and says so, and the last good state stays."""
    run = Trainer(NETWORK, SHORT, data)
    list(train(run, tmp_path, validation=[], until=3))
    old, whole = (tmp_path / "state.safetensors").read_bytes(), training.save_file

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training, "save_file", full)
    steps = train(Trainer(NETWORK, SHORT, data), tmp_path, validation=[], until=8, checkpoint_minutes=0)
    with pytest.warns(UserWarning, match="No space left.*last good state is kept"):
        assert [row["step"] for row in islice(steps, 4)] == [4, 5, 6, 7]
    assert (tmp_path / "state.safetensors").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir() if "state" in p.name] == ["state.safetensors"]
    monkeypatch.setattr(training, "save_file", whole)
    again = Trainer(NETWORK, SHORT, data)
    list(train(again, tmp_path, validation=[], until=5))
    assert again.step == 5


def test_history_has_a_row_for_every_slice(data: ImageSet, tmp_path: Path) -> None:
    for until, lr in ((3, 1e-3), (7, 5e-4)):
        run = Trainer(NETWORK, dataclasses.replace(SHORT, lr=lr), data)
        list(train(run, tmp_path, validation=[], until=until))
    rows = run.history
    assert [(r["from_step"], r["to_step"], r["start"], r["training"]["lr"]) for r in rows] == [
        (0, 3, "scratch", 1e-3),
        (3, 7, "state at step 3", 5e-4),
    ]
    assert sum(r["hours"] for r in rows) == pytest.approx(run.seconds / 3600)


def test_time_limit_and_divergence(data: ImageSet, tmp_path: Path) -> None:
    run = Trainer(NETWORK, SHORT, data)
    assert list(train(run, tmp_path, validation=[], hours=0)) == [] and run.step == 0
    with torch.no_grad():
        run.model.unet.stem.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="diverged at step 0"):
        run.advance()


def test_another_network_in_the_folder_is_refused(data: ImageSet, tmp_path: Path) -> None:
    Trainer(NETWORK, SHORT, data).save(tmp_path / "state.safetensors")
    other = dataclasses.replace(NETWORK, embedding=32)
    with pytest.raises(ValueError, match="holds the network"):
        list(train(Trainer(other, SHORT, data), tmp_path, validation=[]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": 18}, "crop must be a multiple of 4"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"batch_size": 1.5}, "batch_size must be a whole number"),
        ({"warmup": 0}, "warmup must be"),
        ({"lr": -1.0}, "lr, clip and p_std must be positive"),
        ({"ema": (1.0,)}, "0 <= ema < 1"),
        ({"decay": "linear"}, "decay must be 'cosine' or 'power', got 'linear'"),
    ],
)
def test_impossible_settings(data: ImageSet, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Trainer(NETWORK, dataclasses.replace(SHORT, **changes), data)


# From files, by the command


def write_images(path: Path, patients: list[str], seed: int, side: int = 24) -> Path:
    rng = np.random.default_rng(seed)
    hu = rng.normal(0, 300, (len(patients), side // 4, side // 4)).repeat(4, axis=1).repeat(4, axis=2)
    with h5py.File(path, "w") as file:
        file["hu"] = hu.astype(np.int16)
        file["patient"] = patients
        file["pixel_mm"] = np.ones(len(patients))
    return path


def test_patients_in_both_sets_are_refused(tmp_path: Path) -> None:
    a = write_images(tmp_path / "a.h5", ["anna", "bert"], 0)
    b = write_images(tmp_path / "b.h5", ["carl", "bert"], 1)
    with pytest.raises(ValueError, match=r"\['bert'\] are in the training and in the validation images"):
        train_prior([a], tmp_path / "run", validation=[b])


def test_prior_from_files(tmp_path: Path) -> None:
    """Validation images need not suit the network, and a card.json in the folder joins the prior's card."""
    a = write_images(tmp_path / "a.h5", ["anna", "bert"], 0)
    b = write_images(tmp_path / "b.h5", ["carl"], 1, side=12)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "card.json").write_text('{"license": "CC0"}')
    settings = {"steps": 4, "batch_size": 1, "crop": 16, "whole": 16}
    network = {"widths": [16, 32, 32], "attention": [], "embedding": 16}  # sides must be multiples of 8, these are 12
    path = train_prior([a], tmp_path / "run", validation=[b], training=settings, network=network, validate_every=2)
    model, card = load_prior(path)
    assert model.config.widths == (16, 32, 32) and card["license"] == "CC0" and card["steps"] == 4
    assert card["data"] == {"images": 2, "patients": 2, "validation_patients": 1}
    assert set(card["validation_psnr_db"]) == {f"{s:g}" for s in VALIDATION_SIGMAS}
    assert (tmp_path / "run" / "log.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_may_start_from_a_prior(tmp_path: Path) -> None:
    """Network and weights are the prior's, and its history goes on; network settings of its own are refused."""
    images = write_images(tmp_path / "a.h5", ["anna", "bert"], 0)
    settings = {"steps": 3, "batch_size": 1, "crop": 16, "whole": 16}
    network = {"widths": [16, 32], "attention": [], "embedding": 16, "block": "plain"}
    first = train_prior([images], tmp_path / "one", training=settings, network=network)
    again = {"training": settings | {"lr": 1e-9, "ema": [0.0]}, "start": first}
    second = train_prior([images], tmp_path / "two", **again)  # type: ignore[arg-type]
    (old, old_card), (new, card) = load_prior(first), load_prior(second)
    for name, weight in old.state_dict().items():
        torch.testing.assert_close(new.state_dict()[name], weight, atol=1e-3, rtol=1e-3)
    assert [r["start"] for r in card["history"]] == ["scratch", old_card["sha256"][:12]]
    assert card["steps"] == 6 and card["hours"] >= old_card["hours"]
    text = second.with_suffix(".md").read_text()
    assert "| 2 | 0 to 3 |" in text and "plain" in text and card["sha256"] in text
    with pytest.raises(ValueError, match=r"leave its settings \['widths'\] out"):
        train_prior([images], tmp_path / "three", network={"widths": [16]}, start=first)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two real processes on the CPU: the state is that of one process, up to rounding, learned weights included."""
    pytest.importorskip("accelerate", reason="needs the extra scoreinv[accelerate]")
    images = write_images(tmp_path / "train.h5", ["a", "b", "c"], 0)
    settings = ["--set", "batch_size=2", "--set", "crop=16", "--set", "whole_fraction=0", "--set", "ema=[0.5]"]
    settings += ["--set", "weighting=learned", "--hours", "1"]
    network = ["--network", "widths=[16,16]", "--network", "attention=[]", "--network", "embedding=16"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for folder, launcher in (("one", ["-m"]), ("two", [*launch, "-m"])):
        command = [sys.executable, *launcher, "scoreinv", "train", str(images), "--out", str(tmp_path / folder)]
        done = subprocess.run(
            [*command, "--steps", "6", *settings, *network], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("prior.safetensors") == 1, done.stdout
        history = json.loads((tmp_path / folder / "prior.json").read_text())["history"]
        assert [row["processes"] for row in history] == [1 if folder == "one" else 2]
    one, two = (load_file(tmp_path / folder / "state.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if not name.startswith("adam"):
            torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3)


def test_killed_and_run_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """A real process, a real kill -9 in the middle, and the same command once more."""
    images = write_images(tmp_path / "train.h5", ["a", "b", "c"], 0)
    held_out = write_images(tmp_path / "val.h5", ["d"], 1)
    settings = ["--set", "batch_size=1", "--set", "crop=16", "--set", "whole=16", "--set", "warmup=10"]
    network = ["--network", "widths=[16,16]", "--network", "attention=[]", "--network", "embedding=16"]
    steps = 60

    def start(folder: str) -> subprocess.Popen[str]:
        files = [str(images), "--validation", str(held_out), "--out", str(tmp_path / folder)]
        pace = ["--steps", str(steps), "--checkpoint-minutes", "0.0005", "--validate-every", "20"]
        return subprocess.Popen(
            [sys.executable, "-m", "scoreinv", "train", *files, *pace, *settings, *network],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(process: subprocess.Popen[str]) -> None:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert out.strip().endswith("prior.safetensors")

    unharmed, victim = start("unharmed"), start("killed")
    wait_for_rows(tmp_path / "killed" / "log.csv", 1, victim)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    killed_at = step_of(tmp_path / "killed" / "state.safetensors")
    assert 0 < killed_at < steps, "the run was not killed in its middle"
    finish(start("killed"))
    finish(unharmed)

    states = [load_file(tmp_path / folder / "state.safetensors") for folder in ("unharmed", "killed")]
    assert_equal(*states)
    assert step_of(tmp_path / "killed" / "state.safetensors") == steps
    logs = [read_log(tmp_path / folder / "log.csv") for folder in ("unharmed", "killed")]
    assert [int(row["step"]) for row in logs[1]] == list(range(20, steps + 1, 20))
    assert without_time(logs[0]) == without_time(logs[1])
    priors = [load_prior(tmp_path / folder / "prior.safetensors")[1]["sha256"] for folder in ("unharmed", "killed")]
    assert priors[0] == priors[1]


def without_time(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in ("hours", "images_per_second")} for row in rows]


def wait_for_rows(log: Path, n: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(read_log(log)) >= n:
            return
        time.sleep(0.02)
    raise AssertionError(f"the log had no {n} rows in time; exit code {process.poll()}")


def step_of(state: Path) -> int:
    with safe_open(state, "pt") as file:
        return int(json.loads(file.metadata()["scoreinv"])["step"])
