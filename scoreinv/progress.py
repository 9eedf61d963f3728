"""A progress bar that stays away from logs, pipes and sweeps: it shows only on a terminal, and never under `quiet`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_quiet: ContextVar[bool] = ContextVar("scoreinv_quiet", default=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars inside this context (of this thread or task)."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The iterable itself, with a progress bar on stderr where somebody can see it.

    Args:
        iterable: what to go through.
        description: what is going on, in a word or two.
        total: number of items, where the iterable cannot tell.
    """
    if _quiet.get() or not sys.stderr.isatty():
        return iterable
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(iterable, desc=description, total=total, leave=False)
    return bar
