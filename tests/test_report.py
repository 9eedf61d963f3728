"""`scoreinv report`: numbers against scipy, text that cannot become HTML, and the page in a real browser."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from scoreinv import metrics
from scoreinv.calibration import TISSUE_HU
from scoreinv.cli import main
from scoreinv.study import Cell, Row, read
from scoreinv.study.report import content, html_page, write_report
from scoreinv.study.report_images import images, packed
from scoreinv.study.report_statistics import mean_interval, names, paired_test, problems
from scoreinv.study.store import opened

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">|`%%DATA%%\u2028& \'"'
PATIENTS = 7
SHAPE = (24, 16)


def cell(method: str, label: str, patient: int, number: int, *, views: int = 9, seed: int = 0) -> Cell:
    image = {
        "source": "a.h5", "fine_source": None, "patient": f"P{patient}", "slice": number, "size": None, "shape": list(SHAPE),
        "pixel_mm": 1.0, "sha256": f"{patient}-{number}", "fine": None,
    }  # fmt: skip
    labels = {"truth": "a", "operator": f"ct(n_views={views})", "noise": "noise-free", "method": label}
    settings = {"name": method, "label": label}
    noise = {"relative": 0.0, "photons": None}
    return Cell(image, {"name": "ct", "n_views": views}, {"refine": 2}, noise, settings, None, seed, labels)


def figures(psnr: float, **more: Any) -> dict[str, Any]:
    about = {"versions": {"torch": "9.9"}, "commit": "c0ffee", "machine": {"processor": "an abacus"}, "device": "cpu"}
    own = {
        "psnr": psnr,
        "ssim": psnr / 50,
        "rmse_hu": 1000 / psnr,
        "seconds": psnr / 10,
        "samples": 1,
        "evaluations": 3,
    }
    return {**own, "finished": "2026-01-02T03:04:05+00:00", **about, **more}


def psnr(method: int, patient: int, number: int, views: int) -> float:
    """A number that looks arbitrary."""
    return 25 + 3 * method + 0.1 * views + (7 * patient * (method + 2) + 3 * number) % 11 / 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, seven patients of two slices, two problems; one method fails for one patient, one has draws and images."""
    out = tmp_path_factory.mktemp("sweep")
    rng = torch.Generator().manual_seed(0)
    with opened(out) as store:
        for patient in range(PATIENTS):
            for number in range(2):
                for views in (9, 23):
                    for k, name in enumerate(("fista_tv", "fbp", "sampler")):
                        c = cell(name, HOSTILE if name == "sampler" else name, patient, number, views=views)
                        if name == "fbp" and patient == 6:
                            store.add(Row(c, "failed", {"error_type": "ValueError", "error": HOSTILE}))
                            continue
                        value, more, pictures = psnr(k, patient, number, views), {}, {}
                        if name == "sampler":
                            truth = 100 * torch.randn(SHAPE, generator=rng)
                            draws = truth + 30 * torch.randn(4, *SHAPE, generator=rng)
                            where = truth > TISSUE_HU
                            more = {
                                "samples": 4, "calibration": float(metrics.calibration_ratio(draws, truth, where)),
                                "coverage_90": float(metrics.coverage_of_normal(draws, truth, where, 0.9)),
                            }  # fmt: skip
                            pictures = {"mean_hu": draws.mean(0), "std_hu": draws.std(0), "truth_hu": truth}
                        store.add(Row(c, "done", figures(value, **more), {n: i.numpy() for n, i in pictures.items()}))
    (out / "sweep.toml").write_text('title = "A sweep <b>"\n# how it was\n', encoding="utf-8")
    return out


# Numbers


def test_intervals_are_those_of_scipy() -> None:
    values = [30.0, 31.5, 28.25, 35.0, 29.0]
    own, other = mean_interval(values), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert own["mean"] == pytest.approx(np.mean(values))
    assert (own["low"], own["high"]) == pytest.approx((other.low, other.high))
    assert mean_interval([3.0]) == {"mean": 3.0, "low": None, "high": None}


