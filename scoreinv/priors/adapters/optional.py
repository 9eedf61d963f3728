"""Libraries that only some adapters need."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str) -> Any:
    """Import a module of an optional library, whose extra has the library's name.

    Raises:
        ImportError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        message = f"{library} cannot be imported ({error}); pip install 'scoreinv[{library}]' brings it"
        raise ImportError(message, name=library) from error
