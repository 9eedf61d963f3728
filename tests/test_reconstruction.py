"""`scoreinv.reconstruct` with what Python users have at hand: problems, priors and methods as objects."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import scoreinv as si
from scoreinv import metrics, trust
from scoreinv.calibration import Calibration
from scoreinv.files.reconstruction import Reconstruction
from scoreinv.files.slices import open_slices
from scoreinv.operators import GeometryWarning, Masking, ParallelBeamCT, equispaced_angles
from scoreinv.posterior.dds import DDS
from scoreinv.posterior.proximal import Proximal
from scoreinv.reconstruction import conditions_of, known_noise, with_intervals
from scoreinv.report import judgement, summary
from scoreinv.volume import reconstruct_volume

WATER = 0.0193


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """x₀ ~ N(0, water²), pixel by pixel [1/mm]."""
    return x * WATER**2 / (WATER**2 + sigma.reshape(-1, 1, 1) ** 2)


def problem() -> si.Problem:
    A = ParallelBeamCT((16, 16), equispaced_angles(8), 16, 8.0, 8.0)
    x = torch.full((16, 16), WATER)
    return si.simulate(A, x, Generator().manual_seed(0), relative_noise=0.01)


def test_a_problem_is_a_scan_whose_noise_is_known() -> None:
    found, same = si.reconstruct(problem(), "cgls"), si.reconstruct(si.Scan(problem()), "cgls")
    assert torch.equal(found.samples, same.samples)
    assert (
        found.settings["noise_std"] == pytest.approx(float(problem().noise_std))
        and not found.settings["noise_estimated"]
    )


def test_a_prior_of_one_s_own() -> None:
    prior = si.Rescaled(lambda u, s: gaussian(WATER * u, WATER * s) / WATER, shift=0.0, scale=WATER)
    found = si.reconstruct(problem(), "dds", prior=prior, settings={"n_levels": 3}, samples=2)
    direct = DDS(prior, n_levels=3, samples=2)(problem(), Generator().manual_seed(0))
    assert torch.equal(found.samples, direct)
    assert found.settings["prior"] == {"name": "Rescaled", "sha256": ""}
    assert found.settings["network_evaluations_per_image"] == 6
    assert "calibration" not in found.settings  # nothing is known about its intervals
    assert si.reconstruct(problem(), prior=prior, settings={"n_levels": 2}, samples=1).settings["method"] == "proximal"


def test_intervals_are_not_those_of_another_prior() -> None:
    """Of denoisers that are no file nothing tells one from another, so that no calibration holds."""
    how: dict[str, Any] = {"samples": 2, "settings": {"n_levels": 2, "draw_levels": 2}}
    found = si.reconstruct(problem(), "proximal", prior=gaussian, **how)
    of_it = Calibration(conditions_of(problem(), found), 0.9, 2.0, 10.0, 14, 0.8, 0.9, 0.9)
    again = si.reconstruct(problem(), "proximal", prior=gaussian, calibrations=[of_it], **how)
    assert again.half_width is None and "calibration_unfit" not in again.settings


def as_of_a_file(p: si.Problem) -> Reconstruction:
    """Draws with a prior that calibrations can name."""
    how: dict[str, Any] = {"samples": 2, "settings": {"n_levels": 3, "draw_levels": 2}, "calibrations": ()}
    found = si.reconstruct(p, "proximal", prior=gaussian, **how)
    return dataclasses.replace(found, settings=found.settings | {"prior": {"name": "g", "sha256": "abc"}})


def test_intervals_are_not_those_of_a_detector_that_sees_more() -> None:
    whole, found = problem(), as_of_a_file(problem())
    known = Calibration(conditions_of(whole, found), 0.9, 2.0, 10.0, 14, 0.8, 0.9, 0.9, chi2=1e9)
    assert known.conditions.in_view == 1 and with_intervals(found, whole, [known]).half_width is not None
    with pytest.warns(GeometryWarning):
        A = ParallelBeamCT((16, 16), whole.A.angles, 8, 8.0, 8.0)  # type: ignore[attr-defined]
    truncated = si.simulate(A, torch.as_tensor(whole.truth), Generator().manual_seed(0), relative_noise=0.01)
    refused = with_intervals(as_of_a_file(truncated), truncated, [known])
    assert refused.half_width is None and "calibration_unfit" not in refused.settings
    assert "that see 100% of the disc inscribed in the image and not 25%), the draws' spread" in judgement(refused)


def test_noise_free_intervals_are_not_those_of_data_that_draws_explain_better() -> None:
    exact = si.simulate(problem().A, torch.as_tensor(problem().truth), Generator())
    found = as_of_a_file(exact)
    left = float(torch.as_tensor(found.chi2_samples).mean())
    known = Calibration(conditions_of(exact, found), 0.9, 2.0, 10.0, 14, 0.8, 0.9, 0.9, residual=left)
    assert with_intervals(found, exact, [known]).half_width is not None
    refused = with_intervals(found, exact, [dataclasses.replace(known, residual=left / 4)])
    assert refused.half_width is None and "(the draws leave a relative residual of" in judgement(refused)


def test_few_photons_are_judged_as_photons() -> None:
    """One photon a ray: what the true image leaves of the data is consistent with them, and not over-fitted."""
    A, truth = ParallelBeamCT((16, 16), equispaced_angles(40), 23, 1.0, 1.0), torch.full((16, 16), WATER)
    p = si.simulate_counts(A, truth, Generator().manual_seed(0), photons=1.0)

    def exact(given: si.Problem, rng: Generator) -> Tensor:
        return torch.stack([truth, truth])

    found = si.reconstruct(p, exact)
    assert found.settings["inverse_photons"] == pytest.approx(float(A(truth).exp().mean()), rel=1e-3)
    assert float(torch.as_tensor(found.chi2_samples).mean()) == pytest.approx(1, abs=0.2)
    assert float(metrics.chi_squared(p, truth)) < 0.7 and "consistent: the images explain" in judgement(found)


def test_the_verdict_does_not_depend_on_the_number_of_draws() -> None:
    """Data of `gaussian`'s own prior; what `chi2_samples` say does."""
    A = ParallelBeamCT.for_image((32, 32), 8.0, n_views=24)
    truth = WATER * torch.randn(32, 32, generator=Generator().manual_seed(1))
    p = si.simulate(A, truth, Generator().manual_seed(2), relative_noise=0.5)
    how: dict[str, Any] = {"prior": gaussian, "settings": {"trust": 1.0, "draw_levels": 20}}
    found = [si.reconstruct(p, "proximal", samples=n, **how) for n in (2, 4, 16)]
    misfits = [float(torch.as_tensor(r.misfit)) for r in found]
    raw = [float(torch.as_tensor(r.chi2_samples).mean()) for r in found]
    assert max(misfits) - min(misfits) < 0.1 and raw[2] - raw[0] > 0.15
    assert [r.standing for r in found] == [0, 0, 0]


