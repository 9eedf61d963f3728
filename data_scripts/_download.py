"""Fetch a file once, whole and unaltered: resumed where it broke off, checked, and only then given its name."""

from __future__ import annotations

import hashlib
import http.client
import math
import os
import urllib.error
import urllib.request
from pathlib import Path

from scoreinv.progress import track

CHUNK = 2**20
TIMEOUT_S = 60.0


def fetch(url: str, path: Path, checksum: str) -> Path:
    """Download a file unless it is there already; what a broken connection leaves in `path`.part is gone on with.

    Args:
        url: http or https.
        path: where the file goes; its folder is made if it does not exist.
        checksum: as Zenodo writes them, "md5:" or "sha256:" and hexadecimal digits.

    Returns:
        The path.

    Raises:
        OSError: the server cannot be reached or refuses, or the connection broke off.
        ValueError: what came has another checksum; nothing is kept.
    """
    if path.is_file() and digest(path, checksum) == checksum:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _receive(url, part)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise OSError(f"{url}: the server answers {error.code} {error.reason}") from error
        # Nothing lies beyond the part: it is whole, or it is not this file; the checksum tells.
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{url}: {getattr(error, 'reason', error)}; run the same command again to go on") from error
    found = digest(part, checksum)
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


def _receive(url: str, part: Path) -> None:
    """Append to the part what is missing of it; start over where the server cannot send a range."""
    held = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 (URLs are constants of the scripts)
        resumed = response.status == http.client.PARTIAL_CONTENT
        length = response.headers.get("Content-Length")
        expected = None if length is None else int(length) + (held if resumed else 0)
        n_chunks = None if length is None else math.ceil(int(length) / CHUNK)
        with open(part, "ab" if resumed else "wb") as file:
            for chunk in track(iter(lambda: response.read(CHUNK), b""), part.stem, n_chunks):
                file.write(chunk)
    if expected is not None and part.stat().st_size < expected:
        raise OSError(f"the connection ended after {part.stat().st_size} of {expected} bytes")
