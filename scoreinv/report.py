"""What the command line says about files and results, in words and pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from scoreinv import configure, metrics, plugins, trust
from scoreinv.baselines.learned import FORM as BASELINE
from scoreinv.baselines.learned import load_network
from scoreinv.files import dxchange, volume
from scoreinv.files.ct_pd import is_projections, read_projections
from scoreinv.files.dxchange import read_any_scan
from scoreinv.files.images import PICTURES, read_image, read_image_set
from scoreinv.files.reconstruction import FORMAT as RECONSTRUCTION
from scoreinv.files.reconstruction import Reconstruction, read_reconstruction
from scoreinv.files.slices import is_zarr
from scoreinv.files.volume import FORMAT as VOLUME
from scoreinv.priors.autoencoder import FORM as AUTOENCODER
from scoreinv.priors.checkpoint import card_format, checked_card, load_prior
from scoreinv.priors.classifier import FORMAT as CLASSIFIER
from scoreinv.priors.conditional import FORMAT as CONDITIONAL
from scoreinv.priors.latent import FORM as LATENT
from scoreinv.priors.shipped import prior_card, prior_path, shipped
from scoreinv.rebinning import heights
from scoreinv.units import hu_from_mu

HOPELESS = 3.0
"""chi^2 of one image beyond which it is said that it does not fit; draws are judged more closely."""


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
    if r.chi2 is not None:
        parts.append(f"{'relative residual' if s.get('noise_std') == 0 else 'chi^2'} {float(r.chi2.mean()):.3g}")
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
    if r.chi2_samples is not None and r.settings.get("noise_std") != 0 and len(r.samples) > 1:
        chi2 = float(r.chi2_samples.mean())
        lines.append(f"draws: chi^2 {chi2:.3g}, {trust.verdict(chi2, math.prod(r.settings.get('data_shape', [1])))}")
    elif r.chi2 is not None and r.settings.get("noise_std") != 0 and float(r.chi2.mean()) > HOPELESS:
        chi2 = float(r.chi2.mean())
        lines.append(f"image: chi^2 {chi2:.3g}, {trust.verdict(chi2, math.prod(r.settings.get('data_shape', [1])))}")
    if r.half_width is not None and r.mu_water_per_mm is not None:
        c = r.settings["calibration"]
        width = 1000 * float(r.half_width.median()) / r.mu_water_per_mm
        lines.append(
            f"interval: mean ± {width:.0f} HU (median) holds {c['level']:.0%} of the tissue, calibrated on {c['patients']} patients "
            f"({c['coverage_after']:.0%} of those left out; {c['coverage_before']:.0%} by the draws alone)"
        )
    elif "calibration_unfit" in r.settings:
        lines.append(_unfit(r.settings))
    elif r.std is not None:
        lines.append(
            "interval: not calibrated for such scans, the draws' spread may be too small; see `scoreinv calibrate`"
        )
    if r.measured is not None:
        share = trust.support_map(r.measured, r.mean)
        lines.append(
            f"support: the data determine {float(share.mean()):.0%} of the structure (least in any tenth of the image: "
            f"{float(share.flatten().quantile(0.1)):.0%}); the rest comes from the prior"
        )
    return "\n".join(lines)


def _unfit(settings: Mapping[str, Any]) -> str:
    """Why a calibration is not applied, and the command that makes one that is."""
    changed, method = settings["calibration_unfit"], settings["method"]
    defaults = configure.default_settings(method)
    words = ", ".join(f"{k} {json.dumps(then)} and not {json.dumps(now)}" for k, (then, now) in changed.items())
    own = {k: settings[k] for k, value in defaults.items() if k in settings and settings[k] != value}
    sets = [f" --set {shlex.quote(f'{k}={json.dumps(value)}')}" for k, value in own.items()]
    return (
        f"interval: the calibration for such scans was measured with other settings ({words}) and is not applied, the draws' spread may "
        f"be too small; `scoreinv calibrate PATIENTS.h5 --out FILE.json --method {method}{''.join(sets)}`, with the --views and --noise of "
        "the scan, makes one for these, `scoreinv reconstruct --calibration FILE.json` applies it"
    )


def draw(path: Path, r: Reconstruction) -> None:
    """The picture of a reconstruction (of the middle slice of several).

    Raises:
        ValueError: the images are not gray CT.
    """
    from scoreinv.pictures import reconstruction_picture

    if r.mu_water_per_mm is None:
        raise ValueError("--picture shows CT images in Hounsfield units; this operator's images have none")
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
        support=None if r.measured is None else middle(trust.support_map(r.measured, r.mean)),
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


def describe_file(path: Path | None) -> str:
    """What a scan, a reconstruction, a prior, a learned baseline's weights or an image holds.

    Raises:
        ValueError, OSError: the file is none of these.
    """
    if path is not None and path.suffix == ".safetensors" and card_format(path) == BASELINE:
        return _describe_baseline(path)
    if path is None or path.suffix == ".safetensors" or str(path) in shipped():
        return _describe_prior(prior_path(path))
    if is_zarr(path):
        return _describe_volume(path)
    if is_projections(path):
        return _describe_projections(path)
    if path.is_file():
        import h5py

        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                kind, is_images, is_raw = file.attrs.get("format"), "hu" in file, "exchange" in file
            if kind == VOLUME:
                return _describe_volume(path)
            if kind == RECONSTRUCTION:
                return _describe_reconstruction(path)
            if is_raw:
                return dxchange.about(path)
            if is_images:
                return _describe_images(path)
            if not is_images:
                return _describe_scan(path)
    unsized = path.suffix.lower() in PICTURES
    images = read_image(path, 1.0 if unsized else None)
    n, h, w = images.hu.shape
    pixels = "pixels of unknown size" if unsized else f"pixels of {images.pixel_mm:g} mm"
    return f"{path}: CT, {n} slice{'s' if n > 1 else ''} of {h} x {w}, {pixels}, {images.hu.min():.0f} to {images.hu.max():.0f} HU"


_NETWORKS = {
    CONDITIONAL: "conditional prior", CLASSIFIER: "classifier of noisy images", LATENT: "latent prior", AUTOENCODER: "autoencoder",
}  # fmt: skip
"""What else weights may be, by the format of their card."""


def _describe_prior(path: Path) -> str:
    form = card_format(path)
    if form in _NETWORKS:
        kind, card = _NETWORKS[form], checked_card(path, what=f"a {_NETWORKS[form]}", form=form)
        n = sum(tensor.numel() for tensor in load_file(path).values())
    else:
        model, card = load_prior(path)
        kind, n = "prior", sum(p.numel() for p in model.parameters())
    return f"{path.name}: {kind}, {n / 1e6:.2f} million weights\n{json.dumps(card, indent=2)}"


def _describe_baseline(path: Path) -> str:
    name = str(checked_card(path, what="a baseline's weights", form=BASELINE).get("method"))
    network, card = load_network(name, path)
    n = sum(p.numel() for p in network.parameters())
    parts = {key: _mapping(card, key) for key in ("geometry", "operator", "data", "training", "reconstruction_psnr_db")}
    geometry, data, psnr = parts["geometry"], parts["data"], parts["reconstruction_psnr_db"]
    angles = geometry.get("angles_degrees") or []
    shapes = " -> ".join(str(tuple(geometry.get(k) or ())) for k in ("image_shape", "data_shape"))
    views = f", {len(angles)} views from {angles[0]:g} to {angles[-1]:g} degrees" if angles else ""
    levels = ", ".join(f"{r:g}" for r in parts["training"].get("noise", []))
    scores = ", ".join(f"{p:g} dB at noise {r}" for r, p in psnr.items()) or "none"
    lines = [
        f"{path.name}: weights of the learned baseline {name}, {n / 1e6:.2f} million",
        str(card.get("description", "")),
        f"trained on: {geometry.get('operator', 'an operator that is not stated')} {shapes}{views}, noise {levels or 'not stated'} "
        "(standard deviation over the mean of the data)",
        f"operator: {json.dumps(parts['operator'])}",
        f"training: {card.get('steps', '?')} steps in {card.get('hours', '?')} hours, {data.get('images', '?')} images of "
        f"{data.get('patients', '?')} patients; average: {card.get('average', 'not stated')}",
        f"PSNR on {data.get('validation_patients', 0)} validation patients: {scores} ({card.get('reconstruction_psnr_convention', '')})",
        f"network: {json.dumps(_mapping(card, 'network'))}",
        f"SHA-256: {card['sha256']}, as the card says",
        f"use: scoreinv reconstruct SCAN --method {name} --set weights={path}",
    ]
    return "\n".join(line for line in lines if line)


def _mapping(card: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = card.get(key)
    return found if isinstance(found, Mapping) else {}


def _describe_scan(path: Path) -> str:
    scan = read_any_scan(path)
    p = scan.problem
    std = torch.as_tensor(p.noise_std)
    noise = f"{float(std.min()):.4g}" + (f" to {float(std.max()):.4g}" if std.numel() > 1 else "")
    lines = [
        f"{path}: scan, data {tuple(p.y.shape)}, {float(p.y.min()):.4g} to {float(p.y.max()):.4g}",
        f"operator: {_about_operator(p.A)}",
        f"noise: standard deviation {noise}"
        if scan.noise_known
        else "noise: not stated, to be estimated from the data",
        f"slices: at {', '.join(f'{z:g}' for z in scan.z_mm)} mm" if scan.z_mm else "",
        f"photons: {scan.photons:g}" if scan.photons else "",
        f"truth: {'stored' if p.truth is not None else 'unknown'}",
        f"info: {json.dumps(scan.info)}" if scan.info else "",
    ]
    return "\n".join(line for line in lines if line)


def _describe_images(path: Path) -> str:
    """A training set, of one patient or several."""
    images = read_image_set([path])
    sides = [side for side in images.pixel_mm if side > 0]
    shapes = ", ".join(f"{h} x {w}" for h, w in sorted({image.shape for image in images.images})[:3])
    size = f"pixels of {min(sides):g} to {max(sides):g} mm" if sides else "pixels of unknown size"
    patients = "1 patient" if images.n_patients == 1 else f"{images.n_patients} patients"
    low, high = min(int(i.min()) for i in images.images), max(int(i.max()) for i in images.images)
    return f"{path}: CT, {len(images.images)} slices of {patients}, {shapes}, {size}, {low} to {high} HU"


def _describe_projections(folder: Path) -> str:
    p = read_projections(folder)
    (columns, rows), (low, high) = p.views[0].shape, heights(p)
    turns = abs(p.column("phi")[-1] - p.column("phi")[0]) / (2 * math.pi)
    return (
        f"{folder}: DICOM-CT-PD, {len(p.views)} views in {turns:.1f} turns, {columns} columns and {rows} rows of a {p.detector.lower()} detector, "
        f"{len(p.spots)} place{'s' if len(p.spots) > 1 else ''} of the focal spot\nslices from {low:.1f} to {high:.1f} mm are seen from all sides: "
        f"scoreinv rebin {shlex.quote(str(folder))} --z {(low + high) / 2:.1f} --out scan.h5"
    )


def _describe_volume(path: Path) -> str:
    with volume.opened(path) as found:
        return f"{path}: {volume.summary(found)}\nsettings: {json.dumps(found.settings)}"


def _describe_reconstruction(path: Path) -> str:
    r = read_reconstruction(path)
    return f"{path}: reconstruction, samples {tuple(r.samples.shape)}, {summary(r)}\nsettings: {json.dumps(r.settings)}\nversions: {json.dumps(r.versions)}"


def _about_operator(operator: object) -> str:
    """Its arguments, long sequences by their number and ends, angles in degrees."""
    if not dataclasses.is_dataclass(operator):
        return _cut(repr(operator))
    words = [
        f"{f.name} {_about_value(f.name, getattr(operator, f.name))}" for f in dataclasses.fields(operator) if f.repr
    ]
    return f"{type(operator).__name__}, {', '.join(words)}"


def _about_value(name: str, value: Any) -> str:
    if not isinstance(value, tuple) or len(value) <= 3:
        return _cut(" x ".join(map(str, value)) if isinstance(value, tuple) and name.endswith("shape") else str(value))
    if not all(isinstance(v, int | float) for v in value):
        return f"({len(value)} values)"
    scale, unit = (180 / math.pi, " degrees") if name == "angles" else (1.0, "")
    return f"({len(value)} from {scale * value[0]:.4g} to {scale * value[-1]:.4g}{unit})"


def _cut(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ..."
