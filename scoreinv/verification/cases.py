"""What is verified on what: the cases of the table, and the settings of the methods in it.

One set of settings serves all cases: levels and spreads are settings in the prior's own unit, and the own unit of a case is the
standard deviation of its images (`Case.unit`). All levels fall from `LEVELS["sigma_max"]`, at least five times the images'
standard deviation along any direction, to `LEVELS["sigma_min"]`, below the least one of any posterior. Where a method's paper or
program is known to us to take so many levels, there are as many here or more, but for `FEWER`. Nothing is tuned on the outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from scoreinv import configure, plugins
from scoreinv.linop import LinearOperator
from scoreinv.priors.references import few_view_ct, four_modes, masked_image, twenty_five_modes, two_modes
from scoreinv.verification.run import Case


def cases() -> list[Case]:
    """The cases of the table."""

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    return [
        Case("Gaussian, 23-view CT", "A smooth Gaussian prior on 32 x 32 pixels, 23 parallel views, 1 % noise.",
             few_view_ct(seeded()), n_problems=2, most_problems=4),
        Case("Gaussian, masked", "A prior of the same kind on 16 x 16 pixels, half of them known with noise 0.1.",
             masked_image(seeded()), n_problems=3, most_problems=12),
        Case("four modes", "Four components in the plane, one coordinate measured: y = 2.5, posterior variances 0.0519 and 6.3725.",
             four_modes(), fixed=True, n_problems=12, most_problems=72),
        Case("25 modes, d = 8", "25 components in 8 dimensions, one datum through a random vector.",
             twenty_five_modes(seeded(), pixels=8), n_problems=8, most_problems=48),
        Case("25 modes, d = 80", "25 components in 80 dimensions, two data through a random matrix.",
             twenty_five_modes(seeded(), pixels=80, data=2), n_problems=8, most_problems=48),
        Case("two modes, d = 16", "Two components that differ in 2 of 16 pixels, the 14 others measured with noise 0.2.",
             two_modes(seeded()), n_problems=8, most_problems=48),
    ]  # fmt: skip


LEVELS: dict[str, Any] = {"sigma_max": 64.0, "sigma_min": 0.001}
"""Settings of every method that has them but `proximal`, which does not start from noise: its levels are its defaults."""

FEWER = {
    "mcg": "1000 of 2000",
    "song_faithful": "200 of 1000",
    "tmpd": "200 of 1000",
}
"""Methods with fewer levels than in the authors' programs, to save time: MCG's for CT, Song et al.'s for 23 projections, TMPD's for
mixtures. `score_ald` has the 700 levels with 3 steps each of Song et al.'s program for MRI (arXiv:2111.08005), not the authors' own.
"""

PREFACE = (
    "One set of settings serves all cases: noise levels and other settings are in units of the standard deviation of a case's "
    f"images, and fall from {LEVELS['sigma_max']:g} to {LEVELS['sigma_min']:g} (`proximal` keeps its own, as it does not start from "
    "noise). Where we know how many levels a method's authors take, it has as many here or more, but for "
    + ", ".join(f"`{method}` ({of})" for method, of in FEWER.items())
    + ". What the last column does not name is the default. No setting was tuned on this table; the rows with snr=0.0 and "
    "those of damping show where a variance comes from. RePaint is for masks and `song_faithful` for parallel beams only; PaDIS cuts "
    "two-dimensional images into patches, and here an image is a single patch."
)
"""What a reader of the table has to know of the settings."""


def _anything(A: LinearOperator) -> bool:
    return True


def _image(A: LinearOperator) -> bool:
    return len(A.in_shape) == 2


def _is(name: str) -> Callable[[LinearOperator], bool]:
    return lambda A: isinstance(A, plugins.get("operators", name))


@dataclass(frozen=True)
class Entry:
    """A row of every case whose operator it is for.

    Attributes:
        method: a registered name.
        settings: beside the levels.
        fits: whether it is for an operator.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    fits: Callable[[LinearOperator], bool] = _anything

    @property
    def all_settings(self) -> dict[str, Any]:
        """With the levels, where the method has them."""
        levels = {} if self.method == "proximal" else LEVELS
        return {k: v for k, v in levels.items() if configure.has_setting(self.method, k)} | self.settings


METHODS: tuple[Entry, ...] = (
    Entry("daps", {"n_levels": 200}),
    Entry("daps", {"n_levels": 200, "ode_steps": 1, "prior_std": 1.0}),
    Entry("ddnm", {"n_levels": 100}),
    Entry("ddnm_plus", {"n_levels": 100}),
    Entry("ddrm"),
    Entry("dds", {"n_levels": 200}),
    Entry("dds_published", {"n_levels": 100}),
    Entry("diffpir"),
    Entry("dps", {"n_levels": 1000}),
    Entry("flow_dps"),
    Entry("flower"),
    Entry("latent_daps", {"n_levels": 200}),
    Entry("mcg", {"n_levels": 1000}),
    Entry("mcg_diff", {"particles": 256, "data_std": 1.0}),
    Entry("mmps", {"n_levels": 200}),
    Entry("padis", fits=_image),
    Entry("pigdm", {"n_levels": 200, "data_std": 1.0, "damping": 0.0}),
    Entry("pigdm", {"n_levels": 200, "data_std": 1.0, "damping": 1.0}),
    Entry("pnp_dm", {"n_sweeps": 120, "rho_max": LEVELS["sigma_max"], "rho_min": 0.002}),
    Entry("proximal"),
    Entry("proximal", {"trust": 1.0, "sigma_min": 0.01, "draw_levels": 200, "draw_sigma": 64.0}),
    Entry("red_diff", {"n_levels": 1000}),
    Entry("repaint", {"n_levels": 250, "jump_length": 10, "resamplings": 10}, _is("masking")),
    Entry("repaint", {"n_levels": 100, "jump_length": 1, "resamplings": 20}, _is("masking")),
    Entry("score_ald", {"n_levels": 700, "n_steps": 3}),
    Entry("score_sde", {"n_levels": 1000}),
    Entry("score_sde", {"n_levels": 1000, "snr": 0.0}),
    Entry("sitcom"),
    Entry("song_exact", {"n_levels": 1000}),
    Entry("song_exact", {"n_levels": 1000, "snr": 0.0}),
    Entry("song_faithful", {"n_levels": 200}, _is("parallel_beam_ct")),
    Entry("tds", {"particles": 256, "data_std": 1.0}),
    Entry("tmpd", {"n_levels": 200}),
)
"""Rows of each case."""
