"""Work on a Dask cluster: batches go out to workers, each result comes back once, whatever becomes of the workers.

    with workers("local", 2) as pool:                    # or an address, or "slurm"
        for row in run(sweep, folder, mapper=pool.rows):
            print(row["psnr"])

Only the process that calls this writes; workers compute. A worker computes one batch at a time with as many threads as it has, and keeps
priors, images and operators between batches (`priors.shipped`, `study.computing`), so that it loads a prior once. Two batches a worker are out
at a time: results do not pile up, and no worker waits.

Dask computes the batch of a worker that has died again on another one, and gives it up when a few (its setting `allowed-failures`) have died of
it: which may have been another's fault. In the end each member of such batches is computed once more with nothing beside it; one that workers
die of even so becomes a result that says so.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime
import functools
import importlib
import itertools
import shutil
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from scoreinv.files.versions import package_version
from scoreinv.plugins import did_you_mean
from scoreinv.progress import quiet
from scoreinv.study.computing import Row
from scoreinv.study.sweep import Cell, canonical

T = TypeVar("T")
R = TypeVar("R")

LARGEST = 8
"""Cells of one batch, at most."""

SECONDS_TO_CONNECT = 10

_in_turn = threading.Lock()


@dataclass(frozen=True)
class Pool:
    """Workers of a cluster; use `workers`.

    Attributes:
        client: of Dask.
        where: for messages.
        expected: how many workers there will be, where that is known.
    """

    client: Any
    where: str
    expected: int = 0

    @property
    def size(self) -> int:
        """How many workers there are, or will be."""
        return max(1, self.expected, len(self.client.nthreads()))

    def rows(self, function: Callable[[Cell], Row], cells: Sequence[Cell]) -> Iterator[Row]:
        """The mapper of `study.run`: cells of one image and operator go to one worker together, a few at a time."""
        return self.computed(functools.partial(_each, function), batches(cells, self.size), lost=_lost)

    def computed(
        self,
        function: Callable[[Sequence[T]], Iterable[R]],
        batches: Iterable[Sequence[T]],
        *,
        lost: Callable[[T, str], R],
    ) -> Iterator[R]:
        """function(batch) for every batch: all results, in any order, each once.

        Args:
            function: can be pickled.
            batches: of plain values.
            lost: makes the result of a member that workers have died of, from the reason.

        Raises:
            OSError: the cluster has gone.
            ValueError: workers cannot run scoreinv.
            Exception: what function raises.
        """
        distributed = _imported("distributed")
        waiting, suspects = deque(batches), deque[T]()
        out: dict[Any, Sequence[T]] = {}
        arrived = distributed.as_completed(loop=self.client.loop)

        def send(batch: Sequence[T]) -> None:
            future = self.client.submit(_alone, function, batch, pure=False)
            out[future] = batch
            arrived.add(future)

        try:
            while True:
                while waiting and len(out) < 2 * self.size:
                    send(waiting.popleft())
                last = not out
                if last and not suspects:
                    return
                if last:
                    send([suspects.popleft()])
                future = next(arrived)
                batch = out.pop(future)
                try:
                    results = future.result()
                except distributed.KilledWorker as error:
                    results = [lost(batch[0], f"{error.allowed_failures + 1} workers died of it")] if last else []
                    suspects.extend([] if last else batch)
                del future  # so that no worker holds its results any longer
                yield from results
        except (concurrent.futures.CancelledError, asyncio.CancelledError, OSError) as error:
            if isinstance(error, OSError) and self.client.status == "running":
                raise  # it is the function's
            raise OSError(
                f"--cluster {self.where}: the scheduler has gone; what is written is safe: run it again"
            ) from error
        except ImportError as error:
            raise ValueError(
                f"--cluster {self.where}: a worker cannot import what it needs ({error}): install this scoreinv there"
            ) from error
        finally:
            if out and self.client.status == "running":
                self.client.cancel(list(out))


@contextlib.contextmanager
def workers(where: str, n: int | None = None) -> Iterator[Pool]:
    """Workers for as long as the context lasts.

    Args:
        where: "local" for processes of this machine with a thread each; "slurm" for jobs of a SLURM cluster, whose cores, memory and queue
            are set in Dask's configuration (~/.config/dask/jobqueue.yaml); or the address HOST:PORT of a scheduler with workers of its
            own, which see the same files.
        n: how many workers; by default as many as the machine has cores. SLURM needs it, an address cannot have it.

    Raises:
        ValueError: a package or command is missing, or an argument is not what is expected.
        OSError: no scheduler answers.
    """
    if n is not None and n < 1:
        raise ValueError(f"--workers: expected at least 1, got {n}")
    distributed = _imported("distributed")
    with contextlib.ExitStack() as stack:
        if where == "local":
            cluster = stack.enter_context(_local(distributed, n))
            pool = Pool(stack.enter_context(distributed.Client(cluster)), where, len(cluster.workers))
        elif where == "slurm":
            cluster = stack.enter_context(_slurm(n))
            pool = Pool(stack.enter_context(distributed.Client(cluster)), where, n or 0)
        else:
            if n is not None:
                raise ValueError(f"--workers {n}: the cluster at {where} has its own workers; leave it out")
            pool = Pool(stack.enter_context(_connected(distributed, where)), where)
            _check_workers(pool)
        yield pool


def batches(cells: Iterable[Cell], n_workers: int) -> list[list[Cell]]:
    """Neighbouring cells of one image and operator, at most `LARGEST`; fewer where there would not be four batches a worker."""
    cells = list(cells)
    size = min(LARGEST, max(1, len(cells) // (4 * n_workers)))
    runs = itertools.groupby(cells, key=lambda c: canonical([c.image, c.operator, c.simulate]))
    return [run[k : k + size] for run in (list(cells) for _, cells in runs) for k in range(0, len(run), size)]


def _local(distributed: Any, n: int | None) -> Any:
    # Without a limit of memory: Dask would have a worker wait for memory that torch keeps for later, for good.
    return distributed.LocalCluster(
        n_workers=n, threads_per_worker=1, processes=True, memory_limit=None, dashboard_address=":0"
    )


def _slurm(n: int | None) -> Any:
    jobqueue = _imported("dask_jobqueue")
    if n is None:
        raise ValueError("--cluster slurm: say with --workers N how many jobs to submit")
    if shutil.which("sbatch") is None:
        raise ValueError("--cluster slurm: this machine has no sbatch: run it where SLURM's commands are")
    missing = [
        key
        for key in ("cores", "memory")
        if importlib.import_module("dask").config.get(f"jobqueue.slurm.{key}") is None
    ]
    if missing:
        raise ValueError(
            f"--cluster slurm: what is a job? Set jobqueue.slurm.{' and jobqueue.slurm.'.join(missing)} in ~/.config/dask/jobqueue.yaml"
        )
    cluster = jobqueue.SLURMCluster(processes=1, scheduler_options={"dashboard_address": ":0"})
    cluster.scale(jobs=n)
    return cluster


def _connected(distributed: Any, address: str) -> Any:
    if ":" not in address:
        hint = did_you_mean(address, ("local", "slurm"))
        raise ValueError(f"--cluster {address}: expected local, slurm or the address HOST:PORT of a scheduler.{hint}")
    try:
        return distributed.Client(address, timeout=SECONDS_TO_CONNECT)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        raise OSError(
            f"--cluster {address}: no scheduler answers there within {SECONDS_TO_CONNECT} s; `dask scheduler` prints its address"
        ) from error


def _check_workers(pool: Pool) -> None:
    """That the workers of somebody's cluster have this scoreinv."""
    try:
        found = set(pool.client.run(package_version).values())
    except ImportError as error:
        raise ValueError(
            f"--cluster {pool.where}: its workers cannot import scoreinv ({error}): install it there"
        ) from error
    if not found:
        warnings.warn(f"{pool.where} has no workers yet; `dask worker {pool.where}` starts one", stacklevel=3)
    elif found != {package_version()}:
        warnings.warn(
            f"the workers of {pool.where} have scoreinv {', '.join(sorted(found))}, here it is {package_version()}",
            stacklevel=3,
        )


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"--cluster needs the package {module.replace('_', '-')}: pip install 'scoreinv[cluster]' ({error})"
        ) from error


def _alone(function: Callable[[Sequence[T]], Iterable[R]], batch: Sequence[T]) -> list[R]:
    """In a worker: one batch at a time, with all its threads."""
    from distributed import get_worker

    with _in_turn, quiet():
        torch.set_num_threads(max(1, get_worker().state.nthreads))
        return list(function(batch))


def _each(function: Callable[[T], R], batch: Sequence[T]) -> list[R]:
    return [function(member) for member in batch]


def _lost(cell: Cell, reason: str) -> Row:
    finished = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Row(cell, "failed", {"error_type": "KilledWorker", "error": reason, "finished": finished})
