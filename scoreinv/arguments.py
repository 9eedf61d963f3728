"""The arguments of a call, checked before it is made: names, types, and the defaults of those that are not given."""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Union

from scoreinv.plugins import did_you_mean


class ArgumentError(ValueError):
    """An argument is not what is expected.

    Attributes:
        key: its name, where it is about one.
        owner: the part of a sweep that it belongs to, where that is known.
    """

    def __init__(self, message: str, key: str | None = None, owner: object = None) -> None:
        super().__init__(message)
        self.key, self.owner = key, owner


def check(
    what: str,
    build: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    automatic: Collection[str] = (),
    noun: str = "argument",
    mend: str = "",
) -> dict[str, inspect.Parameter]:
    """The parameters of a call, once the arguments that are given have been found to be right.

    Args:
        what: is called, for messages.
        build: a class or function.
        given: arguments by their names.
        automatic: names of arguments that come from elsewhere and are left out.
        noun: what users call an argument.
        mend: follows the names of missing arguments, with {} for the first.

    Raises:
        ArgumentError: an unknown name, with the nearest known one; a value of the wrong type; a missing argument.
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(build).parameters.items()
    known = {k: p for k, p in signature if p.kind in named and k not in automatic}
    hints = _hints(build)
    for key, value in given.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise ArgumentError(f"{what} has no {noun} {key!r}.{hint} Known: {', '.join(sorted(known))}", key)
        if isinstance(value, numbers.Real) and math.isnan(value):
            raise ArgumentError(f"{what}: {key} should be a number, got {value}", key)
        if not fits(value, hints.get(key, Any)):
            choices = [v for v in _choices(hints[key]) if isinstance(value, str) and isinstance(v, str)]
            hint = did_you_mean(value, choices) if choices else ""
            raise ArgumentError(
                f"{what}: {key} should be {_words(hints[key])}, got {value!r}.{hint}".removesuffix("."), key
            )
    missing = [k for k, p in known.items() if p.default is p.empty and k not in given]
    if missing:
        raise ArgumentError(f"{what} needs {', '.join(missing)}{mend.format(missing[0])}")
    return known


def resolved(
    what: str, build: Callable[..., Any], given: Mapping[str, Any], *, automatic: Collection[str] = ()
) -> dict[str, Any]:
    """All arguments of a call as plain values; see `check` for what it takes and raises."""
    known = check(what, build, given, automatic=automatic)
    for key, value in given.items():
        if isinstance(value, numbers.Real) and math.isinf(value):  # which no store of JSON holds
            raise ArgumentError(f"{what}: {key} should be a finite number, got {value}", key)
    return {k: plain(given.get(k, p.default)) for k, p in known.items()}


def check_fields(what: Any, without: Collection[str] = ()) -> None:
    """Raises ValueError for a field of a dataclass whose value is not of its annotated type."""
    hints = _hints(type(what))
    for f in dataclasses.fields(what):
        value = getattr(what, f.name)
        if f.name not in without and not fits(value, hints.get(f.name, Any)):
            raise ValueError(f"{type(what).__name__}: {f.name} should be {_words(hints[f.name])}, got {value!r}")


def different(build: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of resolved arguments that are not the defaults, as the call takes them: with tuples for lists."""
    defaults = {k: plain(p.default) for k, p in inspect.signature(build).parameters.items() if p.default is not p.empty}
    return {k: as_tuple(v) for k, v in arguments.items() if k not in defaults or plain(defaults[k]) != plain(v)}


def as_tuple(value: Any) -> Any:
    """Lists, also inside lists, as tuples."""
    return tuple(as_tuple(v) for v in value) if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """A value as JSON has it, numbers and arrays of numpy and tensors as plain numbers; what JSON does not know becomes its repr."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return plain(value.tolist()) if hasattr(value, "__array__") and hasattr(value, "tolist") else repr(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: numbers of numpy count as numbers, its arrays and tensors as sequences; annotations of
    other things fit everything."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, h) for h in inside)
    if origin is Literal:
        return value in inside
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            return hasattr(value, "__array__")
        if origin is tuple and Ellipsis not in inside:
            return len(value) == len(inside) and all(map(fits, value, inside))
        return all(fits(v, inside[0]) for v in value)
    return True


def _words(hint: Any) -> str:
    """Such as "int" or "float or None"."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(h) for h in typing.get_args(hint))
    if hint in (None, type(None)):
        return "None"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _choices(hint: Any) -> list[Any]:
    """The values that an annotation names."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return (
        [v for part in typing.get_args(hint) for v in _choices(part)]
        if typing.get_origin(hint) in (Union, types.UnionType)
        else []
    )


def _hints(build: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of the arguments; none where they name what is known to type checkers only."""
    call: Any = build
    own = isinstance(build, type) and not (dataclasses.is_dataclass(build) and "__init__" in vars(build))
    try:
        return typing.get_type_hints(call.__init__ if own else call)  # a dataclass's fields are its arguments
    except NameError:
        return {}
