"""Commands between formats: `rebin` brings a clinical scan in, `export` images out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_rebin(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "rebin", help="parallel views of a helical clinical scan (DICOM-CT-PD) as a scan file",
        description="Rebins projections of a clinical scanner, a folder of DICOM-CT-PD files of one series, to parallel views of single "
        "slices, and finds the noise. `scoreinv info FOLDER` says which slices there are.",
    )  # fmt: skip
    p.add_argument("folder", type=Path, help="of one series, one file a view")
    p.add_argument("--out", type=Path, required=True, metavar="SCAN.h5", help="scan file to write")
    p.add_argument("--z", type=float, nargs="+", metavar="MM", help="heights of the slices [mm] (the middle one)")
    p.add_argument("--views", type=int, default=23, help="number of views, evenly over 180 degrees (%(default)s)")
    p.add_argument("--start", type=float, default=0.0, metavar="DEG", help="angle of the first view [degrees] (0)")
    p.add_argument(
        "--size",
        type=int,
        default=256,
        help="pixels along each side of the image, which is the whole field of view (256)",
    )
    p.set_defaults(run=_rebin)
    return p


def _rebin(a: argparse.Namespace) -> None:
    import math

    from scoreinv.files.reconstruction import check_writable
    from scoreinv.files.scan import write_scan
    from scoreinv.rebinning import rebin

    check_writable(a.out)
    scan = rebin(a.folder, a.z, n_views=a.views, start=math.radians(a.start), size=a.size)
    write_scan(a.out, scan)
    levels, how = scan.z_mm or (), scan.info
    where = ", ".join(f"{z:.1f}" for z in levels)
    columns, rows = how["other_columns_error"], how["other_rows_error"]
    rows_words = f"{rows:g} times than with rows" if rows > 1.1 else "rows are undecided"
    print(
        f"{a.out}: {a.views} parallel views of the slice{'s' if len(levels) > 1 else ''} at {where} mm; both ends of a line agree "
        f"{columns:g} times better than with columns counted the other way, {rows_words}"
    )


def add_export(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "export", help="a reconstruction's images as NIfTI, DICOM, TIFF or .npy",
        description="Writes images of a reconstruction or a volume in Hounsfield units, in the format that the name of --out stands for: "
        ".nii, .nii.gz, .dcm (one slice), a name without suffix (the folder of a DICOM series), .tif, .npy.",
    )  # fmt: skip
    p.add_argument(
        "reconstruction",
        type=Path,
        metavar="RECON.h5",
        help="of `scoreinv reconstruct`; a volume in HDF5 or Zarr as well",
    )
    p.add_argument("--out", type=Path, required=True, metavar="IMAGE.nii.gz", help="what to write")
    p.add_argument(
        "--what", default="mean", metavar="NAME",
        help="mean, std, half_width, lower and upper (ends of the interval), measured, support, fbp or truth (%(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--slice", type=int, metavar="K", help="of several slices this one alone; negative counts from the end"
    )
    p.add_argument(
        "--slice-mm",
        type=float,
        metavar="MM",
        help="distance of neighbouring slices [mm], where there are several and their heights are not known",
    )
    p.set_defaults(run=_export)
    return p


def _export(a: argparse.Namespace) -> None:
    from scoreinv.files.export import images_of, write_images

    images = images_of(a.reconstruction, a.what, a.slice)
    write_images(a.out, images, slice_mm=a.slice_mm)
    of = "" if len(images.hu) == 1 else f"{len(images.hu)} slices of "
    digits = ".0f" if images.unit == "HU" else ".2f"
    print(f"{a.out}: {of}{images.about}, {images.hu.min():{digits}} to {images.hu.max():{digits}}")
