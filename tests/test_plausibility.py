"""What is said about data that are hardly line integrals through people in mm."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch

import scoreinv as si
from scoreinv.linop import LinearOperator
from scoreinv.operators import Masking, ParallelBeamCT, equispaced_angles
from scoreinv.plausibility import doubts, looks_clinical
from scoreinv.reconstruction import choose

SIDE, PIXEL_MM, WATER = 32, 8.0, 0.0193


def scan(photons: float | None = None) -> si.Scan:
    """A disc of water in air."""
    A = ParallelBeamCT((SIDE, SIDE), equispaced_angles(12), SIDE, PIXEL_MM, PIXEL_MM)
    r = torch.linspace(-1, 1, SIDE)
    body = WATER * (r[:, None] ** 2 + r**2 < 0.5).float()
    rng = torch.Generator().manual_seed(0)
    return si.Scan(si.simulate(A, body, rng) if photons is None else si.simulate_counts(A, body, rng, photons=photons))


def changed(of: si.Scan, y: torch.Tensor | None = None, mm: float = PIXEL_MM) -> si.Scan:
    A = dataclasses.replace(of.problem.A, pixel_mm=mm, detector_mm=mm)  # type: ignore[type-var]
    return si.Scan(si.Problem(A, of.problem.y if y is None else y, 0.01))


def test_nothing_is_said_of_data_as_they_should_be() -> None:
    assert doubts(scan(), of_people=True) == [] and doubts(scan(4096.0), of_people=True) == []
    assert looks_clinical(scan())


@pytest.mark.parametrize("of_people", [True, False])
def test_counts_and_transmission(of_people: bool) -> None:
    counts = scan(4096.0).problem.counts
    assert counts is not None
    for y in (torch.exp(-scan().problem.y), counts.arrived):
        (said,) = doubts(changed(scan(), y), of_people=of_people)
        assert "larger at the detector's edges" in said and "-ln(" in said


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_centimetres(factor: float) -> None:
    """A pixel given in cm, and attenuation in 1/cm: the images are ten times too bright or too dark."""
    for odd in (changed(scan(), mm=PIXEL_MM / factor), changed(scan(), factor * scan().problem.y)):
        (said,) = doubts(odd, of_people=True)
        assert "times what water does" in said and "cm instead of mm" in said
        assert doubts(odd, of_people=False) == []  # a stone, or a leaf


@pytest.mark.parametrize(("n_detectors", "offset", "hollow"), [(20, 0.0, True), (20, 48.0, False), (20, 48.0, True)])
def test_short_and_offset_detectors_look_at_no_air(n_detectors: int, offset: float, hollow: bool) -> None:
    """Their edges may see more than their middle."""
    angles = equispaced_angles(24, 2 * math.pi)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the detector misses a part
        A = ParallelBeamCT((SIDE, SIDE), angles, n_detectors, PIXEL_MM, PIXEL_MM, detector_offset_mm=offset)
        r = torch.linspace(-1, 1, SIDE)
        square = r[:, None] ** 2 + r**2
        body = WATER * ((square < (0.9 if hollow else 0.1)) & ((square > 0.3) | torch.tensor(not hollow))).float()
        assert doubts(si.Scan(si.simulate(A, body, torch.Generator())), of_people=False) == []


def test_images_of_other_kinds_are_not_judged() -> None:
    A: LinearOperator = Masking.for_image((SIDE, SIDE), PIXEL_MM, keep=0.5)
    assert doubts(si.Scan(si.Problem(A, torch.full(A.out_shape, 300.0))), of_people=True) == []


@pytest.mark.parametrize("method", ["proximal", "dds", "fbp_unet", None])
def test_methods_that_learned_from_people_warn(method: str | None) -> None:
    with pytest.warns(UserWarning, match=r"times what water does|not what the CT prior knows"):
        choose(changed(scan(), mm=PIXEL_MM / 10), method)
    with pytest.warns(UserWarning, match="larger at the detector's edges"):
        choose(changed(scan(), torch.exp(-scan().problem.y)), method)


def test_methods_without_a_prior_take_anything() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(changed(scan(), mm=PIXEL_MM / 10), "fista_tv")
        choose(changed(scan(), mm=PIXEL_MM / 10), prior=lambda x, sigma: x)


def test_the_unit_of_a_method_is_the_scan_s_water() -> None:
    """A weight that was tuned for images of people is scaled with them."""
    other = dataclasses.replace(scan(), mu_water_per_mm=0.021)
    assert choose(other, "fista_tv").settings == {"unit": 0.021}
    assert choose(other, "fbp_unet", settings={"unit": 0.5}).settings == {"unit": 0.5}
