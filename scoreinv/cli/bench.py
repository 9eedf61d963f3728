"""The command `bench`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scoreinv.cli.options import add_cluster, check_device, pool_of


def add_bench(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="compare methods: a sweep written in TOML",
        description="Computes every combination of images, operators, noises, methods, priors and seeds of a TOML file "
        "(docs/benchmarking.md shows one) into rows.sqlite, and prints the means. What is there is not computed again; a cell "
        "that fails is a row with its error.",
    )
    p.add_argument("sweep", type=Path, metavar="SWEEP.toml", help="what to compute")
    p.add_argument("--out", type=Path, metavar="FOLDER", help="where the rows go (scoreinv-bench/SWEEP)")
    p.add_argument(
        "--only", action="append", default=[], metavar="KEY=VALUE",
        help="these cells alone, such as method=fbp or n_views=23; values of one key add up, keys narrow down",
    )  # fmt: skip
    p.add_argument("--limit", type=int, metavar="N", help="compute at most N cells now")
    p.add_argument("--retry-failed", action="store_true", help="compute cells again that have failed")
    p.add_argument("--dry-run", action="store_true", help="say how many cells there are, and compute nothing")
    p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add_cluster(p)
    p.set_defaults(run=_bench)
    return p


def _bench(a: argparse.Namespace) -> None:
    import itertools

    from scoreinv.files.atomic import replacing
    from scoreinv.progress import bar
    from scoreinv.study import plan, read, read_sweep, run, table

    if a.cluster in (None, "local"):
        check_device(a.device)
    out = a.out or Path("scoreinv-bench") / a.sweep.stem
    sweep = read_sweep(a.sweep)
    which = {"only": a.only, "limit": a.limit, "retry_failed": a.retry_failed}
    planned = plan(sweep, out, **which)
    print(
        f"{out}: {len(planned.cells)} cells, {planned.done} done, {planned.failed} failed, {len(planned.todo)} to compute"
        f"{'' if planned.failed == 0 or a.retry_failed else ' (--retry-failed computes the failed ones again)'}",
        flush=True,
    )
    if a.dry_run:
        return
    written = a.sweep.read_text(encoding="utf-8")
    with pool_of(a) as pool, bar(a.sweep.stem, len(planned.todo)) as progress:
        mapper = map if pool is None else pool.rows
        rows = run(sweep, out, **which, device=a.device, mapper=mapper)
        for row in itertools.chain(itertools.islice(rows, 1), [None], rows):
            if row is None:  # the folder is ours now, or all was there; `scoreinv report` shows how to repeat it
                with replacing(out / "sweep.toml") as temporary:
                    temporary.write_text(written, encoding="utf-8")
                continue
            psnr = row["error_type"] if row["psnr"] is None else f"{row['psnr']:.2f} dB"
            progress.advance(f"{row['label']}: {psnr or 'no PSNR'}")
    rows_now = read(out)
    asked = {cell.key for cell in planned.cells}
    if sweep.images and (
        bare := sum(r["status"] == "done" and r["key"] in asked and not r["images"] for r in rows_now)
    ):
        print(
            f"{bare} rows were computed without their images and stay as they are: another --out computes them with images"
        )
    text = table(rows_now, sweep.title)
    with replacing(out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
