"""What the command line says about files and results, in words and pictures."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scoreinv import configure, metrics, plugins, trust
from scoreinv.files.reconstruction import Reconstruction
from scoreinv.priors.shipped import DEFAULT as DEFAULT_PRIOR
from scoreinv.priors.shipped import prior_card, shipped
from scoreinv.units import hu_from_mu


def scores(image_hu: Tensor, truth_hu: Tensor) -> tuple[float, float]:
    """PSNR and SSIM (Gaussian 11 x 11) on the window of -1000 to 1000 HU mapped to [0, 1], range 1; mean over slices."""
    x, ref = metrics.window(image_hu), metrics.window(truth_hu)
    return float(metrics.psnr(x, ref, 1.0).mean()), float(metrics.ssim(x, ref, 1.0).mean())


def summary(r: Reconstruction) -> str:
    """One line: method, samples, cost, fit to the data, and errors where the truth is known."""
    s = r.settings
    parts = [str(s.get("method", "?")), f"{len(r.samples)} image{'s' if len(r.samples) > 1 else ''}"]
    if s.get("network_evaluations_per_image"):
        parts.append(f"{s['network_evaluations_per_image']:g} network evaluations")
    if s.get("network_gradients_per_image"):
        parts.append(f"{s['network_gradients_per_image']:g} gradients of it")
    if "seconds" in s:
        parts.append(f"{s['seconds']:.1f} s")
    if r.chi2 is not None and math.isfinite(misfit := float(r.chi2.mean())):
        parts.append(f"{'relative residual' if r.noise == 'absent' else 'chi^2'} {misfit:.3g}")
    if r.truth is not None and r.mu_water_per_mm is not None and r.mean_hu is not None:
        psnr, ssim = scores(r.mean_hu, hu_from_mu(r.truth, r.mu_water_per_mm))
        parts.append(f"PSNR {psnr:.2f} dB, SSIM {ssim:.3f} against the truth")
    return ", ".join(parts)


def judgement(r: Reconstruction) -> str:
    """Lines for people who must decide whether to believe an image: fit to the data, and what comes from the prior."""
    lines = []
    if (raised := r.settings.get("noise_raised", 1.0)) > 1:
        lines.append(
            f"noise: estimated from the data, then raised {raised:.3g} times to what the image leaves of them (noise that neighbouring cells "
            "share, or errors of the model); --noise-std states it"
        )
    if r.verdict:
        lines.append(r.verdict)
    if r.half_width is not None and r.mu_water_per_mm is not None:
        c = r.settings["calibration"]
        width = 1000 * float(r.half_width.median()) / r.mu_water_per_mm
        lines.append(
            f"interval: mean ± {width:.0f} HU (median) holds {c['level']:.0%} of the tissue, calibrated on {c['patients']} patients "
            f"({c['coverage_after']:.0%} of those left out; {c['coverage_before']:.0%} by the draws alone){_on_own_data(c)}"
        )
    elif r.interval is not None:
        hu = None if r.mu_water_per_mm is None else 1000 * float(r.interval.median()) / r.mu_water_per_mm
        lines.append(
            f"interval: uncalibrated, mean ± {'half_width' if hu is None else f'{hu:.0f} HU (median)'} is Student's {r.level:.0%} of "
            f"{len(r.samples)} draws; {_uncalibrated(r.settings)}"
        )
    if (share := r.support) is not None:
        off = f"; data without noise count as {trust.LEAST_NOISE:.1%} off" if r.noise == "absent" else ""
        lines.append(
            f"support: the data determine {float(share.mean()):.0%} of the structure (least in any tenth of the image: "
            f"{float(share.flatten().quantile(0.1)):.0%}); the rest comes from the prior{off}"
        )
    return "\n".join(lines)


def _on_own_data(calibration: Mapping[str, Any]) -> str:
    """What is to be said of a calibration without noise that cannot tell data of another origin."""
    if calibration["conditions"]["relative_noise"] > 0 or calibration.get("residual") is not None:
        return ""
    return "; measured on data of the operator itself: of data that it does not explain exactly, as a scanner's, fewer may lie within"


def _uncalibrated(settings: Mapping[str, Any]) -> str:
    """Why no calibration is applied, and the command that makes one that is."""
    if "calibration_unfit" not in settings:
        why = f" ({words})" if (words := settings.get("calibration_refused")) else ""
        return f"not calibrated for such scans{why}, the draws' spread may be too small; see `scoreinv calibrate`"
    changed, method = settings["calibration_unfit"], settings["method"]
    defaults = configure.default_settings(method, without=("samples",))
    words = ", ".join(f"{k} {json.dumps(then)} and not {json.dumps(now)}" for k, (then, now) in changed.items())
    own = {k: settings[k] for k, value in defaults.items() if k in settings and settings[k] != value}
    sets = [f" --set {shlex.quote(f'{k}={json.dumps(value)}')}" for k, value in own.items()]
    prior = (settings.get("prior") or {}).get("name", DEFAULT_PRIOR)
    of = [f" --samples {settings['samples']}"] if "samples" in settings else []
    of += [] if prior == DEFAULT_PRIOR else [f" --prior {prior if prior in shipped() else 'FILE.safetensors'}"]
    return (
        f"the calibration for such scans was measured with other settings ({words}) and is not applied, the draws' spread may "
        f"be too small; `scoreinv calibrate PATIENTS.h5 --out FILE.json --method {method}{''.join(of + sets)}`, "
        "with the --operator, --geometry, --views and --noise of the scan, makes one for these, `scoreinv reconstruct --calibration FILE.json` "
        "applies it"
    )


def check_drawable(hounsfield: bool) -> None:
    """Raises ValueError for images without Hounsfield units, which `draw` does not show."""
    if not hounsfield:
        raise ValueError("--picture shows CT images in Hounsfield units; this operator's images have none")


def draw(path: Path, r: Reconstruction) -> None:
    """The picture of a reconstruction (of the middle slice of several).

    Raises:
        ValueError: the images are not gray CT.
    """
    from scoreinv.pictures import reconstruction_picture

    check_drawable(r.mu_water_per_mm is not None)
    assert r.mu_water_per_mm is not None
    mu_water = r.mu_water_per_mm

    def middle(image: Tensor | None) -> Tensor | None:
        if image is None:
            return None
        return image if image.ndim == 2 else image[image.shape[0] // 2]

    def hu(image: Tensor | None) -> Tensor | None:
        image = middle(image)
        return None if image is None else hu_from_mu(image, mu_water)

    std, half_width = middle(r.std), middle(r.half_width)
    mean_hu = middle(r.mean_hu)
    assert mean_hu is not None
    reconstruction_picture(
        path, mean_hu=mean_hu, std_hu=None if std is None else 1000 * std / mu_water,
        half_width_hu=None if half_width is None else 1000 * half_width / mu_water, fbp_hu=hu(r.fbp), truth_hu=hu(r.truth),
        support=middle(r.support),
        title=_title(r), pixel_mm=r.pixel_mm, window=_gray_window(mean_hu),
    )  # fmt: skip


def _gray_window(hu: Tensor) -> tuple[float, float]:
    """-1000 to 1000 HU, or the image's own range where it is far from that (a tooth, a metal part)."""
    high = float(hu.flatten().kthvalue(max(1, int(0.99 * hu.numel()))).values)
    return (-1000.0, 1000.0) if high < 2000 else (-1000.0, float(f"{high:.2g}"))


def _title(r: Reconstruction) -> str:
    """Such as "ParallelBeamCT, 23 views: proximal"."""
    shape = r.settings.get("data_shape", [])
    views = f", {shape[0]} views" if len(shape) == 2 and "CT" in str(r.settings.get("operator")) else ""
    return f"{r.settings.get('operator', 'scan')}{views}: {r.settings.get('method', '?')}"


def listing(kinds: Sequence[str]) -> str:
    """Names of operators and methods with the first line of what their class says, and of priors with what their card says."""
    lines = []
    for kind in kinds:
        lines.append(f"{kind}:")
        if kind == "priors":
            lines += [f"  {name:18s} {prior_card(name).get('description', '')}" for name in shipped()]
            continue
        for name in plugins.names(kind):
            lines.append(f"  {name:18s} {_first_line_about(kind, name)}".rstrip())
    return "\n".join(lines)


def _first_line_about(kind: str, name: str) -> str:
    """Of the class's docstring; for a plugin that cannot be imported, why."""
    try:
        return ((plugins.get(kind, name).__doc__ or "").strip().splitlines() or [""])[0]
    except ValueError as error:
        return f"({error})"
