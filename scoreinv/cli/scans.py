"""Commands on scans: `demo`, `simulate`, `reconstruct`, `info`, `list`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scoreinv.cli.options import add_prior, check_device
from scoreinv.cli.volumes import add_volume, is_volume, reconstruct_volume


def add_demo(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "demo", help="simulate 23 views of a real CT slice and reconstruct it",
        description="Takes the CT slice that ships with pydicom, simulates 23 noisy views of it, reconstructs it with the score "
        "prior, FBP and FISTA-TV, and writes the scan, the reconstruction and a picture.",
    )  # fmt: skip
    p.add_argument(
        "--out", type=Path, default=Path("scoreinv-demo"), metavar="FOLDER", help="where results go (%(default)s)"
    )
    p.add_argument("--views", type=int, default=23, help="number of views over 180 degrees (%(default)s)")
    p.add_argument("--samples", type=int, help="posterior draws for mean and uncertainty")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    p.set_defaults(run=_demo)
    return p


def _demo(a: argparse.Namespace) -> None:
    from scoreinv.demo import demo

    print(demo(a.out, n_views=a.views, samples=a.samples, seed=a.seed))


def add_simulate(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "simulate", help="make a scan file from an image", description="Makes a scan file, truth included, from an image: DICOM, NIfTI, "
        "HDF5, PNG, TIFF or .npy in Hounsfield units (a colour picture for operators on colour).",
    )  # fmt: skip
    p.add_argument("image", type=Path, help="the image, or the folder of one DICOM series")
    p.add_argument("--out", type=Path, required=True, metavar="SCAN.h5", help="scan file to write")
    p.add_argument("--operator", default="parallel_beam_ct", metavar="NAME", help="see `scoreinv list` (%(default)s)")
    p.add_argument(
        "--slice", type=int, metavar="K", help="of a series or volume: this slice alone; negative counts from the end"
    )
    p.add_argument("--pixel-mm", type=float, help="side of a pixel [mm], for files that do not state it")
    p.add_argument("--mu-water", type=float, metavar="PER_MM", help="attenuation of water [1/mm] (0.0193, at 70 keV)")
    geometry = p.add_argument_group("CT geometry")
    geometry.add_argument("--views", type=int, help="number of views (23)")
    geometry.add_argument(
        "--arc", type=float, metavar="DEG", help="angle covered by them [degrees] (180; 360 for fan beams)"
    )
    geometry.add_argument("--start", type=float, metavar="DEG", help="angle of the first view [degrees] (0)")
    geometry.add_argument("--detectors", type=int, help="number of detector cells (as many as see the whole image)")
    geometry.add_argument("--detector-mm", type=float, help="width of a detector cell [mm]")
    geometry.add_argument("--detector-offset-mm", type=float, help="shift of the detector's centre off the axis [mm]")
    geometry.add_argument("--source-origin-mm", type=float, help="fan beam: source to rotation axis [mm]")
    geometry.add_argument("--origin-detector-mm", type=float, help="fan beam: rotation axis to detector [mm]")
    noise = p.add_mutually_exclusive_group()
    noise.add_argument(
        "--noise", type=float, default=0.0, metavar="R", help="Gaussian, standard deviation R x mean of the data (0)"
    )
    noise.add_argument("--photons", type=float, metavar="N", help="Poisson counts, N photons a ray without an object")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further arguments of the operator")
    p.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    p.set_defaults(run=_simulate)
    return p


def _simulate(a: argparse.Namespace) -> None:
    import math
    import warnings

    from scoreinv.configure import parse_settings
    from scoreinv.files.reconstruction import check_writable
    from scoreinv.files.scan import write_scan
    from scoreinv.simulation import simulate_scan
    from scoreinv.units import MU_WATER_PER_MM

    check_writable(a.out)
    geometry = {
        "n_views": a.views, "n_detectors": a.detectors, "detector_mm": a.detector_mm,
        "arc": None if a.arc is None else math.radians(a.arc), "start": None if a.start is None else math.radians(a.start),
        "detector_offset_mm": a.detector_offset_mm,
        "source_origin_mm": a.source_origin_mm, "origin_detector_mm": a.origin_detector_mm,
    }  # fmt: skip
    if a.noise > 0.2:
        warnings.warn(
            f"--noise {a.noise:g} is a standard deviation of {a.noise:.0%} of the mean of the data; 0.005 is half a per cent",
            stacklevel=1,
        )
    if a.arc is not None and 0 < a.arc < 2 * math.pi + 0.01:
        warnings.warn(
            f"--arc is in degrees: all views lie within {a.arc:g} of them; {math.degrees(a.arc):.3g} degrees are {a.arc:g} radians",
            stacklevel=1,
        )
    arguments = {k: v for k, v in geometry.items() if v is not None} | parse_settings(a.set)
    scan = simulate_scan(
        a.image, a.operator, arguments, index=a.slice, pixel_mm=a.pixel_mm, relative_noise=a.noise, photons=a.photons,
        seed=a.seed, mu_water_per_mm=MU_WATER_PER_MM if a.mu_water is None else a.mu_water,
    )  # fmt: skip
    write_scan(a.out, scan)
    print(f"{a.out}: data {tuple(scan.problem.y.shape)} of {a.operator}")


FOREIGN = (".nii", ".nii.gz", ".dcm", ".tif", ".tiff", ".npy", ".png", ".jpg", ".jpeg")
PRESETS = {
    "fast": "the image alone in a third of the default's evaluations",
    "best": "the best image, alone",
    "calibrated": "draws whose spread is as large as their error, in 2.7 times the default's evaluations",
}


def add_reconstruct(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "reconstruct", help="reconstruct a scan file",
        description="Reconstructs a scan (scoreinv's own HDF5, or DXchange) and writes mean, standard deviation, draws, the fit to "
        "the data and all settings. Without options it does what suits the operator and the noise. A volume that does not fit into memory "
        "goes slice by slice, from and to HDF5 or Zarr (docs/file-formats.md).",
    )  # fmt: skip
    p.add_argument("scan", type=Path, help="scan file")
    p.add_argument(
        "--out", type=Path, metavar="RECON.h5", help="result (the scan's name with .recon.h5); .zarr for volumes"
    )
    p.add_argument(
        "--picture",
        type=Path,
        metavar="PICTURE.png",
        help="also draw reconstruction, uncertainty, FBP (truth and error)",
    )
    p.add_argument("--method", metavar="NAME", help="see `scoreinv list`; the default suits the scan")
    for name, words in PRESETS.items():
        p.add_argument(f"--{name}", dest="presets", action="append_const", const=name, default=[], help=words)
    p.add_argument(
        "--tuned",
        type=Path,
        metavar="TUNED.json",
        help="of `scoreinv tune`: its method, with its settings for this noise",
    )
    p.add_argument("--samples", type=int, metavar="M", help="draws from the posterior, for mean and standard deviation")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    add_prior(p)
    p.add_argument(
        "--noise-std", type=float, metavar="S", help="standard deviation of the data's noise, instead of the file's"
    )
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the method")
    p.add_argument(
        "--calibration", type=Path, metavar="FILE.json", help="of `scoreinv calibrate`, instead of the shipped ones"
    )
    p.add_argument(
        "--level", type=float, metavar="L", help="of the calibrated intervals (0.9, or the nearest that is there)"
    )
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add_volume(p)
    d = p.add_argument_group("DXchange files")
    d.add_argument("--row", type=int, help="detector row to reconstruct (the middle one)")
    d.add_argument("--centre", type=float, metavar="COLUMN", help="column of the rotation axis (found from the data)")
    d.add_argument("--detector-mm", type=float, help="width of a detector bin [mm], for files that do not state it")
    d.add_argument("--binning", type=int, metavar="N", help="add up N neighbouring bins (1)")
    d.add_argument("--every", type=int, metavar="N", help="take every N-th view")
    p.set_defaults(run=_reconstruct)
    return p


def _reconstruct(a: argparse.Namespace) -> None:
    import dataclasses

    from scoreinv import configure, plugins
    from scoreinv.calibration import read_calibrations
    from scoreinv.files.dxchange import read_any_scan
    from scoreinv.files.reconstruction import check_writable, write_reconstruction
    from scoreinv.pictures import picture_format
    from scoreinv.priors.shipped import identity
    from scoreinv.reconstruction import in_hounsfield, reconstruct
    from scoreinv.report import check_drawable, draw, judgement, summary
    from scoreinv.tune import tuned_settings

    out = a.out or a.scan.with_suffix(".recon.h5")
    if out.exists() and a.scan.exists() and out.samefile(a.scan):
        raise ValueError(f"--out {out}: is the scan itself, which would be lost; give another name")
    if "".join(out.suffixes[-2:]).lower().endswith(FOREIGN):
        raise ValueError(
            f"--out {out}: results are HDF5 (.h5); `scoreinv export RESULT.h5 --out {out.name}` makes other formats of them"
        )
    slicewise = is_volume(a)
    for path in filter(None, (None if slicewise and out.exists() else out, a.picture)):
        check_writable(path)
    if a.picture:
        picture_format(a.picture)
    if a.method:
        plugins.get("methods", a.method)
    if a.cluster in (None, "local"):
        check_device(a.device)
    preset = _one_preset(a)
    calibrations = read_calibrations(a.calibration, a.level)
    if slicewise:
        how = {"preset": preset, "calibrations": calibrations, "settings": configure.parse_settings(a.set)}
        reconstruct_volume(a, out, how)
        return
    if a.every is not None and a.every < 1:
        raise ValueError(f"--every: expected a whole number of at least 1, got {a.every}")
    views = None if a.every is None else slice(None, None, a.every)
    scan = read_any_scan(a.scan, row=a.row, centre=a.centre, detector_mm=a.detector_mm, binning=a.binning, views=views)
    if a.picture:
        check_drawable(in_hounsfield(scan))
    if a.noise_std is not None:
        scan = dataclasses.replace(
            scan, problem=dataclasses.replace(scan.problem, noise_std=a.noise_std, counts=None), noise_known=True
        )
    method, tuned = (
        (a.method, {})
        if a.tuned is None
        else tuned_settings(a.tuned, scan, a.method, prior_sha256=identity(a.prior)["sha256"])
    )
    result = reconstruct(
        scan,
        method,
        samples=a.samples,
        seed=a.seed,
        prior=a.prior,
        settings=tuned | configure.parse_settings(a.set),
        device=a.device,
        calibrations=calibrations,
        preset=preset,
    )
    write_reconstruction(out, result)
    print(f"{out}: {summary(result)}")
    if words := judgement(result):
        print(words)
    if a.picture:
        draw(a.picture, result)
        print(a.picture)


def _one_preset(a: argparse.Namespace) -> str | None:
    chosen = [f"--{name}" for name in dict.fromkeys(a.presets)]
    if len(chosen) > 1 or (chosen and a.tuned):
        raise ValueError(
            f"{' and '.join([*chosen, *(['--tuned'] if a.tuned else [])])} exclude each other: give one of them"
        )
    return a.presets[0] if a.presets else None


def add_info(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="say what a file holds",
        description="Says what a scan, a reconstruction, a volume, weights, an image, a folder of clinical projections, a sweep's folder, "
        "calibrations or tuned constants hold.",
    )
    p.add_argument("file", type=Path, nargs="?", help="the file (default: the shipped prior)")
    p.set_defaults(run=_info)
    return p


def _info(a: argparse.Namespace) -> None:
    from scoreinv.info import describe_file

    print(describe_file(a.file))


def add_list(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "list",
        help="list operators, methods and priors",
        description="Lists operators and methods, those of installed plugins included, and the priors that ship.",
    )
    p.add_argument("kind", nargs="?", choices=["operators", "methods", "priors"], help="only these")
    p.set_defaults(run=_list)
    return p


def _list(a: argparse.Namespace) -> None:
    from scoreinv.report import listing

    print(listing([a.kind] if a.kind else ["operators", "methods", "priors"]))
