"""A volume of a few small slices, as a scan and as files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import torch

from scoreinv.files.describe import describe
from scoreinv.files.scan import FORMAT, Scan, write_scan
from scoreinv.linop import LinearOperator
from scoreinv.operators import ParallelBeamCT, equispaced_angles
from scoreinv.problem import Problem, simulate, simulate_counts
from scoreinv.units import mu_from_hu

SLICES, SIDE, PIXEL_MM = 9, 16, 3.0


def operator() -> LinearOperator:
    return ParallelBeamCT((SIDE, SIDE), equispaced_angles(20), n_detectors=23, pixel_mm=PIXEL_MM, detector_mm=PIXEL_MM)


def scan(noise: str = "per_slice", slices: int = SLICES) -> Scan:
    """Smooth random slices; noise is "one" number, "per_slice", "per_datum", "photons" or "unknown"."""
    rng = torch.Generator().manual_seed(1)
    coarse = torch.randn(slices, 1, 4, 4, generator=rng)
    hu = 200 * torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[:, 0]
    A, x = operator(), mu_from_hu(hu)
    if noise == "photons":
        return Scan(simulate_counts(A, x, rng, photons=1e4))
    problem = simulate(A, x, rng, relative_noise=0.01)
    std = torch.as_tensor(problem.noise_std)
    wanted = {"one": 0.01, "per_slice": std, "per_datum": std * (1 + problem.y / 10), "unknown": 0.0}[noise]
    return Scan(dataclasses.replace(problem, noise_std=wanted, truth=None), noise_known=noise != "unknown")


def slice_of(whole: Scan, k: int) -> Scan:
    """Slice k of a scan, by indexing."""
    p = whole.problem
    std = p.noise_std if isinstance(p.noise_std, float) else p.noise_std[k]
    counts = p.counts and p.counts.mapped(lambda n: n[k])
    return dataclasses.replace(whole, problem=Problem(p.A, p.y[k], std, None, counts))


def write(path: Path, whole: Scan) -> Path:
    """A scan file: HDF5, or a Zarr group with the same names."""
    if path.suffix != ".zarr":
        write_scan(path, whole)
        return path
    import zarr

    hdf5 = path.with_suffix(".copied.h5")
    write_scan(hdf5, whole)
    with h5py.File(hdf5) as source:
        group = zarr.open_group(
            path, mode="w", attributes={k: v for k, v in source.attrs.items() if k not in ("operator", "z_mm")}
        )
        if "z_mm" in source.attrs:
            group.attrs["z_mm"] = source.attrs["z_mm"].tolist()
        names = [name for name in ("y", "counts", "noise_std") if name in source] + list(describe(whole.problem.A)[1])
        for name in names:
            group.create_array(
                name, data=source[name][()], chunks=(1, *source[name].shape[1:]) if name == "y" else "auto",
                config={"write_empty_chunks": True},
            )  # fmt: skip
        group.attrs["operator"] = json.loads(source.attrs["operator"])  # as the JSON that Zarr's attributes are
        assert group.attrs["format"] == FORMAT
    return path
