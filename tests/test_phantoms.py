"""Phantoms: exact line integrals against sums over fine pixels, known areas and ASTRA's head."""

from __future__ import annotations

import math

import pytest
import torch

from scoreinv import phantoms
from scoreinv.operators import FanBeamCT, ParallelBeamCT, equispaced_angles
from scoreinv.phantoms import Ellipse


def test_the_line_integral_of_a_disc_is_its_chord() -> None:
    A = ParallelBeamCT((32, 32), equispaced_angles(7), 41, 1.0, 1.0)
    y = phantoms.line_integrals([Ellipse((0.0, 0.0), (9.0, 9.0), 0.3, 0.02)], A)
    u = torch.tensor(A.detector_positions_mm, dtype=torch.float64)
    chord = 2 * (81 - u**2).clamp(min=0).sqrt() * 0.02
    torch.testing.assert_close(y, chord.expand(7, -1))


def test_at_angle_zero_columns_are_summed_and_at_ninety_degrees_rows_from_the_bottom() -> None:
    """The convention itself, without any projector: cell 0 sees the left column, then the bottom row."""
    shape, ellipses = (24, 20), [Ellipse((4.0, -5.0), (5.0, 2.5), 0.4, 0.03)]
    A = ParallelBeamCT(shape, (0.0, math.pi / 2), 24, 1.0, 1.0)
    y = phantoms.line_integrals(ellipses, A)
    x = phantoms.rasterise(ellipses, shape, 1.0, subpixels=16)
    columns, rows = x.sum(dim=0), x.sum(dim=1).flip(0)
    assert float((y[0, 2:22] - columns).norm() / columns.norm()) < 0.05
    assert float((y[1] - rows).norm() / rows.norm()) < 0.05


def test_every_view_of_a_parallel_beam_holds_the_mass() -> None:
    ellipses = phantoms.random_ellipses(torch.Generator().manual_seed(3), width_mm=60)
    mass = sum(math.pi * e.axes_mm[0] * e.axes_mm[1] * e.value for e in ellipses)
    A = ParallelBeamCT((64, 64), equispaced_angles(9), 1400, 1.0, 0.05)
    torch.testing.assert_close(
        phantoms.line_integrals(ellipses, A).sum(dim=1) * 0.05,
        torch.full((9,), mass, dtype=torch.float64),
        rtol=1e-4,
        atol=0,
    )
    torch.testing.assert_close(float(phantoms.rasterise(ellipses, (64, 64), 1.0).sum()), mass, rtol=2e-3, atol=0)


def test_fan_rays_are_parallel_rays_in_another_order() -> None:
    """The ray (θ, γ) of a fan is the line with normal angle θ - γ at distance R sin γ from the axis."""
    ellipses = phantoms.shepp_logan(50.0)
    fan = FanBeamCT((50, 50), (0.0, 0.7, 4.0), 90, 100.0, 60.0, 1.0, 1.1, detector_offset_mm=2.0)
    y = phantoms.line_integrals(ellipses, fan)
    for view, theta in enumerate(fan.angles):
        for cell in (20, 44, 61):
            gamma = math.atan(fan.detector_positions_mm[cell] / 160.0)
            line = ParallelBeamCT((50, 50), [theta - gamma], 151, detector_offset_mm=100 * math.sin(gamma))
            wanted = phantoms.line_integrals(ellipses, line)[0, 75]
            torch.testing.assert_close(y[view, cell], wanted, rtol=1e-9, atol=1e-12)


def test_the_head_agrees_with_astras() -> None:
    """Theirs is drawn with one sample a pixel."""
    import astra

    handle, theirs = astra.data2d.shepp_logan(astra.create_vol_geom(64, 64))
    astra.data2d.delete(handle)
    ours = phantoms.rasterise(phantoms.shepp_logan(96.0, 1.0), (64, 64), 1.5, subpixels=1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs).double(), atol=1e-6, rtol=0)


def test_random_ellipses_follow_the_generator_and_stay_in_their_disc() -> None:
    first = phantoms.random_ellipses(torch.Generator().manual_seed(1), width_mm=100, n_ellipses=30)
    assert first == phantoms.random_ellipses(torch.Generator().manual_seed(1), width_mm=100, n_ellipses=30)
    assert first != phantoms.random_ellipses(torch.Generator().manual_seed(2), width_mm=100, n_ellipses=30)
    assert all(math.hypot(*e.centre_mm) + max(e.axes_mm) <= 50 for e in first)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Ellipse((0.0, 0.0), (1.0, 0.0)), "half axes"),
        (lambda: phantoms.rasterise([], (4, 4), subpixels=0), "subpixels"),
        (lambda: phantoms.random_ellipses(torch.Generator(), width_mm=-1.0), "width_mm"),
    ],
)
def test_bad_input_is_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
