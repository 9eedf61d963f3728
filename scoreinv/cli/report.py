"""The command `report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_report(commands: Any) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="one HTML page of what a sweep has found",
        description="Writes one self-contained HTML page (tables with confidence intervals and tests, plots, an image viewer, all "
        "settings) and the main table as Markdown, from the folder of `scoreinv bench`.",
    )
    p.add_argument("folder", type=Path, metavar="RUN", help="the folder of the rows")
    p.add_argument("--out", type=Path, metavar="PAGE.html", help="the page; the table lies beside it (RUN/report.html)")
    p.add_argument("--baseline", metavar="METHOD", help="what all others are compared with: a label or name (fista_tv)")
    p.set_defaults(run=_report)
    return p


def _report(a: argparse.Namespace) -> None:
    from scoreinv.study.report import described, write_report

    print(described(write_report(a.folder, a.out, baseline=a.baseline)))