def test_methods_that_move_their_draws_are_known() -> None:
    """The mean of others' draws depends on the seed."""
    for name, settings in (("proximal", {"n_levels": 2, "draw_levels": 2}), ("dds", {"n_levels": 2})):
        found = [si.reconstruct(problem(), name, prior=gaussian, samples=2, settings=settings, seed=k) for k in (0, 1)]
        same = torch.allclose(found[0].mean, found[1].mean, rtol=0, atol=1e-4 * WATER)
        assert same is (name in trust.CENTRED) and not torch.equal(found[0].samples, found[1].samples)


def test_noise_that_is_too_large_is_no_over_fitting_where_it_was_estimated() -> None:
    p = problem()
    large = si.Problem(p.A, p.y, 3 * float(p.noise_std), p.truth)

    def exact(given: si.Problem, rng: Generator) -> Tensor:
        return torch.stack([torch.as_tensor(p.truth)] * 2)

    stated = si.reconstruct(large, exact)
    assert "either the stated noise is too large, or the images follow" in judgement(stated) and stated.standing == -1
    guessed = dataclasses.replace(stated, settings=stated.settings | {"noise_estimated": True})
    assert "no verdict: chi^2 is too small, either the estimated noise" in judgement(guessed)
    assert math.isnan(guessed.standing)


