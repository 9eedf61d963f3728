"""The reader of LoDoPaB-CT: the geometry against exact projections written in the data set's own coordinates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from scoreinv.files.lodopab import MU_MAX_PER_MM, lodopab_images, read_lodopab
from scoreinv.files.scan import read_scan, write_scan
from scoreinv.operators.ct import ParallelBeamCT

MU_MAX_PER_M = 81.35858
CENTRE_M, RADIUS_M, MU = (0.04, -0.025), 0.05, 0.25
"""A disc off both axes of the stored array; its value is relative to μ_max."""


def disc(n: int) -> np.ndarray:
    """The stored array: ξ along the first axis, η along the second, cells of 26 cm / n; means over 8 x 8 points."""
    fine = 8 * n
    x = (np.arange(fine) + 0.5) * 0.26 / fine - 0.13
    inside = (x[:, None] - CENTRE_M[0]) ** 2 + (x[None] - CENTRE_M[1]) ** 2 <= RADIUS_M**2
    return MU * inside.reshape(n, 8, n, 8).mean(axis=(1, 3))


def projections(n_views: int, n_cells: int) -> np.ndarray:
    """Chords of the disc along ξ cos θ + η sin θ = u [m], θ in the middle of n parts of π, u in the middle of cells."""
    theta = (np.arange(n_views) + 0.5)[:, None] * np.pi / n_views
    diagonal = 0.26 * np.sqrt(2)
    u = ((np.arange(n_cells) + 0.5) / n_cells - 0.5)[None] * diagonal
    distance = u - CENTRE_M[0] * np.cos(theta) - CENTRE_M[1] * np.sin(theta)
    return 2 * MU * np.sqrt(np.maximum(RADIUS_M**2 - distance**2, 0))


def write(folder: Path, n: int = 64, n_views: int = 30, n_cells: int = 91, slices: int = 3) -> tuple[Path, Path]:
    """A file of each kind; slice k is k + 1 times the disc."""
    scale = np.arange(1, slices + 1, dtype=np.float32)[:, None, None]
    paths = folder / "observation_test_000.hdf5", folder / "ground_truth_test_000.hdf5"
    for path, data in zip(paths, (projections(n_views, n_cells), disc(n)), strict=True):
        with h5py.File(path, "w") as file:
            file["data"] = (scale * data).astype(np.float32)
    return paths


def test_geometry_is_that_of_the_data(tmp_path: Path) -> None:
    """Only one of the eight turns and flips fits the exact projections, and only angles in the middle of their step."""
    problem = read_lodopab(*write(tmp_path, n=128, n_cells=181), index=0).problem
    assert problem.truth is not None
    misfits = [
        float((problem.A(torch.rot90(image, k, (-2, -1))) - problem.y).norm() / problem.y.norm())
        for image in (problem.truth, problem.truth.mT)
        for k in range(4)
    ]
    assert misfits[0] < 0.015 and min(misfits[1:]) > 0.4
    assert isinstance(problem.A, ParallelBeamCT)
    shifted = replace(problem.A, angles=[a + np.pi / 60 for a in problem.A.angles])
    assert float((shifted(problem.truth) - problem.y).norm() / problem.y.norm()) > 0.05


def test_full_size(tmp_path: Path) -> None:
    """The numbers of the real files."""
    assert pytest.approx(MU_MAX_PER_M / 1000) == MU_MAX_PER_MM
    A = read_lodopab(*write(tmp_path, 362, 1000, 513, 1), index=0, every=100).problem.A
    assert isinstance(A, ParallelBeamCT) and A.image_shape == (362, 362) and A.out_shape == (10, 513)
    assert (A.pixel_mm, A.detector_mm) == pytest.approx((260 / 362, 260 * np.sqrt(2) / 513))
    assert A.angles == pytest.approx(-(np.arange(0, 1000, 100) + 0.5) * np.pi / 1000)


def test_units_and_noise(tmp_path: Path) -> None:
    """A chord of the disc is μ times its length whatever the units; noise of N photons is 1 / √N."""
    paths = write(tmp_path)
    scan = read_lodopab(*paths, index=[2, 0])
    y, truth = scan.problem.y, scan.problem.truth
    assert truth is not None and y.shape == (2, 30, 91) and truth.shape == (2, 64, 64)
    assert float(truth[1].max()) == pytest.approx(MU * MU_MAX_PER_M / 1000, rel=1e-6)
    # The cell nearest to the centre passes it within half a cell of 4 mm.
    assert float(y[1].max()) == pytest.approx(MU * MU_MAX_PER_M * 2 * RADIUS_M, rel=2e-3)
    torch.testing.assert_close(y[0], 3 * y[1])
    torch.testing.assert_close(scan.problem.noise_std, 1 / (4096 * (-y).exp()).sqrt())
    assert scan.photons == 4096 and scan.mu_water_per_mm == 0.02 and scan.noise_known
    np.testing.assert_array_equal(lodopab_images(paths[1])[0], truth[1].numpy())


def test_thinned_views_are_a_part_of_all(tmp_path: Path) -> None:
    paths = write(tmp_path)
    every, all_views = (read_lodopab(paths[0], index=1, every=n).problem for n in (7, 1))
    torch.testing.assert_close(every.y, all_views.y[::7])
    assert isinstance(every.A, ParallelBeamCT) and isinstance(all_views.A, ParallelBeamCT)
    assert every.A.angles == all_views.A.angles[::7] and every.truth is None


def test_becomes_a_scan_file(tmp_path: Path) -> None:
    scan = read_lodopab(*write(tmp_path), index=0, every=3)
    write_scan(tmp_path / "scan.h5", scan)
    again = read_scan(tmp_path / "scan.h5")
    assert again.problem.A == scan.problem.A
    torch.testing.assert_close(again.problem.y, scan.problem.y)
    torch.testing.assert_close(again.problem.truth, scan.problem.truth)


def test_bad_input(tmp_path: Path) -> None:
    observation, truth = write(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_lodopab(tmp_path / "observation_test_001.hdf5")
    with pytest.raises(ValueError, match="holds slices 0 to 2, there is no slice 3"):
        read_lodopab(observation, index=3)
    with pytest.raises(ValueError, match="there is no slice to read"):
        read_lodopab(observation, index=[])
    with pytest.raises(ValueError, match="every must be between 1 and the 30 views, got 31"):
        read_lodopab(observation, every=31)
    with pytest.raises(ValueError, match=r"is not the ground truth of observation_test_000.hdf5"):
        read_lodopab(observation, truth.rename(tmp_path / "ground_truth_test_001.hdf5"))
    with h5py.File(tmp_path / "ground_truth_test_000.hdf5", "w") as file:
        file["data"] = np.zeros((2, 64, 64), dtype=np.float32)
    with pytest.raises(ValueError, match=r"holds 2 images, observation_test_000.hdf5 3 observations"):
        read_lodopab(observation, tmp_path / "ground_truth_test_000.hdf5")
    with h5py.File(observation, "w") as file:
        file["data"] = np.zeros((4, 4), dtype=np.float32)
    with pytest.raises(ValueError, match=r"expected LoDoPaB's dataset data \(slices, views, detectors\)"):
        read_lodopab(observation)
