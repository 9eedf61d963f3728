"""LPIPS: the package's own network with weights of the test, what is missing said in one line, and sweeps that ask for it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoreinv import metrics
from scoreinv.cli import main
from scoreinv.study import MethodCall, OperatorCall, Phantoms, Sweep, read_sweep, run, table

TOML = """
[truth]
phantom = "ellipses"
size = 32

[operator]
name = "parallel_beam_ct"

[[method]]
name = "fbp"
"""


@pytest.fixture
def network() -> Callable[[Tensor, Tensor], Tensor]:
    """The package's LPIPS with random weights in AlexNet."""
    package = pytest.importorskip("lpips", reason="the package lpips is not installed")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made: Callable[[Tensor, Tensor], Tensor] = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    return made


@pytest.fixture
def empty_hub(tmp_path: Path) -> Iterator[Path]:
    """An empty folder where torchvision's weights would be; the folder of the files in it."""
    before = torch.hub.get_dir()
    metrics.lpips_network.cache_clear()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)
    metrics.lpips_network.cache_clear()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_is_the_packages_on_three_channels(network: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, ref = images(2, 31, 40), images(2, 31, 40, seed=1)
    found = metrics.lpips(x, ref, network)
    assert found.shape == (2,) and float(found.min()) > 1e-4
    for k in range(2):
        a, b = (torch.stack([2 * t[k] - 1] * 3)[None] for t in (x, ref))
        torch.testing.assert_close(found[k], network(a, b).double().squeeze(), rtol=1e-5, atol=1e-7)
    assert metrics.lpips(x, x, network).tolist() == [0, 0]
    nearer = metrics.lpips(ref + 0.1 * (x - ref), ref, network)
    assert (nearer < found).all()


def test_small_images_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="sides of at least 31 pixels"):
        metrics.lpips(images(30, 31), images(30, 31))
    with pytest.raises(ValueError, match="of one shape"):
        metrics.lpips(images(31, 31), images(1, 31, 31))


def test_the_smallest_image_is_the_smallest_that_alexnet_takes(network: Callable[[Tensor, Tensor], Tensor]) -> None:
    small = metrics.LPIPS_SIDE - 1
    with pytest.raises(RuntimeError):
        network(images(1, 3, small, small), images(1, 3, small, small))


def test_weights_that_are_missing(empty_hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lpips", reason="the package lpips is not installed")
    with pytest.raises(
        FileNotFoundError, match=r"download https://download\.pytorch\.org/models/alexnet.*\.pth to .*alexnet"
    ):
        metrics.lpips(images(32, 32), images(32, 32))
    (tmp_path / "s.toml").write_text("lpips = true\n" + TOML, encoding="utf-8")
    assert main(["bench", str(tmp_path / "s.toml")]) == 2
    assert "s.toml:1: LPIPS needs AlexNet's weights" in capsys.readouterr().err


def test_a_package_that_is_missing(empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match=r"pip install 'scoreinv\[lpips\]'"):
        metrics.lpips_network()


def test_weights_on_the_disk_are_taken(empty_hub: Path) -> None:
    """As torchvision stores them; the classifier, which LPIPS has no use for, is nothing but zeros here."""
    pytest.importorskip("lpips", reason="the package lpips is not installed")
    from torchvision.models import AlexNet_Weights, alexnet

    with torch.device("meta"):
        shapes = {k: v.shape for k, v in alexnet().state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    state = {
        k: 0.1 * torch.randn(s, generator=rng) if k.startswith("features") else torch.zeros(1).expand(s)
        for k, s in shapes.items()
    }
    empty_hub.mkdir(parents=True)
    torch.save(state, empty_hub / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    made: Any = metrics.lpips_network()
    torch.testing.assert_close(dict(made.net.named_parameters())["slice1.0.weight"].data, state["features.0.weight"])
    assert metrics.lpips_network() is made and float(metrics.lpips(images(31, 31), images(31, 31, seed=1))) > 0


# Sweeps


def test_only_sweeps_that_ask_for_it_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def stand_in(a: Tensor, b: Tensor) -> Tensor:
        asked.append(tuple(a.shape))
        return (a - b).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(metrics, "lpips_network", lambda: stand_in)
    parts: dict[str, Any] = {
        "operators": [OperatorCall("parallel_beam_ct", {"n_views": 5})],
        "methods": [MethodCall("fbp")],
    }
    truths = [Phantoms("ellipses", size=n) for n in (16, 32)]
    without = list(run(Sweep(truths, **parts), tmp_path / "a"))
    assert [r["lpips"] for r in without] == [None, None] and asked == [] and "LPIPS" not in table(without)
    rows = list(run(Sweep(truths, **parts, lpips=True, images=True), tmp_path / "b"))
    assert rows[0]["lpips"] is None and asked == [(1, 3, 32, 32)]
    import h5py

    with h5py.File(tmp_path / "b" / rows[1]["images"]) as file:
        u, v = (metrics.window(torch.from_numpy(file[k][()])) for k in ("mean_hu", "truth_hu"))
    assert rows[1]["lpips"] == pytest.approx(2 * float((u - v).abs().mean()), rel=1e-4)
    assert "| LPIPS |" in table(rows)
    assert [r["key"] for r in rows] == [r["key"] for r in without]  # a figure more is no other cell
    (tmp_path / "s.toml").write_text("lpips = true\n" + TOML, encoding="utf-8")
    assert read_sweep(tmp_path / "s.toml").lpips
