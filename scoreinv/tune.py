"""Find the few constants of a method on patients whose images are known: what `scoreinv tune` does.

Optuna's tree-structured Parzen estimator (Bergstra, Bardenet, Bengio, Kégl 2011; Akiba et al. 2019, arXiv:1907.10902) proposes the
constants; what is made best is the mean over patients of

    psnr         PSNR of the mean of the draws on the window of -1000 to 1000 HU [dB], the more the better
    calibration  CRPS of the draws on the tissue (`metrics.crps`) [HU], the less the better. It is a proper score: draws from
                 the posterior have the least, whereas the PSNR is as good for draws that are all alike

The method's own setting is measured first; where no trial is better, the record has no constants. The first trial starts from the own
constants as far as they are numbers within the ranges: others (sigma_max of `proximal`, which follows from the problem) are
proposed. Trial k is proposed with the seed `seed + k`, and all see the same data and the same
noise, so a search that was interrupted ends as if it had not been.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scoreinv import configure, metrics, plugins
from scoreinv.baselines.tuned import noise_level
from scoreinv.calibration import TISSUE_HU
from scoreinv.conditions import SIMILAR, SIMILAR_SHARE, share_of
from scoreinv.files.atomic import replacing
from scoreinv.files.images import read_image_set
from scoreinv.files.scan import Scan
from scoreinv.files.versions import package_version, versions
from scoreinv.linop import Operator
from scoreinv.priors.shipped import identity
from scoreinv.progress import track
from scoreinv.ranges import Range, ranges_of
from scoreinv.reconstruction import known_noise, reconstruct
from scoreinv.simulation import patient_scan
from scoreinv.units import MU_WATER_PER_MM, hu_from_mu

OBJECTIVES = {"psnr": "maximize", "calibration": "minimize"}


class Case(NamedTuple):
    """A patient's name and simulated scan, truth included."""

    patient: str
    scan: Scan


