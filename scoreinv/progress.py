"""A progress bar that stays away from logs, pipes and sweeps: it shows only on a terminal, and never under `quiet`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

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


class Bar:
    """A bar that its user moves, with a word about the last item; silent where nobody can see it."""

    def __init__(self, shown: Any = None) -> None:
        self._shown = shown

    def advance(self, text: str = "") -> None:
        """One more item is done."""
        if self._shown is not None:
            self._shown.set_postfix_str(text, refresh=False)
            self._shown.update()


@contextlib.contextmanager
def bar(description: str, total: int) -> Iterator[Bar]:
    """A bar on stderr that tells the time left, moved by its `advance`."""
    if _quiet.get() or not sys.stderr.isatty():
        yield Bar()
        return
    from tqdm import tqdm

    with tqdm(desc=description, total=total, leave=False) as shown:
        yield Bar(shown)


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
