"""How usual an image is under a prior: out-of-distribution and anomaly scores (what `scoreinv score` does).

Two scores. The cheap one adds noise to the image, lets the prior denoise it, and compares the error with that of slices of other
patients (`priors.residuals`). The dear one is the likelihood, in bits per pixel at steps of 1 HU (`sampling.likelihood`). Fewer
bits alone are no sign of a usual image: a smooth one costs few, whatever it shows (Nalisnick et al. 2019, arXiv:1810.09136).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from scoreinv.files.images import read_image, read_image_set, warn_unless_hu
from scoreinv.priors.denoiser import Denoiser, NetworkPrior
from scoreinv.priors.residuals import excess, smoothed, squared_residuals, unusual_map, usual_from_psnr
from scoreinv.priors.shipped import load_network, prior_card
from scoreinv.progress import track
from scoreinv.sampling.likelihood import Bits, FlowLikelihood, Quantisation, dequantised
from scoreinv.score_picture import score_picture

REFERENCE_SLICES = 40
"""Slices at most that an image is compared with, evenly spaced in the set."""
GRAY_VALUES = Quantisation(-1.0, 32.767, 0.001)
"""CT numbers in u = HU / 1000."""
TOLERANCE = 3e-3
"""Of the flow."""
UNUSUAL_PERCENTILE = 95.0
"""An image with larger errors than this share of the reference slices is called unusual."""


@dataclass(frozen=True, eq=False)
class ImageScore:
    """What is known of an image under a prior.

    Attributes:
        sigmas: noise levels in u = HU / 1000.
        residuals: squared denoising error of every pixel, (levels, H, W) in u².
        usual: mean squared error of usual images, (levels,).
        excess: error over the usual one, all levels together; 1 is usual.
        reference: squared errors of the reference slices, (slices, levels), and their excess (slices,); None without.
        bits: the likelihood's; None where it was left out.
        seconds: that the likelihood took.
    """

    sigmas: tuple[float, ...]
    residuals: Tensor
    usual: Tensor
    excess: float
    reference: tuple[Tensor, Tensor] | None
    bits: Bits | None
    seconds: float

    @property
    def unusual(self) -> Tensor:
        """Where the image is harder to denoise than usual, (H, W)."""
        return unusual_map(self.residuals, self.usual)

    def percentiles(self) -> tuple[list[float], float] | None:
        """Share of the reference slices with smaller errors [%], at each level and all together; None without any."""
        if self.reference is None:
            return None
        errors, others = self.reference
        own = self.residuals.flatten(1).mean(1)
        return (100 * (errors < own).double().mean(0)).tolist(), 100 * float((others < self.excess).double().mean())


def score_tensor(
    prior: Denoiser,
    u: Tensor,
    sigmas: Sequence[float],
    *,
    usual: Tensor | None = None,
    reference: Sequence[tuple[Denoiser, Tensor]] = (),
    draws: int = 1,
    seed: int = 0,
) -> ImageScore:
    """Score an image.

    Args:
        prior: D, of images in u = HU / 1000.
        u: the image, (H, W), in whole HU.
        sigmas: noise levels in u of the cheap score.
        usual: mean squared errors at these levels of usual images, (levels,); by default those of the reference.
        reference: images to compare with, each with the prior as it is for its pixels.
        draws: projections of the likelihood's trace; 0 leaves the likelihood out.
        seed: of everything random; every image gets the same noise.

    Raises:
        ValueError: there is neither usual nor a reference, or u is no image of whole HU in the range of CT numbers.
    """
    if draws < 0:
        raise ValueError(f"score: draws must be 0 or more, got {draws}")
    if usual is None and len(reference) == 0:
        raise ValueError("score: the prior's card has no validation figures to compare with; give reference slices")
    GRAY_VALUES.check(u)
    own = squared_residuals(prior, u, sigmas, _rng(seed))
    compared = None
    if len(reference):
        found = [squared_residuals(p, v, sigmas, _rng(seed)) for p, v in track(reference, "reference slices")]
        errors = torch.stack([r.flatten(1).mean(1) for r in found])
        usual = errors.log().mean(0).exp() if usual is None else usual
        compared = errors, torch.tensor([excess(r, usual) for r in found], dtype=torch.float64)
    assert usual is not None
    bits, started = None, time.monotonic()
    if draws:
        flow = FlowLikelihood(prior, probes=draws, tolerance=TOLERANCE)
        bits = dequantised(flow, u[None], [_rng(seed)], GRAY_VALUES)
    return ImageScore(tuple(sigmas), own, usual, excess(own, usual), compared, bits, time.monotonic() - started)


def score_image(
    image: Path,
    *,
    prior: str | Path | None = None,
    index: int | None = None,
    pixel_mm: float | None = None,
    reference: Sequence[Path] = (),
    draws: int = 1,
    seed: int = 0,
    picture: Path | None = None,
    device: str = "cpu",
) -> str:
    """Score an image on disk, in words.

    Args:
        image: CT in Hounsfield units.
        prior: a shipped prior's name or a file; the default one where left out.
        index: of a series or volume: this slice.
        pixel_mm: side of a pixel [mm], where the file does not state it.
        reference: files of slices to compare with, of patients that the prior was not trained on.
        draws: projections of the likelihood's trace; 0 leaves the likelihood out.
        seed: of everything random.
        picture: PNG to write of where the image is unusual.
        device: where to compute.

    Raises:
        ValueError, OSError: an image is not what is expected, or the prior's card has no figures and there is no reference.
    """
    ct = read_image(image, pixel_mm, index=index)
    warn_unless_hu(image, ct.hu)
    if len(ct.hu) != 1:
        raise ValueError(f"{image}: holds {len(ct.hu)} slices; choose one with --slice")
    card = prior_card(prior)
    network = load_network(prior, device)
    u = _whole(ct.hu[0]).to(device)
    figures = _figures(card)
    sigmas = tuple(figures) or (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    usual = torch.tensor(list(figures.values()), dtype=torch.float64) if figures else None
    others = _reference(reference, device, network) if reference else []
    found = score_tensor(
        NetworkPrior(network, ct.pixel_mm), u, sigmas, usual=usual, reference=others, draws=draws, seed=seed
    )
    if picture is not None:
        bits = None if found.bits is None else smoothed(found.bits.shares[0])
        score_picture(
            picture, hu=1000 * u, unusual=found.unusual, bits=bits, title=f"{image.name} under {card['name']}"
        )
    h, w = u.shape
    title = f"{image.name}, {h} x {w} pixels of {ct.pixel_mm:g} mm, under the prior {card['name']}"
    return "\n".join([title, "", *words(found, draws), *([str(picture)] if picture else [])])


def words(score: ImageScore, draws: int) -> list[str]:
    """What a score says, for people."""
    shares = score.percentiles()
    errors = 1000 * score.residuals.flatten(1).mean(1).sqrt()
    usual = 1000 * score.usual.sqrt()
    lines = ["noise [HU]   error after denoising [HU]   usual error [HU]" + ("   percentile" if shares else "")]
    for k, sigma in enumerate(score.sigmas):
        line = f"{1000 * sigma:10g} {errors[k]:28.1f} {usual[k]:18.1f}"
        lines.append(line + (f"{shares[0][k]:13.0f}" if shares else ""))
    lines += ["", *_verdict(score, None if shares is None else shares[1])]
    return lines if score.bits is None else [*lines, "", *_bits_words(score.bits, draws, score.seconds)]


def _verdict(score: ImageScore, share: float | None) -> list[str]:
    verdict = f"Denoising errs {score.excess:.2f} times as much as is usual"
    if share is None or score.reference is None:
        verdict += " for validation slices; --reference says how much slices differ in that."
    else:
        verdict += f"; {share:.0f} % of the {len(score.reference[1])} reference slices err less: this image is "
        verdict += "UNUSUAL." if share > UNUSUAL_PERCENTILE else "not unusual among them."
    places = score.unusual
    row, column = divmod(int(places.argmax()), places.shape[1])
    place = f"Most unusual place: around row {row}, column {column}, {float(places.max()):.1f} times the usual squared error."
    return [verdict, place]


def _bits_words(bits: Bits, draws: int, seconds: float) -> list[str]:
    error = float(bits.standard_error[0])
    spread = "" if math.isnan(error) else f" ± {error:.3f}"
    cost = f"{bits.n_evaluations[0]} evaluations of the network with {draws} gradient{'s' if draws > 1 else ''} each, {seconds:.0f} s"
    return [
        f"Likelihood: {float(bits.bits[0]):.3f}{spread} bits per pixel, in steps of 1 HU ({cost}).",
        "Compare it with like images only: noise costs bits, smoothness saves them, usual or not.",
    ]


def _rng(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def _whole(hu: np.ndarray) -> Tensor:
    """(H, W) in u, rounded to whole HU."""
    return torch.from_numpy(np.rint(hu).astype(np.float32)) / 1000


def _figures(card: Mapping[str, Any]) -> dict[float, float]:
    """Noise level -> usual mean squared error, from the card's validation figures; empty if it has none."""
    found = card.get("validation_psnr_db")
    if not isinstance(found, Mapping):
        return {}
    return {float(k): usual_from_psnr(v) for k, v in found.items() if isinstance(v, int | float)}


def _reference(paths: Sequence[Path], device: str, network: Any) -> list[tuple[Denoiser, Tensor]]:
    images = read_image_set(paths)
    n = min(len(images), REFERENCE_SLICES)
    chosen = [int((k + 0.5) * len(images) / n) for k in range(n)]
    sides = [None if math.isnan(images.side_mm(i)) else images.side_mm(i) for i in chosen]
    return [
        (NetworkPrior(network, side), _whole(images.images[i]).to(device))
        for i, side in zip(chosen, sides, strict=True)
    ]
