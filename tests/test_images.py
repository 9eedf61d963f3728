"""Images in: each kind of file that the tests write comes back as the HU that were meant, or is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from scoreinv.files.images import read_image, read_image_set, read_picture

HU = np.rint(np.random.default_rng(0).uniform(-900, 900, (3, 6, 5))).astype(np.int16)


def write_dicom(
    path: Path, hu: np.ndarray, *, z: float = 0.0, number: int = 1, series: str = "1.2.3", **changes: Any
) -> Path:
    """One CT slice with slope 2 and intercept -1024; a change to None takes an element away."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        ExplicitVRLittleEndian,
        CTImageStorage,
        generate_uid(),
    )
    stored = np.rint((hu + 1024) / 2).astype(np.uint16)
    elements: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": series,
        "Modality": "CT",
        "PatientID": "p7",
        "Rows": hu.shape[0],
        "Columns": hu.shape[1],
        "PixelSpacing": [0.7, 0.7],
        "RescaleSlope": 2,
        "RescaleIntercept": -1024,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, z],
        "InstanceNumber": number,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelData": stored.tobytes(),
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    }
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    for name, value in (elements | changes).items():
        if value is not None:
            setattr(dataset, name, value)
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, **changes: Any) -> Path:
    """Three slices whose file names and instance numbers are not in the order of their positions."""
    for name, number, k in (("a", 9, 2), ("b", 5, 0), ("c", 7, 1)):
        write_dicom(folder / f"{name}.dcm", 2 * (HU[k] // 2), z=-40.0 + 2.5 * k, number=number, **changes)
    return folder


def write_nifti(path: Path, hu: np.ndarray, signs: tuple[int, int, int] = (1, 1, 1), mm: float = 0.7) -> Path:
    """A volume given as (slices, rows, columns), stored with axes in the directions that `signs` states for RAS."""
    import nibabel

    ras = hu.transpose(2, 1, 0)[::-1, ::-1]
    stored = ras[:: signs[0], :: signs[1], :: signs[2]].astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([signs[0] * mm, signs[1] * mm, signs[2] * 2.5, 1.0])), path)
    return path


