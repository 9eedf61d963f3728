"""Images of a reconstruction in the formats of other programs: NIfTI, DICOM, TIFF and .npy, in Hounsfield units (shares as they are).

Rows go from front to back and columns from right to left of the patient, as a viewer shows them and as `files.images` reads them (LPS in
DICOM's words). The middle of each slice lies on the axis, at its height where that is known; the first is at 0 otherwise. Where the patient
lay is not known to a scan, so that the images do not lie over others of the same patient before they have been registered.

DICOM images are of the class CT Image, derived, of no patient; values are stored as 16-bit integers in the finest power of two that holds
them (1/8 HU for ±4096), and the unique identifiers follow from the pixels: the same image has the same ones.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from scoreinv import trust
from scoreinv.files import hdf5
from scoreinv.files.atomic import replacing
from scoreinv.files.reconstruction import FORMAT as RECONSTRUCTION
from scoreinv.files.reconstruction import read_reconstruction
from scoreinv.files.slices import is_zarr
from scoreinv.files.versions import package_version
from scoreinv.files.volume import opened
from scoreinv.units import hu_from_mu

WHAT = ("mean", "std", "half_width", "lower", "upper", "measured", "support", "fbp", "truth")
"""Images that there may be; lower and upper are the ends of the interval, support is the share that the data determine, from 0 to 1."""
DIFFERENCES = ("std", "half_width")
INTERVAL = ("half_width", "lower", "upper")
NIFTI, DICOM, OTHERS = (".nii", ".nii.gz"), ".dcm", (".tif", ".tiff", ".npy")


@dataclass(frozen=True, eq=False)
class Images:
    """Slices in Hounsfield units, or shares.

    Attributes:
        hu: (slices, H, W) float32.
        pixel_mm: side of a pixel [mm]; None where it is unknown.
        about: what they are, in words.
        z_mm: height of each slice [mm]; None where it is unknown.
        unit: "HU", or "1" for shares.
    """

    hu: np.ndarray
    pixel_mm: float | None
    about: str
    z_mm: tuple[float, ...] | None = None
    unit: str = "HU"


def images_of(path: Path, what: str = "mean", index: int | None = None) -> Images:
    """Images of a reconstruction or a volume.

    Args:
        path: of a reconstruction, or of a volume in HDF5 or Zarr.
        what: one of `WHAT`.
        index: of several slices this one alone, of a volume that need not be complete then; negative counts from the end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, it does not hold such an image, slices are missing, or its images have no Hounsfield units.
    """
    if what not in WHAT:
        raise ValueError(f"--what {what!r}: expected one of {', '.join(WHAT)}")
    read = _from_reconstruction if not is_zarr(path) and _is_reconstruction(path) else _from_volume
    stored, pixel_mm, mu_water, settings, z_mm, calibrated = read(path, index)
    if mu_water is None:
        raise ValueError(f"{path}: its images have no Hounsfield units, so they cannot be exported as CT")

    def image(name: str) -> np.ndarray:
        mu = stored(name)
        if mu is None:
            raise ValueError(f"{path}: has no {name}{_why(name)}")
        return np.asarray(1000 * mu / mu_water if name in DIFFERENCES else hu_from_mu(mu, mu_water), dtype=np.float32)

    if what in ("lower", "upper"):
        hu = image("mean") + (1 if what == "upper" else -1) * image("half_width")
    elif what == "support":
        if (measured := stored("measured")) is None:
            raise ValueError(f"{path}: has no support{_why('measured')}")
        hu = trust.support_map(torch.from_numpy(measured), torch.from_numpy(stored("mean"))).numpy()
    else:
        hu = image(what)
    unit = "1" if what == "support" else "HU"
    kind = "uncalibrated " if what in INTERVAL and not calibrated else ""
    about = f"scoreinv {package_version()}, {settings.get('method', '?')}: {kind}{what} [{unit}]"
    if z_mm is not None and index is not None:
        z_mm = (z_mm[index],)
    return Images(hu.reshape(-1, *hu.shape[-2:]), pixel_mm, about, z_mm, unit)


def write_images(path: Path, images: Images, *, slice_mm: float | None = None) -> None:
    """Write slices in the format that a name stands for: .nii, .nii.gz, .dcm (one slice), a name without suffix (the folder of a DICOM
    series, which must not be there yet), .tif, .npy.

    Args:
        path: what to write, whole or not at all.
        images: what to write there.
        slice_mm: distance of neighbouring slices [mm], the first at 0, instead of their heights; NIfTI and DICOM need one of the two where
            there are several.

    Raises:
        ValueError: another suffix, a size that is needed and not known, several slices for one DICOM file, or uneven heights in NIfTI.
        OSError: it cannot be written.
    """
    name, n = path.name.lower(), len(images.hu)
    series = not path.suffix
    lacking = [k for k in range(n) if not np.isfinite(images.hu[k]).all()]
    if lacking:
        raise ValueError(
            f"{path}: {len(lacking)} of {n} slices have no such image, the first is slice {lacking[0]}: export others, or single ones with --slice"
        )
    if name.endswith(OTHERS):
        with replacing(path) as temporary:
            _save_plain(temporary, images.hu[0] if n == 1 else images.hu, images.pixel_mm)
        return
    if not (name.endswith((*NIFTI, DICOM)) or series):
        known = ", ".join((*NIFTI, DICOM, *OTHERS))
        raise ValueError(
            f"{path}: expected a name that ends in {known}, or one without suffix for the folder of a DICOM series"
        )
    if name.endswith(DICOM) and n > 1:
        raise ValueError(
            f"{path}: one DICOM file holds one slice, there are {n}: give --slice, or a folder's name without suffix"
        )
    if images.pixel_mm is None:
        raise ValueError(
            f"{path}: needs the size of a pixel, which the reconstruction does not state; .tif and .npy do without"
        )
    z_mm = _heights(path, images, slice_mm)
    if name.endswith(NIFTI):
        written = _nifti(path, images, z_mm)
        with replacing(path) as temporary:
            temporary.write_bytes(gzip.compress(written, mtime=0) if name.endswith(".gz") else written)
    elif series:
        _write_series(path, images, z_mm)
    else:
        with replacing(path) as temporary:
            _save_dicom(temporary, images, 0, z_mm)


def _heights(path: Path, images: Images, slice_mm: float | None) -> np.ndarray:
    """Of the middles of the slices [mm], (slices,)."""
    n = len(images.hu)
    if slice_mm is not None:
        if not 0 < slice_mm < math.inf:
            raise ValueError(f"--slice-mm: expected a positive length, got {slice_mm}")
        return slice_mm * np.arange(n)
    if images.z_mm is None and n > 1:
        raise ValueError(
            f"{path}: needs the distance of the {n} slices, which the reconstruction does not state: give --slice-mm"
        )
    z_mm = np.array(images.z_mm or (0.0,))
    if (np.diff(np.sort(z_mm)) <= 0).any():
        raise ValueError(
            f"{path}: two slices have the same height: export single ones with --slice, or give --slice-mm"
        )
    return z_mm


def _distance(images: Images, z_mm: np.ndarray) -> float:
    """Of neighbouring slices [mm]; of one alone the side of its pixels."""
    assert images.pixel_mm is not None
    return float(np.median(np.abs(np.diff(z_mm)))) if len(z_mm) > 1 else images.pixel_mm


def _is_reconstruction(path: Path) -> bool:
    if not h5py.is_hdf5(hdf5.existing_file(path)):
        raise ValueError(f"{path}: expected a reconstruction or a volume, HDF5 or Zarr")
    with hdf5.reading(path) as file:
        return bool(file.attrs.get("format") == RECONSTRUCTION)


Stored = tuple[
    Callable[[str], "np.ndarray | None"],
    "float | None",
    "float | None",
    dict[str, Any],
    "tuple[float, ...] | None",
    bool,
]
"""An image by its name [1/mm], pixel_mm, mu_water_per_mm, settings, z_mm of all slices, whether their intervals are calibrated."""


def _from_reconstruction(path: Path, index: int | None) -> Stored:
    r = read_reconstruction(path)

    def stored(name: str) -> np.ndarray | None:
        image = getattr(r, "interval" if name == "half_width" else name)
        if image is None or index is None:
            return None if image is None else image.numpy()
        slices = image.reshape(-1, *image.shape[-2:])
        return np.asarray(slices[_checked(path, index, len(slices))].numpy())

    return stored, r.pixel_mm, r.mu_water_per_mm, r.settings, r.z_mm, r.half_width is not None


def _from_volume(path: Path, index: int | None) -> Stored:
    with opened(path) as volume:
        done, n = volume.done, len(volume)
        sizes = [volume.group.attrs.get(name) for name in ("pixel_mm", "mu_water_per_mm")]
        pixel_mm, mu_water = (None if v is None else float(v) for v in sizes)
        settings, z_mm = volume.settings, hdf5.heights(volume.group.attrs, path)
        calibrated = volume.figures("calibrated") != 0
    missing = np.flatnonzero(~done)
    if index is None and len(missing):
        raise ValueError(
            f"{path}: {len(missing)} of {n} slices are not there yet, the first is {missing[0]}: go on with it first, or export single ones "
            "with --slice"
        )
    k = None if index is None else _checked(path, index, n)

    def stored(name: str) -> np.ndarray | None:
        with opened(path) as volume:
            if name not in volume.names:
                return None
            return np.asarray(volume.group[name][:]) if k is None else volume.image(name, k)

    return stored, pixel_mm, mu_water, settings, z_mm, bool(calibrated.all() if k is None else calibrated[k])


def _checked(path: Path, index: int, n: int) -> int:
    if not -n <= index < n:
        raise ValueError(f"--slice {index}: {path} has slices 0 to {n - 1}")
    return index % n


def _why(name: str) -> str:
    reasons = {
        "std": ": it is of one image; several need --samples",
        "half_width": ": it is of one image; several need --samples",
        "measured": ": no prior was used",
        "truth": ": it is not known",
        "fbp": ": the operator has none, or it is a volume",
    }
    return reasons.get(name, "")


def _save_plain(path: Path, hu: np.ndarray, pixel_mm: float | None) -> None:
    if path.suffix.lower() == ".npy":
        with open(path, "wb") as file:  # np.save adds a suffix to names
            np.save(file, hu)
        return
    from PIL import Image

    first, *others = [Image.fromarray(page) for page in hu.reshape(-1, *hu.shape[-2:])]
    size = {} if pixel_mm is None else {"resolution_unit": "cm", "resolution": 10 / pixel_mm}
    first.save(path, format="TIFF", save_all=True, append_images=others, **size)


def _nifti(path: Path, images: Images, z_mm: np.ndarray) -> bytes:
    import nibabel

    assert images.pixel_mm is not None
    gaps = np.diff(z_mm)
    if len(gaps) and np.ptp(gaps) > 1e-3 * np.abs(gaps).max():
        raise ValueError(
            f"{path}: slices are {np.abs(gaps).min():g} to {np.abs(gaps).max():g} mm apart, NIfTI holds even distances: write a DICOM series (a "
            "name without suffix), or give --slice-mm"
        )
    h, w = images.hu.shape[1:]
    steps = np.array([-images.pixel_mm, -images.pixel_mm, gaps.mean() if len(gaps) else images.pixel_mm])
    affine = np.diag([*steps, 1.0])
    affine[:, 3] = *(-steps[:2] * (np.array([w, h]) - 1) / 2), z_mm[0], 1
    image: Any = nibabel.Nifti1Image(images.hu.transpose(2, 1, 0), affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = images.about.encode()[:79]
    return bytes(image.to_bytes())


def _write_series(folder: Path, images: Images, z_mm: np.ndarray) -> None:
    if folder.exists():
        raise ValueError(f"{folder}: is there already; a DICOM series gets a folder of its own, give another name")
    if not folder.parent.is_dir():
        raise FileNotFoundError(
            f"{folder}: cannot be written, the folder {folder.parent} does not exist; make it first"
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for k in range(len(images.hu)):
            _save_dicom(temporary / f"{k:04d}.dcm", images, k, z_mm)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_dicom(path: Path, images: Images, k: int, z_mm: np.ndarray) -> None:
    """Slice k as a CT image (DICOM PS3.3, A.3)."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

    assert images.pixel_mm is not None
    hu, pixel, hounsfield = images.hu[k], images.pixel_mm, images.unit == "HU"
    rows, columns = hu.shape
    pixels = hashlib.sha256(np.ascontiguousarray(images.hu).tobytes()).hexdigest() + f" {rows} {pixel} {z_mm.tolist()}"

    def uid(of: str) -> UID:
        return generate_uid(entropy_srcs=[pixels, images.about, of])

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid(f"slice {k}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slope = 2.0 ** math.ceil(math.log2(max(float(np.abs(images.hu).max()), 1.0) / 32767))
    values: dict[str, Any] = {
        "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": uid("study"), "SeriesInstanceUID": uid("series"), "FrameOfReferenceUID": uid("frame"),
        "PatientName": "", "PatientID": "", "PatientBirthDate": "", "PatientSex": "", "StudyDate": "", "StudyTime": "", "StudyID": "",
        "AccessionNumber": "", "ReferringPhysicianName": "", "PositionReferenceIndicator": "", "KVP": None, "AcquisitionNumber": None,
        "Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "Manufacturer": "scoreinv", "SoftwareVersions": package_version(),
        "SeriesNumber": 1, "InstanceNumber": k + 1, "SeriesDescription": images.about[:64], "DerivationDescription": images.about[:1024],
        "ImagePositionPatient": [_ds(-pixel * (columns - 1) / 2), _ds(-pixel * (rows - 1) / 2), _ds(float(z_mm[k]))],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [_ds(pixel), _ds(pixel)], "SliceThickness": _ds(_distance(images, z_mm)),
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": rows, "Columns": columns,
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
        "RescaleIntercept": 0, "RescaleSlope": _ds(slope), "RescaleType": "HU" if hounsfield else "US",
        "WindowCenter": 0 if hounsfield else 0.5, "WindowWidth": 2000 if hounsfield else 1,
        "PixelData": np.rint(hu / slope).astype("<i2").tobytes(),
    }  # fmt: skip
    dataset = FileDataset(
        str(path), {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=False, is_little_endian=True
    )
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def _ds(value: float) -> str:
    """A number in the 16 characters that DICOM's decimal strings have."""
    return f"{value:.10g}"
