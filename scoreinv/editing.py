"""Controllable generation with an unconditional prior, without training it again (what `scoreinv edit` does).

    inpaint      some pixels are unknown: draws from the prior given the others, which stay as they are
    colourise    of each pixel the luminance is known: draws of colours, of exactly that luminance
    stroke       nothing is known: images of the prior that are like a painted guide (`sampling.sdedit`)

All of them may be asked for a class, which turns the prior (`sampling.guided.towards_class`).

The first two are inverse problems without noise, A = Masking and A = Grayscale, for any posterior method; what is known is put in exactly
at the end, x ← x + A⁺ (y − A x), whatever the method left of it. Methods that replace pixels colourise in the orthonormal
coordinates of `operators.grayscale.ColourTransform`, of which the first is known.

Images are in the prior's unit here, black -1 and white 1 (CT: u = HU / 1000), (H, W) or (3, H, W).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from scoreinv import configure, plugins
from scoreinv.edit_picture import edit_picture
from scoreinv.files.editing import Canvas, read_colour, read_gray, read_mask, write_edited
from scoreinv.posterior.guidance import STEPS
from scoreinv.posterior.imputation import Imputation
from scoreinv.priors.colour import Rotated
from scoreinv.priors.denoiser import Counted, Denoiser
from scoreinv.priors.picture_prior import PicturePrior, picture_prior
from scoreinv.problem import Method, Problem
from scoreinv.sampling.guided import towards_class
from scoreinv.sampling.sdedit import sdedit

DEFAULT = "repaint"
"""Method of inpaint and colourise."""
STRENGTHS = (0.01, 80.0)
"""Between which strengths must lie."""


@dataclass(frozen=True, eq=False)
class SDEdit:
    """SDEdit with the settings that all samplers have (`posterior.guidance.Guided`); see `sampling.sdedit`.

    Attributes:
        prior: D.
        samples: how many images.
        strength: σ_s, the noise that the guide is buried in.
        step, eta: of the sampler.
        n_levels: noise levels from σ_s to sigma_min.
        sigma_min: last positive one.
    """

    prior: Denoiser
    samples: int = 1
    strength: float = 0.5
    step: str = "ancestral"
    n_levels: int = 50
    sigma_min: float = 0.01
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.step not in STEPS:
            raise ValueError(f"SDEdit: no step is named {self.step!r}; known: {', '.join(STEPS)}")
        if not STRENGTHS[0] <= self.strength <= STRENGTHS[1]:
            raise ValueError(
                f"SDEdit: the strength is a noise level between {STRENGTHS[0]:g} and {STRENGTHS[1]:g} (black is -1, white 1; "
                f"for CT 0.5 is 500 HU), got {self.strength:g}"
            )

    def __call__(self, guide: Tensor, rng: Generator, kept: Tensor | None = None) -> Tensor:
        """(samples, *image_shape) like a guide (*image_shape), which stays as it is where kept is true."""
        return sdedit(
            self.prior, guide, self.strength, self.samples, rng, n_levels=self.n_levels, sigma_min=self.sigma_min,
            step=STEPS[self.step](self.eta), kept=kept,
        )  # fmt: skip


def posterior_method(name: str, settings: Mapping[str, Any], prior: Denoiser) -> Method:
    """A registered posterior method, or "imputation".

    Raises:
        ValueError: no such method or setting, or the method has no prior.
    """
    if name == "imputation":
        built: Method = configure.call(f"method {name!r}", Imputation, {**settings, "prior": prior})
        return built
    if not configure.needs_prior(name):
        raise ValueError(
            f"method {name!r} has no prior to generate from; take {DEFAULT!r}, 'imputation' or another of those with one"
        )
    return configure.method(name, settings, lambda: prior)


def inpaint(method: Method, image: Tensor, unknown: Tensor, rng: Generator) -> Tensor:
    """Draws of an image whose unknown pixels are made anew; the others stay exactly as they are.

    Args:
        method: a posterior method with its prior.
        image: (H, W) or (3, H, W).
        unknown: (H, W), true where the image is not looked at.
        rng: source of all randomness.

    Returns:
        (samples, *image shape).

    Raises:
        ValueError: no pixel is unknown, or all are.
    """
    _check_unknown(unknown)
    known = ~unknown.expand(image.shape)
    A = plugins.get("operators", "masking")(known)
    draws = method(Problem(A, A(image), 0.0), rng)
    return torch.where(known.to(draws.device), image.to(draws), draws)


def colourise(
    build: Callable[[Denoiser], Method], prior: Denoiser, gray: Tensor, rng: Generator, *, rotate: bool = False
) -> Tensor:
    """Draws of the colours of a gray image, of its luminance (Rec. 709) up to rounding.

    Args:
        build: a posterior method from a prior of images (batch, 3, H, W).
        prior: D.
        gray: (H, W).
        rng: source of all randomness.
        rotate: solve in orthonormal coordinates, where it is a mask: for methods that replace pixels.

    Returns:
        (samples, 3, H, W).
    """
    A = plugins.get("operators", "grayscale")((3, *gray.shape))
    y = gray[None]
    if rotate:
        Q = A.coordinates()
        known = torch.zeros(A.in_shape, dtype=torch.bool)
        known[0] = True
        data = torch.cat([y / Q.length, y.new_zeros(2, *gray.shape)])
        draws = Q.H(build(Rotated(prior, Q))(Problem(plugins.get("operators", "masking")(known), data, 0.0), rng))
    else:
        draws = build(prior)(Problem(A, y, 0.0), rng)
    one_pixel = torch.ones(1, 1, 1, dtype=torch.float64)
    squared = float(type(A)((3, 1, 1)).H(one_pixel).square().sum())  # A Aᵀ, the same in every pixel
    exact: Tensor = draws + A.H(y.to(draws) - A(draws)) / squared
    return exact


def _check_unknown(unknown: Tensor) -> None:
    if not unknown.any():
        raise ValueError("the mask is empty: no pixel is white, so there is nothing to make anew (white is unknown)")
    if unknown.all():
        raise ValueError(
            "the mask covers everything, so no pixel is known; for images from the prior alone: scoreinv sample"
        )


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be edited, and how.

    Attributes:
        prior: with its evaluations counted.
        canvas: the image.
        unknown: (H, W), where it is made anew; None where no mask was given.
        method: name; None for the task's own.
        settings: of the method or sampler, the number of samples among them.
        device: where to compute.
        rng: source of all randomness.
    """

    prior: Counted
    canvas: Canvas
    unknown: Tensor | None
    method: str | None
    settings: Mapping[str, Any]
    device: str
    rng: Generator = field(default_factory=Generator)

    @property
    def u(self) -> Tensor:
        """The image in the prior's unit, on the device."""
        return self.canvas.u.to(self.device)


