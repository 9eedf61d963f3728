"""Whether a scan's data look like line integrals through people, in the units that they are said to have.

Nothing here is certain, so that it is said and nothing is refused. Three signs:

- The tissue of a smoothed FBP. Over 42 slices of 14 patients (validation, from 9 to 60 views, parallel and fan) it attenuates 0.87 to 1.06
  times as water does; lengths in cm, in pixels, and data that are no line integrals fall outside of 0.75 to 1.4.
- Where FBP says little (a few views, an arc, a detector that is short or off the middle) the mean of the images, which spans 0.05 to 3 times
  water, from people in much air to a field of view without any.
- Counts and transmission are largest where rays miss the object, line integrals where they go through it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scoreinv.files.scan import Scan
from scoreinv.linop import Operator
from scoreinv.problem import Problem

TISSUE = (0.75, 1.4)
"""Brightness that goes without saying, in units of water."""
CLINICAL = (0.4, 2.5)
"""Brightness at which images may still be what the CT prior knows."""
MEAN = (0.05, 3.0)
"""The same for mean attenuation, where brightness cannot be had."""
QUANTILES = (0.8, 0.9, 0.95, 0.99, 0.995)
LEAST_VIEWS, LEAST_ARC = 9, 0.9
EDGE, CENTRE = 0.05, 0.5
"""Shares of the detector: each edge, and its middle."""
BRIGHTER, ALIKE = 1.2, 0.25
FEW_PHOTONS, FEW_RAYS = 20.0, 0.01
"""Log data are biased below so many photons; said where this share of the rays has fewer."""
UNITS = ((10.0, "lengths in cm instead of mm"), (0.1, "attenuation in 1/cm, or a factor of 10 that is left out"))


def mean_image(problem: Problem) -> float:
    """About the mean of the images: mean data over what an image of ones would give."""
    A = problem.A
    ones = A(torch.ones(A.in_shape, dtype=problem.y.dtype, device=problem.y.device))
    return float(problem.y.mean() / ones.mean().clamp(min=1e-30))


def brightness(problem: Problem, water: float) -> float | None:
    """What the tissue attenuates, in the unit of the images: the median of what is brighter than half of a high quantile of a smoothed FBP.
    Of several quantiles the one whose tissue is nearest to water: a small body is seen by the highest alone, one with metal by the others.
    None where FBP says little or no pixel lies inside the circle."""
    A: Any = problem.A
    fbp, covered = getattr(A, "fbp", None), getattr(A, "covered", None)
    if fbp is None or covered is None or covered() < LEAST_ARC or A.out_shape[0] < LEAST_VIEWS or not _sees_beyond(A):
        return None
    images = fbp(problem.y, "hann").reshape(-1, 1, *A.in_shape).float()
    width = 2 * max(1, round(max(A.in_shape) / 32)) + 1
    smooth = F.avg_pool2d(images, width, 1, width // 2, count_include_pad=False)[:, 0]
    y, x = (torch.linspace(-1, 1, n, device=images.device) for n in A.in_shape)
    inside = (y[:, None] ** 2 + x**2 < 1).nonzero()
    if len(inside) == 0:  # a few pixels, all of them on the edge
        return None
    inside = inside[:: max(1, len(inside) // 10**6)]  # torch.quantile takes no more than 16 million
    found = [f for image in smooth if (f := _tissue(image[inside[:, 0], inside[:, 1]], water)) is not None]
    return sorted(found)[len(found) // 2] if found else None


def _tissue(values: Tensor, water: float) -> float | None:
    """Of one image's values."""
    bounds = [0.5 * float(torch.quantile(values, q)) for q in QUANTILES]
    found = [float(values[values > b].median()) for b in bounds if b > 0 and bool((values > b).any())]
    return min(found, key=lambda v: abs(math.log(max(v, 1e-9) / water)), default=None)


def looks_clinical(scan: Scan) -> bool:
    """Whether images are gray and attenuate about as people on a table do."""
    if len(scan.problem.A.in_shape) != 2:
        return False
    found = brightness(scan.problem, scan.mu_water_per_mm)
    low, high = MEAN if found is None else CLINICAL
    return low < (mean_image(scan.problem) if found is None else found) / scan.mu_water_per_mm < high


