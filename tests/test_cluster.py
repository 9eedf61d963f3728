"""Work on Dask workers: one of two is killed in the middle, and every row and slice is there, once."""

from __future__ import annotations

import collections
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_volume
from small_volume import SLICES

from scoreinv.cli import main
from scoreinv.files.slices import open_slices
from scoreinv.files.volume import opened
from scoreinv.reconstruction import Choice
from scoreinv.study import MethodCall, Noise, OperatorCall, Phantoms, Sweep, read, run
from scoreinv.study.cluster import LARGEST, Pool, batches, workers
from scoreinv.volume import reconstruct_volume

distributed = pytest.importorskip("distributed", reason="Dask is an optional extra")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two worker processes of this machine; those that are killed are replaced."""
    with workers("local", 2) as found:
        yield found


def sweep(**changes: Any) -> Sweep:
    parts: dict[str, Any] = {
        "truths": [Phantoms("ellipses", size=16)],
        "operators": [OperatorCall("parallel_beam_ct", {"n_views": n}) for n in (5, 9)],
        "methods": [MethodCall("fbp"), MethodCall("sirt", {"iterations": 200})],
        "noises": [Noise(relative=0.01)],
        "seeds": range(8),
    }
    return Sweep(**parts | changes)


def process_ids(pool: Pool) -> dict[str, int]:
    """The process of each worker, by its address."""
    return dict(pool.client.run(os.getpid))


def kill_one(pool: Pool, processes: dict[str, int]) -> int:
    """SIGKILL for a worker that has work; which process it was."""
    while not (
        busy := [address for address, keys in pool.client.processing().items() if keys and address in processes]
    ):
        time.sleep(0.01)
    os.kill(processes[busy[0]], signal.SIGKILL)
    return processes[busy[0]]


def settle(pool: Pool) -> None:
    """Wait until there are two workers again."""
    pool.client.wait_for_workers(2)


# Sweeps


def test_every_row_is_there_once_when_a_worker_is_killed(pool: Pool, tmp_path: Path) -> None:
    settle(pool)
    processes = process_ids(pool)
    rows, killed = [], None
    for row in run(sweep(), tmp_path / "killed", mapper=pool.rows):
        rows.append(row)
        if len(rows) == 4:
            killed = kill_one(pool, processes)
    cells = sweep().cells
    assert collections.Counter(row["key"] for row in rows) == {cell.key: 1 for cell in cells}
    assert {row["status"] for row in rows} == {"done"} and len(cells) == 32
    assert sorted(row["key"] for row in read(tmp_path / "killed")) == sorted(cell.key for cell in cells)
    assert killed not in process_ids(pool).values()
    here = {row["key"]: row for row in run(sweep(), tmp_path / "here")}
    for row in rows:
        for name in ("label", "problem", "operator.n_views", "seed", "status", "error"):
            assert row[name] == here[row["key"]][name]
        for name in ("psnr", "rmse_hu", "chi2"):
            assert row[name] == pytest.approx(here[row["key"]][name], rel=1e-4)


def test_a_sweep_goes_on_with_or_without_workers(pool: Pool, tmp_path: Path) -> None:
    few = sweep(seeds=range(2), images=True)
    assert len(list(run(few, tmp_path, limit=3))) == 3
    assert len(list(run(few, tmp_path, mapper=pool.rows))) == 5
    assert list(run(few, tmp_path, mapper=pool.rows)) == [] and len(read(tmp_path)) == 8
    assert all((tmp_path / row["images"]).is_file() for row in read(tmp_path))


def loaded() -> tuple[int, int]:
    """In a worker: how often a prior was loaded, and how often it was taken again."""
    from scoreinv.priors import shipped

    info = shipped._loaded.cache_info()
    return info.misses, info.hits


def test_a_worker_loads_the_prior_once(pool: Pool, tmp_path: Path) -> None:
    settle(pool)
    method = MethodCall("proximal", {"n_levels": 1, "samples": 1, "iterations": 2})
    with_prior = sweep(methods=[method], priors=["ct-256-fast"], seeds=range(4))
    assert {row["status"] for row in run(with_prior, tmp_path, mapper=pool.rows)} == {"done"}
    found = pool.client.run(loaded).values()
    assert {misses for misses, _ in found} <= {0, 1}
    assert sum(misses + hits for misses, hits in found) >= len(with_prior.cells) > sum(misses for misses, _ in found)


def test_an_error_of_a_method_is_a_row(pool: Pool, tmp_path: Path) -> None:
    (wrong,) = run(
        sweep(methods=[MethodCall("sin_4c_prn")], operators=sweep().operators[:1], seeds=[0]),
        tmp_path,
        mapper=pool.rows,
    )
    assert wrong["status"] == "failed" and wrong["error"]


def test_batches_are_of_one_image_and_operator() -> None:
    cells = sweep(truths=[Phantoms("ellipses", count=2, size=16)]).cells
    for n_workers in (1, 2, 5, 100):
        found = batches(cells, n_workers)
        assert [cell.key for batch in found for cell in batch] == [cell.key for cell in cells]
        assert all(len({(str(cell.image), str(cell.operator)) for cell in batch}) == 1 for batch in found)
        assert max(map(len, found)) <= LARGEST and len(found) >= min(len(cells), 4 * n_workers)
    assert batches([], 2) == []


# Members that workers die of


def deadly(batch: Sequence[int]) -> list[str]:
    """Kills its process at 13."""
    if 13 in batch:
        os.kill(os.getpid(), signal.SIGKILL)
    return [str(k) for k in batch]


def test_what_workers_die_of_is_a_result_and_the_others_are_there(pool: Pool) -> None:
    settle(pool)
    scheduler = pool.client.cluster.scheduler
    usual, scheduler.allowed_failures = scheduler.allowed_failures, 0
    try:
        numbers = [list(range(k, k + 4)) for k in range(0, 20, 4)]
        found = list(pool.computed(deadly, numbers, lost=lambda k, reason: f"lost {k}: {reason}"))
    finally:
        scheduler.allowed_failures = usual
    wanted = [str(k) for k in range(20) if k != 13]
    assert sorted(found) == sorted([*wanted, "lost 13: 1 workers died of it"])


def wrong(batch: Sequence[int]) -> list[str]:
    if 3 in batch:
        raise ZeroDivisionError("as planned")
    if 4 in batch:
        raise ModuleNotFoundError("No module named 'scoreinv'")
    return [str(k) for k in batch]


def test_other_errors_come_here(pool: Pool) -> None:
    with pytest.raises(ZeroDivisionError, match="as planned"):
        list(pool.computed(wrong, [[1], [2], [3]], lost=lambda k, reason: ""))
    with pytest.raises(ValueError, match=r"a worker cannot import what it needs \(No module named 'scoreinv'\)"):
        list(pool.computed(wrong, [[1], [4]], lost=lambda k, reason: ""))
    assert list(pool.computed(wrong, [[1]], lost=lambda k, reason: "")) == ["1"]


# Volumes


def test_every_slice_is_there_once_when_a_worker_is_killed(pool: Pool, tmp_path: Path) -> None:
    settle(pool)
    whole = small_volume.scan(slices=40)
    slices, out = open_slices(small_volume.write(tmp_path / "scan.h5", whole)), tmp_path / "killed.h5"
    choice = Choice("sirt", {"iterations": 200})
    processes, found, killed = process_ids(pool), [], None
    for k in reconstruct_volume(slices, out, choice, batch=2, mapper=pool.computed):
        found.append(k)
        if len(found) == 6:
            killed = kill_one(pool, processes)
    assert sorted(found) == list(range(40)) and killed not in process_ids(pool).values()
    list(reconstruct_volume(slices, tmp_path / "here.h5", choice, batch=2))
    with opened(out) as volume, opened(tmp_path / "here.h5") as here:
        assert volume.done.all()
        for k in range(40):
            np.testing.assert_allclose(volume.image("mean", k), here.image("mean", k), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(volume.figures("chi2"), here.figures("chi2"), rtol=1e-4)


def test_draws_do_not_depend_on_the_worker(pool: Pool, tmp_path: Path) -> None:
    slices = open_slices(small_volume.write(tmp_path / "scan.h5", small_volume.scan()))
    choice = Choice("dds", {"n_levels": 2, "samples": 2, "iterations": 2}, "ct-256-fast")
    for name, more in (("here", {}), ("there", {"mapper": pool.computed})):
        list(reconstruct_volume(slices, tmp_path / f"{name}.h5", choice, which=range(4), **more))
    with opened(tmp_path / "here.h5") as here, opened(tmp_path / "there.h5") as there:
        for name in ("mean", "std"):
            for k in range(4):
                np.testing.assert_allclose(there.image(name, k), here.image(name, k), rtol=0, atol=1e-5)


# The commands, with an address


def test_the_commands(pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = pool.client.scheduler.address
    toml = tmp_path / "sweep.toml"
    toml.write_text(
        '[truth]\nphantom = "ellipses"\nsize = 16\n[operator]\nname = "parallel_beam_ct"\nn_views = 5\n'
        '[noise]\nrelative = 0.01\n[[method]]\nname = "fbp"\n',
        encoding="utf-8",
    )
    assert main(["bench", str(toml), "--out", str(tmp_path / "rows"), "--cluster", address]) == 0
    assert "1 to compute" in capsys.readouterr().out and len(read(tmp_path / "rows")) == 1
    scan, out = small_volume.write(tmp_path / "scan.h5", small_volume.scan()), tmp_path / "recon.h5"
    assert main(["reconstruct", str(scan), "--out", str(out), "--method", "fbp", "--cluster", address]) == 0
    assert f"volume, {SLICES} of {SLICES} slices" in capsys.readouterr().out
    for more, words in (
        (["--cluster", address, "--workers", "2"], "has its own workers; leave it out"),
        (
            ["--cluster", "locall"],
            "expected local, slurm or the address HOST:PORT of a scheduler. Did you mean 'local'?",
        ),
        (["--cluster", "local", "--workers", "0"], "--workers: expected at least 1, got 0"),
        (["--workers", "2"], "--workers is for --cluster local or slurm"),
        (["--cluster", "slurm"], "--cluster slurm: say with --workers N how many jobs"),
    ):
        if "slurm" in more:
            pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is an optional extra")
        assert main(["bench", str(toml), "--out", str(tmp_path / "rows"), *more]) == 2
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreinv.study.cluster.SECONDS_TO_CONNECT", 1)
    with (
        pytest.raises(OSError, match=r"--cluster 127.0.0.1:1: no scheduler answers there within 1 s"),
        workers("127.0.0.1:1"),
    ):
        pass


def test_a_scheduler_without_workers_is_told_of() -> None:
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        address = cluster.scheduler_address
        with pytest.warns(UserWarning, match="has no workers yet; `dask worker"), workers(address) as found:
            assert found.size == 1


def test_a_scheduler_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreinv.study.cluster.SECONDS_TO_CONNECT", 2)
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        workers(cluster.scheduler_address) as found,
    ):
        results = found.computed(slow, [[k] for k in range(50)], lost=lambda k, reason: -1)
        assert next(results) in range(50)
        cluster.close()
        with pytest.raises(OSError, match="the scheduler has gone; what is written is safe"):
            list(results)


def slow(batch: Sequence[int]) -> Sequence[int]:
    time.sleep(0.2)
    return batch


@pytest.mark.parametrize(
    ("module", "where", "words"),
    [
        ("distributed", "local", r"the package distributed: pip install 'scoreinv\[cluster\]'"),
        ("dask_jobqueue", "slurm", r"the package dask-jobqueue: pip install 'scoreinv\[cluster\]'"),
    ],
)
def test_what_is_not_installed(module: str, where: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=words), workers(where, 2):
        pass


# SLURM

SBATCH = """#!/bin/sh
# What sbatch does, on this machine: keep the script, which its writer deletes, run it, say which job it is.
for script; do :; done
cp "$script" "{folder}/script"
sh "{folder}/script" > "{folder}/log" 2>&1 &
echo $! > "{folder}/job"
echo "Submitted batch job $!"
"""


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job script that Dask writes is run by something that speaks like sbatch."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is an optional extra")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="this machine has no sbatch"), workers("slurm", 1):
        pass
    monkeypatch.undo()
    for name, script in (("sbatch", SBATCH.format(folder=tmp_path)), ("scancel", '#!/bin/sh\nkill "$1"\n')):
        (tmp_path / name).write_text(script, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    with pytest.raises(ValueError, match=r"Set jobqueue.slurm.cores and jobqueue.slurm.memory in"), workers("slurm", 1):
        pass
    import dask

    with dask.config.set({"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "4GB"}), workers("slurm", 1) as found:
        rows = list(run(sweep(seeds=[0]), tmp_path / "rows", mapper=found.rows))
    assert {row["status"] for row in rows} == {"done"} and len(rows) == 4 == len(read(tmp_path / "rows"))
    assert "distributed" in (tmp_path / "log").read_text(encoding="utf-8")
