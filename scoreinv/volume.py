"""Reconstruction of a volume, slice by slice and batch by batch, from and to files: a few slices are in memory at a time.

    slices = open_slices("volume.h5")
    for k in reconstruct_volume(slices, Path("recon.h5"), seed=0):
        print(k)                                            # this slice is on the disk

Method, settings and prior are chosen once, by looking at a few slices all over the volume. Slice k has the k-th stream of the seed. So its
image depends neither on the range that is asked for nor on the slices beside it in a batch: alone it is that of
`reconstruct(slices.read(k), choice, first=k)` to the bit. In a batch it is so to rounding, which conjugate gradients amplify in float32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scoreinv import configure, trust
from scoreinv.calibration import Calibration, read_calibrations
from scoreinv.files.describe import describe
from scoreinv.files.reconstruction import Reconstruction
from scoreinv.files.scan import Scan
from scoreinv.files.slices import Slices, kind, stacked
from scoreinv.files.volume import FIGURES, VolumeFile, create_volume, opened
from scoreinv.priors.shipped import ct_prior, identity
from scoreinv.problem import Problem
from scoreinv.progress import quiet
from scoreinv.reconstruction import Choice, choose, with_intervals, without_intervals
from scoreinv.solving import Solved

LOOKED_AT = 5
"""Slices, evenly spread over the volume, that decide on the method and tell one volume from another."""


@dataclass(frozen=True, eq=False)
class Slice:
    """What came of a slice.

    Attributes:
        index: from 0.
        images: see `files.volume`, (H, W) float32 [1/mm].
        figures: see `files.volume.FIGURES`.
        error: what went wrong; images are then missing.
    """

    index: int
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


class Mapper(Protocol):
    """What applies a function to batches of slice numbers, here or elsewhere; results come in any order, each once."""

    def __call__(
        self,
        function: Callable[[Sequence[int]], Iterable[Slice]],
        batches: Sequence[Sequence[int]],
        *,
        lost: Callable[[int, str], Slice],
    ) -> Iterable[Slice]:
        """Results of all batches; `lost` makes that of a slice that nobody could compute, from the reason."""
        ...


def one_by_one(
    function: Callable[[Sequence[int]], Iterable[Slice]],
    batches: Sequence[Sequence[int]],
    *,
    lost: Callable[[int, str], Slice],
) -> Iterator[Slice]:
    """The mapper that computes here, one batch after the other."""
    for batch in batches:
        yield from function(batch)


@dataclass(frozen=True)
class Work:
    """Reconstructs batches of slices: a plain value that can be sent to another process.

    Attributes:
        slices: the scans.
        choice: how.
        seed: of the volume.
        device: where.
        calibrations: see `reconstruct`.
        noise_std: standard deviation of the data's noise, instead of what the scans say.
    """

    slices: Slices
    choice: Choice
    seed: int = 0
    device: str = "cpu"
    calibrations: Sequence[Calibration] = ()
    noise_std: float | None = None

    def scan(self, k: int) -> Scan:
        """Slice k with the noise that is asked for.

        Raises:
            FileNotFoundError, ValueError: see `Slices.read`.
        """
        scan = self.slices.read(k)
        if self.noise_std is None:
            return scan
        problem = dataclasses.replace(scan.problem, noise_std=self.noise_std, counts=None)
        return dataclasses.replace(scan, problem=problem, noise_known=True)

    def __call__(self, batch: Sequence[int]) -> Iterator[Slice]:
        """The slices of a batch of neighbours; what fails is a slice with its error, and the others go on."""
        scans: dict[int, Scan] = {}
        for k in batch:
            try:
                scans[k] = self.scan(k)
            except Exception as error:  # a damaged slice does not take the others with it
                yield Slice(k, error=_words(error))
        for members in _alike(scans):
            yield from self._solved(members, [scans[k] for k in members])

    def _solved(self, members: Sequence[int], scans: Sequence[Scan]) -> Iterator[Slice]:
        try:
            with quiet():
                result, found = without_intervals(
                    stacked(scans), self.choice, seed=self.seed, device=self.device, first=members[0]
                )
        except Exception as error:  # a method may fail in any way
            if len(members) == 1:
                yield Slice(members[0], error=_words(error))
                return
            for k, scan in zip(members, scans, strict=True):
                yield from self._solved([k], [scan])
            return
        for j, k in enumerate(members):
            alone, problem = (result, found.problem) if len(members) == 1 else member(result, found, j)
            yield _slice(k, problem, with_intervals(alone, problem, self.calibrations))


def reconstruct_volume(
    slices: Slices,
    out: Path,
    method: str | Choice | None = None,
    *,
    which: range | None = None,
    batch: int = 1,
    samples: int | None = None,
    seed: int = 0,
    prior: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    preset: str | None = None,
    noise_std: float | None = None,
    device: str = "cpu",
    calibrations: Sequence[Calibration] | None = None,
    mapper: Mapper = one_by_one,
) -> Iterator[int]:
    """Reconstruct the slices of a volume that are not yet there.

    Args:
        slices: the scans.
        out: volume to write, an HDF5 file or a Zarr group (.zarr); one that is there is gone on with.
        which: slices; all by default.
        batch: neighbouring slices that are reconstructed together, at most.
        noise_std: standard deviation of the data's noise, instead of what the scans say.
        mapper: what applies `Work` to batches.
        method, samples, seed, prior, settings, preset, device, calibrations: see `reconstruct`.

    Yields:
        The number of each slice once it is on the disk.

    Raises:
        FileNotFoundError, OSError: see `files.volume`.
        ValueError: an argument is not what is expected, the volume is of another scan or was made with other settings, another process
            is writing it; or, at the end, some slices have failed, and the others are there.
    """
    if batch < 1:
        raise ValueError(f"--batch: expected at least 1 slice, got {batch}")
    which = range(len(slices)) if which is None else which
    if len(which) and not 0 <= min(which) <= max(which) < len(slices):
        raise ValueError(f"{slices.path}: has slices 0 to {len(slices) - 1}, asked for {min(which)} to {max(which)}")
    seen = look(slices, noise_std)
    if isinstance(method, Choice):
        choice = method
    else:
        choice = choose(seen, method, samples=samples, prior=prior, settings=settings, preset=preset)
    if callable(choice.prior):
        raise ValueError(
            f"a volume may be gone on with, by other processes, so its prior must be a name or a file, got {type(choice.prior).__name__}; "
            "`save_prior` writes one"
        )
    known = read_calibrations() if calibrations is None else calibrations
    work = Work(slices, choice, seed, device, known, noise_std)
    made = _settings(choice, seen)
    asked = _request(work, made, seen)
    if not out.exists():
        _create(out, slices, made, asked, seen)
    with opened(out, write=True) as volume:
        _check_request(volume, asked)
        done = volume.done
        todo = [k for k in which if not done[k]]
        failed: dict[int, str] = {}
        for found in mapper(work, batches(todo, batch), lost=_lost):
            if found.error is None:
                volume.add(found.index, found.images, found.figures)
                yield found.index
            else:
                failed[found.index] = found.error
    if failed:
        first = min(failed)
        raise ValueError(
            f"{out}: {len(failed)} of {len(todo)} slices failed, the others are there; slice {first}: {failed[first]}"
        )


def look(slices: Slices, noise_std: float | None = None) -> Scan:
    """A few slices all over a volume as one scan, by which the method is chosen; those that cannot be read are left out.

    Raises:
        ValueError: none of them can be read.
    """
    n, work = len(slices), Work(slices, Choice(""), noise_std=noise_std)
    places = dict.fromkeys(round(k * (n - 1) / max(1, LOOKED_AT - 1)) for k in range(LOOKED_AT))
    found: list[Scan] = []
    for k in places:
        try:
            found.append(work.scan(k))
        except ValueError as error:
            failure = error
    if not found:
        raise failure
    return stacked([s for s in found if kind(s) == kind(found[len(found) // 2])])


def batches(numbers: Iterable[int], size: int) -> list[list[int]]:
    """Runs of neighbours, cut at the multiples of a size: so that most slices have the same neighbours whatever is asked for."""
    found: list[list[int]] = []
    for k in numbers:
        if found and found[-1][-1] == k - 1 and k % size:
            found[-1].append(k)
        else:
            found.append([k])
    return found


def member(r: Reconstruction, solved: Solved, j: int) -> tuple[Reconstruction, Problem]:
    """Slice j of a reconstruction of several, without its interval, and its problem as it was solved."""

    def of(image: Tensor | None, axis: int = 0) -> Tensor | None:
        return None if image is None else image.select(axis, j)

    p, samples = solved.problem, r.samples[:, j]
    std = p.noise_std[j] if isinstance(p.noise_std, Tensor) and p.noise_std.ndim == p.y.ndim else p.noise_std
    problem = Problem(p.A, p.y[j], std, None, p.counts and p.counts.mapped(lambda n: n[j]))
    noise = torch.as_tensor(std)
    own = {
        "noise_std": [float(noise.min()), float(noise.max())] if noise.ndim else float(noise),
        "noise_raised": float(solved.raised[j]),
        "inverse_photons": trust.inverse_photons(problem, samples),
    }
    alone = dataclasses.replace(
        r, samples=samples, chi2=of(r.chi2), truth=of(r.truth), fbp=of(r.fbp), chi2_samples=of(r.chi2_samples, 1),
        measured=of(r.measured), half_width=None, settings=r.settings | own,
    )  # fmt: skip
    return alone, problem


def _alike(scans: Mapping[int, Scan]) -> Iterator[list[int]]:
    """Runs of neighbours that can be one batch."""
    for _, run in itertools.groupby(scans, key=lambda k: kind(scans[k])):
        for _, neighbours in itertools.groupby(enumerate(run), key=lambda pair: pair[1] - pair[0]):
            yield [k for _, k in neighbours]


def _slice(k: int, problem: Problem, r: Reconstruction) -> Slice:
    images = {"mean": r.mean, "std": r.std, "half_width": r.interval, "measured": r.measured}
    several = len(r.samples) > 1
    nowhere = np.full(tuple(r.mean.shape), np.nan, np.float32)
    return Slice(
        k,
        {name: nowhere if image is None else image.numpy() for name, image in images.items()},
        {
            "chi2": math.nan if r.chi2 is None else float(r.chi2),
            "noise_std": float(torch.as_tensor(problem.noise_std).mean()),
            "noise_raised": float(r.settings["noise_raised"]),
            "chi2_draw": float(r.misfit) if several and r.misfit is not None else math.nan,
            "standing": r.standing,
            "calibrated": float(r.half_width is not None) if several else math.nan,
        },
    )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _lost(k: int, reason: str) -> Slice:
    return Slice(k, error=reason)


def _settings(choice: Choice, seen: Scan) -> dict[str, Any]:
    """What is written beside the slices; the method's own arguments are all there, defaults included."""
    pixel_mm, prior = getattr(seen.problem.A, "pixel_mm", None), choice.prior
    assert not callable(prior)  # checked before
    solver = configure.method(
        choice.method,
        choice.settings,
        lambda: ct_prior(prior, mu_water_per_mm=seen.mu_water_per_mm, pixel_mm=pixel_mm),
    )
    return {
        "method": choice.method,
        "preset": choice.preset,
        **configure.settings_of(solver),
        "operator": type(seen.problem.A).__name__,
        "data_shape": list(seen.problem.A.out_shape),
        "prior": identity(prior) if configure.needs_prior(choice.method) else None,
    }