def is_ct(A: Operator) -> bool:
    """Whether images are gray slices with pixels of a size."""
    return len(A.in_shape) == 2 and getattr(A, "pixel_mm", None) is not None


def doubts(scan: Scan, *, of_people: bool, exact_counts: bool = False) -> list[str]:
    """What is odd about the data of a CT scan, in sentences; nothing for images of other kinds.

    Args:
        scan: of anything.
        of_people: whether what will reconstruct it was trained on people.
        exact_counts: whether it takes the exact likelihood of photon counts.
    """
    problem = scan.problem
    if not is_ct(problem.A):
        return []
    said = _of_photons(scan, exact_counts)
    if len(problem.A.out_shape) == 2 and _sees_beyond(problem.A) and _brightest_at_the_edges(problem.y):
        said.append(
            "the data are larger at the detector's edges than in its middle, as photon counts and transmission are: y should be line "
            "integrals, -ln(counts / counts without an object)"
        )
    elif of_people and (odd := _of_units(scan)):
        said.append(odd)
    return said


def _of_units(scan: Scan) -> str | None:
    problem, water = scan.problem, scan.mu_water_per_mm
    found = brightness(problem, water)
    (low, high), what = (
        (MEAN, "images attenuate") if found is None else (TISSUE, "brightest half of the images attenuates")
    )
    ratio = (mean_image(problem) if found is None else found) / water
    if low < ratio < high:
        return None
    pixel_mm = float(problem.A.pixel_mm)  # type: ignore[attr-defined]
    known = [
        *UNITS,
        *([(1 / pixel_mm, "lengths in pixels: multiply by pixel_mm")] if abs(math.log(pixel_mm)) > 0.3 else []),
    ]
    distance, words = min((abs(math.log(max(ratio, 1e-9) / factor)), words) for factor, words in known)
    hint = f" ({words}, perhaps)" if found is not None and distance < 0.3 else ""
    return (
        f"the {what} {ratio:.3g} times what water does ({water:g} per mm), where people have {low:g} to {high:g}: check that lengths are in "
        f"mm, that y holds line integrals, and what the scan says of water{hint}"
    )


def _of_photons(scan: Scan, exact_counts: bool) -> list[str]:
    """Counts above what can arrive, and counts too few for their logarithm."""
    counts = scan.problem.counts
    if counts is None:
        return []
    said = []
    most = float(torch.quantile(counts.arrived.flatten()[:: max(1, counts.arrived.numel() // 10**6)].double(), 0.99))
    if most > 1.1 * counts.photons + 5 * math.sqrt(counts.photons):
        said.append(
            f"one ray in a hundred has {most:.3g} photons and more, of the {counts.photons:.3g} that are said to arrive without an object: is "
            "`photons` right?"
        )
    few = float((counts.arrived < FEW_PHOTONS).double().mean())
    if few > FEW_RAYS and not exact_counts:
        said.append(
            f"{few:.0%} of the rays have fewer than {FEW_PHOTONS:.0f} photons, where line integrals come out too small and images too dark; dps, "
            "red_diff and others take the exact likelihood of the counts (see README)"
        )
    return said


def _sees_beyond(A: Operator) -> bool:
    """Whether both edges of the detector look past the disc inscribed in the image, where there should be air."""
    shadow = A(torch.ones(A.in_shape))
    n = shadow.shape[-1]
    return float(max(shadow[..., 0].mean(), shadow[..., n - 1].mean())) < 0.8 * float(shadow[..., n // 2].mean())


def _brightest_at_the_edges(y: Tensor) -> bool:
    """Whether no datum is negative, and rays at either edge have more than those in the middle, all about the same, as in air
    (..., views, detectors)."""
    n = y.shape[-1]
    edge, aside = max(1, round(EDGE * n)), round((1 - CENTRE) / 2 * n)
    middle = float(y[..., aside : n - aside].mean())
    edges = [y[..., :edge].double(), y[..., n - edge :].double()]
    level = min(float(e.mean()) for e in edges)
    alike = max(float(e.std(correction=0)) for e in edges) < ALIKE * level
    return bool(y.min() >= 0) and level > BRIGHTER * middle and alike
