"""fastMRI: slices of knees and brains, as training sets.

    python data_scripts/fastmri.py --out data --archive 'https://fastmri-dataset.s3.amazonaws.com/v2.0/knee_singlecoil_val.tar.xz?...' --sha256 HEX
    python data_scripts/fastmri.py --out data --archive knee_singlecoil_val.tar.xz         # one that is here already, or a folder of .h5 files
    scoreinv train data/fastmri/train/*.h5 --validation data/fastmri/val/*.h5 --out runs/knee

The data: J. Zbontar et al., fastMRI: An Open Dataset and Benchmarks for Accelerated MRI, arXiv:1811.08839, and F. Knoll et al., Radiology: Artificial
Intelligence 2, 2020, doi:10.1148/ryai.2020190007. They ask for registration at https://fastmri.med.nyu.edu and send links that hold for some time: give
one as --archive, and with --sha256 the sum that they send too (without it a broken download starts over). The agreement forbids to pass the data on.

A file of the archive is a volume: `reconstruction_esc` (single coil) or `reconstruction_rss` (slices, H, W), magnitudes; `ismrmrd_header`, XML with the
field of view [mm] and matrix of the reconstruction; the attribute `patient_id`. k-space is left out: there is no operator for it here yet.

MRI has no Hounsfield units: 0 becomes -1000 and the 99.8 % quantile of the volume 1000, so that a prior of these images works in [-1, 1]. One volume is
one file, under train, val or test by a hash of the patient: the archives' own split is of volumes of which patients may have several. What is there is not converted again.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
from _convert import is_converted, magnitudes, part_of, plain_name, spread, write_images
from _download import count, fetch, parser, run, state_licence

from scoreinv.progress import track

LICENCE = "fastMRI, New York University. Licence: the fastMRI data sharing agreement, https://fastmri.med.nyu.edu (arXiv:1811.08839)"
IMAGES = ("reconstruction_esc", "reconstruction_rss")


def collect(a: argparse.Namespace) -> list[Path]:
    """Download where asked, and convert; the files of all volumes.

    Raises:
        OSError, ValueError: as for `fetch`; or nothing in the archive is a volume of fastMRI, or a file is there that was made with other
            options.
    """
    folder = a.out / "fastmri"
    state_licence(folder, "fastmri", LICENCE)
    source = _local(a)
    known = {p.stem: p for p in folder.glob("*/*.h5")}
    made = []
    for name, volume in track(_volumes(source, set(known)), "fastMRI"):
        if volume is None:
            is_converted(known[name], {"slices": a.slices})
        else:
            known[name] = _convert(volume, folder, name, a)
        made.append(known[name])
        if a.volumes is not None and len(made) >= a.volumes:
            break
    if not made:
        raise ValueError(f"{source}: holds no .h5 files")
    return sorted(made)


def _local(a: argparse.Namespace) -> Path:
    """The archive or folder on this machine."""
    if not re.match("https?://", a.archive):
        given = Path(a.archive)
        if not given.exists():
            raise FileNotFoundError(f"{given}: no such archive or folder; links begin with https://")
        return given
    name = Path(urllib.parse.urlsplit(a.archive).path).name
    path: Path = a.out / "fastmri" / name
    if path.is_file() and a.sha256 is None:
        return path
    return fetch(a.archive, path, None if a.sha256 is None else f"sha256:{a.sha256.lower()}", None, a.limit)


def _volumes(source: Path, known: set[str]) -> Iterator[tuple[str, Path | None]]:
    """Names of volumes, and where each lies for the moment; None for those that are known."""
    if source.is_dir():
        for path in sorted(source.glob("**/*.h5")):
            yield path.stem, None if path.stem in known else path
        return
    try:
        with tarfile.open(source, "r|*") as tar, tempfile.TemporaryDirectory() as folder:
            for member in tar:
                name = Path(member.name)
                if not member.isfile() or name.suffix != ".h5":
                    continue
                if plain_name(name.stem, source) in known:
                    yield name.stem, None
                    continue
                content = tar.extractfile(member)
                assert content is not None
                kept = Path(folder) / name.name
                with open(kept, "wb") as file:
                    while chunk := content.read(2**20):
                        file.write(chunk)
                yield name.stem, kept
                kept.unlink()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{source}: is no whole tar archive ({error})") from error


def _convert(volume: Path, folder: Path, name: str, a: argparse.Namespace) -> Path:
    """The file of a volume."""
    try:
        with h5py.File(volume, "r") as file:
            key = next((k for k in IMAGES if k in file), None)
            if key is None:
                raise ValueError(f"{name}: has neither {' nor '.join(IMAGES)}; volumes of the test sets hold no images")
            images, header = file[key][()], file["ismrmrd_header"][()] if "ismrmrd_header" in file else b""
            patient = str(file.attrs.get("patient_id", name))
    except OSError as error:
        raise ValueError(f"{name}: cannot be read as HDF5: {str(error).splitlines()[0][:120]}") from error
    if images.ndim != 3:
        raise ValueError(f"{name}: expected {key} (slices, H, W), got {images.shape}")
    hu = magnitudes(images)[spread(len(images), a.slices)]
    path = folder / part_of(patient) / f"{name}.h5"
    write_images(
        path, hu, _pixel_mm(header), [patient] * len(hu), dataset="fastMRI", licence=LICENCE, images=key,
        values="magnitudes from 0 to the volume's 99.8 % quantile as -1000 to 1000", conversion={"slices": a.slices},
    )  # fmt: skip
    return path


def _pixel_mm(header: bytes | str) -> float:
    """Field of view over matrix of the reconstruction [mm]; NaN where the header does not say."""
    text = header.decode("utf-8", "replace") if isinstance(header, bytes) else str(header)
    space = re.search(r"<reconSpace>(.*?)</reconSpace>", text, re.DOTALL)
    found = space and [
        re.search(rf"<{tag}>.*?<x>\s*([0-9.eE+-]+)\s*</x>", space[1], re.DOTALL)
        for tag in ("fieldOfView_mm", "matrixSize")
    ]
    if not found or None in found:
        return float("nan")
    width, pixels = (float(m[1]) for m in found if m is not None)
    return width / pixels if pixels > 0 else float("nan")


def main(argv: Sequence[str] | None = None) -> int:
    """Download, check, convert; returns the exit code, 2 for bad input."""
    p = parser(__doc__)
    p.add_argument(
        "--archive", required=True, metavar="LINK", help="a link as it was sent, an archive, or a folder of .h5 files"
    )
    p.add_argument("--sha256", metavar="HEX", help="of the archive behind a link")
    p.add_argument("--volumes", type=count, metavar="N", help="only the first N volumes (all)")
    p.add_argument("--slices", type=count, metavar="N", help="keep N slices a volume, spread evenly (all)")
    a = p.parse_args(argv)
    return run("fastmri", lambda: collect(a))


if __name__ == "__main__":
    sys.exit(main())
