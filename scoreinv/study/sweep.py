"""What a sweep is: lists of true images, operators, noises, methods, priors and seeds, and the product of them.

    Sweep(
        truths=[Phantoms("ellipses", count=2, size=64)],
        operators=[OperatorCall("parallel_beam_ct", {"n_views": n}, simulate={"refine": 2}) for n in (9, 23)],
        noises=[Noise(relative=0.005), Noise(photons=4096)],
        methods=[MethodCall("fbp"), MethodCall("fista_tv", {"weight": 0.02})],
    ).cells

A `Cell` is one combination with every argument resolved, defaults included: plain values that can be pickled, sent to another machine
and hashed. Its key is the checksum of what its numbers follow from, so that an argument written out counts as its default, and
neither the place of a file nor the name of a prior matters. The version of the code is not in the key, it is in the row.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from scoreinv import configure, metrics, plugins
from scoreinv.arguments import ArgumentError, plain, resolved
from scoreinv.baselines.learned import weights_path
from scoreinv.files.hdf5 import existing_file
from scoreinv.linop import LinearOperator
from scoreinv.priors.checkpoint import checksum
from scoreinv.priors.shipped import DEFAULT, prior_path
from scoreinv.study import lodopab
from scoreinv.study.lodopab import LoDoPaB
from scoreinv.study.operators import ANGLES, check_radians, data_operator, in_radians, operator
from scoreinv.study.truth import ImageFile, Phantoms, located


@dataclass(frozen=True)
class OperatorCall:
    """An operator for images of any shape.

    Attributes:
        name: registered.
        arguments: see `configure.operator_for_image`; angles may be given in degrees (`arc_degrees`).
        simulate: how the operator that makes the data differs: `refine`, so many times finer the grid of its image is, and fields of the
            operator, such as `weights`. Empty: data and reconstruction have one operator, which for noise-free data is an inverse crime.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    simulate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.resolved()

    def resolved(self) -> dict[str, Any]:
        """All arguments, in radians, and the name."""
        cls = plugins.get("operators", self.name)
        build = getattr(cls, "for_image", cls)
        given = in_radians(self.arguments)
        for key in ANGLES:
            check_radians(key, given.get(key))
        automatic = ("shape", "pixel_mm", "image_shape")
        return {"name": self.name, **resolved(f"operator {self.name!r}", build, given, automatic=automatic)}

    def simulated(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What of `simulate` makes a difference to the operator of these arguments."""
        own = plain(dict(self.simulate))
        return {k: v for k, v in own.items() if v != (1 if k == "refine" else arguments.get(k, dataclasses.MISSING))}

    def resolved_for(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The same for an image: where its data are stored, the operator is the one that made them.

        Raises:
            ArgumentError: they are of another operator.
        """
        arguments = self.resolved()
        if not lodopab.is_stored(record):
            return arguments
        if self.simulate:
            raise ArgumentError("simulate: LoDoPaB-CT's data are stored, nothing is simulated", "simulate")
        stored = lodopab.geometry(record, self.name, self.arguments, arguments.get("n_views", 0))
        return OperatorCall(self.name, stored).resolved()

    @property
    def label(self) -> str:
        """As tables call it."""
        how = f", data by {written(self.simulate)}" if self.simulate else ""
        return called(self.name, self.arguments) + how


@dataclass(frozen=True)
class Noise:
    """Of the data: Gaussian, or that of counted photons.

    Attributes:
        relative: standard deviation over the mean of the data.
        photons: instead of it, photons a ray without an object.
    """

    relative: float = 0.0
    photons: float | None = None

    def __post_init__(self) -> None:
        for key in ("relative", "photons"):
            object.__setattr__(self, key, plain(getattr(self, key)))
        if not 0 <= self.relative < math.inf:
            raise ArgumentError(f"noise: relative must not be negative, got {self.relative}", "relative")
        if self.photons is not None and (self.relative or not 0 < self.photons < math.inf):
            raise ArgumentError(f"noise: expected either relative or photons > 0, got {self}", "photons")

    @property
    def label(self) -> str:
        """As tables call it."""
        if self.photons is not None:
            return f"{self.photons:g} photons"
        return f"{100 * self.relative:g} % noise" if self.relative else "noise-free"


@dataclass(frozen=True)
class MethodCall:
    """A method with settings.

    Attributes:
        name: registered.
        settings: of its constructor.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "prior" in self.settings:
            raise ArgumentError(f"method {self.name!r}: a sweep has a list of priors for all methods", "prior")
        self.resolved()
        configure.method(self.name, self.settings, lambda: lambda x, sigma: x)

    def resolved(self) -> dict[str, Any]:
        """All settings, and the name."""
        cls = plugins.get("methods", self.name)
        return {
            "name": self.name,
            **resolved(f"method {self.name!r}", cls, self.settings, automatic=("prior",)),
        }

    @property
    def label(self) -> str:
        """As tables call it."""
        return called(self.name, self.settings)


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        image: record of the true image, see `study.truth`.
        operator: its name and all arguments.
        simulate: how the operator that makes the data differs.
        noise: `relative` and `photons`.
        method: its name and all settings.
        prior: `name` and `sha256` of the weights; None for a method without one.
        seed: of the noise and of the method.
        labels: how tables call image set, operator, noise and method; not part of the key.
        weights: SHA-256 of a learned baseline's weights; None for a method without them.
    """

    image: Mapping[str, Any]
    operator: Mapping[str, Any]
    simulate: Mapping[str, Any]
    noise: Mapping[str, Any]
    method: Mapping[str, Any]
    prior: Mapping[str, Any] | None
    seed: int
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)
    weights: str | None = None

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of what the numbers of this cell follow from."""
        own = self.plain()
        own["image"] = identity(self.image)
        own["prior"] = None if self.prior is None else self.prior["sha256"]
        del own["labels"]
        if self.weights is None:  # as rows were keyed before there was this
            del own["weights"]
        else:  # wherever they lie
            own["method"] = {**own["method"], "weights": None}
        return hashlib.sha256(canonical(own).encode()).hexdigest()

    def plain(self) -> dict[str, Any]:
        """The attributes as JSON has them."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class Sweep:
    """The product of lists.

    Attributes:
        truths: where true images come from.
        operators: the scanners.
        methods: what reconstructs.
        noises: of the data.
        priors: shipped names or .safetensors files, for the methods that take one; None is the default prior.
        seeds: each is another noise and another run of a method.
        images: whether to keep the images of each cell in files.
        lpips: whether to compute that figure, which needs the extra `lpips`; rows that are there stay as they are.
        title: of the table.
    """

    truths: Sequence[ImageFile | Phantoms | LoDoPaB]
    operators: Sequence[OperatorCall]
    methods: Sequence[MethodCall]
    noises: Sequence[Noise] = (Noise(),)
    priors: Sequence[str | None] = (None,)
    seeds: Sequence[int] = (0,)
    images: bool = False
    lpips: bool = False
    title: str = ""

    def __post_init__(self) -> None:
        for key in ("truths", "operators", "methods", "noises", "priors", "seeds"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        wrong = [s for s in self.seeds if not isinstance(s, numbers.Integral) or isinstance(s, bool)]
        if wrong:
            raise ArgumentError(f"seeds should be whole numbers, got {wrong[0]!r}", "seeds")
        object.__setattr__(self, "seeds", tuple(int(s) for s in self.seeds))

    @functools.cached_property
    def cells(self) -> list[Cell]:
        """All combinations, each once, image by image, so that a sweep that is stopped has compared all methods on the same ones.

        Raises:
            ArgumentError: an image, an operator or a prior is not what is expected; `owner` is the part that it is about.
        """
        for key in ("truths", "operators", "methods", "noises", "priors", "seeds"):
            if not getattr(self, key):
                raise ArgumentError(f"a sweep needs at least one of its {key}", key)
        if self.lpips:
            owned(self, metrics.lpips_network, "lpips")
        solvers = list(self._solvers())
        images = [(t, record) for t in self.truths for record in owned(t, t.records)]
        names = self._names()
        self._check_operators([record for _, record in images])
        found: dict[str, Cell] = {}
        for truth, record in images:
            for called_ in self.operators:
                arguments = called_.resolved_for(record)
                simulate = called_.simulated(arguments)
                own = (
                    record
                    if simulate.get("refine", 1) > 1 or "fine" not in record
                    else {**record, "fine": None, "fine_source": None}
                )
                for noise in self.noises:
                    labels = {"truth": names[id(truth)], "operator": called_.label, "noise": noise.label}
                    about = {"relative": float(noise.relative), "photons": noise.photons}
                    for seed in self.seeds:
                        for method, settings, prior, weights in solvers:
                            called_so = {**labels, "method": method}
                            cell = Cell(own, arguments, simulate, about, settings, prior, seed, called_so, weights)
                            found.setdefault(cell.key, cell)
        return list(found.values())

    def _names(self) -> dict[int, str]:
        """How tables call each of `truths`, by its id: its label, and the folder of files that are not one and have one label."""
        files: dict[str, set[str]] = {}
        for t in self.truths:
            files.setdefault(t.label, set()).add(str(getattr(t, "file", "")))
        return {
            id(t): f"{Path(t.file).parent.name}/{t.label}"
            if isinstance(t, ImageFile) and len(files[t.label]) > 1
            else t.label
            for t in self.truths
        }

    def _solvers(self) -> Iterable[tuple[str, dict[str, Any], dict[str, Any] | None, str | None]]:
        """Labels and settings of methods, those that take a prior with each, and the checksum of a learned baseline's weights."""
        asked = self.priors != (None,) or any(configure.needs_prior(m.name) for m in self.methods)
        taken = [owned(self.priors, lambda p=p: _prior(p)) for p in self.priors] if asked else []
        for m in self.methods:
            if configure.needs_prior(m.name):
                for prior in taken:
                    yield m.label, m.resolved(), prior, None
            elif configure.has_setting(m.name, "weights"):
                yield m.label, m.resolved(), None, owned(m, lambda m=m: weights_checksum(m.resolved()), "weights")
            else:
                yield m.label, m.resolved(), None, None

    def _check_operators(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Build every operator once, with the one that makes its data; that is cheap."""
        built: set[str] = set()
        for record in records:
            if lodopab.is_stored(record):
                for noise in self.noises:
                    owned(noise, lambda n=noise: lodopab.check_noise(n.photons))
            for k, o in enumerate(self.operators):
                arguments = owned(o, lambda o=o, r=record: o.resolved_for(r))
                shape, pixel_mm = tuple(record["shape"]), record["pixel_mm"]
                if (text := canonical([k, arguments, list(shape), pixel_mm])) not in built:
                    owned(o, lambda o=o, a=arguments, s=shape, p=pixel_mm: _checked(o, a, s, p))
                    built.add(text)


def _checked(o: OperatorCall, arguments: Mapping[str, Any], shape: tuple[int, ...], pixel_mm: float) -> LinearOperator:
    A = operator(arguments, shape, pixel_mm)
    if A.in_shape != shape:
        raise ArgumentError(f"operator {o.name!r} is for images {A.in_shape}; those of a sweep are CT slices {shape}")
    try:
        maker = data_operator(A, plain(dict(o.simulate)))
    except ValueError as error:
        raise ArgumentError(str(error), "simulate") from error
    if maker.out_shape != A.out_shape:
        raise ArgumentError(
            f"simulate: the data would be {maker.out_shape}, the operator that reconstructs takes {A.out_shape}",
            "simulate",
        )
    return maker


def owned(owner: object, make: Any, key: str | None = None) -> Any:
    """make(), whose errors say which part of the sweep they are about.

    Raises:
        ArgumentError: instead of a ValueError or an OSError.
    """
    try:
        return make()
    except (ValueError, OSError) as error:
        words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        raise ArgumentError(words, getattr(error, "key", key), owner) from error


def weights_checksum(method: Mapping[str, Any]) -> str:
    """SHA-256 of the weights of a learned baseline, from its name and settings.

    Raises:
        ValueError, OSError: there are none.
    """
    return checksum(existing_file(weights_path(method["name"], method["weights"])))


def _prior(name: str | None) -> dict[str, Any]:
    path = prior_path(None if name is None else str(located(name)))
    return {"name": name or DEFAULT, "sha256": checksum(path)}


def identity(image: Mapping[str, Any]) -> dict[str, Any]:
    """What an image is, without where it lies."""
    return {k: plain(v) for k, v in image.items() if k not in ("source", "fine_source")}


def canonical(value: Any) -> str:
    """One JSON text for equal values: 1 and 1.0 are written alike, keys are sorted."""

    def whole(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: whole(w) for k, w in v.items()}
        if isinstance(v, list):
            return [whole(w) for w in v]
        return int(v) if isinstance(v, float) and v.is_integer() else v

    return json.dumps(whole(value), sort_keys=True)


def called(name: str, arguments: Mapping[str, Any]) -> str:
    """Such as "fista_tv(weight=0.02)"."""
    return f"{name}({written(arguments)})" if arguments else name


def written(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in arguments.items())
