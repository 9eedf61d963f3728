"""Sweeps: products of true images, operators, noises, methods, priors and seeds, computed into rows that survive anything.

    from scoreinv.study import Sweep, read, read_sweep, run, table

    for row in run(read_sweep("sweep.toml"), folder):    # or a Sweep made in Python
        print(row["label"], row["psnr"])
    print(table(read(folder)))

docs/benchmarking.md has a complete example.
"""

from scoreinv.study.computing import Context, Row, compute
from scoreinv.study.lodopab import LoDoPaB
from scoreinv.study.running import Plan, plan, run
from scoreinv.study.store import read
from scoreinv.study.sweep import Cell, MethodCall, Noise, OperatorCall, Sweep
from scoreinv.study.tables import table
from scoreinv.study.toml import read_sweep
from scoreinv.study.truth import ImageFile, Phantoms

__all__ = [
    "Cell",
    "Context",
    "ImageFile",
    "LoDoPaB",
    "MethodCall",
    "Noise",
    "OperatorCall",
    "Phantoms",
    "Plan",
    "Row",
    "Sweep",
    "compute",
    "plan",
    "read",
    "read_sweep",
    "run",
    "table",
]
