"""What a part of the gallery is told, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FULL_MINUTES = 60.0
"""The budget that the numbers of steps and draws in the parts are for."""


@dataclass(frozen=True)
class Setting:
    """How much may be spent, and where things lie.

    Attributes:
        out: folder of pictures and figures.
        work: folder of training states: what is trained there is not trained again.
        minutes: of two processor cores, for all parts together.
        data: folder with ct/train.h5 and ct/val.h5; None takes scikit-image's pictures.
    """

    out: Path
    work: Path
    minutes: float = FULL_MINUTES
    data: Path | None = None

    def steps(self, full: int, least: int = 2) -> int:
        """Training steps, of those with the full budget; in proportion to the budget."""
        return max(least, round(full * self.minutes / FULL_MINUTES))

    def count(self, full: int, least: int = 2) -> int:
        """Levels, images and whatever is cheap: all of them, but for budgets of less than a minute, which only see whether it runs."""
        return full if self.minutes >= 1 else least

    def draws(self, full: int, least: int = 2) -> int:
        """Draws and images that figures are measured on: all of them from a sixth of the full budget on, fewer below."""
        return max(least, round(full * min(1.0, 6 * self.minutes / FULL_MINUTES)))

    def picture(self, name: str) -> Path:
        """Where a picture goes."""
        return self.out / f"{name}.png"


def pace(steps: int, ema: float) -> dict[str, Any]:
    """Length, warm-up and decay of the average of a training: short ones warm up and forget faster."""
    return {"steps": steps, "warmup": max(1, min(100, steps // 10)), "ema": (min(ema, max(0.0, 1 - 5 / steps)),)}


@dataclass(frozen=True)
class Outcome:
    """What a part has measured.

    Attributes:
        figures: by the name of a system, its figure in words: a row of the table each.
        numbers: the same as numbers, for other tables.
    """

    figures: Mapping[str, str]
    numbers: Mapping[str, Any] = field(default_factory=dict)


Part = Callable[[Setting], Outcome]
"""Trains, samples, measures, writes its pictures."""