def tune(
    images: Sequence[Path],
    method: str,
    *,
    relative_noise: float,
    trials: int,
    storage: Path,
    operator: str = "parallel_beam_ct",
    arguments: Mapping[str, Any] | None = None,
    ranges: Mapping[str, Range] | None = None,
    objective: str = "psnr",
    patients: int | None = None,
    samples: int | None = None,
    prior: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Search for the constants of a method at one noise level.

    Args:
        images: CT images [HU] with patients and pixel sizes; the middle slice of each patient is taken.
        method: registered name.
        relative_noise: standard deviation of the noise over the mean of the data.
        trials: how many settings are tried in all, those of earlier runs with the same storage included.
        storage: Optuna's journal of the trials, which is made or gone on with.
        operator: registered name.
        arguments: see `configure.operator_for_image`.
        ranges: of constants; those that the method names as tunable by default (see `scoreinv.ranges`).
        objective: "psnr" or "calibration".
        patients: the first so many, in the order of their names.
        samples: draws an image, by default the method's own number.
        prior: by default the shipped one.
        settings: of the method, kept fixed.
        seed: of the search; the noise of patient k has the seed k.
        device: where to compute.

    Returns:
        A record as in scoreinv/baselines/tuned.json: `relative_noise`, `tau` (see `baselines.tuned`), the constants, whose names are
        in `tuned` (none where the method's own are as good), the `settings` kept fixed, the objective's value, all trials in `grid`, and
        their `provenance`.

    Raises:
        ValueError: unknown names, images without pixel size, a method without draws for "calibration", settings that the method
            refuses, or Optuna is not installed.
    """
    optuna = _optuna()
    if objective not in OBJECTIVES:
        raise ValueError(f"no objective is named {objective!r}; known: {', '.join(OBJECTIVES)}")
    if trials < 1 or (patients is not None and patients < 1):
        raise ValueError(f"tune: expected trials and patients of at least 1, got {trials} and {patients}")
    fixed = dict(settings or {}) | ({} if samples is None else {"samples": samples})
    searched = {k: r for k, r in (ranges or ranges_of(method)).items() if k not in fixed}
    for key in [*searched, *fixed]:
        if not configure.has_setting(method, key):
            configure.call(f"method {method!r}", plugins.get("methods", method), {key: None})  # says what there is
    if not searched:
        raise ValueError(f"tune: nothing is left to search for: give --range key=low:high for a setting of {method!r}")
    data = read_image_set(images)
    chosen = data.one_per_patient()[:patients]
    shape = dict(arguments or {})
    cases = [
        Case(str(data.patients[i]), patient_scan(data, i, operator, shape, relative_noise=relative_noise, seed=k))
        for k, i in enumerate(chosen)
    ]
    weights = identity(prior) if configure.needs_prior(method) else None
    conditions = {
        "images": data.checksum(chosen), "method": method, "settings": fixed, "operator": operator, "arguments": shape,
        "relative_noise": relative_noise, "objective": objective, "prior": weights, "seed": seed,
        "ranges": {k: list(r) for k, r in searched.items()},
    }  # fmt: skip
    study = _study(optuna, storage, conditions)

    def score(constants: dict[str, Any]) -> float:
        return statistics.fmean(
            _score(objective, method, case, fixed | constants, k, prior, device) for k, case in enumerate(cases)
        )

    if "own" not in study.user_attrs:
        study.set_user_attr("own", score({}))  # bad input shows here
    own = _own(method, searched)
    done = sum(t.state.is_finished() for t in study.trials)
    for k in track(range(done, trials), "tune", trials - done):
        study.sampler = optuna.samplers.TPESampler(seed=seed + k)
        if k == 0:
            study.enqueue_trial(own)
        trial = study.ask()
        constants = {key: r.suggest(trial, key) for key, r in searched.items()}
        try:
            study.tell(trial, study.user_attrs["own"] if constants == own else score(constants))
        except ValueError:  # settings that exclude each other, or a run that diverged
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    if all(t.value is None for t in study.trials):
        raise ValueError(
            f"tune: {method!r} refused or diverged with all settings of {trials} trials: give other ranges"
        )
    return _record(study, searched, conditions, cases)


def save(path: Path, method: str, record: Mapping[str, Any]) -> None:
    """Put a record into a file of them, in the place of an older one of the same search: noise, operator, objective, prior, fixed settings,
    images and ranges. Warns, and keeps the older one, where that is of more trials."""
    table = read_tuned(path) if path.exists() else {}
    rows = table.get(method, [])
    earlier = [r for r in rows if _searched(r) == _searched(record)]
    if earlier and (trials := max(size_of(r)[1] for r in earlier)) > size_of(record)[1]:
        warnings.warn(
            f"{path}: keeps the record of {trials} trials of this search, the new one is of {size_of(record)[1]}; give another --out for it",
            stacklevel=2,
        )
        return
    others = [r for r in rows if _searched(r) != _searched(record)]
    table[method] = sorted([*others, dict(record)], key=lambda r: float(r["tau"]))
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"methods": table}, indent=1) + "\n", encoding="utf-8")


def _purpose(r: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a record is for: noise, operator, prior, fixed settings, objective."""
    source = r.get("provenance", {})
    made = [source.get(key) for key in ("operator", "arguments", "prior")]
    return r.get("relative_noise"), *made, r["settings"], [name for name in OBJECTIVES if name in r]


def _searched(r: Mapping[str, Any]) -> tuple[Any, ...]:
    """A record's purpose, and the images and ranges that it was searched on."""
    source = r.get("provenance", {})
    return *_purpose(r), source.get("images"), source.get("ranges")


def size_of(r: Mapping[str, Any]) -> tuple[int, int]:
    """How many patients and trials a record is of; 0 where it does not say."""
    source = r.get("provenance", {})
    return len(source.get("patients") or ()), int(source.get("trials") or 0)


def read_tuned(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each method in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        table: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))["methods"]
        if all("tau" in r and "tuned" in r and "settings" in r for rows in table.values() for r in rows):
            return table
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError, AttributeError):
        pass
    raise ValueError(f"{path}: holds no tuned constants; make them with `scoreinv tune`")


