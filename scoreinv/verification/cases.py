"""What is verified on what: the cases of the table, and the settings of the methods in it.

Methods run with the number of levels that their papers use or more, so that what is left is the method's own error and not that
of a coarse schedule; sigma_max is far above the largest image of the case.
"""

from __future__ import annotations

from typing import Any

import torch

from scoreinv.priors.references import few_view_ct, four_modes, twenty_five_modes, two_modes
from scoreinv.verification.run import Case


def cases() -> list[Case]:
    """The cases of the table."""

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    return [
        Case("Gaussian, CT", "A smooth Gaussian prior on 32 x 32 pixels, 23 parallel views, 1 % noise.",
             few_view_ct(seeded()), n_problems=8, n_draws=39),
        Case("four modes", "Four components in the plane, one coordinate measured: y = 2.5, posterior variances 0.0519 and 6.3725.",
             four_modes(), fixed=True, n_draws=128),
        Case("25 modes, d = 8", "25 components in 8 dimensions, one measured through a random vector.",
             twenty_five_modes(seeded(), pixels=8)),
        Case("25 modes, d = 80", "The same in 80 dimensions.", twenty_five_modes(seeded(), pixels=80), n_problems=16),
        Case("two modes, d = 16", "Two components that differ in 2 of 16 pixels, the 14 others measured with noise 0.2.",
             two_modes(seeded())),
    ]  # fmt: skip


METHODS: dict[str, dict[str, Any]] = {
    "daps": {}, "ddnm_plus": {}, "ddrm": {}, "dds": {"n_levels": 200, "sigma_max": 40.0}, "diffpir": {}, "dps": {}, "flow_dps": {},
    "flower": {}, "mcg": {}, "mcg_diff": {"particles": 256}, "mmps": {"n_levels": 200}, "pigdm": {}, "pnp_dm": {}, "proximal": {}, "red_diff": {},
    "score_ald": {}, "score_sde": {}, "sitcom": {}, "song_exact": {"n_levels": 200}, "tds": {"particles": 256}, "tmpd": {},
}  # fmt: skip
"""Registered name -> settings for the table."""
