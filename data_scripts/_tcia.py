"""CT series of a collection of The Cancer Imaging Archive, patient by patient.

The NBIA REST API, version 4 (github.com/CBIIT/NBIA-TCIA, V4_getSeries.java and V4_getImageWithMD5Hash.java):
`getSeries?Collection=NAME&format=json` lists series with PatientID, SeriesInstanceUID, Modality, SeriesDescription,
ImageCount, FileSize [bytes], LicenseName and LicenseURI, or answers nothing for a name that it does not know;
`getImageWithMD5Hash?SeriesInstanceUID=UID` sends a zip archive of the series' DICOM files with md5hashes.csv (columns
Filename, MD5Hash). That archive is made on the fly: it has no checksum of its own and cannot be resumed, so a broken
one starts over; what is converted already is never asked for again. Series with restricted access answer 401 or 403.

Every patient becomes one file FOLDER/NAME/PART/PATIENT.h5, as a script's `Convert` makes it, with the options that shape it: others are
refused in the same folder. Training sets keep the MD5 of every DICOM file in the attribute source_md5, and md5_published says whether
the server's list had all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import re
import sys
import tempfile
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _convert import block_mean, is_converted, part_of, plain_name, spread, write_images
from _download import GB, check_space, count, fetch, get_json, parser, run, state_licence

from scoreinv.files.atomic import replacing
from scoreinv.files.images import read_image
from scoreinv.progress import track

API = "https://nbia.cancerimagingarchive.net/nbia-api/services/v4"
MANIFEST = "md5hashes.csv"
SHAPING = ("slices", "bin")
"""Options of `images_parser` that shape a file."""

Series = dict[str, Any]
"""What the server says of one series; the fields are in the module's head."""


Convert = Callable[[Path, Path, Series, argparse.Namespace, dict[str, str]], None]
"""(downloaded archive, file to write, series, options, data set and licence)."""


def tcia_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of a script for a collection."""
    p = parser(doc)
    p.add_argument("--patients", type=count, metavar="N", help="only the first N patients by name (all)")
    return p


def images_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of a script that makes training sets."""
    p = tcia_parser(doc)
    p.add_argument("--slices", type=count, metavar="N", help="keep N slices a patient, spread evenly (all)")
    p.add_argument("--bin", type=count, default=1, metavar="N", help="means of N x N pixels (%(default)s)")
    return p


def list_series(collection: str, folder: Path) -> list[Series]:
    """All series of a collection, asked for once and kept in the folder as series.json.

    Raises:
        OSError: the server cannot be reached or refuses.
        ValueError: there is no such collection, the answer has another form, or a patient's name cannot be that of a file.
    """
    kept = folder / "series.json"
    if kept.is_file():
        answer = json.loads(kept.read_text(encoding="utf-8"))
    else:
        answer = get_json(f"{API}/getSeries?{urllib.parse.urlencode({'Collection': collection, 'format': 'json'})}")
    if not answer:
        raise ValueError(f"{API}: knows no collection {collection}; has it been renamed?")
    needed = {"PatientID", "SeriesInstanceUID", "Modality", "ImageCount"}
    if not isinstance(answer, list) or not all(isinstance(s, dict) and needed <= s.keys() for s in answer):
        raise ValueError(
            f"{API}/getSeries: expected a list of series with {', '.join(sorted(needed))}; has the API changed?"
        )
    for s in answer:
        plain_name(s["PatientID"], f"{API}/getSeries, PatientID")
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            temporary.write_text(json.dumps(answer, indent=1), encoding="utf-8")
    return answer


def one_a_patient(series: Sequence[Series], wanted: Callable[[Series], bool]) -> dict[str, Series]:
    """Of every patient the CT series with the most images among the wanted ones, by name of the patient."""
    best: dict[str, Series] = {}
    for s in sorted(series, key=lambda s: (-int(s["ImageCount"]), s["SeriesInstanceUID"])):
        if s["Modality"] == "CT" and wanted(s):
            best.setdefault(s["PatientID"], s)
    return dict(sorted(best.items()))


def collect(
    collection: str,
    name: str,
    doi: str,
    wanted: Callable[[Series], bool],
    a: argparse.Namespace,
    convert: Convert,
    suffix: str,
    shaping: Sequence[str],
) -> list[Path]:
    """Download and convert one series a patient; the files of all chosen patients, named after them, with a suffix.

    Raises:
        OSError: as for `fetch`; what is done already stays.
        ValueError: there is nothing of the kind, a file is there that was made with other options of `shaping`, or some patients could
            not be converted (the others are).
    """
    folder: Path = a.out / name
    chosen = list(one_a_patient(list_series(collection, folder), wanted).items())[: a.patients]
    if not chosen:
        raise ValueError(f"{collection}: no CT series of that kind; has the collection changed?")
    paths = {patient: folder / part_of(patient) / f"{patient}{suffix}.h5" for patient, _ in chosen}
    options = shaped_by(a, shaping)
    missing = [(patient, s) for patient, s in chosen if not is_converted(paths[patient], options)]
    if not missing:
        return list(paths.values())
    missing = _within(missing, a.limit)
    licences = sorted(
        {f"{s.get('LicenseName') or 'licence not stated'} {s.get('LicenseURI') or ''}".strip() for _, s in chosen}
    )
    licence = f"{collection}, The Cancer Imaging Archive. Licence: {'; '.join(licences)}. {doi}"
    state_licence(folder, name, licence)
    failed = []
    for patient, s in track(missing, collection):
        check_space(folder, 2 * int(s.get("FileSize") or 0))
        archive = folder / f"{patient}.zip"
        uid = urllib.parse.quote(s["SeriesInstanceUID"])
        fetch(f"{API}/getImageWithMD5Hash?SeriesInstanceUID={uid}", archive, None)
        try:
            convert(archive, paths[patient], s, a, {"dataset": collection, "licence": licence})
        except ValueError as error:
            failed.append(patient)
            print(f"{patient}: {error}", file=sys.stderr)
        finally:
            archive.unlink(missing_ok=True)
    if failed:
        raise ValueError(f"{len(failed)} of {len(missing)} patients could not be converted: {', '.join(failed)}")
    return [path for path in paths.values() if path.is_file()]


