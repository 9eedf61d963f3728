"""The command `edit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scoreinv.cli.options import add_class, add_prior, check_device, class_options


def add_edit(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "edit",
        help="fill holes in an image, colour it, or make one of a sketch",
        description="Generates under control, with a prior that was not trained for it. inpaint: makes unknown pixels anew, the others "
        "stay. colourise: draws colours for a gray picture, its luminance stays (needs a prior of colour images). stroke: makes an image "
        "of the prior out of a painted one (SDEdit).",
    )
    p.add_argument("task", metavar="TASK", help="inpaint, colourise or stroke")
    p.add_argument(
        "image", type=Path, metavar="IMAGE", help="CT (DICOM, NIfTI, HDF5, .npy in HU) or a picture (PNG, TIFF, JPEG)"
    )
    p.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="images to write: .png (one each), .tif, .npy or .h5"
    )
    p.add_argument(
        "--picture", type=Path, metavar="PICTURE.png", help="also draw input, results and their standard deviation"
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "--mask", type=Path, metavar="MASK.png", help="picture as large as the image, white where it is made anew"
    )
    where.add_argument(
        "--box", type=int, nargs=4, metavar=("X", "Y", "W", "H"), help="made anew: left column, top row, width, height"
    )
    p.add_argument(
        "--strength", type=float, metavar="S", help="stroke: noise that the painting is buried in; black is -1 and white 1, for CT 0.5 is "
        "500 HU (0.5). More: further from the painting, more like the prior",
    )  # fmt: skip
    p.add_argument(
        "--method",
        metavar="NAME",
        help="inpaint, colourise: imputation, or a posterior method of `scoreinv list` (repaint)",
    )
    add_prior(p)
    add_class(p)
    p.add_argument("--samples", type=int, default=1, metavar="M", help="how many images (%(default)s)")
    p.add_argument(
        "--slice", type=int, metavar="K", help="of a series or volume: this slice; negative counts from the end"
    )
    p.add_argument("--pixel-mm", type=float, help="side of a pixel [mm], for files that do not state it")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the method or sampler")
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    p.set_defaults(run=_edit)
    return p


def _edit(a: argparse.Namespace) -> None:
    from scoreinv.configure import has_setting, parse_settings
    from scoreinv.editing import edit_image, task_named
    from scoreinv.files.editing import checked_result
    from scoreinv.files.reconstruction import check_writable

    task_named(a.task)
    for option, tasks in (
        ("strength", ("stroke",)),
        ("method", ("inpaint", "colourise")),
        ("mask", ("inpaint", "stroke")),
        ("box", ("inpaint", "stroke")),
    ):
        if getattr(a, option) is not None and a.task not in tasks:
            raise ValueError(f"--{option} is of {' and '.join(tasks)}, not of {a.task}; leave it out")
    check_writable(checked_result(a.out))
    if a.picture is not None:
        check_writable(a.picture)
    for path in (a.image, a.mask):
        if path is not None and a.out.exists() and path.exists() and a.out.samefile(path):
            raise ValueError(f"--out {a.out}: is an input, which would be lost; give another name")
    check_device(a.device)
    if a.samples < 1:
        raise ValueError(f"--samples {a.samples}: expected samples of at least 1")
    draws = a.method in (None, "imputation") or has_setting(a.method, "samples")
    if a.samples > 1 and not draws:
        raise ValueError(f"method {a.method!r} gives one image, no samples; leave --samples out")
    settings: dict[str, Any] = ({"samples": a.samples} if draws else {}) | parse_settings(a.set)
    if a.strength is not None:
        settings["strength"] = a.strength
    print(
        edit_image(
            a.task, a.image, a.out, mask=a.mask, box=a.box, prior=a.prior, method=a.method, settings=settings, index=a.slice,
            pixel_mm=a.pixel_mm, seed=a.seed, picture=a.picture, device=a.device, of_class=class_options(a),
        )
    )  # fmt: skip
    if a.picture is not None:
        print(a.picture)
