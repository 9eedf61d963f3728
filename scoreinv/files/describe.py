"""An operator as plain data, {"name": ..., "arguments": {...}}, and back.

Arrays and long sequences go into datasets under operator/, referred to as {"dataset": "operator/angles"}. A
composition is {"name": "composition", "outer": {...}, "inner": {...}}. scoreinv.plugins decides which class a name
stands for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from scoreinv import plugins
from scoreinv.files import hdf5
from scoreinv.linop import Composition, LinearOperator, Operator

LONGEST_INLINE = 16
"""Sequences with more entries than this become datasets."""


def describe(operator: Operator) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description of an operator and the datasets that it refers to, by name.

    Raises:
        ValueError: the operator is not registered.
        TypeError: an argument is of a kind that no file can hold.
    """
    arrays: dict[str, np.ndarray] = {}
    return _describe(operator, "operator", arrays), arrays


def _describe(operator: Operator, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if isinstance(operator, Composition):
        return {
            "name": "composition",
            "outer": _describe(operator.outer, f"{prefix}/outer", arrays),
            "inner": _describe(operator.inner, f"{prefix}/inner", arrays),
        }
    name = plugins.name_of("operators", type(operator))
    if not dataclasses.is_dataclass(operator):
        raise TypeError(f"{type(operator).__name__}: an operator must be a dataclass to be written to a file")
    arguments = {
        f.name: _encode(getattr(operator, f.name), f"{prefix}/{f.name}", arrays)
        for f in dataclasses.fields(operator)
        if f.init
    }
    return {"name": name, "arguments": arguments}


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Operator):
        return _describe(value, path, arrays)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) or (isinstance(value, tuple | list) and len(value) > LONGEST_INLINE):
        arrays[path] = np.asarray(value)
        if arrays[path].dtype.kind in "biuf":
            return {"dataset": path}
    elif isinstance(value, tuple | list):
        return [_encode(v, f"{path}/{k}", arrays) for k, v in enumerate(value)]
    raise TypeError(
        f"{path}: a value of type {type(value).__name__} cannot be written to a file; "
        f"expected numbers, text or arrays of numbers"
    )


def restore(file: h5py.File, description: dict[str, Any]) -> LinearOperator:
    """The operator that a description read from a file stands for.

    Raises:
        ValueError: the name is not registered, an argument is unknown, missing or refused by the operator, or a dataset
            is missing.
    """
    path = file.filename
    name = description.get("name")
    if not isinstance(name, str):
        raise ValueError(
            f'{path}: the operator has no "name"; known: composition, {", ".join(plugins.names("operators"))}'
        )
    if name == "composition":
        return _composition(file, description)
    try:
        cls = plugins.get("operators", name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    given = description.get("arguments", {})
    if not isinstance(given, dict):
        raise ValueError(
            f'{path}: the "arguments" of the operator {name!r} should be a JSON object, they are {type(given).__name__}'
        )
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    _check_arguments(f"{path}: operator {name!r}", given, fields)
    values = {key: _decode(file, value, str(fields[key].type)) for key, value in given.items()}
    try:
        operator = cls(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: operator {name!r} refuses its arguments: {error}") from error
    if not isinstance(operator, LinearOperator):
        raise ValueError(f"{path}: {name!r} is registered, but it is no LinearOperator")
    return operator


def _composition(file: h5py.File, description: dict[str, Any]) -> LinearOperator:
    parts = [description.get(side) for side in ("outer", "inner")]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f'{file.filename}: a composition needs "outer" and "inner", each an operator')
    outer, inner = (restore(file, part) for part in parts if part is not None)
    try:
        return outer @ inner
    except ValueError as error:
        raise ValueError(f"{file.filename}: {error}") from error


def _check_arguments(what: str, given: dict[str, Any], fields: dict[str, Any]) -> None:
    for key in given:
        if key not in fields:
            hint = plugins.did_you_mean(key, fields)
            raise ValueError(f"{what} has no argument {key!r}.{hint} Known: {', '.join(fields)}")
    missing = [
        key
        for key, f in fields.items()
        if key not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(map(repr, missing))}; it needs {', '.join(fields)}")


def _decode(file: h5py.File, value: Any, annotation: str) -> Any:
    """A JSON value as the argument that the operator's annotation asks for."""
    if isinstance(value, list):
        return tuple(_decode(file, v, annotation) for v in value)
    if not isinstance(value, dict):
        return value
    if "name" in value:
        return restore(file, value)
    where = value.get("dataset")
    array = hdf5.numbers(file, where) if isinstance(where, str) else None
    if array is None:
        raise ValueError(f"{file.filename}: the operator refers to the dataset {where!r}, which is not in the file")
    if "Tensor" in annotation:
        return torch.from_numpy(array)
    return array if "ndarray" in annotation else _tuple(array.tolist())


def _tuple(values: Any) -> Any:
    return tuple(_tuple(v) for v in values) if isinstance(values, list) else values