def tuned_settings(
    path: Path,
    scan: Scan,
    method: str | None = None,
    *,
    objective: str | None = None,
    prior_sha256: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """The method of a file and its settings for a scan: of those that were tuned with its operator, else all, of these with its prior,
    within a similar arc and with a similar number of views, else the nearest, those at the nearest noise level; of several of one purpose
    those of the most patients, then trials, the last made. Warns where they are far.

    Args:
        path: of `scoreinv tune`.
        scan: whose operator, data and noise are looked at, the noise estimated where the file does not state it.
        method: which one, where the file has several.
        objective: that they were tuned for; by default PSNR, where the file has such records.
        prior_sha256: checksum of the prior that will be used; without it priors are not compared.

    Raises:
        FileNotFoundError, ValueError: see `read_tuned`; or the file does not say which method, or has nothing for the objective.
    """
    table = read_tuned(path)
    if method is None and len(table) == 1:
        (method,) = table
    if method not in table:
        what = "has several methods" if method is None else f"has nothing for {method!r}"
        raise ValueError(f"{path}: {what}: give --method, one of {', '.join(table)}")
    rows = [r for r in table[method] if (objective or "psnr") in r]
    if objective and not rows:
        raise ValueError(
            f"{path}: {method!r} was not tuned for {objective!r}: `scoreinv tune --objective {objective}` does so"
        )
    A = scan.problem.A
    tau = float(noise_level(known_noise(scan).flat(), scan.mu_water_per_mm).square().mean().sqrt())
    rows = list(reversed(rows or table[method]))
    row = min(rows, key=lambda r: (*_unlike(r, A, prior_sha256), abs(float(r["tau"]) - tau)))
    other_operator, other_prior, arc, views = apart = _unlike(row, A, prior_sha256)
    row = max((r for r in rows if _purpose(r) == _purpose(row) and _unlike(r, A, prior_sha256) == apart), key=size_of)
    far, source = [], row.get("provenance", {})
    if abs(row["tau"] - tau) > (SIMILAR - 1) * min(row["tau"], tau) + 1e-6:
        far.append(f"a noise of {row['tau']:.3g}, the scan has {tau:.3g} (tau of baselines/tuned.py)")
    if other_operator:
        far.append(f"the operator {source['operator']}, the scan is of {type(A).__name__}")
    if other_prior:
        far.append(f"the prior {source['prior']['name']} ({source['prior']['sha256'][:8]}), this is {prior_sha256:.8}")
    if arc > 0:
        far.append(
            f"views within {_arc(source):.0%} of a whole scan's turn, the scan's are within {share_of(A, 'covered'):.0%}"
        )
    if views > 0:
        far.append(f"{source['data_shape'][0]} views, the scan has {A.out_shape[0]}")
    if far:
        warnings.warn(f"{path} was made with {'; with '.join(far)}: its constants may not suit", stacklevel=2)
    return method, row["settings"] | {key: row[key] for key in row["tuned"]}


def _unlike(row: Mapping[str, Any], A: Operator, prior_sha256: str | None) -> tuple[bool, bool, float, float]:
    """Whether a record is of another operator and of another prior, how far beyond a similar one its arc is, and by which factor (its
    logarithm) its number of views; records that do not say are like any scan."""
    provenance = row.get("provenance", {})
    name, shape, prior = (provenance.get(key) for key in ("operator", "data_shape", "prior"))
    other = name is not None and (
        name not in plugins.names("operators") or plugins.get("operators", name) is not type(A)
    )
    other_prior = bool(prior and prior_sha256) and prior["sha256"] != prior_sha256
    views = 0.0 if other or not shape else abs(math.log(max(1, shape[0]) / max(1, A.out_shape[0])))
    made = None if other else _arc(provenance)
    arc = 0.0 if made is None else abs(made - share_of(A, "covered"))
    return other, other_prior, max(0.0, arc - SIMILAR_SHARE), max(0.0, views - math.log(SIMILAR))


def _arc(provenance: Mapping[str, Any]) -> float | None:
    """That of a record's operator, which does not depend on the images; None where the record does not say."""
    if provenance.get("arguments") is None or "operator" not in provenance:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            A = configure.operator_for_image(provenance["operator"], (2, 2), 1.0, provenance["arguments"])
            return share_of(A, "covered")
        except ValueError:  # of an operator for other images
            return None


def _score(
    objective: str,
    method: str,
    case: Case,
    settings: Mapping[str, Any],
    seed: int,
    prior: str | Path | None,
    device: str,
) -> float:
    """The objective on one patient."""
    scan = case.scan
    result = reconstruct(scan, method, seed=seed, prior=prior, settings=settings, device=device, calibrations=())
    draws, truth = hu_from_mu(result.samples), hu_from_mu(torch.as_tensor(scan.problem.truth))
    if objective == "psnr":
        return float(metrics.psnr(metrics.window(draws.mean(dim=0)), metrics.window(truth), 1.0))
    if len(draws) < 2:
        hint = (
            "give --samples 4 or more"
            if configure.has_setting(method, "samples")
            else "take a method that draws, or --objective psnr"
        )
        raise ValueError(f"tune: calibration is that of draws, and {method!r} gave one image: {hint}")
    return float(metrics.crps(draws, truth)[truth > TISSUE_HU].mean())


def _study(optuna: Any, storage: Path, conditions: Mapping[str, Any]) -> Any:
    """The search under these conditions that a journal holds, or a new one in it."""
    journal = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(storage)))
    name = hashlib.sha256(json.dumps(conditions, sort_keys=True, default=str).encode()).hexdigest()
    direction = OBJECTIVES[conditions["objective"]]
    return optuna.create_study(storage=journal, study_name=name, direction=direction, load_if_exists=True)


