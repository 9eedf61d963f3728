"""The probability flow as a code of digits: there and back, the same code from two networks, and what lies between two digits."""

from __future__ import annotations

import torch
from torch import Tensor

from gallery import digits
from gallery.digits_models import LOW, trained
from gallery.draw import Panel, gray, panels, tiled
from gallery.setting import Outcome, Setting
from scoreinv.sampling.flow_ode import decode, encode, interpolate

TOP = 12.0
"""Where the flow ends: both models know the level."""
PAIRS = ((0, 1), (4, 5), (6, 7))


def run(setting: Setting) -> Outcome:
    """Encode held-out digits by two models, decode them, and interpolate."""
    found = digits.data()
    n = setting.count(24, 2)
    x = found.held_out[:n]
    (_, edm), (_, vp) = (trained(setting, name) for name in ("EDM", "VP SDE"))
    limits = {"sigma_min": LOW, "sigma_max": TOP, "tolerance": 1e-4}
    z, z_2 = (encode(prior, x, **limits) for prior in (edm, vp))
    back, other = decode(edm, z, **limits), decode(vp, z, **limits)
    lost = float((back - x).square().mean().sqrt())
    alike = float(torch.corrcoef(torch.stack([z.flatten(), z_2.flatten()]))[0, 1])
    pairs = PAIRS[: setting.count(3, 1)]
    ends = [(first_of(found.held_out, found.truth, a), first_of(found.held_out, found.truth, b)) for a, b in pairs]
    between = torch.cat([interpolate(edm, a, b, 8, **limits) for a, b in ends])
    panels(
        setting.picture("digits_flow"),
        [
            Panel("Held-out digits, latents, decoded", f"back to {lost:.0e} of a range of 2 (root mean square)", gray(rows(x, z / 2, back))),
            Panel("One code, two networks", f"by VP SDE, and EDM's decoded by it; correlation {alike:.3f}", gray(rows(x, z_2 / 2, other))),
            Panel("Between two digits", "on the great circle between their latents", gray(tiled(between.clamp(-1, 1), 8))),
        ],
        3,
        width=3.6,
        aspect=3 / 8,
    )  # fmt: skip
    figures = {
        "latents of images": f"{n} held-out digits come back to {lost:.1e} (root mean square, range 2)",
        "identifiable encoding of images": f"latents by EDM and by VP SDE, trained apart: correlation {alike:.3f}",
        "interpolation": f"{len(pairs)} pairs of held-out digits, 8 images each",
    }
    return Outcome(figures, {"lost": lost, "correlation": alike})


def first_of(images: Tensor, labels: Tensor, c: int) -> Tensor:
    """The first image of a class."""
    return images[int((labels == c).nonzero()[0])]


def rows(*images: Tensor) -> Tensor:
    """Rows of eight images each."""
    return tiled(torch.cat([part[:8].float().clamp(-1, 1) for part in images]), len(images[0][:8]))
