"""A small web server for tests of downloads: it can break off, forget ranges, refuse, and remembers what it was asked for."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `routes` by path and query, and `content` for everything else (404 where it is None)."""

    content: bytes | None = None
    break_after: int | None = None
    knows_ranges = True
    status: int | None = None
    says_length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.paths: list[str] = []
        self.routes: dict[str, bytes] = {}
        self.base = f"http://127.0.0.1:{self.server_port}"
        self.url = f"{self.base}/file"

    def add_record(self, number: int, files: dict[str, bytes], **changes: Any) -> None:
        """A record in the form of Zenodo's API, with its files."""
        entries = []
        for name, content in files.items():
            self.routes[f"/content/{name}"] = content
            links = {"self": f"{self.base}/content/{name}"}
            entries.append({"key": name, "size": len(content), "checksum": md5(content), "links": links})
        record = {
            "id": number, "doi": f"10.5281/zenodo.{number}", "files": entries,
            "metadata": {"title": "A record", "license": {"id": "cc-by-4.0"}}, **changes,
        }  # fmt: skip
        self.routes[f"/records/{number}"] = json.dumps(record).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        s, asked = self.server, self.headers["Range"]
        s.ranges.append(asked)
        s.paths.append(self.path)
        content = s.routes.get(self.path, s.content)
        if s.status is not None or content is None:
            return self.send_error(s.status or 404)
        start, end = 0, len(content) - 1
        if asked and s.knows_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        else:
            self.send_response(200)
        if s.says_length:
            self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        self.wfile.write(content[start : end + 1 if s.break_after is None else min(end + 1, s.break_after)])

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as s:
        thread = threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield s
        finally:
            s.shutdown()
            thread.join()