Result = tuple[Tensor, Canvas, Any]
"""Draws in the prior's unit, what they are images of, and the method with its settings."""


def _inpaint(job: Job) -> Result:
    if job.unknown is None:
        raise ValueError(
            "inpaint needs to know which pixels are unknown: give --mask MASK.png (white is unknown) or --box X Y W H"
        )
    method = posterior_method(job.method or DEFAULT, job.settings, job.prior)
    return inpaint(method, job.u, job.unknown.to(job.device), job.rng), job.canvas, method


def _colourise(job: Job) -> Result:
    name = job.method or DEFAULT
    built: list[Method] = []

    def build(prior: Denoiser) -> Method:
        built.append(posterior_method(name, job.settings, prior))
        return built[0]

    draws = colourise(build, job.prior, job.u[0], job.rng, rotate=name == "repaint")
    return draws, Canvas(job.canvas.values.expand(3, -1, -1), job.canvas.pixel_mm), built[0]


def _stroke(job: Job) -> Result:
    sampler: SDEdit = configure.call("stroke", SDEdit, {**job.settings, "prior": job.prior})
    if job.unknown is not None:
        _check_unknown(job.unknown)
    kept = None if job.unknown is None else ~job.unknown.to(job.device)
    return sampler(job.u, job.rng, kept), job.canvas, sampler


TASKS: dict[str, Callable[[Job], Result]] = {"colourise": _colourise, "inpaint": _inpaint, "stroke": _stroke}
"""By name: what `scoreinv edit` can do. A further task is a function here and its options in `cli.editing`."""


def task_named(name: str) -> Callable[[Job], Result]:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"no task is named {name!r}.{plugins.did_you_mean(name, TASKS)} Known: {', '.join(TASKS)}")
    return TASKS[name]


def box_mask(shape: Sequence[int], box: Sequence[int]) -> Tensor:
    """(H, W), true in the box (column of its left edge, row of its top, width, height) [pixels].

    Raises:
        ValueError: the box is empty or goes beyond the image.
    """
    height, width = shape
    x, y, w, h = box
    if w < 1 or h < 1 or not (0 <= x <= width - w and 0 <= y <= height - h):
        raise ValueError(
            f"--box {x} {y} {w} {h}: expected a box (left column, top row, width, height) inside the image of {width} x {height} pixels"
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y : y + h, x : x + w] = True
    return mask


