"""Which constants of a method are worth a search, and where it looks: for `scoreinv tune`.

A class of a plugin says it with an attribute, `tunable = {"weight": Range(1e-3, 1.0, log=True)}`. Numbers of levels and of draws are
not here: more of them is better or worth its cost, which is not for a search to decide.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from scoreinv import plugins


class Range(NamedTuple):
    """Where a constant is searched for.

    Attributes:
        low, high: ends, both included.
        log: look at ratios instead of differences.
        integer: whole numbers only.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def suggest(self, trial: Any, key: str) -> float | int:
        """The value that a trial of Optuna proposes."""
        if self.integer:
            return int(trial.suggest_int(key, int(self.low), int(self.high), log=self.log))
        return float(trial.suggest_float(key, self.low, self.high, log=self.log))


_ETA = Range(0.0, 1.0)
_FIRST, _LAST = Range(1.0, 30.0, log=True), Range(0.003, 0.03, log=True)
_ITERATIONS = Range(1, 20, log=True, integer=True)

RANGES: dict[str, dict[str, Range]] = {
    "cgls": {"iterations": Range(1, 100, log=True, integer=True)},
    "daps": {"prior_std": Range(0.02, 1.0, log=True), "sigma_max": _FIRST, "sigma_min": _LAST},
    "ddnm": {"eta": _ETA, "sigma_max": _FIRST, "iterations": _ITERATIONS},
    "ddnm_plus": {"eta": Range(0.05, 1.0), "sigma_max": _FIRST, "iterations": _ITERATIONS},
    "ddrm": {"eta": _ETA, "eta_b": _ETA},
    "dds": {"trust": Range(0.3, 10.0, log=True), "eta": _ETA, "sigma_max": _FIRST},
    "dds_published": {"gamma": Range(0.01, 100.0, log=True), "eta": _ETA, "sigma_max": _FIRST},
    "diffpir": {"lam": Range(0.01, 10.0, log=True), "zeta": Range(0.0, 1.0)},
    "dps": {"zeta": Range(0.1, 10.0, log=True)},
    "fista_tv": {"weight": Range(1e-4, 1.0, log=True)},
    "fista_wavelet": {"weight": Range(1e-4, 1.0, log=True)},
    "flow_dps": {"shift": Range(1.0, 10.0, log=True), "iterations": _ITERATIONS},
    "flower": {"sigma_max": _FIRST, "iterations": _ITERATIONS},
    "mcg": {"zeta": Range(0.1, 10.0, log=True), "relaxation": Range(0.1, 1.0)},
    "mmps": {"iterations": Range(1, 5, integer=True), "sigma_max": _FIRST, "eta": _ETA},
    "padis": {"guidance": Range(0.1, 7.9, log=True)},
    "pigdm": {"data_std": Range(0.05, 2.0, log=True), "damping": Range(0.0, 1.0)},
    "pnp_dm": {"rho_max": Range(0.3, 10.0, log=True), "rho_min": Range(0.005, 0.1, log=True), "decay": Range(0.7, 0.95)},
    "proximal": {
        "trust": Range(0.5, 8.0, log=True), "relaxation": Range(1.0, 1.95), "sigma_max": Range(0.1, 10.0, log=True),
        "sigma_min": _LAST, "draw_sigma": Range(0.1, 40.0, log=True),
    },
    "red_diff": {"weight": Range(0.01, 10.0, log=True), "learning_rate": Range(0.01, 0.5, log=True)},
    "score_ald": {"step_size": Range(0.01, 0.35, log=True), "gamma": Range(0.5, 5.0, log=True)},
    "score_sde": {"rate": Range(0.05, 1.0, log=True), "snr": Range(0.03, 0.5, log=True)},
    "sirt": {"iterations": Range(1, 300, log=True, integer=True)},
    "sitcom": {"learning_rate": Range(0.003, 0.1, log=True), "discrepancy": Range(0.5, 2.0)},
    "song_exact": {"snr": Range(0.05, 0.6, log=True), "lam": Range(0.3, 1.0)},
    "song_faithful": {"snr": Range(0.05, 0.6, log=True), "lam": Range(0.3, 1.0)},
    "tmpd": {"least": Range(1e-3, 0.1, log=True)},
}  # fmt: skip
"""By the name of the method; levels are in the prior's own unit."""


def ranges_of(method: str) -> dict[str, Range]:
    """The ranges of a registered method: of its class, where that has `tunable`, or of the table.

    Raises:
        ValueError: no such method, or it names none.
    """
    found: Mapping[str, Range] = getattr(plugins.get("methods", method), "tunable", None) or RANGES.get(method, {})
    if not found:
        raise ValueError(f"method {method!r} names no constants to tune: give --range key=low:high")
    return dict(found)


def parse_ranges(method: str, texts: Iterable[str]) -> dict[str, Range]:
    """{"trust": Range(0.5, 6, log=True)} from "trust=0.5:6:log"; whole numbers alone where both ends are written without a point
    and the setting's own value is not a fraction.

    Raises:
        ValueError: a text is of another form, or the ends are in the wrong order.
    """
    return dict(_range(method, text) for text in texts)


def _range(method: str, text: str) -> tuple[str, Range]:
    key, _, ends = text.partition("=")
    parts = ends.split(":")
    try:
        low, high = (float(part) for part in parts[:2])
    except ValueError:
        low = high = math.nan
    log = parts[2:] == ["log"]
    if not key or parts[2:] not in ([], ["log"]) or not -math.inf < low < high < math.inf or (log and low <= 0):
        raise ValueError(
            f"a range is written key=low:high or key=low:high:log with low < high (log: 0 < low), got {text!r}"
        )
    parameter = inspect.signature(plugins.get("methods", method)).parameters.get(key)
    fraction = parameter is not None and isinstance(parameter.default, float)
    whole = all(part.strip().lstrip("+-").isdigit() for part in parts[:2])
    return key, Range(low, high, log, whole and not fraction)
