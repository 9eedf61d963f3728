"""What a sweep has found, as one HTML page that needs nothing else, and as a Markdown table.

    from scoreinv.study.report import write_report

    write_report(folder)    # FOLDER/report.html and FOLDER/report.md

The page is `report.html` with `report.css`, `report.js` and `report_viewer.js` put in, and everything that comes from the sweep as one
block of JSON; the scripts write it as text, never as HTML. How the numbers are made: `study.report_statistics`.
"""

from __future__ import annotations

import datetime
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from scoreinv.files.atomic import replacing
from scoreinv.files.reconstruction import check_writable
from scoreinv.files.versions import package_version
from scoreinv.study.report_images import IMAGES_MIB, add_coverage, images
from scoreinv.study.report_settings import TOML, csv_text, failures, settings
from scoreinv.study.report_statistics import BASELINE, FIGURES, axes, problems, shared
from scoreinv.study.store import read
from scoreinv.study.tables import current, further, outdated_words
from scoreinv.study.toml import read_sweep


def write_report(
    folder: str | Path, out: Path | None = None, *, baseline: str | None = None, images_mib: float = IMAGES_MIB
) -> tuple[Path, Path]:
    """Write the page and the table of a sweep.

    Args:
        folder: of the rows; read as they are now, also while they are being computed.
        out: the page, FOLDER/report.html by default; the table lies beside it with the ending .md.
        baseline: label or name of the method that all others are compared with; fista_tv where there is one.
        images_mib: the page holds at most this much text of images [MiB].

    Returns:
        Paths of page and table.

    Raises:
        ValueError: the folder has no row yet, no method has the baseline's name, or page and table would be one file.
        FileNotFoundError: the folder has no rows, or that of the page does not exist.
    """
    folder = Path(folder)
    page = folder / "report.html" if out is None else out
    table = page.with_suffix(".md")
    if table == page:
        raise ValueError(f"--out {page}: is to be an HTML page, such as {page.with_suffix('.html')}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the --out of `scoreinv bench`")
    check_writable(page)
    found = content(folder, baseline=baseline, images_mib=images_mib)
    for path, text in ((page, html_page(found)), (table, markdown(found))):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return page, table


def content(folder: Path, *, baseline: str | None = None, images_mib: float = IMAGES_MIB) -> dict[str, Any]:
    """All that the page shows, as JSON has it; see `write_report`."""
    rows, outdated = current(read(folder))
    if not rows:
        raise ValueError(f"{folder}: has no finished row yet: wait for the first, or let `scoreinv bench` compute one")
    found = problems(rows, baseline)
    add_coverage(found, rows, folder)
    about = settings(rows, folder)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "title": about.pop("title") or folder.resolve().name, "made": now, "scoreinv": package_version(),
        "rows": len(rows), "outdated": outdated, "absent": absent(folder, rows), "asked_baseline": baseline or BASELINE, "figures": [f.plain() for f in FIGURES],
        "problems": found, "common": shared([p["problem"] for p in found]), "axes": axes(rows, found), "failed": failures(rows), "settings": about, "csv": csv_text(rows),
        "images": images(rows, folder, images_mib),
    }  # fmt: skip


def absent(folder: Path, rows: Sequence[Mapping[str, Any]]) -> int | None:
    """How many cells of the sweep whose file was kept have no row; None without the file, or where its images are not to be found from here."""
    try:
        keys = {cell.key for cell in read_sweep(folder / TOML).cells}
    except (ValueError, OSError):
        return None
    return len(keys - {row["key"] for row in rows})


def html_page(found: Mapping[str, Any]) -> str:
    """The page; what is within `found` cannot leave its block of JSON."""
    data = json.dumps(found, ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    parts = {
        "TITLE": html.escape(str(found["title"])),
        "STYLE": _part("report.css"),
        "SCRIPT": _part("report.js") + _part("report_viewer.js"),
        "DATA": data,
    }
    page = _part("report.html")
    pieces = page.split("%%")  # text, name, text, name, ..., text
    return "".join(parts[piece] if k % 2 else piece for k, piece in enumerate(pieces))


def markdown(found: Mapping[str, Any]) -> str:
    """The results as a table for each problem."""
    values = [method["values"] for problem in found["problems"] for method in problem["methods"]]
    present = {key for own in values for key, value in own.items() if value["mean"]}
    shown = [f for f in FIGURES if f.in_markdown or f.key in further(present)]
    lines = [f"# {_cell(found['title'])}", ""]
    lines += [
        "Means over patients (phantoms: images) with 95 % confidence intervals by Student's t, after averaging each patient's slices"
    ]
    lines += [
        "and seeds. Δ and p compare PSNR with the baseline, patient by patient: mean difference, and Wilcoxon's signed-rank test"
    ]
    lines += [
        "(two-sided, not corrected for the number of methods) on n patients: with fewer than 6 it cannot be below 0.05.",
        "",
    ]
    lines += [outdated_words(found["outdated"]), ""] if found["outdated"] else []
    lines += [f"Cells of the sweep without a row yet: {found['absent']}.", ""] if found["absent"] else []
    for problem in found["problems"]:
        base = problem["baseline"]
        lines += [f"## {_cell(problem['problem'])}", "", f"Baseline: {_cell(base) if base else 'none'}.", ""]
        heads = ["method", problem["unit"], *(f.words for f in shown), "Δ PSNR [dB]", "p", "n", "failed"]
        lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        for method in problem["methods"]:
            test = method["tests"].get("psnr")
            cells = [_cell(method["label"]), str(method["n"])]
            cells += [_interval(method["values"].get(f.key), f.digits, f.percent) for f in shown]
            cells += [_interval(test and test["difference"], 2), _p(test), str(test["n"]) if test else "-"]
            cells += [str(method["failed"] or "-")]
            lines += [f"| {' | '.join(cells)} |"]
        lines += [""]
    if found["failed"]:
        lines += ["## Failed", "", "| method | problem | image | seed | error |", "| --- | --- | --- | --- | --- |"]
        for row in found["failed"]:
            cells = [row["label"], row["problem"], row["image"], row["seed"], f"{row['error_type']}: {row['error']}"]
            lines += [f"| {' | '.join(_cell(c) for c in cells)} |"]
        lines += [""]
    return "\n".join(lines)


def _part(name: str) -> str:
    return files("scoreinv.study").joinpath(name).read_text(encoding="utf-8")


def _interval(value: Mapping[str, Any] | None, digits: int, percent: bool = False) -> str:
    """Such as "30.12 (29.80 to 30.44)"."""
    if value is None:
        return "-"
    factor = 100 if percent else 1
    mean, *ends = (f"{factor * value[k]:.{digits}f}" for k in ("mean", "low", "high") if value[k] is not None)
    return f"{mean} ({' to '.join(ends)})" if ends else mean


def _p(test: Mapping[str, Any] | None) -> str:
    return "-" if test is None or test["p"] is None else f"{test['p']:.2g}"


def _cell(value: Any) -> str:
    """Text that stays within its cell and is neither Markdown nor HTML."""
    text = " ".join(str(value).split())
    for sign in "\\`*_[]|#~!":
        text = text.replace(sign, f"\\{sign}")
    return html.escape(text, quote=False)


def described(found: Sequence[Path]) -> str:
    """Such as "runs/a/report.html, 3.2 MiB"."""
    return ", ".join(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)" for path in found)
