"""Brain tumours (BraTS 2016 and 2017) as the Medical Segmentation Decathlon has them: MRI slices, as training sets.

    python data_scripts/brats.py --out data --contrast flair --patients 100 --slices 20
    scoreinv train data/brats_flair/train/*.h5 --validation data/brats_flair/val/*.h5 --out runs/brain

The data: M. Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 2022, doi:10.1038/s41467-022-30695-9, task 1, of
B. H. Menze et al., The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS), IEEE Transactions on Medical Imaging 34, 2015,
doi:10.1109/TMI.2014.2377694; CC BY-SA 4.0, no registration. One archive of 7.6 GB, Task01_BrainTumour.tar, with a patient's four contrasts in one NIfTI
file (240, 240, 155, 4) of 1 mm: FLAIR, T1, T1 with gadolinium, T2. Address and MD5 as MONAI has them (monai/apps/datasets.py).

MRI has no Hounsfield units. A patient's brightest 0.2 % become 1000 and nothing becomes -1000, so that a prior of these images works in
[-1, 1]; slices with less than 5 % of brain are left out. One patient is one file, under train, val or test by a hash of the name. The
archive is kept, so that another contrast needs no download.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _convert import is_converted, magnitudes, part_of, plain_name, spread, write_images
from _download import count, fetch, parser, run, state_licence

from scoreinv.progress import track

URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task01_BrainTumour.tar"
MD5 = "md5:240a19d752f0d9e9101544901065d872"
SIZE = 7608266240
DOI = "https://doi.org/10.1038/s41467-022-30695-9"
LICENCE = f"Medical Segmentation Decathlon, task 1 (BraTS 2016 and 2017). Licence CC BY-SA 4.0, {DOI}"
CONTRASTS = ("flair", "t1", "t1gd", "t2")
BRAIN = 0.05
"""Least share of a slice that is not dark."""


def collect(a: argparse.Namespace) -> list[Path]:
    """Download and convert; the files of all chosen patients.

    Raises:
        OSError, ValueError: as for `fetch`; or the archive is of another form, or a file is there that was made with other options.
    """
    folder = a.out / f"brats_{a.contrast}"
    state_licence(folder, "brats", LICENCE)
    archive = fetch(URL, a.out / "Task01_BrainTumour.tar", MD5, SIZE, a.limit)
    made = []
    with tarfile.open(archive) as tar:
        members = {
            Path(m.name).name: m for m in tar.getmembers() if m.isfile() and Path(m.name).parent.name == "imagesTr"
        }
        names = sorted(n for n in members if n.startswith("BRATS_") and n.endswith(".nii.gz"))
        if not names:
            raise ValueError(f"{archive}: holds no imagesTr/BRATS_*.nii.gz; has the data set changed?")
        for name in track(names[: a.patients], "BraTS"):
            patient = plain_name(name.removesuffix(".nii.gz"), archive)
            path = folder / part_of(patient) / f"{patient}.h5"
            if not is_converted(path, {"slices": a.slices}):
                _convert(tar, members[name], path, patient, a)
            made.append(path)
    return made


def _convert(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, patient: str, a: argparse.Namespace) -> None:
    import nibabel

    source = tar.extractfile(member)
    assert source is not None
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "image.nii.gz"
        kept.write_bytes(source.read())
        image = nibabel.funcs.as_closest_canonical(nibabel.load(kept))  # type: ignore[no-untyped-call]
        values = np.asarray(image.dataobj)
        zooms = [float(z) for z in image.header.get_zooms()[:2]]
    if values.ndim != 4 or values.shape[3] != len(CONTRASTS) or abs(zooms[0] / zooms[1] - 1) > 1e-3:
        raise ValueError(
            f"{member.name}: expected (x, y, z, {len(CONTRASTS)}) with square pixels, got {values.shape} of {zooms} mm"
        )
    slices = values[::-1, ::-1, :, CONTRASTS.index(a.contrast)].transpose(2, 1, 0)  # as `files.images` turns NIfTI
    hu = magnitudes(slices)
    brain = hu[(hu > -900).mean(axis=(1, 2)) > BRAIN]
    if len(brain) == 0:
        raise ValueError(f"{member.name}: no slice shows a brain")
    chosen = brain[spread(len(brain), a.slices)]
    write_images(
        path, chosen, zooms[0], [patient] * len(chosen), dataset="Medical Segmentation Decathlon, task 1", licence=LICENCE,
        contrast=a.contrast, values="magnitudes from 0 to the patient's 99.8 % quantile as -1000 to 1000", conversion={"slices": a.slices},
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Download, check, convert; returns the exit code, 2 for bad input."""
    p = parser(__doc__)
    p.add_argument("--contrast", choices=CONTRASTS, default="flair", help="(%(default)s)")
    p.add_argument("--patients", type=count, metavar="N", help="only the first N patients by name (all)")
    p.add_argument("--slices", type=count, metavar="N", help="keep N slices a patient, spread evenly (all)")
    a = p.parse_args(argv)
    return run("brats", lambda: collect(a))


if __name__ == "__main__":
    sys.exit(main())
