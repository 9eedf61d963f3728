"""From a scan to a reconstruction: choose the method, know the noise, solve, judge the fit to the data."""

from __future__ import annotations

import dataclasses
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreinv import configure, plugins, trust
from scoreinv.arguments import plain
from scoreinv.calibration import Calibration, find, read_calibrations, refusal, unfit
from scoreinv.conditions import Conditions, geometry_of
from scoreinv.files.reconstruction import Reconstruction
from scoreinv.files.scan import Scan
from scoreinv.noise import estimate_noise_std
from scoreinv.plausibility import doubts, is_ct, looks_clinical, mean_image
from scoreinv.presets import Preset, preset_named
from scoreinv.priors.denoiser import Counted, Denoiser
from scoreinv.priors.shipped import ct_prior, identity
from scoreinv.problem import Method, Problem
from scoreinv.solving import Solved, solved

DEFAULT = "proximal"
WITHOUT_PRIOR = "fista_tv"
WITHOUT_IMAGE_MODEL = "cgls"
EXACT_COUNTS = ("dps", "padis", "red_diff", "score_ald", "score_sde", "sitcom")
"""Methods that take the exact likelihood of photon counts (`scoreinv.misfit`); daps does with draw=langevin."""

PriorLike = str | Path | Denoiser
"""A shipped prior's name, a .safetensors file, or a denoiser of images in the operator's unit (1/mm for CT)."""


def default_method(scan: Scan, prior: PriorLike | None = None) -> str:
    """The method for a scan whose user names none: a prior where one is given or the images look like the CT prior's own, total
    variation elsewhere."""
    if prior is not None or looks_clinical(scan):
        return DEFAULT
    if len(scan.problem.A.in_shape) != 2:
        return WITHOUT_IMAGE_MODEL
    warnings.warn(f"{_unlike_people(scan)}; so {WITHOUT_PRIOR} is taken, choose with --method", stacklevel=2)
    return WITHOUT_PRIOR


def _unlike_people(scan: Scan) -> str:
    """Why images are not what the CT prior knows."""
    said = doubts(scan, of_people=True)
    mean = f"these are not images that the CT prior knows (shape {scan.problem.A.in_shape}, mean {mean_image(scan.problem):.3g})"
    return "; ".join(said) if said else mean


def _preset(name: str, scan: Scan, method: str | None, prior: PriorLike | None) -> Preset:
    """The preset of that name, if it suits the scan.

    Raises:
        ValueError: no such preset, a method is given too, or the images are not what the CT prior knows.
    """
    found = preset_named(name)
    if method is not None:
        raise ValueError(
            f"--{name} chooses the method itself ({found.method}): leave it out, or leave --method {method} out"
        )
    if len(scan.problem.A.in_shape) != 2 or (prior is None and not looks_clinical(scan)):
        raise ValueError(
            f"--{name} is for images that the CT prior knows, and {_unlike_people(scan)}: mend it, leave --{name} out and choose with "
            "--method, or give their own --prior"
        )
    return found


def known_noise(scan: Scan) -> Problem:
    """The scan's problem, with the noise estimated from the data where the file does not state it."""
    if scan.noise_known:
        return scan.problem
    problem = scan.problem
    std = estimate_noise_std(problem.y)
    if std.ndim:
        std = std.reshape(*problem.batch_shape, *(1,) * len(problem.A.out_shape))
    return dataclasses.replace(problem, noise_std=std)