def _own(method: str, searched: Mapping[str, Range]) -> dict[str, Any]:
    """The method's own constants, as far as they are numbers in the ranges."""
    parameters = inspect.signature(plugins.get("methods", method)).parameters
    own = {k: parameters[k].default for k in searched}
    return {k: v for k, v in own.items() if isinstance(v, int | float) and searched[k].low <= v <= searched[k].high}


def _record(
    study: Any, searched: Mapping[str, Range], conditions: Mapping[str, Any], cases: Sequence[Case]
) -> dict[str, Any]:
    """The best trial, or the method's own setting if none is better, in the form of scoreinv/baselines/tuned.json."""
    finished = [t for t in study.trials if t.value is not None]
    objective = conditions["objective"]
    own, best = study.user_attrs["own"], study.best_value
    better = best > own if OBJECTIVES[objective] == "maximize" else best < own
    levels = [noise_level(case.scan.problem.flat(), MU_WATER_PER_MM) for case in cases]
    return {
        "relative_noise": conditions["relative_noise"],
        "tau": float(torch.cat(levels).square().mean().sqrt()),
        "tuned": list(searched) if better else [],
        **(study.best_trial.params if better else {}),
        "settings": conditions["settings"],
        objective: round(best if better else own, 4),
        "grid": [[t.params, round(t.value, 4)] for t in finished],
        "provenance": {
            "images": conditions["images"],
            "patients": [case.patient for case in cases],
            "operator": conditions["operator"],
            "arguments": conditions["arguments"],
            "data_shape": list(cases[0].scan.problem.A.out_shape),
            "ranges": conditions["ranges"],
            "prior": conditions["prior"],
            "criterion": {
                "psnr": "mean PSNR [dB] on -1000..1000 HU mapped to [0, 1], range 1",
                "calibration": "mean CRPS [HU] of the draws on the tissue",
            }[objective],
            "untuned": round(own, 4),
            "trials": len(finished),
            "seed": conditions["seed"],
            "date": datetime.date.today().isoformat(),
            "version": versions() | {"optuna": package_version("optuna")},
        },
    }


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f"tune needs Optuna: pip install 'scoreinv[tune]' brings it ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