def _request(work: Work, made: Mapping[str, Any], seen: Scan) -> dict[str, Any]:
    """What the numbers of all slices follow from."""
    widened = hashlib.sha256(json.dumps([dataclasses.asdict(c) for c in work.calibrations]).encode()).hexdigest()
    request = {**made, "prior": (made["prior"] or {}).get("sha256"), "seed": work.seed, "noise_std": work.noise_std}
    request |= {"scan": _checksum(len(work.slices), seen), "calibrations": widened, "figures": FIGURES}
    return dict(json.loads(json.dumps(request)))


def _checksum(n: int, seen: Scan) -> str:
    """SHA-256 of the number of slices, the operator, and data and noise of the slices looked at."""
    description, arrays = describe(seen.problem.A)
    about = [n, description, seen.mu_water_per_mm, seen.photons, seen.noise_known]
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for array in (*arrays.values(), seen.problem.y.numpy(), torch.as_tensor(seen.problem.noise_std).numpy()):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _create(out: Path, slices: Slices, made: Mapping[str, Any], asked: Mapping[str, Any], seen: Scan) -> None:
    A = seen.problem.A
    gray, several = len(A.in_shape) == 2, (made.get("samples") or 1) > 1
    names = ["mean", *(["std", "half_width"] if several else [])]
    names += ["measured"] if made["prior"] and gray else []
    known = {"pixel_mm": getattr(A, "pixel_mm", None), "mu_water_per_mm": seen.mu_water_per_mm if gray else None}
    known["z_mm"] = slices.z_mm
    create_volume(out, (len(slices), *A.in_shape), names, request=asked, settings=made, attributes=known)


def _check_request(volume: VolumeFile, asked: Mapping[str, Any]) -> None:
    """That a volume was begun with this very request."""
    begun = volume.request
    for name in dict.fromkeys([*asked, *begun]):
        if begun.get(name) == asked.get(name):
            continue
        if name == "scan":
            raise ValueError(f"{volume.path}: holds slices of another scan: give another --out")
        raise ValueError(
            f"{volume.path}: its slices were made with {name} {begun.get(name)!r}, now it is {asked.get(name)!r}: "
            "give the same, or another --out"
        )
