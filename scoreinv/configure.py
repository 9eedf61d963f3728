"""Operators and methods from plain arguments, as they come from a command line, a file or a table of settings.

A dataclass's constructor is its configuration, so this is only name-checking with good errors. An operator class may have a
classmethod `for_image(shape, pixel_mm, **arguments)`, whose keyword arguments are then what users give (CT: n_views, arc ...)
instead of the constructor's.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from scoreinv import plugins
from scoreinv.arguments import as_tuple, check, plain
from scoreinv.linop import LinearOperator
from scoreinv.priors.denoiser import Denoiser
from scoreinv.problem import Method


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """{"key": value} from "key=value" texts; values are JSON where they parse as such, text otherwise.

    Raises:
        ValueError: a pair has no "=".
    """
    out = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"a setting is written key=value, got {pair!r}")
        try:
            out[key.strip()] = json.loads(text)
        except json.JSONDecodeError:
            out[key.strip()] = text
    return out


def operator_for_image(
    name: str, shape: tuple[int, ...], pixel_mm: float, arguments: Mapping[str, Any]
) -> LinearOperator:
    """The registered operator, fitted to images of a shape.

    Args:
        name: of the operator.
        shape: of the image: (H, W), or (3, H, W) for colour.
        pixel_mm: side of a pixel [mm].
        arguments: of `for_image` where the class has it, else of the constructor; the fields `image_shape` and `pixel_mm`
            are filled in.

    Raises:
        ValueError: unknown name, or unknown, missing or refused arguments.
    """
    cls = plugins.get("operators", name)
    what = f"operator {name!r}"
    build: Callable[..., LinearOperator]
    if hasattr(cls, "for_image"):
        build, automatic = cls.for_image, {"shape": shape, "pixel_mm": pixel_mm}
    else:
        known = {f.name for f in dataclasses.fields(cls)}
        build, automatic = cls, {k: v for k, v in (("image_shape", shape), ("pixel_mm", pixel_mm)) if k in known}
    built: LinearOperator = call(what, build, {**automatic, **arguments}, mend=GEOMETRY)
    return built


def method(name: str, settings: Mapping[str, Any], prior: Callable[[], Denoiser]) -> Method:
    """The registered method with these settings; `prior` is called only if the method has a field of that name.

    Raises:
        ValueError: unknown name, or unknown, missing or refused settings.
    """
    cls = plugins.get("methods", name)
    if "prior" in settings and needs_prior(name):
        raise ValueError(f"method {name!r}: the prior is no setting; give its file with --prior FILE.safetensors")
    automatic = {"prior": prior()} if needs_prior(name) else {}
    built: Method = call(f"method {name!r}", cls, {**settings, **automatic})
    return built


def has_setting(method_name: str, setting: str) -> bool:
    """Whether a method's constructor takes this setting."""
    return setting in inspect.signature(plugins.get("methods", method_name)).parameters


def needs_prior(method_name: str) -> bool:
    """Whether a method is built on a prior."""
    return has_setting(method_name, "prior")


def default_settings(method_name: str, without: Collection[str] = ()) -> dict[str, Any]:
    """The defaults of a method's constructor as JSON has them, without its prior and those named.

    Raises:
        ValueError: no such method.
    """
    parameters = inspect.signature(plugins.get("methods", method_name)).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in ("prior", *without)}
    return {k: plain(v) for k, v in given.items()}


def settings_of(built: Method) -> dict[str, Any]:
    """The resolved settings of a method as plain values, without its prior."""
    if not dataclasses.is_dataclass(built):
        return {}
    return {f.name: plain(getattr(built, f.name)) for f in dataclasses.fields(built) if f.name != "prior"}


SETTING = ": give --set {}=VALUE"
GEOMETRY = ": give {}=VALUE with --geometry, in `simulate` with --set or an option of its own"
"""How missing arguments are given on the command line."""


def call(what: str, build: Callable[..., Any], arguments: Mapping[str, Any], mend: str = SETTING) -> Any:
    """build(**arguments), with unknown and missing names and values of another type said in one sentence. Lists become tuples: JSON
    knows lists only, a frozen dataclass holds tuples.

    Raises:
        ValueError: names the argument; the nearest known one for an unknown.
    """
    check(what, build, arguments, noun="setting", mend=mend)
    try:
        return build(**{k: as_tuple(v) for k, v in arguments.items()})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{what} refuses its settings: {error}") from error
