"""Files from public servers: whole, once and unaltered; resumed where they broke off, checked, and only then named.

Zenodo: `GET /api/records/ID` answers with `metadata.license.id`, `metadata.title`, `doi` and `files`, a list of `key`,
`size`, `checksum` ("md5:..."), `links.self` (https://developers.zenodo.org). The answer is kept beside the data, so that
a second run needs no network and a record that has changed since is noticed.

What these scripts ask of servers was tried on small servers of the tests only, never on the real ones.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import io
import json
import math
import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreinv.files.atomic import replacing
from scoreinv.progress import track

ZENODO = "https://zenodo.org/api/records"
GB = 10**9
CHUNK = 2**20
TIMEOUT_S = 60.0
AHEAD = 2**22
"""Bytes that are asked for at a time when parts of a remote archive are read."""


class ServerError(OSError):
    """The server refuses; `code` is the HTTP status."""

    def __init__(self, url: str, code: int, reason: str) -> None:
        hint = {401: "; it wants a login", 403: "; it wants a login", 404: "; has it moved?", 429: "; try again later"}
        super().__init__(f"{url}: the server answers {code} {reason}{hint.get(code, '')}")
        self.code = code


# Whole files


def fetch(url: str, path: Path, checksum: str | None, size: int | None = None, limit_gb: float | None = None) -> Path:
    """Download a file unless it is there already; what a broken connection leaves in `path`.part is gone on with.

    Args:
        url: http or https.
        path: where the file goes; its folder is made if it does not exist.
        checksum: as Zenodo writes them, "md5:" or "sha256:" and hexadecimal digits. With None nothing tells whether
            two halves belong together: what is there is replaced, and nothing is resumed.
        size: bytes that the file should have, where known.
        limit_gb: download no more than this.

    Returns:
        The path.

    Raises:
        OSError: the server cannot be reached or refuses, the connection broke off, or the disk is too small.
        ValueError: what came, or what is offered, is another file, and nothing is kept; or it is beyond the limit.
    """
    if checksum is not None and path.is_file() and digest(path, checksum) == checksum:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if checksum is None:
        part.unlink(missing_ok=True)
    try:
        _receive(url, part, size, limit_gb)
    except ServerError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # Nothing lies beyond the part: it is whole, or it is not this file; the checksum tells.
    found = checksum and digest(part, checksum)
    if found != checksum:
        part.unlink()
        raise ValueError(f"{url}: has the checksum {found}, expected {checksum}; nothing was kept, run it again")
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    return path


def digest(path: Path, checksum: str) -> str:
    """The checksum of a file, of the kind and in the form of another one."""
    kind = checksum.partition(":")[0]
    found = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return f"{kind}:{found.hexdigest()}"


def _receive(url: str, part: Path, size: int | None, limit_gb: float | None) -> None:
    """Append to the part what is missing of it; start over where the server cannot send a range."""
    held = part.stat().st_size if part.exists() else 0
    with _answer(url, f"bytes={held}-" if held else None) as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
            raise OSError(f"the server sends another part than bytes {held}- (delete {part.name} to start over)")
        length = response.headers.get("Content-Length")
        expected = None if length is None else int(length) + (held if resumed else 0)
        if None not in (expected, size) and expected != size:
            part.unlink(missing_ok=True)
            raise ValueError(f"{url}: has {expected} bytes, expected {size}; the file on the server has changed")
        if limit_gb is not None and int(length or 0) > limit_gb * GB:
            raise ValueError(f"--limit: {url} sends {int(length or 0) / GB:.3f} GB, more than {limit_gb:g} GB")
        check_space(part.parent, int(length or 0))
        n_chunks = None if length is None else math.ceil(int(length) / CHUNK)
        with open(part, "ab" if resumed else "wb") as file:
            for chunk in track(iter(lambda: response.read(CHUNK), b""), part.stem, n_chunks):
                file.write(chunk)
        if expected is not None and part.stat().st_size < expected:
            raise OSError(f"the connection ended after {part.stat().st_size} of {expected} bytes")


@contextlib.contextmanager
def _answer(url: str, part: str | None = None) -> Iterator[Any]:
    """The server's answer; what goes wrong while it is read comes out as an OSError with the URL."""
    headers = {"User-Agent": "scoreinv-data-scripts", **({"Range": part} if part else {})}
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 (URLs are constants, or a record's own)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            yield response
    except urllib.error.HTTPError as error:
        raise ServerError(url, error.code, error.reason) from error
    except urllib.error.URLError as error:
        raise OSError(f"{url}: cannot be reached: {error.reason}; run the same command again to go on") from error
    except (OSError, http.client.HTTPException) as error:
        why = str(error) or type(error).__name__
        raise OSError(f"{url}: {why}; run the same command again to go on") from error


def get_json(url: str) -> Any:
    """What a service answers; None where it answers nothing.

    Raises:
        OSError: the server cannot be reached or refuses.
        ValueError: the answer is no JSON.
    """
    with _answer(url) as response:
        text = response.read()
    try:
        return json.loads(text) if text.strip() else None
    except ValueError as error:
        raise ValueError(f"{url}: answers {text[:60]!r}, expected JSON; has the service changed?") from error


def check_space(folder: Path, n_bytes: int) -> None:
    """Refuse what will not fit.

    Raises:
        OSError: fewer bytes than that are free on the disk of the folder.
    """
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OSError(f"{folder}: {n_bytes / GB:.2f} GB are needed, {free / GB:.2f} GB are free")


# Parts of archives


class RemoteFile(io.RawIOBase):
    """A file on a server that sends ranges, read where one seeks.

    Raises:
        OSError: the server cannot be reached, refuses, or sends no ranges.
    """

    def __init__(self, url: str) -> None:
        self.url, self._position = url, 0
        with _answer(url, "bytes=0-0") as response:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if response.status != http.client.PARTIAL_CONTENT or not total.isdigit():
                raise OSError("the server sends no parts of files")
        self.size = int(total)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.size - self._position)
        if wanted <= 0:
            return 0
        with _answer(self.url, f"bytes={self._position}-{self._position + wanted - 1}") as response:
            got = response.read(wanted)
            if len(got) < wanted:
                raise OSError(f"the connection ended after {len(got)} of {wanted} bytes")
        buffer[:wanted] = got
        self._position += wanted
        return wanted