def test_noise_free_data_are_judged_by_their_residual() -> None:
    """Of an image twice, once on the data of its own and once on data that are 3e-3 off; data of 0 have no residual."""
    p = problem()
    exact, truth = p.A(torch.as_tensor(p.truth)), torch.as_tensor(p.truth)

    def method(given: si.Problem, rng: Generator) -> Tensor:
        return torch.stack([truth, truth])

    clean, off, zero = (si.reconstruct(si.Problem(p.A, y), method) for y in (exact, 1.003 * exact, 0 * exact))
    assert "consistent: the images explain" in judgement(clean) and clean.standing == 0
    assert "draws: relative residual 0.00299, inconsistent" in judgement(off) and off.standing == 1
    assert "no verdict: all data are 0" in judgement(zero) and "nan" not in summary(zero)
    assert "image: relative residual" in judgement(dataclasses.replace(off, samples=off.samples[:1]))
    assert "relative residual" not in judgement(dataclasses.replace(clean, samples=clean.samples[:1]))


def test_draws_without_a_calibration_have_student_s_interval() -> None:
    found = si.reconstruct(problem(), "dds", prior=gaussian, settings={"n_levels": 3}, samples=3, calibrations=())
    width, std = torch.as_tensor(found.interval), torch.as_tensor(found.std)
    torch.testing.assert_close(width, 2.919986 * math.sqrt(4 / 3) * std, rtol=1e-5, atol=0)  # t of 2 degrees, 90 %
    assert found.half_width is None and found.level == 0.9
    assert f"uncalibrated, mean ± {1000 * float(width.median()) / WATER:.0f} HU (median) is Student's 90%" in judgement(
        found
    )
    assert si.reconstruct(problem(), "cgls").interval is None


def test_a_method_that_has_been_built() -> None:
    method = Proximal(gaussian, samples=3, n_levels=2, draw_levels=2, sigma_max=0.1)
    found = si.reconstruct(problem(), method, seed=4)
    assert torch.equal(found.samples, method(problem(), Generator().manual_seed(4)))
    s = found.settings
    assert (s["method"], s["n_levels"], s["prior"]) == ("proximal", 2, {"name": "function", "sha256": ""})
    assert s["network_evaluations_per_image"] == 2 + 3 * 2


def test_a_method_of_no_registered_name() -> None:
    class BackProjection:
        """One image, and a second one for a deviation."""

        def __call__(self, problem: si.Problem, rng: Generator) -> Tensor:
            return torch.stack([problem.A.H(problem.y), 2 * problem.A.H(problem.y)])

    found = si.reconstruct(problem(), BackProjection())
    assert found.settings["method"] == "BackProjection" and found.settings["prior"] is None
    assert found.std is not None and found.half_width is None


@pytest.mark.parametrize(
    "beside", [{"samples": 2}, {"prior": gaussian}, {"settings": {"n_levels": 3}}, {"preset": "fast"}]
)
def test_what_belongs_to_a_built_method_s_constructor(beside: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(beside))} beside a DDS that has been built"):
        si.reconstruct(problem(), DDS(gaussian), **beside)


