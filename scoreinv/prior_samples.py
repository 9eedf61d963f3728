"""Show what a prior has learnt: samples, and the training images nearest to them (what `scoreinv sample` does)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scoreinv.contact_sheet import contact_sheet
from scoreinv.files.images import read_image_set
from scoreinv.priors.denoiser import Denoiser
from scoreinv.priors.memorisation import nearest
from scoreinv.priors.shipped import image_prior
from scoreinv.sampling.guided import towards_class
from scoreinv.sampling.unconditional import generate


def sample_prior(
    out: Path,
    *,
    prior: str | Path | None = None,
    n: int = 8,
    side: int = 256,
    pixel_mm: float | None = None,
    training: Sequence[Path] = (),
    validation: Sequence[Path] = (),
    seed: int = 0,
    device: str = "cpu",
    of_class: Mapping[str, Any] | None = None,
) -> str:
    """Draw images from a prior into a contact sheet, and look for each among the training images.

    Args:
        out: PNG to write.
        prior: its file; the shipped one by default.
        n: how many samples.
        side: of a sample [pixels].
        pixel_mm: side of a pixel [mm] that the network is told; None where it is not.
        training: the images that it was trained on; empty leaves the search out.
        validation: images of other patients, whose distances to the training images say what is usual.
        seed: of everything random.
        device: where to compute.
        of_class: arguments of `sampling.guided.towards_class`, c among them, for images of a class; None for any.

    Returns:
        A line that says how near samples and validation slices are to the training images.

    Raises:
        ValueError: there is nothing to draw.
    """
    if n < 1 or side < 1:
        raise ValueError(f"expected samples and side of at least 1, got {n} samples of {side} x {side} pixels")
    drawn_from: Denoiser = image_prior(prior, pixel_mm=pixel_mm, device=device)
    if of_class is not None:
        drawn_from = towards_class(drawn_from, **of_class, device=device)
    samples = generate(drawn_from, (side, side), n, torch.Generator().manual_seed(seed), device=device).cpu()
    images = [1000 * u for u in samples]
    if not training:
        contact_sheet(out, images)
        return f"{out}: {n} samples"
    known = read_image_set(training)
    found = nearest(list(samples), known)
    neighbours = [torch.from_numpy(known.images[f.index].copy()).float().flip(f.flips) for f in found]
    captions = [f"{f.distance_hu:.0f} HU apart, {known.patients[f.index]}"[:44] for f in found]
    contact_sheet(out, images, neighbours, captions)
    words = f"{out}: {n} samples, {statistics.median(f.distance_hu for f in found):.0f} HU from the nearest training image (median)"
    if validation:
        others = read_image_set(validation)
        slices = [torch.from_numpy(others.images[i]).float() / 1000 for i in others.one_per_patient()]
        usual = statistics.median(f.distance_hu for f in nearest(slices, known))
        words += f"; slices of {len(slices)} other patients: {usual:.0f} HU"
    return words