def edit_image(
    task: str,
    image: Path,
    out: Path,
    *,
    mask: Path | None = None,
    box: Sequence[int] | None = None,
    prior: str | Path | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    index: int | None = None,
    pixel_mm: float | None = None,
    seed: int = 0,
    picture: Path | None = None,
    device: str = "cpu",
    of_class: Mapping[str, Any] | None = None,
) -> str:
    """Edit an image on disk.

    Args:
        task: "inpaint", "colourise" or "stroke".
        image: CT or a picture (see `files.editing`).
        out: .h5, .npy, .png or .tif to write.
        mask: picture, white where the image is to be made anew.
        box: instead of it, left column, top row, width and height [pixels].
        prior: see `picture_prior`.
        method: of inpaint and colourise: "imputation", or the name of any posterior method.
        settings: of the method or sampler: samples, strength, n_levels ...
        index: of a series or volume: this slice.
        pixel_mm: side of a pixel [mm], where the file does not state it.
        seed: of everything random.
        picture: PNG to write, for people.
        device: where to compute.
        of_class: arguments of `sampling.guided.towards_class`, c among them, for images of a class; None for any.

    Returns:
        What was done, in a line.

    Raises:
        ValueError, OSError: the task, the image, the mask, the prior or a setting is not what is expected.
    """
    run = task_named(task)
    known = picture_prior(prior, device=device)
    canvas = _read(task, image, known, index, pixel_mm)
    shape = canvas.values.shape[-2:]
    unknown = read_mask(mask, shape) if mask is not None else None if box is None else box_mask(shape, box)
    if known.channels == 1 and canvas.pixel_mm is not None:
        known = picture_prior(prior, pixel_mm=canvas.pixel_mm, device=device)
    denoiser = known.denoiser if of_class is None else towards_class(known.denoiser, **of_class, device=device)
    counted = Counted(denoiser)
    job = Job(counted, canvas, unknown, method, settings or {}, device, Generator().manual_seed(seed))
    started = time.perf_counter()
    with torch.no_grad():
        draws, made, how = run(job)
    seconds = time.perf_counter() - started
    if not torch.isfinite(draws).all():
        raise ValueError(f"{task} diverged (NaN or infinite pixels): check the settings of the method")
    values = made.valued(draws.cpu())
    if unknown is not None:
        values = torch.where(unknown, values, made.values)  # without the rounding of the change of unit
    record = {
        "task": task, "method": method or (DEFAULT if task != "stroke" else "sdedit"), **configure.settings_of(how), "image": image.name,
        "class": None if of_class is None else {k: str(v) if isinstance(v, Path) else v for k, v in of_class.items()},
        "unknown_pixels": None if unknown is None else int(unknown.sum()), "prior": known.identity, "seconds": seconds,
        "network_evaluations_per_image": counted.n_evaluations / len(draws), "device": device,
    }  # fmt: skip
    files = write_edited(out, values, made, record, seed)
    if picture is not None:
        edit_picture(
            picture,
            source=canvas.values if task != "colourise" else made.values,
            draws=values,
            unknown=unknown,
            title=_title(image, record),
        )
    return _words(files, values, unknown, record)


def _read(task: str, image: Path, prior: PicturePrior, index: int | None, pixel_mm: float | None) -> Canvas:
    if task != "colourise":
        return read_gray(image, pixel_mm=pixel_mm, index=index) if prior.channels == 1 else read_colour(image)
    if prior.channels != 3:
        raise ValueError(
            f"colourise needs a prior of colour images, and {prior.identity['name']} is of gray ones; give one with --prior (docs/editing.md)"
        )
    gray = read_gray(image, pixel_mm=pixel_mm, index=index, photograph=True)
    return Canvas((gray.u.clamp(-1, 1)[None] + 1) / 2, gray.pixel_mm)


def _title(image: Path, record: Mapping[str, Any]) -> str:
    """Such as "slice.dcm: stroke by sdedit, strength 0.5"."""
    strength = f", strength {record['strength']:g}" if "strength" in record else ""
    return f"{image.name}: {record['task']} by {record['method']}{strength}"


def _words(files: Sequence[Path], values: Tensor, unknown: Tensor | None, record: Mapping[str, Any]) -> str:
    names = str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
    n = len(values)
    parts = [f"{names}: {n} image{'s' if n > 1 else ''} by {record['method']}"]
    if unknown is not None:
        parts.append(f"{int(unknown.sum())} of {math.prod(unknown.shape)} pixels made anew")
    if n > 1:
        std = values.std(0) if unknown is None else values.std(0)[..., unknown]
        spread = float(std.square().mean().sqrt())
        parts.append(
            f"draws differ by {spread:.0f} HU" if values.ndim == 3 else f"draws differ by {255 * spread:.0f} of 255"
        )
    return ", ".join(
        [
            *parts,
            f"{record['network_evaluations_per_image']:g} network evaluations an image",
            f"{record['seconds']:.1f} s",
        ]
    )
