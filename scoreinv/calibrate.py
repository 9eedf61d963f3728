"""Measure a calibration on patients whose images are known: what `scoreinv calibrate` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scoreinv.calibration import Calibration, Case, calibrated, check_enough
from scoreinv.files.images import read_image_set
from scoreinv.progress import track
from scoreinv.reconstruction import conditions_of, reconstruct
from scoreinv.simulation import patient_scan
from scoreinv.units import hu_from_mu


def calibrate(
    images: Sequence[Path],
    operator: str,
    arguments: Mapping[str, Any],
    *,
    relative_noise: float,
    level: float = 0.9,
    method: str = "proximal",
    samples: int | None = None,
    prior: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Calibration:
    """Simulate and reconstruct the middle slice of every patient, and find the factor that makes intervals hold.

    Args:
        images: CT images [HU] with patients and pixel sizes, none of which the prior was trained on.
        operator: registered name.
        arguments: see `configure.operator_for_image`.
        relative_noise: standard deviation of the noise over the mean of the data. The data come from the operator that reconstructs: without
            noise nothing in them is unexpected, as it is in those of a scanner.
        level: of the intervals.
        method: that draws.
        samples: draws an image, by default the method's own number.
        prior: by default the shipped one.
        settings: of the method.
        seed: patient k gets seed + k.
        device: where to compute.

    Raises:
        ValueError: too few patients for the level, images without pixel size, or a method without draws.
    """
    data = read_image_set(images)
    chosen = data.one_per_patient()
    check_enough(len(chosen), level)  # before hours of work
    cases, misfits, conditions = [], [], None
    for k, i in enumerate(track(chosen, "calibrate", len(chosen))):
        scan = patient_scan(data, i, operator, arguments, relative_noise=relative_noise, seed=seed + k)
        result = reconstruct(
            scan, method, samples=samples, seed=seed + k, prior=prior, settings=settings, device=device, calibrations=()
        )
        if result.std is None or result.mean_hu is None:
            raise ValueError(f"method {method!r} gives one image without uncertainty; there is nothing to calibrate")
        misfits.append(1.0 if result.chi2_samples is None else float(result.chi2_samples.mean()))
        std_hu = 1000 * result.std / scan.mu_water_per_mm
        cases.append(Case(result.mean_hu, std_hu, hu_from_mu(torch.as_tensor(scan.problem.truth))))
        conditions = conditions or conditions_of(scan.problem, result)
    assert conditions is not None
    found, usual = calibrated(cases, conditions, level), float(f"{sum(misfits) / len(misfits):.3g}")
    if relative_noise == 0:
        return dataclasses.replace(found, residual=usual)
    return dataclasses.replace(found, chi2=max(1.0, usual))
