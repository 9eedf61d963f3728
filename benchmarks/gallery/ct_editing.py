"""Controllable generation with the small prior of CT: a region made anew, and a painted guide made into a slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gallery import ct
from gallery.draw import Panel, gray, panels
from gallery.setting import Outcome, Setting
from scoreinv.editing import SDEdit, box_mask, inpaint, posterior_method

STRENGTHS = (0.1, 0.3, 0.8)
BOX = (18, 22, 26, 20)
"""Left column, top row, width, height."""


def painted(u: Tensor) -> Tensor:
    """A guide as from a few strokes of a broad brush: five grays, without detail."""
    from scipy.ndimage import median_filter

    broad = median_filter(u.clamp(-1, 0.6).numpy(), size=9)
    grays = np.array([-1.0, -0.8, -0.1, 0.05, 0.5], dtype=np.float32)
    return torch.from_numpy(grays[np.abs(broad[..., None] - grays).argmin(-1)])


@torch.no_grad()
def run(setting: Setting) -> Outcome:
    """Both tasks on one held-out slice each."""
    held = ct.slices(setting).held_out
    prior, u, v = ct.prior(setting), held[0], held[min(3, len(held) - 1)]
    unknown, samples = box_mask(u.shape, BOX), setting.count(4, 2)
    settings: dict[str, Any] = {"samples": samples, "n_levels": setting.count(30, 4)}
    draws = inpaint(posterior_method("repaint", settings, prior), u, unknown, Generator().manual_seed(0))
    moved = float((draws - u)[:, ~unknown].abs().max())
    error = 1000 * float((draws.mean(0) - u)[unknown].square().mean().sqrt())
    spread = 1000 * float(draws.std(0)[unknown].square().mean().sqrt())
    guide = painted(v)
    made = {
        s: SDEdit(prior, 1, s, n_levels=setting.count(40, 4))(guide, Generator().manual_seed(2))[0] for s in STRENGTHS
    }
    away = {s: 1000 * float((x - guide).square().mean().sqrt()) for s, x in made.items()}
    hidden = torch.where(unknown, torch.tensor(1.0), u)
    shown = [
        Panel("Held-out slice", "", gray(u)),
        Panel("Region unknown", f"{int(unknown.sum())} pixels, white", gray(hidden)),
        *[Panel(f"Made anew, draw {k + 1}", "", gray(x)) for k, x in enumerate(draws[:2])],
        Panel("They differ by", f"{spread:.0f} HU in the region", gray(1000 * draws.std(0), 0.0, 400.0, "inferno")),
        Panel("Slice behind the guide", "not shown to the prior", gray(v)),
        Panel("Painted guide", "five grays", gray(guide)),
        *[Panel(f"SDEdit, strength {s:g}", f"{away[s]:.0f} HU from the guide", gray(x)) for s, x in made.items()],
    ]
    panels(setting.picture("ct_editing"), shown, 5, width=2.1)
    figures = {
        "inpainting": f"known pixels moved by {moved:g}; in the region the mean of {samples} draws errs {error:.0f} HU, draws differ by {spread:.0f}",
        "stroke-to-image (SDEdit)": "from the guide "
        + ", ".join(f"{away[s]:.0f} HU at strength {s:g}" for s in STRENGTHS),
    }
    return Outcome(figures, {"error_hu": error, "spread_hu": spread, "away_hu": {str(s): d for s, d in away.items()}})