def test_a_volume_goes_on_with_files_only(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    whole = problem()
    si.write_scan(path, si.Scan(si.Problem(whole.A, torch.stack([whole.y, whole.y]), 0.1)))
    with pytest.raises(ValueError, match="must be a name or a file, got function"):
        list(reconstruct_volume(open_slices(path), tmp_path / "out.h5", prior=gaussian))  # type: ignore[arg-type]


def test_a_sinogram_with_holes_keeps_the_pixels_of_its_scan() -> None:
    """Dead cells are a mask after the projector; the images are still CT in mm."""
    p = problem()
    keep = torch.ones(p.A.out_shape, dtype=torch.bool)
    keep[:, 3] = False
    mask = Masking(keep)
    found = si.reconstruct(si.Problem(mask @ p.A, mask(p.y), p.noise_std, p.truth), "fista_tv")
    assert found.pixel_mm == 8.0 and found.mean_hu is not None and found.fbp is None


def noisy(kind: str, n: int = 1) -> si.Scan:
    """A smooth body with noise of one standard deviation that nobody states, white or shared by neighbouring cells."""
    A = ParallelBeamCT.for_image((32, 32), 8.0, n_views=24)
    r = torch.linspace(-1, 1, 32)
    y = A(WATER * (1 - (r[:, None] ** 2 + r**2)).clamp(min=0)).expand(n, *A.out_shape)
    noise = torch.randn(y.shape, generator=Generator().manual_seed(3))
    shared = torch.stack([torch.roll(noise, k, -1) for k in range(5)]).sum(0) / 5**0.5
    added = {"white": noise, "shared": shared, "both": torch.cat([noise[:1], shared[1:]])}[kind]
    return si.Scan(si.Problem(A, (y + 0.05 * added).squeeze(0)), noise_known=False)


def test_noise_that_is_estimated_too_small_is_raised() -> None:
    how: dict[str, Any] = {"prior": gaussian, "samples": 1, "settings": {"sigma_max": 0.05, "n_levels": 8}}
    white, shared = (si.reconstruct(noisy(kind), "proximal", **how) for kind in ("white", "shared"))
    assert white.settings["noise_raised"] == 1 and white.settings["network_evaluations_per_image"] == 8
    assert shared.settings["noise_raised"] > 1.3 and shared.settings["network_evaluations_per_image"] == 16
    assert "then raised" in judgement(shared) and "raised" not in judgement(white)
    assert shared.settings["noise_std"] == pytest.approx(
        float(known_noise(noisy("shared")).noise_std) * shared.settings["noise_raised"], rel=1e-4
    )
    stated = si.Scan(si.Problem(noisy("shared").problem.A, noisy("shared").problem.y, shared.settings["noise_std"]))
    torch.testing.assert_close(si.reconstruct(stated, "proximal", **how).samples, shared.samples)


def test_the_noise_of_every_slice_is_raised_by_itself() -> None:
    how: dict[str, Any] = {"prior": gaussian, "samples": 1, "settings": {"sigma_max": 0.05, "n_levels": 8}}
    both = noisy("both", 2)
    together = si.reconstruct(both, "proximal", **how)
    low, high = together.settings["noise_std"]
    assert together.settings["noise_raised"] > 1.3 and low < high
    for k in range(2):
        one = si.Scan(si.Problem(both.problem.A, both.problem.y[k]), noise_known=False)
        alone = si.reconstruct(one, "proximal", **how, first=k)
        assert (alone.settings["noise_raised"] > 1) is (k == 1)
        torch.testing.assert_close(
            alone.samples, together.samples[:, k], rtol=0, atol=0.02 * WATER
        )  # rounding ends CG a step apart


@pytest.mark.parametrize(
    ("scan", "arguments", "words"),
    [
        ("scan.h5", {}, "expected a Scan or a Problem, got str; `read_scan` reads files"),
        (torch.ones(3), {}, "got Tensor"),
        (None, {"seed": None}, "seed should be int, got None"),
        (None, {"method": lambda p, g: p.A.H(p.y)}, r"should return a tensor \(samples, 16, 16\).*got \(16, 16\)"),
        (None, {"method": lambda p, g: p.A.H(p.y)[None].numpy()}, r"should return a tensor .*got ndarray"),
        (None, {"method": lambda p, g: p.A.H(p.y)[None] + 0j}, r"should return real .* got torch.complex64"),
        (None, {"method": lambda p, g: p.A.H(p.y)[None].int()}, r"should return real .* got torch.int32"),
    ],
)
def test_arguments_of_another_kind(scan: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        si.reconstruct(problem() if scan is None else scan, **arguments)


@pytest.mark.parametrize(
    ("prior", "got"),
    [
        (lambda x, s: x.mean(), r"\(\)"),
        (lambda x, s: x[None], r"\(1, 1, 16, 16\)"),
        (lambda x, s: x.numpy(), "ndarray"),
    ],
)
def test_priors_that_return_another_shape(prior: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"shaped like what it is given, \(1, 16, 16\); <lambda> made {got} of it"):
        si.reconstruct(problem(), "dds", prior=prior)


@pytest.mark.parametrize("name", ["y", "truth"])
def test_arrays_are_not_tensors(name: str) -> None:
    p = problem()
    given: dict[str, Any] = {"y": p.y, "truth": p.truth}
    given[name] = given[name].numpy()
    with pytest.raises(ValueError, match=f"{name} must be a torch tensor, got ndarray; torch.as_tensor"):
        si.Problem(p.A, **given)
