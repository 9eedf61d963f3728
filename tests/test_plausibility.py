"""What is said about data that are hardly line integrals through people in mm."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from pathlib import Path

import pytest
import torch

import scoreinv as si
from scoreinv import plugins
from scoreinv.linop import LinearOperator
from scoreinv.operators import FanBeamCT, Grayscale, Masking, ParallelBeamCT, equispaced_angles
from scoreinv.plausibility import brightness, doubts, looks_clinical
from scoreinv.problem import Counts
from scoreinv.reconstruction import EXACT_COUNTS, choose

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


@pytest.mark.parametrize(
    ("factor", "hint"),
    [(0.1, "attenuation in 1/cm"), (10.0, "cm instead of mm"), (1 / PIXEL_MM, "lengths in pixels"), (2.0, "")],
)
def test_units(factor: float, hint: str) -> None:
    """A pixel given in cm or pixels, attenuation in 1/cm, a factor that is left out."""
    for odd in (changed(scan(), mm=PIXEL_MM / factor), changed(scan(), factor * scan().problem.y)):
        (said,) = doubts(odd, of_people=True)
        assert "times what water does" in said and (hint in said if odd.problem.A.pixel_mm == PIXEL_MM else True)  # type: ignore[attr-defined]
        assert doubts(odd, of_people=False) == []  # a stone, or a leaf
    assert "cm instead of mm" in doubts(changed(scan(), mm=PIXEL_MM / 10), of_people=True)[0]


@pytest.mark.parametrize(("factor", "side"), [(3.5, 5), (12.0, 5), (12.0, 8)])
def test_metal_in_the_body_is_no_other_unit(factor: float, side: int) -> None:
    """Two hips of titanium or cobalt chromium in a pelvis."""
    n = 96
    y, x = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
    body = WATER * ((x / 0.8) ** 2 + (y / 0.55) ** 2 < 1).float()
    for at in (-0.4, 0.4):
        body[(x - at) ** 2 + y**2 < (side / n) ** 2] = factor * WATER
    A = ParallelBeamCT.for_image((n, n), 4.0)
    assert doubts(si.Scan(si.simulate(A, body, torch.Generator())), of_people=True) == []


@pytest.mark.parametrize("inner", [0.8, 0.9])
def test_a_hollow_object_is_no_transmission(inner: float) -> None:
    r = torch.linspace(-1, 1, 96)
    square = r[:, None] ** 2 + r**2
    A = ParallelBeamCT.for_image((96, 96), 1.0, n_detectors=96)
    ring = WATER * ((square < 1) & (square > inner**2)).float()
    assert doubts(si.Scan(si.simulate(A, ring, torch.Generator())), of_people=False) == []


def test_what_is_absorbed_is_no_line_integral() -> None:
    (said,) = doubts(changed(scan(), 1 - torch.exp(-scan().problem.y)), of_people=True)
    assert "y holds line integrals" in said


def test_the_brightness_is_that_of_the_tissue() -> None:
    """Whatever share of the field it fills, by fans and by parallel beams; none where FBP says little."""
    r = torch.linspace(-1, 1, SIDE)
    square = r[:, None] ** 2 + r**2
    parallel = ParallelBeamCT.for_image((SIDE, SIDE), PIXEL_MM)
    fan = FanBeamCT.for_image((SIDE, SIDE), PIXEL_MM, source_origin_mm=600.0, origin_detector_mm=400.0, n_views=46)
    for A in (parallel, fan):
        for size in (0.15, 0.5, 0.9):
            found = brightness(si.Problem(A, A(WATER * (square < size).float())), WATER)
            assert found == pytest.approx(WATER, rel=0.12)
    narrow, few = (ParallelBeamCT.for_image((SIDE, SIDE), PIXEL_MM, **k) for k in ({"arc": 1.5}, {"n_views": 5}))
    assert all(brightness(si.Problem(A, A(WATER * (square < 0.5).float())), WATER) is None for A in (narrow, few))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 40)])
def test_images_of_a_few_pixels(shape: tuple[int, int]) -> None:
    """None of them lies inside the circle."""
    A = ParallelBeamCT(shape, equispaced_angles(12), 41, PIXEL_MM, PIXEL_MM)
    problem = si.Problem(A, A(torch.full(shape, WATER)), 0.01)
    assert brightness(problem, WATER) is None
    assert doubts(si.Scan(problem), of_people=True) == []
    assert si.reconstruct(problem, "cgls").mean.shape == shape


@pytest.mark.parametrize("side", [1, 2])
def test_a_few_pixels_are_reconstructed_by_default(side: int) -> None:
    A = ParallelBeamCT((side, side), equispaced_angles(12), 9, PIXEL_MM, PIXEL_MM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which method is taken is of no interest here
        found = si.reconstruct(si.Problem(A, A(torch.full((side, side), WATER)), 0.01), samples=1)
    assert found.mean.shape == (side, side) and bool(found.mean.isfinite().all())


@pytest.mark.parametrize("photons", [30.0, 300.0, 4096.0])
def test_too_few_photons(photons: float) -> None:
    made = scan(photons)
    said = doubts(made, of_people=False)
    counts = made.problem.counts
    assert counts is not None
    assert bool(said) is bool((counts.arrived < 20).float().mean() > 0.01)
    assert all("fewer than 20 photons" in words for words in said)
    assert doubts(made, of_people=False, exact_counts=True) == []


def test_more_photons_than_can_arrive() -> None:
    arrived = 1e5 * torch.exp(-scan().problem.y)
    y = -(arrived / 1e4).log()
    odd = si.Scan(si.Problem(scan().problem.A, y, 0.01, counts=Counts(arrived, 1e4)))
    assert "is `photons` right?" in doubts(odd, of_people=False)[0]


def test_readme_names_the_methods_that_take_counts() -> None:
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    sentence = re.search(r"exact Poisson likelihood in (.*?)\. All others", text, re.DOTALL)
    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence[1])) == {*EXACT_COUNTS, "daps"} <= set(plugins.names("methods"))


def test_images_of_other_operators_have_no_hounsfield_units() -> None:
    A: LinearOperator = Masking.for_image((SIDE, SIDE), PIXEL_MM, keep=0.9)
    x = 0.5 * torch.ones(SIDE, SIDE)
    with pytest.warns(UserWarning, match="not images that the CT prior knows"):
        found = si.reconstruct(si.Problem(A, A(x), 0.01))
    assert found.settings["method"] == "fista_tv" and found.mean_hu is None
    ct = si.reconstruct(si.Problem(A, A(WATER * x), 0.01), "cgls")
    assert ct.mean_hu is not None


def test_colours_are_solved_without_an_image_model() -> None:
    A = Grayscale((3, SIDE, SIDE))
    found = si.reconstruct(si.Problem(A, A(torch.rand(3, SIDE, SIDE)), 0.01))
    assert found.settings["method"] == "cgls" and found.mean_hu is None


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
    with pytest.warns(UserWarning, match=r"cm instead of mm"):
        choose(changed(scan(), mm=PIXEL_MM / 10), method)
    with pytest.warns(UserWarning, match="larger at the detector's edges"):
        choose(changed(scan(), torch.exp(-scan().problem.y)), method)


def test_presets_say_what_is_odd() -> None:
    with pytest.raises(ValueError, match="cm instead of mm"):
        choose(changed(scan(), mm=PIXEL_MM / 10), preset="fast")
    with (
        pytest.raises(ValueError, match="which is taken because the images do not look like"),
        pytest.warns(UserWarning, match="in cm"),
    ):
        choose(changed(scan(), mm=PIXEL_MM / 10), samples=2)


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
