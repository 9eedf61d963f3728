"""What `--fast`, `--best` and `--calibrated` stand for.

Measured by benchmarks/presets.py with the prior 21d4356cd3e5 (benchmarks/results/presets.md): 23 parallel views, 0.5 % noise, 4 validation
patients averaged to 128 x 128; ratio, coverage and chi^2 of a draw are 1, 90 % and 1 for draws from the posterior.

                 evaluations    PSNR     ratio    coverage    chi^2 of a draw
    default      70             35.00    1.03     92 %        0.94
    fast         20             33.60 with the quick prior ct-256-fast (75e3370da8f0), which it takes
    best         50             35.03
    calibrated   190            35.00    0.94     90 %        1.03

(Draws that are moved so that their mean is the image have its error alone, not that of a mean of M as well: their ratios are too large by
√(1 + 1/M), 12 % for the default's 4 and 3 % for 16.) `fast` and `best` give one image without uncertainty.

`calibrated` is the default with 16 draws instead of 4: its standard deviations are known to 18 % instead of 41 %. Decoupled annealing
(30 levels, 8 draws, 240 evaluations), which it was before, has a ratio of 0.98 and 92 %, but a mean 2.0 dB below, and a continuous ranked
probability score of 26.4 HU where 8 draws of the default have 20.1. Draws from σ = 0.6 are as good here, but not within narrow arcs
(posterior/proximal.py).

At 256 x 256 the image alone has 33.1, 34.0, 34.2, 34.3 and 34.2 dB after 10, 15, 20, 30 and 50 evaluations.

The settings are for gray images that the CT prior knows, whatever the operator: `proximal` knows noise-free data and looks for pixels without
data itself.
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
        "calibrated": Preset("proximal", {"samples": 16}),
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
