"""`scoreinv info`: what a file or a folder holds, in words, told by what is inside."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from scoreinv.baselines.learned import FORM as BASELINE
from scoreinv.baselines.learned import load_network
from scoreinv.calibration import Calibration, read_calibrations
from scoreinv.files import dxchange, volume
from scoreinv.files.ct_pd import is_projections, read_projections
from scoreinv.files.dxchange import read_any_scan
from scoreinv.files.images import PICTURES, read_image, read_image_set
from scoreinv.files.reconstruction import FORMAT as RECONSTRUCTION
from scoreinv.files.reconstruction import read_reconstruction
from scoreinv.files.slices import is_zarr
from scoreinv.files.volume import FORMAT as VOLUME
from scoreinv.priors.autoencoder import FORM as AUTOENCODER
from scoreinv.priors.checkpoint import card_format, checked_card, load_prior
from scoreinv.priors.classifier import FORMAT as CLASSIFIER
from scoreinv.priors.conditional import FORMAT as CONDITIONAL
from scoreinv.priors.latent import FORM as LATENT
from scoreinv.priors.shipped import prior_path, shipped
from scoreinv.rebinning import heights
from scoreinv.report import summary
from scoreinv.study import store
from scoreinv.tune import read_tuned, size_of


def describe_file(path: Path | None) -> str:
    """What a scan, a reconstruction, a volume, weights, an image, projections of a clinical scanner, a sweep, calibrations or tuned constants
    hold; the default prior where there is no path.

    Raises:
        ValueError, OSError: the file is none of these.
    """
    if path is not None and path.suffix == ".safetensors" and card_format(path) == BASELINE:
        return _describe_baseline(path)
    if path is None or path.suffix == ".safetensors" or str(path) in shipped():
        return _describe_prior(prior_path(path))
    if is_zarr(path):
        return _describe_volume(path)
    if (path / store.ROWS).is_file():
        return _describe_sweep(path)
    if is_projections(path):
        return _describe_projections(path)
    if path.is_file() and path.suffix == ".json":
        return _describe_json(path)
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


def _describe_sweep(folder: Path) -> str:
    rows = store.read(folder)
    failed = Counter(f"{r['label']}: {r['error_type']}" for r in rows if r["status"] == "failed")
    several = {what: len({r[what] for r in rows}) for what in ("label", "problem", "image")}
    lines = [
        f"{folder}: sweep, {len(rows)} rows, {failed.total()} of them failed: {several['label']} methods, {several['problem']} problems, "
        f"{several['image']} images",
        *(f"failed: {words}, {n} times" for words, n in failed.items()),
        f"scoreinv report {shlex.quote(str(folder))} shows them",
    ]
    return "\n".join(lines)


def _describe_json(path: Path) -> str:
    """Calibrations, tuned constants, or the card of weights, whose file lies beside it."""
    weights = path.with_suffix(".safetensors")
    if weights.is_file():
        return describe_file(weights)
    lines = _calibrations(path) or _tuned(path)
    if not lines:
        raise ValueError(
            f"{path}: this JSON holds neither calibrations nor tuned constants, and no weights lie beside it"
        )
    return "\n".join([f"{path}: {'calibrations' if _calibrations(path) else 'tuned constants'}", *lines])


def _calibrations(path: Path) -> list[str]:
    try:
        found = read_calibrations(path)
    except ValueError:
        if '"conditions"' in path.read_text(encoding="utf-8", errors="replace"):  # they are calibrations, and not whole
            raise
        return []
    lines = []
    for c in found:
        at = c.conditions
        arc = f" within {at.arc:.0%} of a whole scan's turn" if at.arc < 0.995 else ""
        seen = f" that see {at.in_view:.0%} of the image" if at.in_view < 0.995 else ""
        noisy, residual = at.relative_noise > 0, "not stated" if c.residual is None else f"{c.residual:.1e}"
        fit = f"chi^2 {c.chi2:.2f}" if noisy else f"relative residual {residual}"
        sizes = "".join(f", {words}" for words in at.sizes())
        lines.append(
            f"{at.method}, {at.samples} draws, {at.operator}, {at.n_views} views{arc}{seen}, noise {at.relative_noise:g} of the mean{sizes}: {c.level:.0%} "
            f"intervals, {c.factor:.3g} standard deviations either way; {c.patients} patients, of those left out {c.coverage_after:.0%} are held "
            f"({c.coverage_before:.0%} by the draws alone), of the worst {c.coverage_least:.0%}; draws' {fit}{_origin(c)}"
        )
    return lines


def _origin(c: Calibration) -> str:
    """Of which images it is, where it says."""
    source = c.provenance or {}
    if not source.get("files"):
        return ""
    names = ", ".join(map(str, source["files"]))
    return f"; of {names} ({source.get('images', '?')!s:.8}), seed {source.get('seed', '?')}, {source.get('date', 'no date')}"


def _tuned(path: Path) -> list[str]:
    try:
        table = read_tuned(path)
    except ValueError:
        return []
    return [
        f"{method}, noise {row.get('relative_noise', '?')} of the mean, {row.get('provenance', {}).get('operator', 'an operator that is not stated')}: "
        + (", ".join(f"{name} {row[name]}" for name in row["tuned"] if name in row) or "its own constants are as good")
        + _found(row)
        for method, rows in table.items()
        for row in rows
    ]


def _found(row: Mapping[str, Any]) -> str:
    """What the search for tuned constants found: how good, and of how much."""
    parts = [f"{row['psnr']:.2f} dB"] if isinstance(row.get("psnr"), float) else []
    parts += [f"{n} {what}" for n, what in zip(size_of(row), ("patients", "trials"), strict=True) if n]
    return f" ({', '.join(parts)})" if parts else ""


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
