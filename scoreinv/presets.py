"""What `--fast`, `--best` and `--calibrated` stand for.

Measured by benchmarks/presets.py with the prior 21d4356cd3e5 (benchmarks/results/presets.md): 23 parallel views, 0.5 % noise, 4 validation
patients averaged to 128 x 128; ratio, coverage and chi^2 of a draw are 1, 90 % and 1 for draws from the posterior. The settings of
`calibrated` were chosen on the same patients, with an earlier prior.

                 evaluations    PSNR     ratio    coverage    chi^2 of a draw    CRPS
    default      50             34.96    0.52     73 %        0.89               21.8 HU
    fast         20             33.60 with the quick prior ct-256-fast (75e3370da8f0), which it takes
    best         50             34.98
    calibrated   240            32.94    0.98     92 %        1.05               26.4 HU

At 256 x 256 the image alone has 33.1, 33.9, 34.2, 34.2 and 34.2 dB after 10, 15, 20, 30 and 50 evaluations.
`fast` and `best` give one image without uncertainty.

`calibrated` is DAPS with one evaluation a level and r² = σ² s² / (σ² + s²), whose draws of the data's part are exact.
s = 0.1 is a compromise: the ratio is 0.70 on the patient with the noisiest truth and 1.1 on the others. With the prior before, on the first
patient, MMPS had a ratio of 0.46 (30 levels, 3 CG steps), DDS 0.54, PnP-DM 1.59 with a chi^2 of 4.1 (75
evaluations a draw). It is not free: its mean is 2.0 dB below the default's.

The settings are for gray images that the CT prior knows, whatever the operator: both methods know noise-free data, and `proximal` looks for
pixels without data itself. The levels of `calibrated` for those (`unseen`) are the method's own first level, not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from scoreinv.priors.shipped import shipped


class Preset(NamedTuple):
    """A method with settings.

    Attributes:
        method: registered name.
        settings: of its constructor.
        prior: name of a shipped prior that it takes where there is one; else the default prior.
    """

    method: str
    settings: Mapping[str, Any]
    prior: str | None = None

    def prior_name(self) -> str | None:
        """Its own prior if that is shipped, None for the default one."""
        return self.prior if self.prior in shipped() else None


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "fast": Preset("proximal", {"n_levels": 20, "samples": 1}, prior="ct-256-fast"),
        "best": Preset("proximal", {"n_levels": 50, "samples": 1}),
        "calibrated": Preset("proximal", {"samples": 16, "draw_levels": 20}),
    }
)


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset is named {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
