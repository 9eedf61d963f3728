"""Volumes: each slice is what it is alone, whatever is asked for, beside what, after which kill; the whole is never in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from small_volume import SLICES, operator, scan, slice_of, write

from scoreinv import streams
from scoreinv.calibration import Calibration
from scoreinv.cli import main
from scoreinv.cli.volumes import slices_of
from scoreinv.files.dxchange import read_dxchange
from scoreinv.files.reconstruction import Reconstruction
from scoreinv.files.scan import Scan, read_scan, write_scan
from scoreinv.files.slices import DXchangeSlices, open_slices, stacked
from scoreinv.files.volume import FIGURES, VolumeFile, create_volume, judgement, opened
from scoreinv.problem import Problem
from scoreinv.reconstruction import Choice, conditions_of, reconstruct, with_intervals, without_intervals
from scoreinv.solving import Solved
from scoreinv.volume import batches, look, reconstruct_volume

needs_zarr = pytest.mark.skipif(importlib.util.find_spec("zarr") is None, reason="zarr is an optional extra")
KINDS = ["h5", pytest.param("zarr", marks=needs_zarr)]
KILLS = 10
NOISES = ["one", "per_slice", "per_datum", "photons", "unknown"]
METHODS = {
    "fbp": Choice("fbp"),
    "fista_tv": Choice("fista_tv", {"max_iterations": 5}),
    "cgls": Choice("cgls", {"iterations": 3}),
    "proximal": Choice("proximal", {"n_levels": 1, "samples": 2, "draw_levels": 2, "iterations": 2}, "ct-256-fast"),
    "dds": Choice("dds", {"n_levels": 2, "samples": 2, "iterations": 2}, "ct-256-fast"),
}
"""Baselines, and methods that draw."""


def images(path: Path, name: str = "mean") -> np.ndarray:
    """All slices of a volume; NaN where a slice is not there."""
    with opened(path) as volume:
        side = volume.group[name].shape[1:]
        return np.stack(
            [volume.image(name, k) if there else np.full(side, np.nan) for k, there in enumerate(volume.done)]
        )


def state(path: Path) -> dict[str, bytes]:
    """Everything that a volume holds of its slices."""
    with opened(path) as volume:
        kept = {name: images(path, name).tobytes() for name in volume.names}
        return kept | {name: volume.figures(name).tobytes() for name in ("chi2", "noise_std", "done")}


# Slices of a scan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISES)
def test_a_slice_is_read_as_the_whole_is(noise: str, kind: str, tmp_path: Path) -> None:
    whole = scan(noise)
    slices = open_slices(write(tmp_path / f"scan.{kind}", whole))
    assert len(slices) == SLICES
    for k in (0, 4, SLICES - 1):
        found, expected = slices.read(k), slice_of(whole, k)
        torch.testing.assert_close(found.problem.y, expected.problem.y, rtol=1e-6, atol=1e-6)
        std = torch.as_tensor(expected.problem.noise_std)
        torch.testing.assert_close(torch.as_tensor(found.problem.noise_std), std, check_dtype=False)
        assert (found.noise_known, found.photons) == (expected.noise_known, whole.problem.counts and 1e4)
        if whole.problem.counts is not None:
            assert found.problem.counts is not None
            assert torch.equal(found.problem.counts.arrived, whole.problem.counts.arrived[k])
        assert operator() == found.problem.A
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("scan.")) == sorted(
        {f"scan.{kind}", *(["scan.copied.h5"] if kind == "zarr" else [])}
    )  # nothing that is in memory is on the disk


@pytest.mark.parametrize("noise", NOISES)
def test_stacked_slices_are_the_whole(noise: str, tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", scan(noise))
    slices, whole = open_slices(path), read_scan(path)
    found = stacked([slices.read(k) for k in range(SLICES)])
    assert torch.equal(found.problem.y, whole.problem.y)
    wanted = torch.as_tensor(whole.problem.noise_std).expand(whole.problem.y.shape)
    assert torch.equal(torch.as_tensor(found.problem.noise_std).expand(whole.problem.y.shape), wanted)
    assert (found.noise_known, found.photons) == (whole.noise_known, whole.photons)
    assert (found.problem.counts is None) == (whole.problem.counts is None)
    if found.problem.counts is not None and whole.problem.counts is not None:
        assert torch.equal(found.problem.counts.arrived, whole.problem.counts.arrived)


def test_what_is_no_volume_is_refused(tmp_path: Path) -> None:
    write_scan(tmp_path / "one.h5", slice_of(scan(), 0))
    with pytest.raises(ValueError, match=r"\(slices, 20, 23\), these are \(20, 23\); leave --slices out"):
        open_slices(tmp_path / "one.h5")
    path = write(tmp_path / "two.h5", scan())
    with h5py.File(path, "r+") as file:
        y = file["y"][()]
        del file["y"], file["noise_std"]
        file["y"] = y[None]
    with pytest.raises(ValueError, match="write one slice axis"):
        open_slices(path)
    with h5py.File(path, "r+") as file:
        del file["y"]
    with pytest.raises(ValueError, match="has neither y"):
        open_slices(path)
    with pytest.raises(ValueError, match=r"no DXchange file; centre"):
        open_slices(write(tmp_path / "scan.h5", scan()), centre=3.0)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_slices(tmp_path / "nowhere.h5")
    with h5py.File(write(tmp_path / "noisy.h5", scan()), "r+") as file:
        del file["noise_std"]
        file["noise_std"] = np.ones((4, 1, 1))
    with pytest.raises(ValueError, match=r"noise_std \(4, 1, 1\) does not broadcast to the data \(9, 20, 23\)"):
        open_slices(tmp_path / "noisy.h5").read(0)


# Reconstruction


@pytest.mark.parametrize("name", METHODS)
def test_every_slice_is_what_it_is_alone(name: str, tmp_path: Path) -> None:
    slices, out = open_slices(write(tmp_path / "scan.h5", scan())), tmp_path / "recon.h5"
    which = range(SLICES) if METHODS[name].prior is None else range(3, 6)
    assert list(reconstruct_volume(slices, out, METHODS[name], which=which, seed=7)) == list(which)
    for k in which:
        alone = reconstruct(slices.read(k), METHODS[name], seed=7, first=k)
        assert np.array_equal(images(out)[k], alone.mean.numpy())
        if alone.std is not None:
            assert np.array_equal(images(out, "std")[k], alone.std.numpy()) and (alone.std > 0).any()
        if alone.measured is not None:
            assert np.array_equal(images(out, "measured")[k], alone.measured.numpy())
        with opened(out) as volume:
            assert alone.chi2 is not None and volume.figures("chi2")[k] == float(alone.chi2)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_noise_of_a_slice_is_that_which_it_was_solved_with(batch: int, tmp_path: Path) -> None:
    """Raised as it is alone, also where calibrations are looked up; misfit, verdict and interval are judged by it."""
    slices, choice, which = open_slices(write(tmp_path / "scan.h5", scan("unknown"))), METHODS["proximal"], range(3, 6)
    alone = {k: without_intervals(slices.read(k), choice, seed=0, device="cpu", first=k) for k in which}
    result, solved = alone[4]
    known = Calibration(conditions_of(solved.problem, result), 0.9, 2.0, 10.0, 14, 0.8, 0.9, 0.9, chi2=1e9)
    out = tmp_path / "recon.h5"
    list(reconstruct_volume(slices, out, choice, which=which, batch=batch, calibrations=[known]))
    with opened(out) as volume:
        found = {name: volume.figures(name) for name in FIGURES}
        width, words = volume.image("half_width", 4), judgement(volume)
    for k, (r, _) in alone.items():
        assert r.settings["noise_raised"] > 1.5  # the method has one level, and leaves much
        expected = {
            "noise_raised": r.settings["noise_raised"], "noise_std": r.settings["noise_std"],
            "chi2_draw": float(torch.as_tensor(r.misfit)), "standing": r.standing,
        }  # fmt: skip
        for name, value in expected.items():
            assert found[name][k] == pytest.approx(value, rel=1e-5 if batch == 1 else 0.02), name
    assert found["calibrated"][4] == 1 and np.isnan(found["calibrated"][0])
    held = with_intervals(result, solved.problem, [known]).half_width
    np.testing.assert_allclose(width, torch.as_tensor(held), rtol=0, atol=0.01 * float(torch.as_tensor(held).max()))
    assert "then raised for 3 slices" in words and "draws: " in words and "intervals: calibrated for" in words


def test_slices_without_a_calibration_have_student_s_interval(tmp_path: Path) -> None:
    slices, out = open_slices(write(tmp_path / "scan.h5", scan())), tmp_path / "recon.h5"
    list(reconstruct_volume(slices, out, METHODS["proximal"], which=range(4, 5), calibrations=[]))
    alone = reconstruct(slices.read(4), METHODS["proximal"], first=4, calibrations=[])
    with opened(out) as volume:
        assert volume.figures("calibrated")[4] == 0
        assert np.array_equal(volume.image("half_width", 4), torch.as_tensor(alone.interval).numpy())
        assert "intervals: calibrated for 0 slices, uncalibrated (Student's) for 1" in judgement(volume)


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_counts_its_verdicts(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"v.{kind}"
    create_volume(path, (6, 2, 2), ["mean", "std"], request={}, settings={"method": "dds"}, attributes={})
    image = np.zeros((2, 2), np.float32)
    with opened(path, write=True) as volume:
        for k, standing in enumerate((0, 1, 1, -1, np.nan)):
            volume.add(k, {"mean": image, "std": image}, dict.fromkeys(FIGURES, 1.0) | {"standing": standing})
        assert judgement(volume).splitlines()[0] == (
            "draws: 1 slice consistent with the data, 1 slice over-fitted, or judged by too large a noise (the first is 3), 2 slices "
            "inconsistent with the data (the first is 1), 1 slice without verdict (the first is 4)"
        )
        del volume.group["standing"]  # as files were at first
        assert np.isnan(volume.figures("standing")).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("noise", ["one", "per_datum"])
def test_a_batch_gives_what_its_members_give_alone(name: str, noise: str, tmp_path: Path) -> None:
    slices = open_slices(write(tmp_path / "scan.h5", scan(noise)))
    which = range(SLICES) if METHODS[name].prior is None else range(3, 6)
    for batch in (1, 4):
        list(reconstruct_volume(slices, tmp_path / f"{batch}.h5", METHODS[name], which=which, batch=batch))
    for kind in ("mean", "std") if "samples" in METHODS[name].settings else ("mean",):
        alone, together = (images(tmp_path / f"{batch}.h5", kind) for batch in (1, 4))
        np.testing.assert_allclose(together, alone, rtol=0, atol=2e-4 * np.nanmax(images(tmp_path / "1.h5")))
    assert len({alone[k].tobytes() for k in which}) == len(which)


def test_slices_have_streams_of_their_own(tmp_path: Path) -> None:
    """Draws of equal slices differ, and are those of the stack that is reconstructed as a whole."""
    one = slice_of(scan("one"), 2).problem
    same = Scan(dataclasses.replace(one, y=one.y.repeat(3, 1, 1)))
    slices = open_slices(write(tmp_path / "scan.h5", same))
    choice = METHODS["proximal"]
    list(reconstruct_volume(slices, tmp_path / "recon.h5", choice, seed=3))
    found = images(tmp_path / "recon.h5", "std")
    assert not np.allclose(found[0], found[1], rtol=0.1) and not np.allclose(found[1], found[2], rtol=0.1)
    whole = reconstruct(read_scan(tmp_path / "scan.h5"), choice, seed=3).std.numpy()
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-3 * whole.max())


def test_first_skips_the_streams_before() -> None:
    rng, later = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    streams.split(later, 2)
    assert [g.initial_seed() for g in streams.split(rng, 4)][2:] == [g.initial_seed() for g in streams.split(later, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_add_up(kind: str, tmp_path: Path) -> None:
    slices, out = open_slices(write(tmp_path / f"scan.{kind}", scan())), tmp_path / f"recon.{kind}"
    whole = tmp_path / f"whole.{kind}"
    list(reconstruct_volume(slices, whole, METHODS["cgls"]))
    assert list(reconstruct_volume(slices, out, METHODS["cgls"], which=range(3, 5))) == [3, 4]
    with opened(out) as volume:
        assert volume.done.tolist() == [k in (3, 4) for k in range(SLICES)]
        assert np.isnan(volume.figures("chi2")).tolist() == [k not in (3, 4) for k in range(SLICES)]
        with pytest.raises(ValueError, match="slice 2 is not there"):
            volume.image("mean", 2)
        with pytest.raises(ValueError, match="has no truth, it has mean"):
            volume.image("truth", 3)
    assert list(reconstruct_volume(slices, out, METHODS["cgls"])) == [0, 1, 2, 5, 6, 7, 8]
    assert list(reconstruct_volume(slices, out, METHODS["cgls"])) == []
    assert state(out) == state(whole)


@needs_zarr
def test_formats_hold_the_same(tmp_path: Path) -> None:
    for kind in ("h5", "zarr"):
        slices = open_slices(write(tmp_path / f"scan.{kind}", scan("photons")))
        list(reconstruct_volume(slices, tmp_path / f"recon.{kind}", METHODS["dds"], which=range(4, 6)))
    assert state(tmp_path / "recon.h5") == state(tmp_path / "recon.zarr")


def test_the_method_is_chosen_once(tmp_path: Path) -> None:
    """Slices of air, which by themselves would go to total variation with another unit, go as the others go."""
    whole = scan("one").problem
    y = whole.y.clone()
    y[1] = 0
    write_scan(tmp_path / "scan.h5", Scan(Problem(whole.A, y, 0.01)))
    slices, settings = open_slices(tmp_path / "scan.h5"), METHODS["proximal"].settings
    with pytest.warns(UserWarning, match="fista_tv is taken"):
        assert reconstruct(slices.read(1), settings={"max_iterations": 2}).settings["method"] == "fista_tv"
    list(reconstruct_volume(slices, tmp_path / "recon.h5", which=range(1, 2), prior="ct-256-fast", settings=settings))
    with opened(tmp_path / "recon.h5") as volume:
        assert volume.settings["method"] == "proximal" and volume.settings["samples"] == 2
        assert volume.done[1] and volume.request["seed"] == 0


def test_batches_are_runs_of_neighbours() -> None:
    assert batches(range(10), 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches([1, 2, 3, 4, 6, 9], 4) == [[1, 2, 3], [4], [6], [9]]
    assert batches([5], 1) == [[5]] and batches([], 3) == []


def test_little_is_in_memory(tmp_path: Path) -> None:
    """120 slices of 240 kB each: a few of them at a time."""
    n, shape = 120, (200, 300)
    A = dataclasses.replace(
        operator(), angles=tuple(np.linspace(0, np.pi, shape[0], endpoint=False).tolist()), n_detectors=shape[1]
    )
    y = A(torch.full((16, 16), 0.02))
    write_scan(tmp_path / "scan.h5", Scan(Problem(A, y, 0.01)))
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        del file["y"]
        stored = file.create_dataset("y", (n, *shape), np.float32, chunks=(1, *shape))
        for k in range(n):
            stored[k] = (1 + k / n) * y.numpy()
    slices, out = open_slices(tmp_path / "scan.h5"), tmp_path / "recon.h5"
    list(
        reconstruct_volume(slices, tmp_path / "first.h5", "fbp", which=range(1))
    )  # what is imported and kept comes before
    tracemalloc.start()
    try:
        for _ in reconstruct_volume(slices, out, "fbp", batch=2):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * y.numpy().nbytes / 4
    np.testing.assert_allclose(images(out)[-1], (2 - 1 / n) * images(out)[0], rtol=1e-4, atol=1e-7)


# DXchange


def dxchange(path: Path, rows: int = 3) -> Path:
    """A uniform disc, denser from row to row, whose axis is at column 10.4 of 23."""
    rng = np.random.default_rng(0)
    theta = np.linspace(0, np.pi, 40, endpoint=False)
    s = np.arange(23) - 10.4 - 2 * np.cos(theta)[:, None]
    chord = 2 * np.sqrt(np.clip(36 - s**2, 0, None))
    expected = 0.02 * chord[:, None] * (1 + np.arange(rows))[:, None]
    with h5py.File(path, "w") as file:
        for name, counts in (
            ("data", 1e4 * np.exp(-expected)),
            ("data_white", np.full((5, rows, 23), 1e4)),
            ("data_dark", np.zeros((5, rows, 23))),
        ):
            file[f"exchange/{name}"] = rng.poisson(counts + 100)
        file["exchange/theta"] = np.rad2deg(theta)
    return path


def test_rows_of_dxchange_are_slices(tmp_path: Path) -> None:
    path, out = dxchange(tmp_path / "raw.h5"), tmp_path / "recon.h5"
    slices = open_slices(path, detector_mm=1.0, every=2)
    assert isinstance(slices, DXchangeSlices) and len(slices) == 3
    assert slices.centre == pytest.approx(10.4, abs=0.2)
    list(reconstruct_volume(slices, out, METHODS["cgls"], batch=2))
    for k in range(3):
        row = read_dxchange(path, row=k, detector_mm=1.0, views=slice(None, None, 2), centre=slices.centre)
        alone = reconstruct(row, METHODS["cgls"], first=k).mean.numpy()
        np.testing.assert_allclose(images(out)[k], alone, rtol=0, atol=1e-4 * alone.max())
    assert images(out)[2].mean() > 2.5 * images(out)[0].mean() > 0


# What goes wrong


def test_another_scan_or_other_settings_are_refused(tmp_path: Path) -> None:
    slices, out = open_slices(write(tmp_path / "scan.h5", scan())), tmp_path / "recon.h5"
    list(reconstruct_volume(slices, out, METHODS["fista_tv"], which=range(2)))
    before = state(out)
    moved = open_slices(shutil.copy(tmp_path / "scan.h5", tmp_path / "moved.h5"))
    assert list(reconstruct_volume(moved, out, METHODS["fista_tv"], which=range(3))) == [2]
    other = open_slices(write(tmp_path / "other.h5", scan(slices=SLICES + 1)))
    for given, more, words in (
        (other, {}, "holds slices of another scan: give another --out"),
        (slices, {"seed": 1}, "made with seed 0, now it is 1"),
        (slices, {"noise_std": 0.5}, "holds slices of another scan|made with noise_std None, now it is 0.5"),
        (slices, {"method": Choice("fista_tv", {"max_iterations": 6})}, "made with max_iterations 5, now it is 6"),
        (slices, {"method": Choice("fbp")}, "made with method 'fista_tv', now it is 'fbp'"),
    ):
        with pytest.raises(ValueError, match=words):
            list(reconstruct_volume(given, out, **{"method": METHODS["fista_tv"]} | more))
    assert {k: v for k, v in state(out).items() if k == "noise_std"}.keys() <= before.keys()
    assert list(reconstruct_volume(slices, out, METHODS["fista_tv"], which=range(3))) == []


def test_other_files_are_not_written_over(tmp_path: Path) -> None:
    slices = open_slices(write(tmp_path / "scan.h5", scan()))
    (tmp_path / "text.h5").write_text("not to be lost")
    write_scan(tmp_path / "image.h5", slice_of(scan(), 0))
    for name, words in (("text.h5", "is no HDF5 file"), ("image.h5", "found 'scoreinv-scan-1': give another --out")):
        kept = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=words):
            list(reconstruct_volume(slices, tmp_path / name, METHODS["fbp"]))
        assert (tmp_path / name).read_bytes() == kept
    with pytest.raises(ValueError, match="has slices 0 to 8, asked for 8 to 9"):
        list(reconstruct_volume(slices, tmp_path / "recon.h5", METHODS["fbp"], which=range(8, 10)))
    with pytest.raises(ValueError, match="--batch: expected at least 1 slice, got 0"):
        list(reconstruct_volume(slices, tmp_path / "recon.h5", METHODS["fbp"], batch=0))
    assert not (tmp_path / "recon.h5").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_process_is_turned_away(kind: str, tmp_path: Path) -> None:
    path, out = write(tmp_path / "scan.h5", scan()), tmp_path / f"recon.{kind}"
    first, said = reconstruct_volume(open_slices(path), out, METHODS["fbp"]), tmp_path / "said"
    assert next(first) == 0
    second = started(["reconstruct", str(path), "--out", str(out), "--slices", ":", "--method", "fbp"], said)
    second.join()
    assert second.exitcode == 2 and "another process is writing it: wait until it is done" in said.read_text()
    assert list(first) == list(range(1, SLICES))


def test_zarr_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = open_slices(write(tmp_path / "scan.h5", scan()))
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ValueError, match=r"pip install 'scoreinv\[zarr\]'"):
        list(reconstruct_volume(slices, tmp_path / "recon.zarr", METHODS["fbp"]))
    assert not (tmp_path / "recon.zarr").exists()


@pytest.mark.parametrize("batch", [1, 9])
def test_a_damaged_slice_does_not_take_the_others_with_it(batch: int, tmp_path: Path) -> None:
    path, out = write(tmp_path / "scan.h5", scan()), tmp_path / "recon.h5"
    with h5py.File(path, "r+") as file:
        whole = file["y"][3, 4, 5]
        file["y"][3, 4, 5] = np.nan
    slices = open_slices(path)
    with pytest.raises(ValueError, match=r"1 of 9 slices failed.*slice 3: ValueError: .*slice 3: y holds 1 values"):
        list(reconstruct_volume(slices, out, METHODS["cgls"], batch=batch))
    with opened(out) as volume:
        assert volume.done.tolist() == [k != 3 for k in range(SLICES)]
    with h5py.File(path, "r+") as file:
        file["y"][3, 4, 5] = whole
    assert list(reconstruct_volume(slices, out, METHODS["cgls"], batch=batch)) == [3]


def rechunked(path: Path, chunks: tuple[int, ...], name: str = "y", **how: Any) -> Path:
    """A Zarr scan with one array stored in another way."""
    import zarr

    group: Any = zarr.open_group(path, mode="r+")
    values = group[name][()]
    del group[name]
    group.create_array(name, data=values, chunks=chunks, **how)
    return path


def failures(path: Path, out: Path, batch: int = 1) -> str:
    """What is said of the slices that fail; those are exactly the ones that are not there."""
    with pytest.raises(ValueError, match="slices failed, the others are there") as said:
        list(reconstruct_volume(open_slices(path), out, METHODS["cgls"], batch=batch))
    return str(said.value)


@needs_zarr
@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize(
    ("lost", "chunks", "name", "gone"),
    [
        ("y/c/4/0/0", (1, 20, 23), "y", [4]),
        ("y/c/0/0/0", (1, 20, 23), "y", [0]),
        ("y/c/2/1/1", (2, 12, 12), "y", [4, 5]),
        ("noise_std/c/1/0/0", (4, 1, 1), "noise_std", [4, 5, 6, 7]),
    ],
)
def test_a_chunk_that_is_lost_is_no_vacuum(
    lost: str, chunks: tuple[int, ...], name: str, gone: list[int], batch: int, tmp_path: Path
) -> None:
    path, out = rechunked(write(tmp_path / "scan.zarr", scan()), chunks, name), tmp_path / "recon.h5"
    kept = (path / lost).read_bytes()
    (path / lost).unlink()
    said = failures(path, out, batch)
    assert (
        f"{len(gone)} of 9 slices failed" in said and f"slice {gone[0]}: ValueError: {path}, slice {gone[0]}: " in said
    )
    assert f"the chunk {lost.removeprefix(name + '/')} of {name} is missing: copy or write it again" in said
    with opened(out) as volume:
        assert np.flatnonzero(~volume.done).tolist() == gone
    (path / lost).write_bytes(kept)
    assert open_slices(path).read(gone[0]).problem.y.any()


@needs_zarr
def test_chunks_of_nothing_must_be_stored(tmp_path: Path) -> None:
    """A slice of exact zeros is one where it was written, and a lost one where Zarr left it out or hid it in a shard."""
    whole = scan("one").problem
    y = whole.y.clone()
    y[3] = 0
    empty = Scan(Problem(whole.A, y, 0.01))
    path = write(tmp_path / "scan.zarr", empty)
    assert not open_slices(path).read(3).problem.y.any()
    for shards, words in (
        (None, "the chunk c/3/0/0 of y is missing.*with write_empty_chunks=True if all of it is 0.0"),
        ((9, 20, 23), "y holds nothing but 0.0, as where its chunks are missing in a shard"),
    ):
        rechunked(path, (1, 20, 23), shards=shards)
        with pytest.raises(ValueError, match=words):
            open_slices(path).read(3)
        assert torch.equal(open_slices(path).read(4).problem.y, y[4])


@needs_zarr
def test_version_2_of_zarr(tmp_path: Path) -> None:
    import zarr

    path = write(tmp_path / "new.zarr", scan())
    new: Any = zarr.open_group(path, mode="r")
    old = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2, attributes=dict(new.attrs))
    for name, chunks in (("y", (1, 10, 23)), ("noise_std", (9, 1, 1)), ("operator/angles", (10,))):
        old.create_array(name, data=new[name][()], chunks=chunks)
    slices = open_slices(tmp_path / "old.zarr")
    assert torch.equal(slices.read(4).problem.y, open_slices(path).read(4).problem.y)
    (tmp_path / "old.zarr" / "y" / "4.1.0").unlink()
    with pytest.raises(ValueError, match=r"the chunk 4\.1\.0 of y is missing"):
        slices.read(4)
    (tmp_path / "old.zarr" / "operator" / "angles" / "1").unlink()
    with pytest.raises(ValueError, match="the chunk 1 of operator/angles is missing"):
        open_slices(tmp_path / "old.zarr")


@needs_zarr
@pytest.mark.parametrize(("codec", "k"), [("zstd", 0), ("zstd", 3), ("gzip", 0), ("none", 0)])
def test_a_damaged_chunk_is_an_error_of_its_slice(
    codec: str, k: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slice 0 is looked at before anything is reconstructed, slice 3 is not; codecs have several kinds of errors."""
    from zarr.codecs import GzipCodec

    how = {"zstd": "auto", "gzip": GzipCodec(), "none": None}[codec]
    path = rechunked(write(tmp_path / "scan.zarr", scan()), (1, 20, 23), compressors=how)
    out, chunk = tmp_path / "recon.zarr", path / "y" / "c" / str(k) / "0" / "0"
    whole = chunk.read_bytes()
    for damaged in (b"garbage", whole[: len(whole) // 2 + 1]):
        chunk.write_bytes(damaged)
        command = ["reconstruct", str(path), "--out", str(out), "--slices", ":", "--method", "fbp"]
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"slice {k}: ValueError: {path}, slice {k}: a chunk of y is damaged: copy or write it again (" in said
        assert "1 of " in said and "Traceback" not in said
        with opened(out) as volume:
            assert np.flatnonzero(~volume.done).tolist() == [k]
            (out / "mean" / "c" / "5" / "0" / "0").write_bytes(b"garbage")
            with pytest.raises(ValueError, match=r"recon.zarr, slice 5: a chunk of mean is damaged"):
                volume.image("mean", 5)
        shutil.rmtree(out)


def test_a_method_that_fails_in_a_batch_fails_for_its_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(scan_: Scan, *arguments: Any, **more: Any) -> tuple[Reconstruction, Solved]:
        if (scan_.problem.y > 1e3).any():
            raise RuntimeError("as planned")
        return without_intervals(scan_, *arguments, **more)

    monkeypatch.setattr("scoreinv.volume.without_intervals", fails)
    whole = scan("one").problem
    y = whole.y.clone()
    y[3] = 1e6
    write_scan(tmp_path / "scan.h5", Scan(Problem(whole.A, y, 0.01)))
    slices, out = open_slices(tmp_path / "scan.h5"), tmp_path / "recon.h5"
    with pytest.raises(
        ValueError, match="1 of 9 slices failed, the others are there; slice 3: RuntimeError: as planned"
    ):
        list(reconstruct_volume(slices, out, METHODS["proximal"], batch=9))
    with opened(out) as volume:
        assert volume.done.tolist() == [k != 3 for k in range(SLICES)]
        alone = reconstruct(slices.read(8), METHODS["proximal"], first=8).mean.numpy()
        assert np.array_equal(volume.image("mean", 8), alone)  # its stream is that of slice 8


def test_a_scan_of_nothing_but_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", scan())
    with h5py.File(path, "r+") as file:
        file["y"][:, 4, 5] = np.nan
    with pytest.raises(ValueError, match="slice 8: y holds 1 values that are NaN"):
        look(open_slices(path))


# The command


@pytest.mark.parametrize("kind", KINDS)
def test_the_command(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / f"scan.{kind}", scan()), tmp_path / f"recon.{kind}"
    command = ["reconstruct", str(path), "--out", str(out), "--method", "fista_tv", "--set", "max_iterations=5"]
    assert main([*command, "--slices", "2:4"]) == 0
    assert f"{out}: volume, 2 of 9 slices of 16 x 16, fista_tv, mean, chi^2" in capsys.readouterr().out
    assert main([*command, "--slices", ":", "--batch", "2"]) == 0
    assert "volume, 9 of 9 slices" in capsys.readouterr().out
    alone = reconstruct(open_slices(path).read(3), METHODS["fista_tv"], first=3)
    assert np.array_equal(images(out)[3], alone.mean.numpy())
    assert main(["info", str(out)]) == 0
    said = capsys.readouterr().out
    assert "volume, 9 of 9 slices of 16 x 16" in said and '"max_iterations": 5' in said
    for more, words in (
        (["--slices", "4:12"], "--slices 4:12: the volume has slices 0:9"),
        (["--slices", "a:b"], "--slices is written A:B"),
        (["--slices", "2", "--picture", str(tmp_path / "p.png")], "--picture is for one slice"),
        (["--slices", "2", "--row", "1"], "--row is for one slice"),
        (["--slices", "2", "--workers", "2"], "--workers is for --cluster local or slurm"),
        (["--slices", "2", "--seed", "4"], "made with seed 0, now it is 4"),
    ):
        assert main([*command, *more]) == 2
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said


@pytest.mark.parametrize("kind", KINDS)
def test_slices_keep_their_heights(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heights = tuple(40.0 + 2.5 * k for k in range(SLICES))
    path = write(tmp_path / f"scan.{kind}", dataclasses.replace(scan(), z_mm=heights))
    assert open_slices(path).z_mm == heights and open_slices(path).read(3).z_mm == heights[3:4]
    command = ["reconstruct", str(path), "--out", str(tmp_path / f"recon.{kind}"), "--method", "fbp", "--slices", ":"]
    assert main(command) == 0
    assert main(["export", str(tmp_path / f"recon.{kind}"), "--out", str(tmp_path / "v.nii")]) == 0
    import nibabel

    image: Any = nibabel.load(tmp_path / "v.nii")  # type: ignore[no-untyped-call]
    assert image.affine[2].tolist() == [0, 0, 2.5, 40]
    if kind == "h5":
        assert main(["info", str(path)]) == 0
        assert "slices: at 40, 42.5, 45" in capsys.readouterr().out
        with h5py.File(path, "r+") as file:
            file.attrs["z_mm"] = heights[1:]
        with pytest.raises(ValueError, match="z_mm has 8 heights, there are 9 slices"):
            _ = open_slices(path).z_mm


def test_slices_are_written_like_this() -> None:
    assert [slices_of(text, 9) for text in (":", "2:", ":3", "2:3", "4")] == [
        range(9), range(2, 9), range(3), range(2, 3), range(4, 5)
    ]  # fmt: skip
    for text in ("", "-1:", "3:3", "9", "1:2:3", "0:10"):
        with pytest.raises(ValueError, match="--slices"):
            slices_of(text, 9)


def command(arguments: Sequence[str], said: str) -> None:
    """In a process of its own: the command; what it says goes into a file."""
    with open(said, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        raise SystemExit(main([*arguments, "--quiet"]))


def started(arguments: Sequence[str], said: str | Path = os.devnull) -> Any:
    """A process that runs the command, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    imported = [
        "pytest",
        "scoreinv.cli",
        "scoreinv.volume",
        "scoreinv.study",
        "scipy.stats",
        "skimage.metrics",
        "astra",
        "pywt",
    ]
    context.set_forkserver_preload([*imported, *(["zarr"] if importlib.util.find_spec("zarr") else [])])
    process = context.Process(target=command, args=(arguments, str(said)))
    process.start()
    return process


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    """A volume that is killed (SIGKILL) again and again and started again ends like one that is left alone, to the bit, and no slice that
    was there is written again.

    How long lives last follows from how fast the machine is.
    """
    path = write(tmp_path / f"scan.{kind}", scan(slices=24))

    def begun(name: str) -> Any:
        out = tmp_path / f"{name}.{kind}"
        return started(
            ["reconstruct", str(path), "--out", str(out), "--slices", ":", "--method", "sirt", "--set", "iterations=50"]
        )

    begun("warm").join()
    beginning = time.monotonic()
    quiet = begun("quiet")
    quiet.join()
    longest = time.monotonic() - beginning
    assert quiet.exitcode == 0
    expected = state(tmp_path / f"quiet.{kind}")
    moments, out = random.Random(0), tmp_path / f"killed.{kind}"  # noqa: S311 (no secret)
    killed, seen = 0, set()
    before: dict[int, str] = {}
    while killed < KILLS:
        process = begun("killed")
        process.join(moments.uniform(0, longest / 2))
        if process.is_alive():
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        there = slices_there(out)
        assert before.items() <= there.items()
        before = there
        seen.add(len(there))
        if len(there) == 24:  # this one got through: once more from the start
            shutil.rmtree(out) if kind == "zarr" else out.unlink()
            before = {}
    assert len(seen) >= 2
    last = begun("killed")
    last.join()
    assert last.exitcode == 0
    assert state(out) == expected
    assert not list(tmp_path.rglob("*.partial"))


def slices_there(path: Path) -> dict[int, str]:
    """Checksums of the slices of a volume that may not yet be there."""
    if not path.exists():
        return {}
    with opened(path) as volume:
        return {int(k): checksum(volume, int(k)) for k in np.flatnonzero(volume.done)}


def checksum(volume: VolumeFile, k: int) -> str:
    return hashlib.sha256(volume.image("mean", k).tobytes()).hexdigest()


def test_the_documented_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "file-formats.md").read_text(encoding="utf-8")
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "reconstruct_volume" in c)
    exec(compile(code, "file-formats.md", "exec"), {})  # noqa: S102 (our own document)
    assert "slice 3 is on the disk\n[False  True  True  True False] 0.0" in capsys.readouterr().out