def test_a_dicom_file(tmp_path: Path) -> None:
    image = read_image(write_dicom(tmp_path / "slice.dcm", 2 * (HU[0] // 2)))
    np.testing.assert_array_equal(image.hu, 2 * (HU[:1] // 2))
    assert (image.pixel_mm, image.patient) == (0.7, "p7")


def test_a_dicom_series_is_sorted_by_position(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    (folder / "notes.txt").write_text("not DICOM")
    write_dicom(folder / "scout.dcm", HU[0, :2], series="9.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_dicom(folder / "other.dcm", HU[0], series="9.8", Modality="MR")
    np.testing.assert_array_equal(read_image(folder).hu, 2 * (HU // 2))
    np.testing.assert_array_equal(read_image(folder, index=-1).hu, 2 * (HU[2:] // 2))


def test_the_order_of_a_tilted_series_is_along_its_normal(tmp_path: Path) -> None:
    for k in range(3):
        position = [0.0, -30.0 * k, 10.0 * k]  # coronal: the normal of (x, -z) is +y
        write_dicom(
            tmp_path / f"{k}.dcm",
            2 * (HU[2 - k] // 2),
            ImagePositionPatient=position,
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        )
    np.testing.assert_array_equal(read_image(tmp_path).hu, 2 * (HU // 2))


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_nifti_of_any_orientation_lies_like_dicom(tmp_path: Path, signs: tuple[int, int, int]) -> None:
    image = read_image(write_nifti(tmp_path / "patient3.nii.gz", HU, signs))
    np.testing.assert_array_equal(image.hu, HU)
    assert (image.pixel_mm, image.patient) == (pytest.approx(0.7), "patient3")


def write_tiff(path: Path, pages: np.ndarray) -> Path:
    from PIL import Image

    pictures = [Image.fromarray(page) for page in pages]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path


def test_arrays_and_tiff_hold_hu_when_signed_or_float(tmp_path: Path) -> None:
    for k, values in enumerate((HU, HU.astype(np.int32), HU.astype(np.float64), HU[0])):
        np.save(tmp_path / f"{k}.npy", values)
        np.testing.assert_array_equal(
            read_image(tmp_path / f"{k}.npy", 0.7).hu, values if values.ndim == 3 else values[None]
        )
    np.testing.assert_array_equal(read_image(write_tiff(tmp_path / "f.tif", HU.astype(np.float32)), 0.7).hu, HU)
    np.testing.assert_array_equal(read_image(write_tiff(tmp_path / "i.tif", HU.astype(np.int32)), 0.7).hu, HU)


def test_signed_16_bit_tiff(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "s.tif", HU[0])
    np.testing.assert_array_equal(read_image(tmp_path / "s.tif", 0.7).hu, HU[:1])


def test_eight_bits_are_the_display_window(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8)).save(tmp_path / "g.png")
    image = read_image(tmp_path / "g.png", 0.7)
    np.testing.assert_allclose(image.hu, [[[-1000, -600, 1000]]], atol=1e-3)
    assert image.patient == "g"


def test_padding_becomes_air(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[-3024, -1000, 40]], dtype=np.int16))
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy", 1.0).hu, [[[-1000, -1000, 40]]])


def write_hdf5(path: Path, **changes: Any) -> Path:
    parts = {"hu": HU, "patient": ["p1", "p1", "p2"], "pixel_mm": np.array([0.7, 0.7, 0.8], dtype=np.float32)} | changes
    with h5py.File(path, "w") as file:
        for name, value in parts.items():
            if value is not None:
                file[name] = value
    return path


def test_one_slice_of_a_training_set(tmp_path: Path) -> None:
    image = read_image(write_hdf5(tmp_path / "t.h5"), index=2)
    np.testing.assert_array_equal(image.hu, HU[2:])
    assert (image.patient, image.pixel_mm) == ("p2", pytest.approx(0.8))


def test_training_images_from_everywhere(tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    write_series(tmp_path / "dicom" / "series")
    write_dicom(tmp_path / "dicom" / "second.dcm", HU[0, :4], series="7.7", PatientID="p8")
    write_nifti(tmp_path / "dicom" / "n5.nii", HU[:, :4])
    np.save(tmp_path / "p9.npy", HU[0] - np.int16(500))
    data = read_image_set([write_hdf5(tmp_path / "t.h5"), tmp_path / "dicom", tmp_path / "p9.npy"])
    assert list(data.patients) == ["p1", "p1", "p2", *["n5"] * 3, *data.patients[6:10], "p9"]
    assert sorted(data.patients[6:10]) == ["p7", "p7", "p7", "p8"]
    assert {image.dtype for image in data.images} == {np.dtype(np.int16)}
    np.testing.assert_array_equal(data.images[2], HU[2])
    np.testing.assert_array_equal(data.images[4], HU[1, :4])
    np.testing.assert_array_equal(data.images[-1], np.maximum(HU[0].astype(int) - 500, -1000))


def test_training_images_are_rounded_and_fit_int16(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.6, -0.6, 9e5, -2000.0]]))
    np.testing.assert_array_equal(read_image_set([tmp_path / "a.npy"]).images[0], [[2, -1, 32767, -1000]])
    write_hdf5(tmp_path / "f.h5", hu=HU + 0.4, patient=None)
    data = read_image_set([tmp_path / "f.h5"])
    np.testing.assert_array_equal(np.stack(list(data.images)), HU)
    assert data.n_patients == 1 and data.patients[0] == "f"


def test_colour_pictures(tmp_path: Path) -> None:
    from PIL import Image

    rgb = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "c.png")
    picture = read_picture(tmp_path / "c.png")
    torch.testing.assert_close(picture, torch.from_numpy(rgb).permute(2, 0, 1).float() / 255)
    Image.fromarray(rgb[..., 0]).save(tmp_path / "g.png")
    torch.testing.assert_close(read_picture(tmp_path / "g.png"), picture[:1].expand(3, 4, 6))
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="expected 8 bits a channel"):
        read_picture(tmp_path / "deep.png")


def make(tmp_path: Path, case: str) -> Path:
    """A file with something wrong."""
    from PIL import Image

    path = tmp_path / {"rgb": "x.png", "deep": "x.png", "broken png": "x.png"}.get(case, "x.npy")
    match case:
        case "no pixel size":
            np.save(path, HU)
        case "NaN":
            np.save(path, np.array([[0.0, np.nan], [np.inf, 1.0]]))
        case "unsigned":
            np.save(path, HU.astype(np.uint16))
        case "object":
            np.save(path, np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
        case "four dimensions":
            np.save(path, np.zeros((2, 2, 2, 2)))
        case "broken npy" | "broken png":
            path.write_bytes(b"nothing")
        case "rgb":
            Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(path)
        case "deep":
            Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(path)
        case "unknown kind":
            path = tmp_path / "x.xyz"
            path.write_text("what is this")
        case "empty folder":
            path = tmp_path / "folder"
            path.mkdir()
        case "two series":
            path = write_series(tmp_path / "s")
            write_dicom(path / "z.dcm", HU[0], series="5.5")
        case "mixed sizes":
            path = write_series(tmp_path / "s")
            write_dicom(path / "z.dcm", HU[0, :3])
        case "broken dicom":
            path = tmp_path / "x.dcm"
            path.write_bytes(b"nothing")
        case "cut dicom":
            path = write_dicom(tmp_path / "x.dcm", HU[0])
            path.write_bytes(path.read_bytes()[:-20])
        case "MR":
            path = write_dicom(tmp_path / "x.dcm", HU[0], Modality="MR")
        case "no rescale":
            path = write_dicom(tmp_path / "x.dcm", HU[0], RescaleIntercept=None)
        case "no spacing":
            path = write_dicom(tmp_path / "x.dcm", HU[0], PixelSpacing=None)
        case "oblong":
            path = write_dicom(tmp_path / "x.dcm", HU[0], PixelSpacing=[0.7, 0.9])
        case "contradiction":
            path = write_nifti(tmp_path / "x.nii", HU, mm=0.5)
        case "broken nifti":
            path = tmp_path / "x.nii.gz"
            path.write_bytes(b"nothing")
        case "cut nifti":
            path = write_nifti(tmp_path / "x.nii.gz", HU)
            path.write_bytes(path.read_bytes()[:-40])
        case "many patients":
            path = write_hdf5(tmp_path / "t.h5", pixel_mm=0.7)
        case "many sizes":
            path = write_hdf5(tmp_path / "t.h5", patient=None)
        case "no hu":
            path = write_hdf5(tmp_path / "t.h5", hu=None)
        case "unsigned hu":
            path = write_hdf5(tmp_path / "t.h5", hu=HU.astype(np.uint16))
        case "names":
            path = write_hdf5(tmp_path / "t.h5", patient=["p1"])
    return path


REFUSED = {
    "no pixel size": "give pixel_mm",
    "NaN": "2 pixels are NaN or infinite",
    "unsigned": "holds uint16 values",
    "object": "cannot be read as .npy",
    "four dimensions": r"expected gray values \(H, W\) or \(slices, H, W\)",
    "broken npy": "cannot be read as .npy",
    "broken png": "cannot be read as a picture",
    "rgb": "is no gray picture",
    "deep": "holds uint16 values",
    "unknown kind": "not a kind of image that is known",
    "empty folder": "holds no CT images",
    "two series": r"holds 2 CT series: s \(3 slices\), s \(1 slices\)",
    "mixed sizes": "z.dcm: this slice differs in size",
    "broken dicom": "cannot be read as DICOM",
    "cut dicom": "pixels cannot be decoded",
    "MR": "modality is MR, expected CT",
    "no rescale": "has no RescaleIntercept",
    "no spacing": "has no PixelSpacing",
    "oblong": "pixels are 0.7 x 0.9 mm; resample",
    "contradiction": "pixels are 0.5 mm by the file and 0.7 mm by pixel_mm",
    "broken nifti": "cannot be read as NIfTI",
    "cut nifti": "cannot be read as NIfTI",
    "many patients": "holds 2 patients",
    "many sizes": "pixels of 0.7 to 0.8 mm",
    "no hu": "it is missing",
    "unsigned hu": r"it is uint16 \(3, 6, 5\)",
    "names": "one name a slice",
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom also warns about the files that are broken on purpose
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    pixel_mm = 0.7 if case in ("NaN", "unsigned", "rgb", "deep", "four dimensions", "object", "contradiction") else None
    with pytest.raises(ValueError, match=REFUSED[case]) as caught:
        read_image(make(tmp_path, case), pixel_mm)
    assert "\n" not in str(caught.value)


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(tmp_path / "x.nii")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image_set([tmp_path / "x.h5"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_picture(tmp_path / "x.png")
    np.save(tmp_path / "a.npy", HU)
    with pytest.raises(ValueError, match="has 3 slices, there is no slice 3"):
        read_image(tmp_path / "a.npy", 0.7, index=3)
    with pytest.raises(ValueError, match="pixel_mm must be positive"):
        read_image(tmp_path / "a.npy", 0.0)
    with pytest.raises(ValueError, match="found no images"):
        read_image_set([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither DICOM series nor NIfTI"):
        read_image_set([tmp_path / "empty"])


def test_training_images_that_are_no_hounsfield_units(tmp_path: Path) -> None:
    """Gray values in a file that claims HU, metres for millimetres; and NaN, with the file's name."""
    write_hdf5(tmp_path / "gray.h5", hu=np.clip(HU, 0, 255).astype(np.int16))
    with pytest.raises(ValueError, match=r"gray.h5: values lie between 0 and \d+: gray values"):
        read_image_set([tmp_path / "gray.h5"])
    write_hdf5(tmp_path / "metres.h5", pixel_mm=0.0007)
    with pytest.raises(ValueError, match=r"metres.h5: a pixel of 0.0007 mm is not that of a CT image"):
        read_image_set([tmp_path / "metres.h5"])
    broken = HU.astype(np.float32)
    broken[1, 2, 3] = np.nan
    write_hdf5(tmp_path / "nan.h5", hu=broken)
    with pytest.raises(ValueError, match=r"nan.h5: 1 pixels are NaN"):
        read_image_set([tmp_path / "nan.h5"])


def test_training_images_keep_their_pixel_sizes(tmp_path: Path) -> None:
    np.save(tmp_path / "unknown.npy", HU)
    data = read_image_set(
        [write_hdf5(tmp_path / "t.h5"), write_nifti(tmp_path / "x.nii", HU, mm=0.5), tmp_path / "unknown.npy"]
    )
    with h5py.File(tmp_path / "t.h5") as file:
        stored = [float(v) for v in file["pixel_mm"][:]]
    assert [data.side_mm(i) for i in range(6)] == pytest.approx([*stored, 0.5, 0.5, 0.5])
    assert all(np.isnan(data.side_mm(i)) for i in range(6, 9))
