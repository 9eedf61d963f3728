"""Whether a scan's data look like line integrals through people, in the units that they are said to have.

Nothing here is certain, so that it is said and nothing is refused. What goes wrong most often is seen by two signs: lengths or
attenuation in cm make images ten times too bright or too dark; counts and transmission are largest where rays miss the object, line
integrals where they go through it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoreinv.files.scan import Scan
from scoreinv.linop import LinearOperator
from scoreinv.problem import Problem

RANGE = (0.05, 3.0)
"""Of mean attenuation in units of water: people on a table, and small fields of view without air."""
EDGE, CENTRE = 0.05, 0.5
"""Shares of the detector: each edge, and its middle."""
BRIGHTER = 1.2


def mean_image(problem: Problem) -> float:
    """About the mean of the images: mean data over what an image of ones would give."""
    A = problem.A
    ones = A(torch.ones(A.in_shape, dtype=problem.y.dtype, device=problem.y.device))
    return float(problem.y.mean() / ones.mean().clamp(min=1e-30))


def looks_clinical(scan: Scan) -> bool:
    """Whether images are gray and attenuate like people on a table: on average between 1/20 of water and 3 times water."""
    low, high = RANGE
    return len(scan.problem.A.in_shape) == 2 and low < mean_image(scan.problem) / scan.mu_water_per_mm < high


def doubts(scan: Scan, *, of_people: bool) -> list[str]:
    """What is odd about the data of a CT scan, in sentences; nothing for images of other kinds.

    Args:
        scan: of anything.
        of_people: whether what will reconstruct it was trained on people.
    """
    problem = scan.problem
    if len(problem.A.in_shape) != 2 or getattr(problem.A, "pixel_mm", None) is None:
        return []
    if len(problem.A.out_shape) == 2 and _sees_beyond(problem.A) and _brightest_at_the_edges(problem.y):
        return [
            "the data are larger at the detector's edges than in its middle, as photon counts and transmission are: y should be line "
            "integrals, -ln(counts / counts without an object)"
        ]
    if of_people and not looks_clinical(scan):
        ratio = mean_image(problem) / scan.mu_water_per_mm
        lengths = " (ten times too much or too little comes of cm instead of mm)" if 0.005 < ratio < 30 else ""
        return [
            f"the images attenuate {ratio * scan.mu_water_per_mm:.3g} per mm on average, {ratio:.3g} times what water does "
            f"({scan.mu_water_per_mm:g}), where people have 0.05 to 3: check that lengths are in mm, and that y holds line "
            f"integrals{lengths}"
        ]
    return []


def _sees_beyond(A: LinearOperator) -> bool:
    """Whether both edges of the detector look past the disc inscribed in the image, where there should be air."""
    shadow = A(torch.ones(A.in_shape))
    n = shadow.shape[-1]
    return float(max(shadow[..., 0].mean(), shadow[..., n - 1].mean())) < 0.8 * float(shadow[..., n // 2].mean())


def _brightest_at_the_edges(y: Tensor) -> bool:
    """Whether no datum is negative, and rays at either edge have more than those in the middle (..., views, detectors)."""
    n = y.shape[-1]
    edge, aside = max(1, round(EDGE * n)), round((1 - CENTRE) / 2 * n)
    middle = float(y[..., aside : n - aside].mean())
    edges = (float(y[..., :edge].mean()), float(y[..., n - edge :].mean()))
    return bool(y.min() >= 0) and min(edges) > BRIGHTER * middle