def test_tests_are_those_of_scipy() -> None:
    a = {"p": 1.0, "q": 2.0, "r": 5.0, "s": 3.5, "t": 4.0, "only a": 100.0}
    b = {"q": 1.5, "p": 1.2, "r": 1.0, "s": 2.0, "t": 1.75, "only b": -100.0}
    pairs = [(a[k], b[k]) for k in "pqrst"]
    found = paired_test(a, b)
    assert found is not None and found["n"] == 5 and found["wins"] == 4
    assert found["p"] == pytest.approx(stats.wilcoxon(*zip(*pairs, strict=True)).pvalue)
    ends = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
    assert (found["difference"]["low"], found["difference"]["high"]) == pytest.approx((ends.low, ends.high))
    assert paired_test(a, a)["p"] == 1.0  # type: ignore[index]
    assert paired_test({"p": 2.0}, b)["p"] is None and paired_test({"x": 1.0}, b) is None  # type: ignore[index]


def test_slices_are_averaged_before_patients(folder: Path) -> None:
    found = problems(read(folder))
    assert [(p["problem"], p["short"]) for p in found] == [
        (f"a, ct(n_views={n}), noise-free", f"ct(n_views={n})") for n in (9, 23)
    ]
    tv, fbp, sampler = found[1]["methods"]
    assert found[1]["baseline"] == "fista_tv" and tv["tests"] == {} and found[1]["unit"] == "patients"
    means = [[np.mean([psnr(k, p, s, 23) for s in (0, 1)]) for p in range(PATIENTS)] for k in range(3)]
    assert (tv["n"], fbp["n"], fbp["failed"], sampler["rows"]) == (7, 6, 2, 14)
    for method, own in ((tv, means[0]), (fbp, means[1][:6]), (sampler, means[2])):
        ends = stats.ttest_1samp(own, 0).confidence_interval(0.95)
        value = method["values"]["psnr"]
        assert (value["mean"], value["low"], value["high"]) == pytest.approx((np.mean(own), ends.low, ends.high))
    test = fbp["tests"]["psnr"]
    assert test["n"] == 6 and test["p"] == pytest.approx(stats.wilcoxon(means[1][:6], means[0][:6]).pvalue)


def test_methods_of_one_label_are_told_apart() -> None:
    def row(key: str, prior: str | None = None, **settings: float) -> dict[str, Any]:
        prior_of = {"prior": prior, "prior_sha256": prior and 3 * prior}
        return {
            "key": key,
            "label": "dds",
            "method": "dds",
            **prior_of,
            **{f"method.{k}": v for k, v in settings.items()},
        }

    one = [row("a", "ct", eta=0.1), row("b", "ct", eta=0.1)]
    assert names(one) == {"a": "dds", "b": "dds"}
    two = [*one, row("c", "ct", eta=0.2)]
    assert names(two) == {"a": "dds (eta=0.1)", "b": "dds (eta=0.1)", "c": "dds (eta=0.2)"}
    assert names([row("a", "ct"), row("b", "mr")]) == {"a": "dds (prior ct, ctctct)", "b": "dds (prior mr, mrmrmr)"}


def test_another_baseline(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(read(folder), "fbp")[0]["baseline"] == "fbp"
    assert main(["report", str(folder), "--baseline", "fpb"]) == 2
    assert "no method is called so. Did you mean 'fbp'?" in capsys.readouterr().err
    without = problems([r for r in read(folder) if r["method"] != "fista_tv"])
    assert without[0]["baseline"] is None and all(m["tests"] == {} for m in without[0]["methods"])


def test_axes_and_coverage(folder: Path) -> None:
    found = content(folder)
    (axis,) = found["axes"]
    assert axis["axis"] == "views" and axis["points"] == [(9.0, 0), (23.0, 1)] and axis["title"] == "a, noise-free"
    sampler = found["problems"][0]["methods"][2]
    assert dict(sampler["coverage"])[0.9] == pytest.approx(sampler["values"]["coverage_90"]["mean"], abs=0.01)
    assert "coverage" not in found["problems"][0]["methods"][0]


# Images and settings


def unpacked(image: dict[str, Any]) -> np.ndarray:
    height, width = image["shape"]
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(image["text"])), np.uint8).reshape(2, height, width)
    steps = low.astype(np.uint16) + 256 * high.astype(np.uint16)
    return np.cumsum(steps, axis=1, dtype=np.uint16).view(np.int16) * image["step"]