@contextlib.contextmanager
def remote_zip(url: str) -> Iterator[zipfile.ZipFile]:
    """A zip archive on a server: members are fetched as they are read, and checked by their CRC-32.

    Raises:
        OSError: as for RemoteFile.
        ValueError: the archive, or a member that is read, is damaged.
    """
    try:
        with io.BufferedReader(RemoteFile(url), AHEAD) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise ValueError(f"{url}: {error}; run it again") from error


def extract(archive: zipfile.ZipFile, member: str, path: Path) -> Path:
    """Write one member to a path, whole or not at all, unless a file of its size is there.

    Raises:
        ValueError: there is no such member.
        OSError: the disk is too small.
    """
    try:
        found = archive.getinfo(member)
    except KeyError as error:
        raise ValueError(f"{archive.filename or 'the archive'}: holds no {member}") from error
    if path.is_file() and path.stat().st_size == found.file_size:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, found.file_size)
    n_chunks = math.ceil(found.file_size / CHUNK)
    with replacing(path) as temporary, archive.open(found) as source, open(temporary, "wb") as target:
        for chunk in track(iter(lambda: source.read(CHUNK), b""), path.name, n_chunks):
            target.write(chunk)
    return path


# Records


@dataclass(frozen=True)
class Remote:
    """One file of a record: `size` in bytes, `checksum` as for `fetch`."""

    url: str
    size: int
    checksum: str


@dataclass(frozen=True)
class Record:
    """What Zenodo says of a record.

    Attributes:
        files: by name.
        licence: title, licence and DOI in one line.
    """

    files: dict[str, Remote]
    licence: str

    def choose(self, names: list[str], limit_gb: float | None = None, share: float = 1.0) -> dict[str, Remote]:
        """Some of the files, of which a share will be downloaded.

        Raises:
            ValueError: one is not there, or that share of them is larger than the limit.
        """
        missing = [n for n in names if n not in self.files]
        if missing:
            raise ValueError(f"the record holds no {missing[0]}, only {', '.join(sorted(self.files))}; has it changed?")
        chosen = {n: self.files[n] for n in names}
        total = share * sum(f.size for f in chosen.values()) / GB
        if limit_gb is not None and total > limit_gb:
            of = "" if share == 1 else f"{share:.0%} of "
            raise ValueError(f"--limit: {of}{', '.join(names)} is {total:.2f} GB, more than {limit_gb:g} GB")
        return chosen


def zenodo(record: int, folder: Path) -> Record:
    """A record of Zenodo, asked for once and kept in the folder as zenodo_ID.json; the licence is shown and kept.

    Raises:
        OSError: Zenodo cannot be reached or has no such record.
        ValueError: the answer is of another form than the module's head says.
    """
    kept = folder / f"zenodo_{record}.json"
    answer = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else get_json(f"{ZENODO}/{record}")
    try:
        files = {
            f["key"]: Remote(f["links"]["self"], int(f["size"]), f["checksum"] if ":" in f["checksum"] else f"md5:{f['checksum']}")
            for f in answer["files"]
        }  # fmt: skip
        what = answer["metadata"]
        licence = f"{what['title']}. Licence {what['license']['id']}, https://doi.org/{answer['doi']}"
    except (KeyError, TypeError) as error:
        raise ValueError(f"{ZENODO}/{record}: the answer has no {error}; has Zenodo's API changed?") from error
    folder.mkdir(parents=True, exist_ok=True)
    state_licence(folder, f"zenodo_{record}", licence)
    if not kept.is_file():
        with replacing(kept) as temporary:
            temporary.write_text(json.dumps(answer, indent=1), encoding="utf-8")
    return Record(files, licence)


def state_licence(folder: Path, name: str, licence: str) -> None:
    """Show a licence on stderr and keep it in the folder as LICENCE_name.txt, before anything is downloaded."""
    path = folder / f"LICENCE_{name}.txt"
    if path.is_file() and path.read_text(encoding="utf-8").strip() == licence:
        return
    print(licence, file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(licence + "\n", encoding="utf-8")


# Command lines


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all scripts share."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    p.add_argument("--limit", type=float, metavar="GB", help="download no more than this")
    return p


def count(text: str) -> int:
    """A number of things on a command line, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def run(script: str, action: Callable[[], list[Path]]) -> int:
    """Do it and print the files that are there now; bad input and failures are one line on stderr and exit code 2."""
    try:
        paths = action()
    except (ValueError, OSError) as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        return 2
    print(*paths, sep="\n")
    return 0