def shaped_by(a: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The values of the options that shape a file."""
    return {name: getattr(a, name) for name in names}


def _within(missing: list[tuple[str, Series]], limit_gb: float | None) -> list[tuple[str, Series]]:
    """The first patients that together stay below the limit."""
    total, kept = 0, []
    for patient, s in missing:
        total += int(s.get("FileSize") or 0)
        if limit_gb is not None and total > limit_gb * GB:
            break
        kept.append((patient, s))
    if not kept:
        raise ValueError(f"--limit: the first patient's series alone is {total / GB:.3f} GB, more than {limit_gb:g} GB")
    if len(kept) < len(missing):
        print(f"--limit: the first {len(kept)} of {len(missing)} patients that are missing", file=sys.stderr)
    return kept


@contextlib.contextmanager
def unpacked(archive: Path, s: Series) -> Iterator[tuple[Path, dict[str, str], bool]]:
    """A folder with the whole series for a while, and what `unpack` returns.

    Raises:
        ValueError: as for `unpack`, or files are missing.
    """
    with tempfile.TemporaryDirectory(prefix=".dicom-", dir=archive.parent) as name:
        sums, published = unpack(archive, Path(name))
        if len(sums) != int(s["ImageCount"]):
            raise ValueError(
                f"the archive holds {len(sums)} of the {s['ImageCount']} images of series {s['SeriesInstanceUID']}"
            )
        yield Path(name), sums, published


def training_set(archive: Path, path: Path, s: Series, a: argparse.Namespace, about: dict[str, str]) -> None:
    """Images in the layout of training sets."""
    with unpacked(archive, s) as (folder, sums, published):
        images = read_image(folder)
    hu = block_mean(images.hu[spread(len(images.hu), a.slices)], a.bin)
    write_images(
        path, hu, images.pixel_mm * a.bin, [s["PatientID"]] * len(hu), **about, series=s["SeriesInstanceUID"],
        source_md5=sums, md5_published=int(published), conversion=shaped_by(a, SHAPING),
    )  # fmt: skip


def unpack(archive: Path, folder: Path) -> tuple[dict[str, str], bool]:
    """Unpack a series and compare it with the server's MD5 sums.

    Returns:
        The MD5 of every DICOM file by name, and whether the server's list had all of them.

    Raises:
        ValueError: the archive is damaged, files are missing or differ from the list, or a name cannot be that of a file.
    """
    sums: dict[str, str] = {}
    try:
        with zipfile.ZipFile(archive) as file:
            members = {Path(m.filename).name: m for m in file.infolist() if not m.is_dir()}
            manifest = members.pop(MANIFEST, None)
            listed = _listed(b"" if manifest is None else file.read(manifest))
            for name, member in members.items():  # one at a time: projections of a patient are several GB
                content = file.read(member)
                if name in listed or content[128:132] == b"DICM":  # what is neither is the collection's licence text
                    plain_name(name, archive.name)
                    sums[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
                    (folder / name).write_bytes(content)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive.name}: is no whole zip archive ({error}); run it again") from error
    for name, expected in listed.items():
        if sums.get(name) != expected:
            what = f"has the MD5 {sums[name]}, the server's list says {expected}" if name in sums else "is missing"
            raise ValueError(f"{archive.name}: {name} {what}; run it again")
    return sums, sums.keys() <= listed.keys()


def _listed(manifest: bytes) -> dict[str, str]:
    """Names and MD5 sums of md5hashes.csv; rows without a sum (its head, or files that have none) are passed over."""
    rows = csv.reader(io.StringIO(manifest.decode("utf-8", "replace")))
    return {
        Path(row[0]).name: row[1].strip().lower()
        for row in rows
        if len(row) > 1 and re.fullmatch("[0-9a-fA-F]{32}", row[1].strip())
    }


def main(
    script: str, collection: str, doi: str, wanted: Callable[[Series], bool], a: argparse.Namespace,
    convert: Convert = training_set, suffix: str = "", shaping: Sequence[str] = SHAPING,
) -> int:  # fmt: skip
    """Everything a script for a collection does; returns the exit code, 2 for bad input."""
    return run(script, lambda: collect(collection, script, doi, wanted, a, convert, suffix, shaping))