def test_images_come_back() -> None:
    image = np.random.default_rng(0).uniform(-1100, 3000, SHAPE)
    image[0, :3] = -1e6, 1e6, np.nan
    expected = np.clip(np.nan_to_num(image), -32768, 32767)
    assert np.abs(unpacked(packed(image, 1.0)) - expected).max() <= 0.5
    assert np.abs(unpacked(packed(expected[1:] / 10, 0.1)) - expected[1:] / 10).max() <= 0.0501


def test_images_are_limited(folder: Path) -> None:
    rows = read(folder)
    everything = images(rows, folder)
    assert len(everything["rows"]) == everything["available"] == 2 * 2 * PATIENTS
    size = sum(len(image["text"]) for image in everything["pool"])
    some = images(rows, folder, size / 2**21)
    assert 0 < len(some["rows"]) < len(everything["rows"])
    assert sum(len(i["text"]) for i in some["pool"] if i) <= size / 2
    assert {r["problem"] for r in some["rows"]} == {0, 1}  # of every problem some
    assert images(rows, folder, 0.0)["rows"] == []


def test_everything_to_repeat_it(folder: Path) -> None:
    found = content(folder)
    assert found["title"] == "A sweep <b>" and "# how it was" in found["settings"]["toml"]
    parts = found["settings"]["parts"]
    assert {m["method"] for m in parts["Methods"]} == {"fista_tv", "fbp", "sampler"}
    assert {"torch": "9.9", "commit": "c0ffee", "rows": 80} in parts["Computed by"]
    assert parts["Data"] == [{"refine": 2, "rows": 84}] and len(parts["Images"]) == 14
    table = list(csv.DictReader(io.StringIO(found["csv"])))
    assert len(table) == 84 and table[0]["psnr"] == repr(psnr(0, 0, 0, 9)) and len(found["failed"]) == 4


# Text


