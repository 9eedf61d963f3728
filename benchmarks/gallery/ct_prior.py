"""A small prior of CT slices: images that it makes up, and how unusual it finds slices with something wrong in them."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Generator, Tensor

from gallery import ct
from gallery.draw import Panel, gray, panels
from gallery.setting import Outcome, Setting
from scoreinv.contact_sheet import contact_sheet
from scoreinv.image_score import ImageScore, score_tensor
from scoreinv.priors.memorisation import nearest
from scoreinv.priors.validation import Slice, denoising_psnr
from scoreinv.sampling.unconditional import generate

SIGMAS = (0.05, 0.1, 0.2, 0.5)
PATCH = 12


def spoiled(u: Tensor, seed: int) -> tuple[Tensor, tuple[int, int]]:
    """A slice with a patch of it, inside the body, exchanged for one from elsewhere turned by a quarter; and where."""
    rng = Generator().manual_seed(seed)
    inside = (torch.nn.functional.avg_pool2d((u > -0.5).float()[None, None], PATCH, 1)[0, 0] > 0.8).nonzero()
    if len(inside) < 2:
        inside = torch.cartesian_prod(torch.arange(20, 40), torch.arange(20, 40))
    while True:
        a, b = (inside[int(torch.randint(len(inside), (), generator=rng))] for _ in range(2))
        if (a - b).abs().max() >= min(PATCH, int((inside.amax(0) - inside.amin(0)).max())):
            break
    out = u.clone()
    patch = u[b[0] : b[0] + PATCH, b[1] : b[1] + PATCH].rot90()
    out[a[0] : a[0] + PATCH, a[1] : a[1] + PATCH] = patch
    return out, (int(a[0]), int(a[1]))


def run(setting: Setting) -> Outcome:
    """Samples and scores."""
    found = ct.slices(setting)
    prior, held = ct.prior(setting), found.held_out
    db = denoising_psnr(ct.network(setting), [Slice(u) for u in held], SIGMAS)
    n = setting.count(8, 2)
    with torch.no_grad():
        x = generate(
            prior, (ct.SIDE, ct.SIDE), n, Generator().manual_seed(1), n_levels=setting.count(25, 4), sigma_min=0.01
        )
    near = nearest(list(x), found.train)
    usual = statistics.median(f.distance_hu for f in nearest(list(held), found.train))
    contact_sheet(
        setting.picture("ct_prior"),
        [1000 * u for u in x],
        [torch.from_numpy(found.train.images[f.index].copy()).float().flip(f.flips) for f in near],
        [f"{f.distance_hu:.0f} HU from the nearest" for f in near],
    )
    figures = {
        "prior of CT slices": (
            f"{found.what}: denoising {db[1]:.1f} dB at σ = {SIGMAS[1]:g}; samples {statistics.median(f.distance_hu for f in near):.0f} HU "
            f"from the nearest training image, held-out slices {usual:.0f}"
        )
    }
    words, numbers = scores(setting, prior, held)
    return Outcome({**figures, "anomaly score": words}, {"psnr": db, **numbers})


def scores(setting: Setting, prior: Any, held: Tensor) -> tuple[str, dict[str, Any]]:
    """Held-out slices as they are and spoiled: which are found, and the bits of one of them."""
    m = min(len(held), setting.count(14, 3))
    reference = [(prior, u) for u in held[:m]]
    pairs = [(u, *spoiled(u, k)) for k, u in enumerate(held[:m])]
    usual = [score_tensor(prior, u, SIGMAS, reference=reference, draws=0) for u, _, _ in pairs]
    odd = [score_tensor(prior, v, SIGMAS, reference=reference, draws=0) for _, v, _ in pairs]
    change = [b.excess / a.excess for a, b in zip(usual, odd, strict=True)]
    hit = statistics.fmean(float(inside(s, place)) for s, (_, _, place) in zip(odd, pairs, strict=True))
    above = statistics.fmean(float(b.excess > a.excess) for b in odd for a in usual)
    k = max(range(m), key=lambda k: change[k])
    bits = [score_tensor(prior, u, SIGMAS, reference=reference, draws=1).bits for u in pairs[k][:2]]
    cost = [float(b.bits[0]) for b in bits if b is not None]
    shown = []
    for heading, u, s, b in (
        ("Held-out slice", pairs[k][0], usual[k], cost[0]),
        ("A patch put elsewhere, turned", pairs[k][1], odd[k], cost[1]),
    ):
        shown.append(Panel(heading, f"{b:.2f} bits per pixel", gray(u)))
        shown.append(
            Panel("Where it is unusual", f"errors {s.excess:.2f} times the usual", gray(s.unusual, 0.0, 8.0, "inferno"))
        )
    panels(setting.picture("ct_score"), shown, 4, width=2.5)
    words = (
        f"{m} held-out slices with a patch turned and put elsewhere: {100 * statistics.fmean(c > 1 for c in change):.0f} % score higher than "
        f"before, area under the curve {above:.2f}, the patch is the most unusual place in {100 * hit:.0f} %; one of them "
        f"{cost[0]:.2f} -> {cost[1]:.2f} bits per pixel"
    )
    return words, {"area": above, "raised": change, "bits": cost}


def inside(score: ImageScore, place: tuple[int, int]) -> bool:
    """Whether the most unusual place lies in the patch, to the size of the window."""
    row, column = divmod(int(score.unusual.argmax()), ct.SIDE)
    return all(at - 4 <= v < at + PATCH + 4 for v, at in zip((row, column), place, strict=True))
