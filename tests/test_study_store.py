"""Rows survive: kill -9 at any moment, a full disk, a second process, another version."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scoreinv.cli import main
from scoreinv.study import MethodCall, Noise, OperatorCall, Phantoms, Sweep, read, run, store
from scoreinv.study.store import ROWS, SCHEMA, opened, statuses

KILLS = 20
SWEEP = """
seeds = [0, 1, 2, 3, 4]
images = true

[truth]
phantom = "ellipses"
size = 32

[operator]
name = "parallel_beam_ct"
sweep.n_views = [5, 9]

[noise]
relative = 0.01

[[method]]
sweep.name = ["fbp", "cgls", "sirt"]
"""


def bench(sweep: str, out: str) -> None:
    """In a process of its own: the command, silent."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        raise SystemExit(main(["bench", sweep, "--out", out, "--quiet"]))


def settled(folder: Path) -> list[dict[str, Any]]:
    """Rows with the pixels of their images, without what depends on when and how fast."""
    changing = ("seconds", "cpu_seconds", "peak_memory_mib", "finished", "commit")  # somebody may commit meanwhile
    rows = []
    for row in read(folder):
        with h5py.File(folder / row["images"]) as file:
            images = {name: np.asarray(file[name]).tobytes() for name in file}
        rows.append({k: v for k, v in row.items() if k not in changing} | images)
    return rows


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What `settled` gives, nothing where the process was killed before there was a table."""
    return settled(folder) if statuses(folder) else []


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """A sweep that is killed (SIGKILL) at 20 random moments and started again ends like one that is left alone.

    Processes are forked from one that has imported everything; how long lives last follows from how fast the machine is.
    """
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(SWEEP, encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    imported = ["pytest", "scoreinv.cli.bench", "scoreinv.study", "scipy.stats", "skimage.metrics", "astra", "pywt"]
    context.set_forkserver_preload(imported)

    def started(folder: str) -> Any:
        process = context.Process(target=bench, args=(str(sweep), str(tmp_path / folder)))
        process.start()
        return process

    started("warm").join()
    begun = time.monotonic()
    quiet = started("quiet")
    while not rows_of(tmp_path / "quiet") and quiet.is_alive():
        time.sleep(0.005)
    first = time.monotonic() - begun
    quiet.join()
    longest = first + (time.monotonic() - begun - first) / 4
    assert quiet.exitcode == 0
    expected = settled(tmp_path / "quiet")
    moments = random.Random(0)  # noqa: S311 (no secret)
    killed, lives, seen = 0, 0, set()
    while killed < KILLS and lives < 3 * KILLS:
        lives += 1
        process = started("killed")
        process.join(moments.uniform(0, longest))
        if process.is_alive():
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        rows = rows_of(tmp_path / "killed")
        assert rows == expected[: len(rows)]
        if len(rows) == len(expected):  # this one got through: once more from the start
            shutil.rmtree(tmp_path / "killed")
        seen.add(len(rows))
    assert killed == KILLS and len(seen) >= 2  # kills before the first row, and between rows
    last = started("killed")
    last.join()
    assert last.exitcode == 0
    assert settled(tmp_path / "killed") == expected
    names = [{p.name for p in (tmp_path / f / "images").iterdir()} for f in ("quiet", "killed")]
    assert names[0] == names[1] and len(names[0]) == 30
    assert (tmp_path / "killed" / "table.md").read_text().count("| fbp | 5 |") == 2


def sweep(seeds: int = 3, **changes: Any) -> Sweep:
    parts: dict[str, Any] = {
        "truths": [Phantoms("ellipses", size=16)],
        "operators": [OperatorCall("parallel_beam_ct", {"n_views": 5})],
        "methods": [MethodCall("fbp")],
        "noises": [Noise(relative=0.01)],
    }
    return Sweep(**parts | changes, seeds=range(seeds))


def test_a_second_process_is_turned_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP, encoding="utf-8")
    with opened(tmp_path / "out"):
        assert main(["bench", str(path), "--out", str(tmp_path / "out")]) == 2
        assert "another process is computing into it" in capsys.readouterr().err
        assert read(tmp_path / "out") == []  # readers are welcome
    assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--limit", "1"]) == 0


def test_rows_can_be_read_while_they_come(tmp_path: Path) -> None:
    for k, row in enumerate(run(sweep(), tmp_path)):
        assert [r["key"] for r in read(tmp_path)][k] == row["key"]


def test_another_version_is_refused(tmp_path: Path) -> None:
    list(run(sweep(1), tmp_path))
    with contextlib.closing(sqlite3.connect(tmp_path / ROWS)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    for use in (read, lambda folder: list(run(sweep(2), folder))):
        with pytest.raises(ValueError, match=f"has version {SCHEMA + 1} .* reads and writes version {SCHEMA}"):
            use(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="scoreinv bench"):
        read(tmp_path)
    (tmp_path / ROWS).write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match="is no store of rows"):
        read(tmp_path)
    (tmp_path / ROWS).unlink()
    with contextlib.closing(sqlite3.connect(tmp_path / ROWS)) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(ValueError, match="has version 0"):
        list(run(sweep(1), tmp_path))


def test_no_cell_has_two_rows(tmp_path: Path) -> None:
    rows = list(run(sweep(2), tmp_path))
    with contextlib.closing(sqlite3.connect(tmp_path / ROWS)) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT INTO rows SELECT * FROM rows")
    assert [r["key"] for r in read(tmp_path)] == [r["key"] for r in rows]


def test_a_full_disk_ends_the_sweep_with_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite is given so few pages that it reports what it reports on a full disk."""
    path, out = tmp_path / "sweep.toml", tmp_path / "out"
    path.write_text(SWEEP.replace("images = true", ""), encoding="utf-8")
    connect = sqlite3.connect

    def small(name: Any, **more: Any) -> sqlite3.Connection:
        connection = connect(name, **more)
        connection.execute("PRAGMA max_page_count = 8")
        return connection

    monkeypatch.setattr(store.sqlite3, "connect", small)
    assert main(["bench", str(path), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "no space left on the disk; all finished rows are safe" in said.err and "Traceback" not in said.err
    monkeypatch.undo()
    rows = read(out)
    assert 1 <= len(rows) < 30
    assert main(["bench", str(path), "--out", str(out), "--limit", "2"]) == 0
    assert read(out)[: len(rows)] == rows and len(read(out)) == len(rows) + 2


def test_a_full_disk_leaves_no_half_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = store._write_images

    def full(path: Path, row: Any) -> None:
        if row.cell.seed == 1:
            (path.parent / ".half.h5").write_bytes(b"")
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, row)

    monkeypatch.setattr(store, "_write_images", full)
    with pytest.raises(OSError, match="all finished rows are safe"):
        list(run(sweep(images=True), tmp_path))
    monkeypatch.undo()
    assert len(read(tmp_path)) == 1
    assert len(list(run(sweep(images=True), tmp_path))) == 2
    assert all((tmp_path / r["images"]).is_file() for r in read(tmp_path))
    assert len(list((tmp_path / "images").iterdir())) == 3