class Tags(html.parser.HTMLParser):
    """The tags of a page, and the text within scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [(tag, str(v)) for k, v in attrs if k in ("src", "href") or k.startswith("on")]


def test_data_cannot_become_html(folder: Path) -> None:
    found = content(folder)
    page = html_page({**found, "title": HOSTILE})
    tags = Tags(page)
    assert tags.tags.count("script") == 2 and "img" not in tags.tags
    assert all(source.startswith("#") for _, source in tags.sources)
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert json.loads(block)["problems"][0]["methods"][2]["label"] == HOSTILE
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page


def test_markdown(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder), "--out", str(tmp_path / "a.html")]) == 0
    assert "a.html" in capsys.readouterr().out
    lines = (tmp_path / "a.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == r"# A sweep &lt;b&gt;"
    (fbp, _) = [line for line in lines if line.startswith("| fbp | 6 |")]
    value = problems(read(folder))[0]["methods"][1]["values"]["psnr"]
    assert f"| {value['mean']:.2f} ({value['low']:.2f} to {value['high']:.2f}) |" in fbp
    assert sum("&lt;script&gt;" in line for line in lines) == 6 and not any("<script" in line for line in lines)
    width = {
        len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith(("| fbp | 6", "| fista", "| &lt;"))
    }
    assert width == {14}


def test_after_bench(tmp_path: Path) -> None:
    """The sweep's file is kept with its rows; without images the page says so."""
    toml = (
        'title = "T"\n[truth]\nphantom = "shepp_logan"\nsize = 16\n[operator]\nname = "parallel_beam_ct"\nn_views = 5\n'
    )
    (tmp_path / "small.toml").write_text(toml + '[[method]]\nname = "fbp"\n', encoding="utf-8")
    assert main(["bench", str(tmp_path / "small.toml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    found = content(tmp_path / "run")
    assert found["title"] == "T" and found["settings"]["toml"] == (tmp_path / "small.toml").read_text(encoding="utf-8")
    assert found["images"] == {"pool": [], "rows": [], "available": 0} and found["problems"][0]["unit"] == "images"
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "run" / "report.md").is_file()


def test_bad_folders(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "scoreinv bench" in capsys.readouterr().err
    with opened(tmp_path):
        pass
    assert main(["report", str(tmp_path)]) == 2
    assert "no finished row yet" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"a\.html"):
        write_report(folder, tmp_path / "a.md")


# In a browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking", "disable-sync",
        "disable-component-update", "no-first-run", f"user-data-dir={tmp_path / 'profile'}", "window-size=1366,900",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


def test_the_page_in_a_browser(folder: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    def js(code: str) -> Any:
        return browser.execute_script(f"return {code}")

    def wait(code: str) -> None:
        WebDriverWait(browser, 60).until(lambda _: js(code))

    page, _ = write_report(folder, tmp_path / "page.html")
    browser.get(page.as_uri())
    assert browser.title == "A sweep <b>"
    texts = (
        "[...document.querySelectorAll('#table tbody tr')].map(r => [...r.cells].map(c => c.firstChild.textContent))"
    )
    assert len(js(texts)) == 6 and HOSTILE in [row[1] for row in js(texts)]
    assert HOSTILE in js("document.getElementById('failures').textContent")
    assert js("document.querySelectorAll('#charts figure').length") >= 5
    assert js("document.querySelectorAll('main script, main img').length") == 0

    # A head sorts, down first for what should be high, up when it is clicked again.
    head = "document.querySelector('[data-column=psnr]')"
    for direction in ("descending", "ascending"):
        js(f"{head}.click()")
        assert js(f"{head}.parentNode.ariaSort") == direction
        shown = [float(row[3]) for row in js(texts)]
        assert shown == sorted(shown, reverse=direction == "descending") and len(set(shown)) == 6

    # The filter leaves one problem.
    js("(s => { s.value = '1'; s.dispatchEvent(new Event('change')); })(document.getElementById('problem'))")
    assert len(js(texts)) == 3 and [float(row[2]) for row in js(texts)] == shown_of(folder, 1)

    # The viewer draws the truth in the window, and another one in another.
    wait("document.querySelectorAll('#panels canvas').length === 4")
    pixel = "[...document.querySelector('#panels canvas').getContext('2d').getImageData(2, 3, 1, 1).data]"
    first = images(read(folder), folder)
    truth = unpacked(first["pool"][first["rows"][0]["truth_hu"]])[3, 2]
    for name, low, high in (("soft tissue", -160, 240), ("bone", -500, 1300), ("lung", -1350, 150)):
        js(f"document.querySelector('input[value=\"{name}\"]').click()")
        gray = round(255 * min(max((truth - low) / (high - low), 0), 1))
        assert abs(js(pixel)[0] - gray) <= 1, name

    # A click moves the profile lines.
    js("document.querySelector('#panels canvas').scrollIntoView()")
    canvas = browser.find_elements("css selector", "#panels canvas")[1]
    part = js("document.querySelector('#panels canvas').getBoundingClientRect().width") / SHAPE[1]
    ActionChains(browser).move_to_element_with_offset(canvas, int(2.5 * part), int(-3.5 * part)).click().perform()
    assert js("document.getElementById('readout').textContent").startswith("column 10, row 8: reconstruction")
    assert js("document.querySelectorAll('#profiles svg').length") == 2
    assert browser.get_log("browser") == []


def shown_of(folder: Path, problem: int) -> list[float]:
    """Mean PSNR of the methods of a problem, as the page writes them, in ascending order."""
    means = [m["values"]["psnr"]["mean"] for m in problems(read(folder))[problem]["methods"]]
    return sorted(float(f"{mean:.2f}") for mean in means)
