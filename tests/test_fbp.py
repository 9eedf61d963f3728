"""Filtered back-projection against an analytic phantom: Gaussian blobs, whose line integrals are known exactly."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from scoreinv.operators import FanBeamCT, Masking, ParallelBeamCT, equispaced_angles, fbp
from scoreinv.operators.fbp import WINDOWS, angular_weights, fan_redundancy, ramp_kernel

BLOBS = (
    (5.0, -8.0, 5.0, 0.02),
    (-10.0, 6.0, 7.0, 0.01),
    (3.0, 12.0, 4.0, -0.005),
)  # x, y, deviation [mm], 1/mm
SHAPE = (64, 60)
TURN = 2 * math.pi


def blobs_image(A):
    (height, width), p = A.image_shape, A.pixel_mm
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * p
    y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64))[:, None] * p
    return sum(v * torch.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * s**2)) for a, b, s, v in BLOBS)


def blobs_sinogram(A):
    origin, along = A.rays()
    distance = [((a - origin[..., 0]) * along[..., 1] - (b - origin[..., 1]) * along[..., 0]) for a, b, *_ in BLOBS]
    peaks = [v * s * math.sqrt(TURN) for *_, s, v in BLOBS]
    return sum(c * torch.exp(-(d**2) / (2 * s**2)) for c, d, (*_, s, _) in zip(peaks, distance, BLOBS, strict=True))


def disc_error(A, image) -> float:
    """Relative L2 error in the disc inscribed in the image."""
    height, width = A.image_shape
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    inside = x**2 + y**2 <= (min(height, width) / 2) ** 2
    truth = blobs_image(A)
    return float((image - truth)[inside].norm() / truth[inside].norm())


def parallel(angles, n=110, **kwargs):
    return ParallelBeamCT(SHAPE, angles, n, 1.2, 0.8, **kwargs)


def fan(angles, n=200, **kwargs):
    return FanBeamCT(SHAPE, angles, n, 150.0, 80.0, 1.2, 0.8, **kwargs)


RANDOM_ANGLES = (torch.rand(720, generator=torch.Generator().manual_seed(0)) * 3 * math.pi).tolist()


@pytest.mark.parametrize(
    ("A", "bound"),
    [
        (parallel(equispaced_angles(720)), 0.005),
        (parallel(equispaced_angles(720), 130, detector_offset_mm=3.3), 0.005),
        (parallel(equispaced_angles(721, TURN)), 0.005),
        (parallel(RANDOM_ANGLES), 0.005),
        (fan(equispaced_angles(720, TURN)), 0.005),
        (fan(equispaced_angles(720, TURN), 230, detector_offset_mm=3.3), 0.005),
        (fan([0.3 + a for a in equispaced_angles(720, 1.45 * math.pi)]), 0.005),
        (fan([0.3 - a for a in equispaced_angles(720, 1.45 * math.pi)], 230, detector_offset_mm=3.3), 0.005),
        (fan(equispaced_angles(720, 1.15 * math.pi)), 0.05),  # less than a short scan
    ],
    ids=["parallel", "offset", "full turn", "random", "fan", "fan, offset", "short", "short, offset", "too short"],
)
def test_a_smooth_phantom_comes_back(A, bound) -> None:
    assert disc_error(A, fbp(A, blobs_sinogram(A))) < bound


def test_it_inverts_the_operator_too() -> None:
    for A in (parallel(equispaced_angles(90)), fan(equispaced_angles(90, TURN))):
        assert disc_error(A, fbp(A, A(blobs_image(A)))) < 0.05  # "line" weights are rough


def test_few_views_and_windows_keep_the_mean_of_the_image() -> None:
    """The ramp has no mean of its own, so windows must not change the large scale."""
    A = parallel(equispaced_angles(60))
    images = [fbp(A, blobs_sinogram(A), window) for window in WINDOWS]
    for image in images[1:]:
        assert abs(float(image.sum() / images[0].sum()) - 1) < 0.01
    noise = torch.randn(A.out_shape, generator=torch.Generator().manual_seed(0))
    energies = [float(fbp(A, noise, window).norm()) for window in WINDOWS]
    assert energies == sorted(energies, reverse=True)  # listed from the sharpest to the smoothest


def test_a_missing_wedge_is_not_given_to_the_views_beside_it() -> None:
    weights = angular_weights(equispaced_angles(60, 2 * math.pi / 3), math.pi)
    torch.testing.assert_close(weights, torch.full_like(weights, math.pi / 90))
    torch.testing.assert_close(angular_weights((0.0, 1.0, 1.0, 2.0), math.pi).sum(), torch.tensor(math.pi).double())
    torch.testing.assert_close(angular_weights((0.4,), math.pi), torch.tensor([math.pi]).double())


@pytest.mark.parametrize("arc", [TURN, 1.45 * math.pi, 1.9 * math.pi])
def test_the_two_holders_of_a_line_share_it(arc) -> None:
    """c(θ, γ) + c(θ + π - 2 γ, -γ) = 1, by interpolation over the views."""
    n = 2000
    A = fan(equispaced_angles(n, arc))
    c = fan_redundancy(A)
    gamma = (torch.tensor(A.detector_positions_mm) / 230.0).atan()
    step = arc / n
    for cell in (10, 60, 140):
        other = (torch.tensor(A.angles) + math.pi - 2 * gamma[cell]).remainder(TURN)
        index = (other / step).round().long()
        shared = torch.where(index < n, c[index.clamp(max=n - 1), A.n_detectors - 1 - cell], torch.zeros(n).double())
        inner = (index - n).abs() > 2  # not at the very end, where rounding decides
        torch.testing.assert_close(
            (c[:, cell] + shared)[inner], torch.ones(int(inner.sum())).double(), atol=0.01, rtol=0
        )


def test_the_kernel_is_the_band_limited_ramp() -> None:
    """Its transform is |f| up to the Nyquist frequency; its mean is small but not zero, as truncation demands."""
    n, spacing = 512, 0.7
    response = torch.fft.fft(ramp_kernel(n, spacing)).real * spacing
    f = torch.fft.fftfreq(n, spacing, dtype=torch.float64).abs()
    torch.testing.assert_close(response, f, atol=2e-3, rtol=0)
    assert 0 < float(response[0]) < 2e-3


def test_dtype_batch_and_gradient_follow() -> None:
    for A in (parallel(equispaced_angles(12)), fan(equispaced_angles(12, TURN))):
        y = torch.randn(2, 3, *A.out_shape, generator=torch.Generator().manual_seed(0))
        image = fbp(A, y)
        assert image.shape == (2, 3, *SHAPE)
        assert image.dtype == torch.float32
        torch.testing.assert_close(image[1, 2], fbp(A, y[1, 2]))
        assert float((image - fbp(A, y.double())).norm() / image.norm()) < 1e-4
        point = y[0, 0].double().requires_grad_()
        (gradient,) = torch.autograd.grad((fbp(A, point) * image[0, 1]).sum(), point)
        torch.testing.assert_close((gradient * y[1, 1]).sum(), (fbp(A, y[1, 1].double()) * image[0, 1]).sum())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda A, y: fbp(A, y, "han"), ValueError, "Did you mean 'hann'"),
        (lambda A, y: fbp(A, y[:, 1:]), ValueError, "expected a sinogram"),
        (lambda A, y: fbp(A, y.long()), TypeError, "floating-point"),
        (lambda A, y: fbp(Masking.rows(A.out_shape, [0]) @ A, y), TypeError, "Composition"),
    ],
)
def test_bad_input_is_named(call, error, message) -> None:
    A = parallel(equispaced_angles(4))
    with pytest.raises(error, match=message):
        call(A, torch.zeros(A.out_shape))


@pytest.mark.parametrize("offset", [-22.0, 14.0, 24.0])
@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_a_full_turn_with_an_offset_detector_is_as_good_as_a_wide_one(geometry: str, offset: float) -> None:
    """The detector reaches over the whole disc on one side only, hardly beyond the axis on the other."""
    n, turn = 64, equispaced_angles(180, 2 * math.pi)
    at = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    r = (at[:, None] ** 2 + at**2).sqrt()
    x = (0.02 * torch.sigmoid(26 - r) + 0.01 * torch.sigmoid(8 - ((at - 8) ** 2 + (at[:, None] + 5) ** 2).sqrt()))[None]

    def made(n_detectors: int, offset_mm: float) -> ParallelBeamCT | FanBeamCT:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # half of the shadow is missing
            if geometry == "parallel":
                return ParallelBeamCT((n, n), turn, n_detectors, detector_offset_mm=offset_mm)
            return FanBeamCT((n, n), turn, n_detectors, 200.0, 150.0, detector_offset_mm=offset_mm)

    def error(A: ParallelBeamCT | FanBeamCT) -> float:
        return float((fbp(A, A(x)) - x)[0][r < 30].norm() / x.norm())

    narrow = made(64, offset) if geometry == "parallel" else made(140, 1.75 * offset)
    assert error(narrow) < 1.2 * error(made(300, 0.0))
