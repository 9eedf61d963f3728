"""Measure a calibration on patients whose images are known: what `scoreinv calibrate` does."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from scoreinv import configure, trust
from scoreinv.arguments import plain
from scoreinv.calibration import (
    Calibration,
    Case,
    add_calibration,
    calibrated,
    check_enough,
    conditions_from,
    read_calibrations,
)
from scoreinv.conditions import Conditions, joined
from scoreinv.files.atomic import replacing
from scoreinv.files.images import read_image_set
from scoreinv.files.scan import Scan
from scoreinv.files.versions import versions
from scoreinv.priors.shipped import identity
from scoreinv.progress import track
from scoreinv.reconstruction import conditions_of, reconstruct
from scoreinv.simulation import patient_scan
from scoreinv.units import hu_from_mu


@dataclass(frozen=True, eq=False)
class Patient:
    """What a calibration needs of one: images, misfit of the draws (`Reconstruction.chi2_samples`), number of data, conditions."""

    case: Case
    misfit: float
    n_data: int
    conditions: Conditions


@dataclass(frozen=True)
class Journal:
    """The finished patients of a calibration, a file each.

    Attributes:
        folder: where they are.
        key: of everything that they depend on.
    """

    folder: Path
    key: str

    def read(self, k: int) -> Patient | None:
        """Patient k, None if it is not there."""
        if not (path := self._path(k)).exists():
            return None
        with safetensors.safe_open(path, framework="pt") as file:
            said = file.metadata()
            case = Case(*(file.get_tensor(f.name) for f in dataclasses.fields(Case)))
        return Patient(
            case, float(said["misfit"]), int(said["n_data"]), conditions_from(json.loads(said["conditions"]))
        )

    def write(self, k: int, patient: Patient) -> None:
        """Keep patient k, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        said = {
            "misfit": repr(patient.misfit), "n_data": str(patient.n_data),
            "conditions": json.dumps(dataclasses.asdict(patient.conditions)),
        }  # fmt: skip
        with replacing(self._path(k)) as temporary:
            save_file({name: image.contiguous() for name, image in vars(patient.case).items()}, temporary, said)

    def remove(self) -> None:
        """Forget them, and the folder if nothing else is in it."""
        for path in self.folder.glob(f"{self.key}-*.safetensors"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, k: int) -> Path:
        return self.folder / f"{self.key}-{k}.safetensors"


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
    out: Path | None = None,
) -> Calibration:
    """Simulate and reconstruct the middle slice of every patient, and find the factor that makes intervals hold. Warns where the draws do
    not fit their data.

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
        out: file to put it into. Until it is there, finished patients are in a folder beside it (.journal), with which the same call goes on
            after an interruption.

    Raises:
        ValueError: too few patients for the level, images without pixel size, or a method without draws.
    """
    data = read_image_set(images)
    chosen = data.one_per_patient()
    check_enough(len(chosen), level)  # before hours of work
    if out is not None and out.exists():
        read_calibrations(out)  # another kind of file is not written over
    made = {
        "files": [path.name for path in images], "images": data.checksum(chosen), "operator": operator,
        "arguments": plain(arguments), "seed": seed, "version": versions(),
    }  # fmt: skip
    weights = identity(prior) if configure.needs_prior(method) else None
    request = [made, relative_noise, method, samples, weights, plain(settings or {})]
    journal = None if out is None else Journal(out.with_suffix(".journal"), _key(request))
    patients = []
    for k, i in enumerate(track(chosen, "calibrate", len(chosen))):
        patient = None if journal is None else journal.read(k)
        if patient is None:
            scan = patient_scan(data, i, operator, arguments, relative_noise=relative_noise, seed=seed + k)
            patient = _reconstructed(
                scan, method, samples=samples, seed=seed + k, prior=prior, settings=settings, device=device
            )
            if journal is not None:
                journal.write(k, patient)
        patients.append(patient)
    conditions = dataclasses.replace(joined([p.conditions for p in patients]), relative_noise=relative_noise)
    usual = float(f"{statistics.fmean(p.misfit for p in patients):.3g}")
    found = dataclasses.replace(
        calibrated([p.case for p in patients], conditions, level),
        chi2=max(1.0, usual) if relative_noise else 1.0,
        residual=None if relative_noise else usual,
        provenance=made | {"date": datetime.date.today().isoformat()},
    )
    if found.chi2 > 1 + trust.slack(min(p.n_data for p in patients)):
        warnings.warn(
            f"calibrate: these draws do not fit their data, chi^2 is {found.chi2:.3g}: intervals around them hold for scans that are as "
            "badly fitted; other settings of the method may fit better",
            stacklevel=2,
        )
    if out is not None and journal is not None:
        add_calibration(out, found)
        journal.remove()
    return found


def _reconstructed(scan: Scan, method: str, **how: Any) -> Patient:
    result = reconstruct(scan, method, calibrations=(), **how)
    if result.std is None or result.mean_hu is None:
        raise ValueError(f"method {method!r} gives one image without uncertainty; there is nothing to calibrate")
    misfit = 1.0 if result.chi2_samples is None else float(result.chi2_samples.mean())
    std_hu = 1000 * result.std / scan.mu_water_per_mm
    case = Case(result.mean_hu, std_hu, hu_from_mu(torch.as_tensor(scan.problem.truth)))
    return Patient(case, misfit, scan.problem.A.n_data, conditions_of(scan.problem, result))


def _key(request: object) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()[:16]