@dataclass(frozen=True)
class Choice:
    """How to reconstruct, once a scan has been looked at.

    Attributes:
        method: registered name.
        settings: of its constructor, where they are not its defaults.
        prior: see `reconstruct`.
        preset: name of the preset that it comes from.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    prior: PriorLike | None = None
    preset: str | None = None


def choose(
    scan: Scan,
    method: str | None = None,
    *,
    samples: int | None = None,
    prior: PriorLike | None = None,
    settings: Mapping[str, Any] | None = None,
    preset: str | None = None,
) -> Choice:
    """What `reconstruct` with these arguments does for a scan. Warns where its data look odd.

    Raises:
        ValueError: no such method, setting or preset.
    """
    chosen = None if preset is None else _preset(preset, scan, method, prior)
    name = chosen.method if chosen else method or default_method(scan, prior)
    given = (dict(chosen.settings) if chosen else {}) | dict(settings or {})
    if samples is not None:
        if not configure.has_setting(name, "samples"):
            taken = (
                ""
                if method or preset
                else ", which is taken because the images do not look like the CT prior's (--method chooses)"
            )
            raise ValueError(
                f"method {name!r}{taken} gives one image, no samples; leave --samples out or take {DEFAULT!r}"
            )
        given["samples"] = samples
    if prior is not None and not configure.needs_prior(name):
        raise ValueError(f"method {name!r} takes no prior: leave --prior out")
    if configure.has_setting(name, "unit"):
        clinical = looks_clinical(scan)
        given.setdefault("unit", scan.mu_water_per_mm if clinical else abs(mean_image(scan.problem)) or 1.0)
    trained = configure.has_setting(name, "weights") or (configure.needs_prior(name) and not callable(prior))
    exact = name in EXACT_COUNTS or (name == "daps" and given.get("draw") == "langevin")
    for doubt in doubts(scan, of_people=trained, exact_counts=exact):
        warnings.warn(doubt, stacklevel=3)
    if prior is None and chosen:
        prior = chosen.prior_name()
    return Choice(name, given, prior, preset)


def reconstruct(
    scan: Scan | Problem,
    method: str | Choice | Method | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    prior: PriorLike | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
    calibrations: Sequence[Calibration] | None = None,
    preset: str | None = None,
    first: int = 0,
) -> Reconstruction:
    """Reconstruct the images of a scan.

    Args:
        scan: the data; its truth is passed on to the result and not looked at. A problem is a scan whose noise is known, and whose water
            attenuates as usual.
        method: name of a registered method; by default the one that suits the operator. Or a choice that has been made, or a method
            that has been built, which take the place of samples, prior, settings and preset.
        samples: number of draws from the posterior, for methods that draw.
        seed: of everything random.
        prior: a shipped prior's name or a .safetensors file, by default the CT prior; or any denoiser of images in the operator's unit
            (1/mm for CT; `Rescaled` brings others to it), on the device.
        settings: arguments of the method's constructor.
        device: where to compute.
        calibrations: the nearest that holds for this scan widens the intervals; by default the shipped ones.
        preset: "fast", "best" or "calibrated" instead of a method (see `scoreinv.presets`); settings and prior that are given count
            more than its own.
        first: number of the scan's first slice in the volume that it is cut from. Slice k of a volume has the k-th stream of the seed,
            whatever it is reconstructed with.

    Returns:
        The reconstruction, on the CPU.

    Raises:
        ValueError: no such method, setting or preset, or the method cannot solve this problem.
    """
    scan = Scan(scan) if isinstance(scan, Problem) else scan
    _check_arguments(scan, seed)
    scan, built = dataclasses.replace(scan, problem=scan.problem.to("cpu")), None
    if isinstance(method, Choice):
        choice = method
    elif callable(method):
        choice = _built(method, samples=samples, prior=prior, settings=settings, preset=preset)
        built = method
    else:
        choice = choose(scan, method, samples=samples, prior=prior, settings=settings, preset=preset)
    result, found = without_intervals(scan, choice, built, seed=int(seed), device=device, first=first)
    return with_intervals(result, found.problem, read_calibrations() if calibrations is None else calibrations)


def without_intervals(
    scan: Scan, choice: Choice, built: Method | None = None, *, seed: int, device: str, first: int
) -> tuple[Reconstruction, Solved]:
    """What `reconstruct` makes of a scan on the CPU before any calibration is looked at, and the problem that it solved.

    Args:
        scan, seed, device, first: see `reconstruct`.
        choice: how.
        built: the method, where it has been built; the choice then names it.
    """
    pixel_mm = getattr(scan.problem.A, "pixel_mm", None)
    counted: list[Counted] = []

    def load() -> Counted:
        own = choice.prior
        if not callable(own):
            own = ct_prior(own, mu_water_per_mm=scan.mu_water_per_mm, pixel_mm=pixel_mm, device=device)
        counted.append(Counted(own))
        return counted[0]

    if built is None:
        solver = configure.method(choice.method, choice.settings, load)
    elif choice.prior is None:
        solver = built
    else:  # its network's evaluations are counted
        solver = dataclasses.replace(built, prior=load())  # type: ignore[type-var]
    may_raise = bool(counted) and not scan.noise_known
    found = solved(choice.method, solver, known_noise(scan), may_raise, seed=seed, first=first, device=device)
    draws, problem = found.draws, found.problem
    n_images = max(1, problem.y.numel() // max(1, math.prod(problem.A.out_shape)))
    noise = torch.as_tensor(problem.noise_std)
    record = {
        "method": choice.method,
        "preset": choice.preset,
        **configure.settings_of(solver),
        "noise_std": [float(noise.min()), float(noise.max())] if noise.ndim else float(noise),
        "noise_estimated": not scan.noise_known,
        "noise_raised": float(found.raised.max()),
        "operator": type(problem.A).__name__,
        "data_shape": list(problem.A.out_shape),
        "n_data": problem.A.n_data,
        "inverse_photons": trust.inverse_photons(problem, draws),
        "seconds": found.seconds,
        "network_evaluations_per_image": sum(c.n_evaluations for c in counted) / n_images,
        "network_gradients_per_image": sum(c.n_gradients for c in counted) / n_images,
        "prior": prior_identity(choice.prior) if counted else None,
        "device": device,
    }
    gray_ct = in_hounsfield(scan)
    result = Reconstruction(
        draws,
        trust.chi_squared(problem, draws.mean(dim=0)),
        record,
        seed,
        pixel_mm,
        scan.mu_water_per_mm if gray_ct else None,
        problem.truth,
        _fbp(problem),
        trust.chi_squared(problem, draws),
        _measured(problem, draws.mean(dim=0), scan.mu_water_per_mm) if counted and gray_ct else None,
        z_mm=scan.z_mm,
    )
    return result, found


def in_hounsfield(scan: Scan) -> bool:
    """Whether the images of a scan have Hounsfield units."""
    return is_ct(scan.problem.A) or looks_clinical(scan)


def _check_arguments(scan: object, seed: object) -> None:
    """Raises ValueError for what is no scan, and for a seed that is no whole number."""
    if not isinstance(scan, Scan):
        raise ValueError(
            f"reconstruct: expected a Scan or a Problem, got {type(scan).__name__}; `read_scan` reads files, `Problem(A, y, noise_std)` "
            "makes one of an operator and data"
        )
    if len(scan.problem.A.in_shape) < 2:
        raise ValueError(
            f"reconstruct: expected images (..., H, W), {type(scan.problem.A).__name__} has {scan.problem.A.in_shape}; methods called as "
            "method(problem, rng) take signals, too"
        )
    if not isinstance(seed, numbers.Integral):
        raise ValueError(f"reconstruct: seed should be int, got {seed!r}")


def prior_identity(prior: PriorLike | None) -> dict[str, str]:
    """What identifies a prior in a result; of one that is no file, its type alone."""
    return {"name": type(prior).__name__, "sha256": ""} if callable(prior) else identity(prior)


def _built(method: Method, **others: Any) -> Choice:
    """What a method that has been built stands for: its registered name, else that of its type, and its prior.

    Raises:
        ValueError: something is given beside it that belongs to its constructor.
    """
    beside = [key for key, value in others.items() if value is not None]
    if beside:
        raise ValueError(
            f"reconstruct: {', '.join(beside)} beside a {type(method).__name__} that has been built: give them to its constructor, or "
            "give the method's name"
        )
    names = [name for name in plugins.names("methods") if plugins.get("methods", name) is type(method)]
    own = getattr(method, "prior", None) if dataclasses.is_dataclass(method) else None
    return Choice(names[0] if names else type(method).__name__, prior=own)


def conditions_of(problem: Problem, result: Reconstruction) -> Conditions:
    """Under which conditions a reconstruction was made."""
    prior, method = result.settings.get("prior") or {}, result.settings["method"]
    own = {
        k: v for k, v in result.settings.items() if k not in ("prior", "samples") and configure.has_setting(method, k)
    }
    noise = torch.as_tensor(problem.noise_std, dtype=torch.float64).mean() / problem.y.double().abs().mean()
    return Conditions(
        operator=type(problem.A).__name__,
        method=method,
        samples=len(result.samples),
        prior=prior.get("sha256", ""),
        n_views=problem.A.out_shape[0],
        relative_noise=float(f"{float(noise):.3g}"),
        settings=plain(own),
        **geometry_of(problem.A),
    )


def with_intervals(result: Reconstruction, problem: Problem, known: Sequence[Calibration]) -> Reconstruction:
    """The reconstruction with half the width of its calibrated intervals, where a calibration holds for it; where one would if the
    method's settings were those that it was measured with, they are noted as `calibration_unfit`. None holds for draws that fit the data
    worse than those that it was measured with: something about such a scan is different. That, and what else of the scan is in the
    way, is noted as `calibration_refused`, in words."""
    if (
        result.std is None
        or result.mu_water_per_mm is None
        or result.settings["method"] not in plugins.names("methods")
    ):
        return result
    if result.settings.get("prior") is not None and not result.settings["prior"].get("sha256"):
        return result  # of a prior that is no file nothing tells one from another
    conditions = conditions_of(problem, result)
    found = find(known, conditions)
    if found is None:
        changed = {k: list(values) for k, values in unfit(known, conditions).items()}
        words = refusal(known, conditions)
        settings = {"calibration_unfit": changed} if changed else {"calibration_refused": words} if words else {}
        return dataclasses.replace(result, settings=result.settings | settings)
    off = float(result.settings.get("inverse_photons", 0.0))
    if words := trust.worse_fit(result.chi2_samples, found.chi2, problem, residual=found.residual, inverse_photons=off):
        return dataclasses.replace(result, settings=result.settings | {"calibration_refused": words})
    half_width = found.half_width(result.std, result.mu_water_per_mm)
    settings = result.settings | {"calibration": dataclasses.asdict(found)}
    return dataclasses.replace(result, half_width=half_width, settings=settings)


def _measured(problem: Problem, mean: Tensor, mu_water_per_mm: float) -> Tensor:
    """The part of the mean that the data determine, against a prior that leaves 100 HU open."""
    return trust.measured_part(problem, mean, spread=0.1 * mu_water_per_mm)


def _fbp(problem: Problem) -> Tensor | None:
    """Filtered back-projection for comparison, where the operator has one."""
    fbp = getattr(problem.A, "fbp", None)
    return None if fbp is None else fbp(problem.y, "hann")
