"""Scan, DXchange and reconstruction files: what goes in comes out, and what is wrong is said in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from scoreinv import plugins, trust
from scoreinv.files import axis, describe, dxchange, scan
from scoreinv.files.atomic import replacing
from scoreinv.files.reconstruction import Reconstruction, check_writable, read_reconstruction, write_reconstruction
from scoreinv.files.scan import Scan, read_scan, write_scan
from scoreinv.linop import Composition, LinearOperator
from scoreinv.problem import Problem, from_counts, simulate_counts

N_ANGLES, N_BINS, SIDE = 20, 7, 4


@dataclasses.dataclass(frozen=True)
class Views(LinearOperator):
    """A stand-in for a scanner: some dense matrix that depends on the angles."""

    image_shape: tuple[int, int]
    angles: tuple[float, ...]
    n_detectors: int
    pixel_mm: float = 1.0
    weights: str = "linear"

    def __post_init__(self) -> None:
        if len(self.angles) == 0:
            raise ValueError("Views: needs at least one angle")

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.image_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (len(self.angles), self.n_detectors)

    def matrix(self) -> Tensor:
        m, n = math.prod(self.out_shape), math.prod(self.in_shape)
        a = torch.tensor(self.angles).repeat_interleave(self.n_detectors)
        return torch.cos(a[:, None] + torch.arange(m)[:, None] * torch.arange(n))

    def _forward(self, x: Tensor) -> Tensor:
        return (x.flatten(-2) @ self.matrix().T.to(x)).unflatten(-1, self.out_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y.flatten(-2) @ self.matrix().to(y)).unflatten(-1, self.in_shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Keep(LinearOperator):
    """A stand-in for a mask, with a tensor as argument."""

    mask: Tensor

    @property
    def in_shape(self) -> tuple[int, ...]:
        return tuple(self.mask.shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.in_shape

    def _forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def _adjoint(self, y: Tensor) -> Tensor:
        return y * self.mask


@dataclasses.dataclass(frozen=True)
class NoName(Views):
    """Not registered."""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cls in (("views", Views), ("keep", Keep)):
        monkeypatch.setitem(plugins.BUILT_IN["operators"], name, f"{cls.__module__}:{cls.__qualname__}")


@pytest.fixture
def views() -> Views:
    angles = tuple(math.pi / 3 * k / N_ANGLES for k in range(N_ANGLES))  # not representable in float32
    return Views((SIDE, SIDE), angles, N_BINS, pixel_mm=0.7)


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


# --- scans: there and back


def test_a_scan_comes_back_as_it_was(tmp_path: Path, views: Views) -> None:
    x = random(3, SIDE, SIDE)
    before = Scan(Problem(views, views(x), 0.25, x), 0.02, {"seed": 7, "created_by": "test"}, 1e4)
    write_scan(tmp_path / "scan.h5", before)
    after = read_scan(tmp_path / "scan.h5")
    assert views == after.problem.A  # angles to the last bit
    torch.testing.assert_close(after.problem.y, before.problem.y, rtol=0, atol=0)
    torch.testing.assert_close(after.problem.truth, x, rtol=0, atol=0)
    assert (after.problem.noise_std, after.mu_water_per_mm, after.info, after.photons, after.noise_known) == (
        0.25,
        0.02,
        before.info,
        1e4,
        True,
    )


def test_a_noise_level_for_each_measurement_comes_back(tmp_path: Path, views: Views) -> None:
    std = random(N_ANGLES, N_BINS)
    write_scan(tmp_path / "scan.h5", Scan(Problem(views, random(2, N_ANGLES, N_BINS), std)))
    torch.testing.assert_close(read_scan(tmp_path / "scan.h5").problem.noise_std, std, rtol=0, atol=0)


def test_unknown_noise_is_marked(tmp_path: Path, views: Views) -> None:
    write_scan(tmp_path / "scan.h5", Scan(Problem(views, random(N_ANGLES, N_BINS)), noise_known=False))
    after = read_scan(tmp_path / "scan.h5")
    assert (after.noise_known, after.problem.noise_std) == (False, 0.0)


def test_heights_come_back_and_go_on_to_the_reconstruction(tmp_path: Path, views: Views) -> None:
    heights = (10.1, 12.3, 17.0)
    write_scan(tmp_path / "scan.h5", Scan(Problem(views, random(3, N_ANGLES, N_BINS), 0.1), z_mm=heights))
    after = read_scan(tmp_path / "scan.h5")
    assert after.z_mm == heights
    images = Reconstruction(random(2, 3, SIDE, SIDE), z_mm=after.z_mm)
    write_reconstruction(tmp_path / "recon.h5", images)
    assert read_reconstruction(tmp_path / "recon.h5").z_mm == heights
    with pytest.raises(ValueError, match="z_mm has 3 heights, there are 2 slices"):
        Reconstruction(random(2, 2, SIDE, SIDE), z_mm=heights)
    with pytest.raises(ValueError, match="z_mm has 3 heights, the problem has 1 slices"):
        Scan(Problem(views, random(N_ANGLES, N_BINS), 0.1), z_mm=heights)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.0, 2.0], "z_mm has 2 heights, y has 3 slices"),
        ([1.0, math.nan, 2.0], "should be the heights of the slices, finite numbers"),
        ("low", "should be the heights of the slices, finite numbers, it is 'low'"),
        (3.0, "should be the heights of the slices"),
    ],
)
def test_heights_that_cannot_be(tmp_path: Path, views: Views, value: Any, words: str) -> None:
    write_scan(tmp_path / "scan.h5", Scan(Problem(views, random(3, N_ANGLES, N_BINS), 0.1)))
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file.attrs["z_mm"] = value
    with pytest.raises(ValueError, match=words):
        read_scan(tmp_path / "scan.h5")


def test_compositions_and_tensors_come_back(tmp_path: Path, views: Views) -> None:
    mask = random(N_ANGLES, N_BINS) > 0.3
    operator = Keep(mask) @ views
    write_scan(tmp_path / "scan.h5", Scan(Problem(operator, operator(random(SIDE, SIDE)), 0.1)))
    after = read_scan(tmp_path / "scan.h5").problem.A
    assert isinstance(after, Composition) and isinstance(after.outer, Keep) and after.inner == views
    assert after.outer.mask.dtype == torch.bool
    assert torch.equal(after.outer.mask, mask)


def test_the_layout_is_the_documented_one(tmp_path: Path, views: Views) -> None:
    write_scan(tmp_path / "scan.h5", Scan(Problem(views, random(N_ANGLES, N_BINS), 0.1)))
    with h5py.File(tmp_path / "scan.h5") as file:
        assert file.attrs["format"] == "scoreinv-scan-1"
        assert json.loads(file.attrs["operator"]) == {
            "name": "views",
            "arguments": {
                "image_shape": [4, 4],
                "angles": {"dataset": "operator/angles"},
                "n_detectors": 7,
                "pixel_mm": 0.7,
                "weights": "linear",
            },
        }
        assert file["operator/angles"].dtype == np.float64
        assert file["y"].dtype == np.float32


REAL_OPERATORS: dict[str, dict[str, Any]] = {
    "parallel_beam_ct": {
        "image_shape": (8, 8),
        "angles": (0.1, 1.0, 2.0),
        "n_detectors": 12,
        "pixel_mm": 0.7,
        "detector_mm": 0.8,
        "detector_offset_mm": 0.2,
    },
    "fan_beam_ct": {
        "image_shape": (8, 8),
        "angles": (0.1, 1.0, 2.0),
        "n_detectors": 12,
        "pixel_mm": 0.7,
        "detector_mm": 1.6,
        "source_origin_mm": 100.0,
        "origin_detector_mm": 100.0,
    },
    "grayscale": {"image_shape": (3, 8, 8)},
    "masking": {"mask": torch.arange(12).reshape(3, 4) % 3 > 0},
}


@pytest.mark.parametrize("name", sorted(REAL_OPERATORS))
def test_the_built_in_operators_come_back(tmp_path: Path, name: str) -> None:
    operator = plugins.get("operators", name)(**REAL_OPERATORS[name])
    x = random(*operator.in_shape)
    write_scan(tmp_path / "scan.h5", Scan(Problem(operator, operator(x), 0.1, x)))
    after = read_scan(tmp_path / "scan.h5").problem
    assert repr(after.A) == repr(operator)
    torch.testing.assert_close(after.A(x), operator(x), rtol=0, atol=0)


# --- scans written by others


def write_by_hand(path: Path, views: Views, **changes: object) -> Path:
    """A minimal scan, as another program would write it; a part that is None is left out."""
    arguments: dict[str, object] = {"image_shape": [SIDE, SIDE], "angles": list(views.angles), "n_detectors": N_BINS}
    parts: dict[str, object] = {
        "attrs/format": scan.FORMAT,
        "y": random(N_ANGLES, N_BINS).numpy(),
        "name": "views",
    } | changes
    for key, value in parts.items():
        if key.startswith("arguments/"):
            arguments[key.removeprefix("arguments/")] = value
    arguments = {k: v for k, v in arguments.items() if v is not None}
    parts.setdefault("attrs/operator", json.dumps({"name": parts["name"], "arguments": arguments}))
    with h5py.File(path, "w") as file:
        for key, value in parts.items():
            if key.startswith("attrs/") and value is not None:
                file.attrs[key.removeprefix("attrs/")] = value
            elif not key.startswith(("attrs/", "arguments/")) and key != "name" and value is not None:
                file[key] = value
    return path


def test_photons_give_the_noise_of_line_integrals(tmp_path: Path, views: Views) -> None:
    y = random(N_ANGLES, N_BINS)
    after = read_scan(write_by_hand(tmp_path / "scan.h5", views, y=y.numpy(), **{"attrs/photons": 5000.0}))
    assert after.noise_known and after.photons == 5000
    torch.testing.assert_close(after.problem.noise_std, (y.exp() / 5000).sqrt())


def test_counts_become_line_integrals(tmp_path: Path, views: Views) -> None:
    counts = torch.randint(0, 900, (N_ANGLES, N_BINS), generator=torch.Generator().manual_seed(1))
    counts[0, 0] = 0
    after = read_scan(
        write_by_hand(tmp_path / "scan.h5", views, y=None, counts=counts.numpy(), **{"attrs/photons": 1000.0})
    )
    y, std = from_counts(counts.double(), 1000.0)
    torch.testing.assert_close(after.problem.y, y.float())
    torch.testing.assert_close(after.problem.noise_std, std.float())
    assert float(after.problem.y[0, 0]) == pytest.approx(math.log(2000))
    assert after.problem.counts is not None and after.problem.counts.photons == 1000
    torch.testing.assert_close(after.problem.counts.arrived, counts.float())
    stated = {"counts": counts.numpy(), "noise_std": np.array(0.1), "attrs/photons": 1000.0}
    after = read_scan(write_by_hand(tmp_path / "stated.h5", views, y=None, **stated))
    assert after.problem.counts is None  # not the noise of photons alone
    assert after.problem.noise_std == pytest.approx(0.1)


def test_counts_come_back(tmp_path: Path, views: Views) -> None:
    before = simulate_counts(views, random(2, SIDE, SIDE), torch.Generator().manual_seed(3), photons=30.0)
    write_scan(tmp_path / "scan.h5", Scan(before))
    after = read_scan(tmp_path / "scan.h5")
    assert after.photons == 30 and after.problem.counts is not None and before.counts is not None
    torch.testing.assert_close(after.problem.counts.arrived, before.counts.arrived, rtol=0, atol=0)
    torch.testing.assert_close(after.problem.y, before.y)
    torch.testing.assert_close(after.problem.noise_std, before.noise_std)
    with pytest.raises(ValueError, match="photons is 31"):
        Scan(before, photons=31.0)


def nan_at(k: int) -> np.ndarray:
    y = random(N_ANGLES, N_BINS).numpy()
    y.reshape(-1)[k:] = np.nan
    return y


ASKEW = {
    "no format": ({"attrs/format": None}, r"no attribute format='scoreinv-scan-1'"),
    "other format": (
        {"attrs/format": "scoreinv-scan-9"},
        r"expected the format 'scoreinv-scan-1', found 'scoreinv-scan-9'",
    ),
    "no operator": ({"attrs/operator": None}, r"has no attribute operator"),
    "broken JSON": ({"attrs/operator": "{"}, r"not valid JSON"),
    "no JSON object": ({"attrs/operator": "[1]"}, r"should be a JSON object"),
    "no name": ({"attrs/operator": "{}"}, r'has no "name"'),
    "half a composition": ({"attrs/operator": '{"name": "composition", "outer": {}}'}, r'needs "outer" and "inner"'),
    "arguments are a list": (
        {"attrs/operator": '{"name": "views", "arguments": [1]}'},
        r'"arguments" .* should be a JSON object',
    ),
    "misspelt operator": ({"name": "viewz"}, r"Did you mean 'views'\?"),
    "import path": ({"name": "os:system"}, r"no operator is named 'os:system'"),
    "misspelt argument": ({"arguments/pixels_mm": 1.0}, r"has no argument 'pixels_mm'. Did you mean 'pixel_mm'\?"),
    "missing argument": ({"arguments/n_detectors": None}, r"lacks 'n_detectors'"),
    "missing dataset": (
        {"arguments/angles": {"dataset": "operator/angels"}},
        r"refers to the dataset 'operator/angels', which is not in the file",
    ),
    "zero views": ({"arguments/angles": [], "y": np.zeros((0, N_BINS))}, r"at least one angle"),
    "too few views": ({"y": np.zeros((19, N_BINS))}, r"y has 19 views, the operator Views has 20 angles"),
    "too many bins": ({"y": np.zeros((N_ANGLES, 8))}, r"y has 8 detectors, the operator Views has n_detectors = 7"),
    "one dimension": ({"y": np.zeros(N_BINS)}, r"y has 1 dimensions"),
    "no slices": ({"y": np.zeros((0, N_ANGLES, N_BINS))}, r"y is empty"),
    "text as y": ({"y": "hello"}, r"y should hold numbers"),
    "y is a group": ({"y/z": np.zeros(2)}, r"y should be a dataset, it is a group"),
    "no data": ({"y": None}, r"neither a dataset y .* nor a dataset counts"),
    "y and counts": ({"counts": np.ones((N_ANGLES, N_BINS)), "attrs/photons": 9.0}, r"has both y and counts"),
    "NaN": ({"y": nan_at(130)}, r"y holds 10 values that are NaN or infinite, the first at index \(18, 4\)"),
    "negative noise": ({"noise_std": -0.1}, r"noise_std must not be negative, its minimum is -0.1"),
    "NaN noise": ({"noise_std": np.nan}, r"noise_std holds 1 values"),
    "noise of another shape": ({"noise_std": np.ones((3, 3))}, r"noise_std \(3, 3\) does not broadcast to y \(20, 7\)"),
    "noise of more slices": ({"noise_std": np.ones((2, N_ANGLES, N_BINS))}, r"does not broadcast"),
    "counts without photons": (
        {"y": None, "counts": np.ones((N_ANGLES, N_BINS))},
        r"counts need the attribute photons",
    ),
    "negative counts": (
        {"y": None, "counts": np.full((N_ANGLES, N_BINS), -1.0), "attrs/photons": 9.0},
        r"140 photon counts are negative",
    ),
    "negative photons": ({"attrs/photons": -1.0}, r"photons should be a positive number, it is -1.0"),
    "text as photons": ({"attrs/photons": "many"}, r"photons should be a positive number, it is 'many'"),
    "absurd y with photons": ({"y": np.full((N_ANGLES, N_BINS), 1e4), "attrs/photons": 9.0}, r"exp\(y\) / photons"),
    "no water": ({"attrs/mu_water_per_mm": 0.0}, r"mu_water_per_mm should be a positive number"),
    "other truth": ({"truth": np.zeros((5, 5))}, r"truth has the shape \(5, 5\), the operator and y ask for \(4, 4\)"),
}


@pytest.mark.parametrize("case", ASKEW)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, views: Views, case: str) -> None:
    changes, message = ASKEW[case]
    changes = {"y": None, **changes} if case == "y is a group" else changes
    path = write_by_hand(tmp_path / "scan.h5", views, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_scan(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_scan(tmp_path / "scan.h5")
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist either"):
        read_scan(tmp_path / "nowhere" / "scan.h5")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_scan(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x80\x04\x95" + bytes(50)])
def test_a_file_that_is_not_hdf5(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scan.h5").write_bytes(content)
    with pytest.raises(ValueError, match="not an HDF5 file"):
        read_scan(tmp_path / "scan.h5")


def test_every_truncation_is_refused(tmp_path: Path, views: Views) -> None:
    write_scan(tmp_path / "whole.h5", Scan(Problem(views, random(4, N_ANGLES, N_BINS), 0.1)))
    whole = (tmp_path / "whole.h5").read_bytes()
    for n in range(0, len(whole), max(1, len(whole) // 60)):
        (tmp_path / "cut.h5").write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"cut short|not an HDF5 file|damaged"):
            read_scan(tmp_path / "cut.h5")


def test_damage_inside_never_ends_in_another_error(tmp_path: Path, views: Views) -> None:
    write_scan(tmp_path / "whole.h5", Scan(Problem(views, random(4, N_ANGLES, N_BINS), 0.1)))
    whole = (tmp_path / "whole.h5").read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(60):
        at = int(rng.integers(8, len(whole) - 64))
        (tmp_path / "bad.h5").write_bytes(whole[:at] + rng.bytes(64) + whole[at + 64 :])
        try:
            read_scan(tmp_path / "bad.h5")
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert all("\n" not in message for message in messages)


def test_links_into_other_files_are_not_followed(tmp_path: Path, views: Views) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["y"] = np.zeros((N_ANGLES, N_BINS))
    path = write_by_hand(tmp_path / "scan.h5", views, y=None)
    with h5py.File(path, "a") as file:
        file["y"] = h5py.ExternalLink("other.h5", "y")
    with pytest.raises(ValueError, match="link into another file"):
        read_scan(path)


def test_what_cannot_be_written(tmp_path: Path, views: Views) -> None:
    problem = Problem(NoName(views.image_shape, views.angles, N_BINS), random(N_ANGLES, N_BINS))
    with pytest.raises(ValueError, match="NoName has no name among the operators"):
        write_scan(tmp_path / "scan.h5", Scan(problem))
    with pytest.raises(ValueError, match="1 of 140 data are NaN"):
        write_scan(tmp_path / "scan.h5", Scan(Problem(views, torch.from_numpy(nan_at(139)))))
    with pytest.raises(TypeError, match="operator/weights: a value of type object"):
        describe.describe(dataclasses.replace(views, weights=object()))
    with pytest.raises(ValueError, match="photons must be positive"):
        Scan(Problem(views, random(N_ANGLES, N_BINS)), photons=0.0)
    assert list(tmp_path.iterdir()) == []


# --- whole or not at all


def test_an_exception_in_the_middle_leaves_the_old_file_whole(tmp_path: Path, views: Views) -> None:
    path = tmp_path / "scan.h5"
    write_scan(path, Scan(Problem(views, random(N_ANGLES, N_BINS), 0.1)))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_scan(path, Scan(Problem(views, random(N_ANGLES, N_BINS), 0.1), info={"seed": object()}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_in_the_middle_leaves_the_old_file_whole(tmp_path: Path, views: Views) -> None:
    path = tmp_path / "scan.h5"
    write_scan(path, Scan(Problem(views, random(N_ANGLES, N_BINS), 0.1)))
    before = path.read_bytes()
    script = (
        "import os, signal, sys, h5py\nfrom scoreinv.files.atomic import replacing\n"
        "with replacing(sys.argv[1]) as t, h5py.File(t, 'w') as f:\n    f['y'] = 1.0\n    f.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    assert path.read_bytes() == before
    assert read_scan(path).problem.noise_std == 0.1


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "new") as temporary:
        temporary.write_text("")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- reconstructions


@pytest.mark.parametrize("shape", [(5, SIDE, SIDE), (5, 2, SIDE, SIDE), (1, SIDE, SIDE)])
def test_a_reconstruction_comes_back_as_it_was(tmp_path: Path, shape: tuple[int, ...]) -> None:
    samples = 0.02 * random(*shape)
    chi2 = random(*shape[1:-2])
    before = Reconstruction(samples, chi2, {"method": "fbp", "steps": 3}, 7, 0.7, 0.0193, samples[0], samples[-1])
    write_reconstruction(tmp_path / "r.h5", before)
    after = read_reconstruction(tmp_path / "r.h5")
    for name in ("samples", "chi2", "truth", "fbp", "mean", "mean_hu"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=0)
    assert (after.settings, after.seed, after.pixel_mm, after.versions) == (before.settings, 7, 0.7, before.versions)
    assert {"scoreinv", "torch", "python"} <= set(after.versions)
    with h5py.File(tmp_path / "r.h5") as file:
        np.testing.assert_allclose(file["mean_hu"], 1000 * (samples.numpy().mean(0) / 0.0193 - 1), rtol=1e-4, atol=1e-2)
        assert ("std" in file) == (shape[0] > 1)
        if shape[0] > 1:
            np.testing.assert_allclose(file["std"], samples.numpy().std(0, ddof=1), rtol=1e-5)


def test_a_reconstruction_says_what_its_datasets_are(tmp_path: Path) -> None:
    """Units of all, whether the interval is calibrated, the support map and the verdict."""
    settings = {"method": "dds", "noise_std": 0.1, "n_data": 8000}
    chi2: dict[str, Any] = {"chi2": torch.tensor(0.5), "chi2_samples": torch.tensor([0.9, 1.1])}
    r = Reconstruction(
        random(2, SIDE, SIDE), settings=settings, mu_water_per_mm=0.0193, measured=random(SIDE, SIDE), **chi2
    )
    write_reconstruction(tmp_path / "r.h5", r)
    with h5py.File(tmp_path / "r.h5") as file:
        units = {name: stored.attrs["units"] for name, stored in file.items()}
        assert units == {
            **dict.fromkeys(("samples", "mean", "std", "measured", "half_width"), "1/mm"),
            **dict.fromkeys(("chi2", "chi2_samples", "support"), "1"), "mean_hu": "HU",
        }  # fmt: skip
        assert (
            file.attrs["verdict"]
            == "draws: chi^2 1, consistent: the images explain the measurements down to the stated noise"
        )
        assert not file["half_width"].attrs["calibrated"] and file["half_width"].attrs["level"] == 0.9
        np.testing.assert_array_equal(file["half_width"], torch.as_tensor(r.interval))
        np.testing.assert_array_equal(file["support"], trust.support_map(torch.as_tensor(r.measured), r.mean))
        assert file["support"].attrs["window_pixels"] == 9
    back = read_reconstruction(tmp_path / "r.h5")
    assert back.half_width is None and torch.equal(torch.as_tensor(back.interval), torch.as_tensor(r.interval))
    known = dataclasses.replace(r, half_width=random(SIDE, SIDE), settings=settings | {"calibration": {"level": 0.8}})
    write_reconstruction(tmp_path / "k.h5", known)
    back = read_reconstruction(tmp_path / "k.h5")
    assert back.level == 0.8 and torch.equal(torch.as_tensor(back.half_width), torch.as_tensor(known.half_width))
    write_reconstruction(tmp_path / "colour.h5", Reconstruction(random(1, 3, SIDE, SIDE)))
    with h5py.File(tmp_path / "colour.h5") as file:
        assert file["mean"].attrs["units"] == "of the operator" and "verdict" not in file.attrs


def test_a_bare_reconstruction_needs_only_samples(tmp_path: Path) -> None:
    write_reconstruction(tmp_path / "r.h5", Reconstruction(random(2, 3, 3)))
    after = read_reconstruction(tmp_path / "r.h5")
    assert (after.chi2, after.seed, after.mean_hu, after.truth, after.settings) == (None, None, None, None, {})


def test_wrong_reconstructions(tmp_path: Path, views: Views) -> None:
    write_scan(tmp_path / "scan.h5", Scan(Problem(views, random(N_ANGLES, N_BINS), 0.1)))
    with pytest.raises(ValueError, match="expected the format 'scoreinv-reconstruction-1', found 'scoreinv-scan-1'"):
        read_reconstruction(tmp_path / "scan.h5")
    with pytest.raises(ValueError, match=r"samples should be \(M, \*slices, H, W\)"):
        Reconstruction(random(3, 3))
    with pytest.raises(ValueError, match=r"truth should have the shape \(3, 3\)"):
        Reconstruction(random(2, 3, 3), truth=random(2, 3, 3))
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.attrs["format"] = "scoreinv-reconstruction-1"
    with pytest.raises(ValueError, match="has no dataset samples"):
        read_reconstruction(tmp_path / "empty.h5")


def test_check_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "r.h5")
    with pytest.raises(IsADirectoryError, match="give the name of a file in it"):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError, match="make it first"):
        check_writable(tmp_path / "nowhere" / "r.h5")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="not writable"):
        check_writable(tmp_path / "r.h5")


# --- DXchange


DISC_MM, BIN_MM, GAIN, PHOTONS, DARK = 6.0, 0.25, 3.0, 20_000.0, 100.0


def disc_line_integrals(
    theta: np.ndarray, axis_column: float, n_bins: int = 90, x: float = 1.5, y: float = -1.0, radius: float = DISC_MM
) -> np.ndarray:
    """Exact line integrals of a disc off the axis, (views, bins)."""
    s = (np.arange(n_bins) - axis_column) * BIN_MM - (x * np.cos(theta) + y * np.sin(theta))[:, None]
    return 0.05 * 2 * np.sqrt(np.maximum(radius**2 - s**2, 0))


def write_dxchange(path: Path, *, axis_column: float = 42.3, seed: int = 0, **changes: object) -> Path:
    """60 views over half a turn of a disc with photon noise, seen by a camera with gain, offset and uneven light."""
    rng = np.random.default_rng(seed)
    theta = np.linspace(0, 180, 60, endpoint=False)
    light = PHOTONS * (1 + 0.3 * np.sin(np.arange(90) / 9))
    clean = disc_line_integrals(np.deg2rad(theta), axis_column)
    expected = np.stack([clean, 0.5 * clean], axis=1)

    def camera(photons: np.ndarray) -> np.ndarray:
        return GAIN * rng.poisson(photons) + rng.normal(DARK, 5, photons.shape)

    parts: dict[str, object] = {
        "exchange/data": camera(light * np.exp(-expected)),
        "exchange/data_white": camera(np.broadcast_to(light, (12, 2, 90))),
        "exchange/data_dark": camera(np.zeros((12, 2, 90))),
        "exchange/theta": theta,
        "measurement/instrument/detector/pixel_size_x": BIN_MM * 1000,
        "exchange/theta:units": "degrees",
        "measurement/instrument/detector/pixel_size_x:units": "um",
    }
    with h5py.File(path, "w") as file:
        for key, value in (parts | changes).items():
            name, _, attribute = key.partition(":")
            if attribute and value is not None and name in file:
                file[name].attrs[attribute] = value
            elif not attribute and value is not None:
                file[name] = value
    return path


def test_dxchange_corrects_and_takes_the_logarithm(tmp_path: Path) -> None:
    scan_ = dxchange.read_dxchange(write_dxchange(tmp_path / "d.h5"), row=0, pixel_mm=0.5)
    operator = scan_.problem.A
    theta = np.linspace(0, np.pi, 60, endpoint=False)
    np.testing.assert_allclose(operator.angles, theta, atol=1e-12)
    assert (operator.image_shape, operator.n_detectors, operator.pixel_mm) == ((42, 42), 90, 0.5)
    assert operator.detector_mm == pytest.approx(BIN_MM)
    clean = torch.from_numpy(disc_line_integrals(theta, 42.3)).float()
    pull = (scan_.problem.y - clean) / scan_.problem.noise_std
    assert abs(float(pull.mean())) < 0.15
    assert float(pull.std()) == pytest.approx(1, abs=0.06)
    assert scan_.noise_known and scan_.info["axis_column"] == pytest.approx(42.3, abs=0.06)


def test_the_axis_lies_where_the_operator_puts_it(tmp_path: Path) -> None:
    """The operator applied to the disc gives the measured data: the offset has the sign that the operator means."""
    scan_ = dxchange.read_dxchange(write_dxchange(tmp_path / "d.h5"), row=0, image_size=80)
    operator = scan_.problem.A
    j = (torch.arange(80) - 39.5) * BIN_MM
    disc = ((j[None] - 1.5) ** 2 + (-j[:, None] + 1.0) ** 2 <= DISC_MM**2).float() * 0.05  # y points up, rows down
    error = float((operator(disc) - scan_.problem.y).abs().mean())
    assert error < 0.012
    wrong = dataclasses.replace(operator, detector_offset_mm=-operator.detector_offset_mm)
    assert float((wrong(disc) - scan_.problem.y).abs().mean()) > 2 * error


def test_rows_views_and_binning_select(tmp_path: Path) -> None:
    path = write_dxchange(tmp_path / "d.h5")
    both = dxchange.read_dxchange(path, row=[0, 1]).problem
    lower = dxchange.read_dxchange(path).problem
    assert both.y.shape == (2, 60, 90) and lower.y.shape == (60, 90)
    few = dxchange.read_dxchange(path, row=[0, 1], views=slice(None, None, 6)).problem
    torch.testing.assert_close(few.y, both.y[:, ::6], rtol=0, atol=0)
    assert few.A.detector_offset_mm == both.A.detector_offset_mm and len(few.A.angles) == 10
    binned = dxchange.read_dxchange(path, row=0, binning=3)
    assert binned.problem.y.shape == (60, 30) and binned.problem.A.detector_mm == pytest.approx(3 * BIN_MM)
    assert binned.info["axis_column"] == pytest.approx(42.3, abs=0.06)
    given = dxchange.read_dxchange(path, row=0, binning=3, centre=42.3)
    assert given.problem.A.detector_offset_mm == pytest.approx(binned.problem.A.detector_offset_mm, abs=0.02)


def test_radians_are_understood(tmp_path: Path) -> None:
    theta = np.linspace(0, np.pi, 60, endpoint=False)
    path = write_dxchange(tmp_path / "d.h5", **{"exchange/theta": theta, "exchange/theta:units": "radians"})
    np.testing.assert_allclose(dxchange.read_dxchange(path).problem.A.angles, theta)


def test_one_white_field_leaves_the_noise_unknown(tmp_path: Path) -> None:
    path = write_dxchange(tmp_path / "d.h5", **{"exchange/data_white": np.full((1, 2, 90), 6e4)})
    assert dxchange.read_dxchange(path, centre=42.3).noise_known is False


def test_blocked_bins_are_counted_in_a_warning(tmp_path: Path) -> None:
    data = np.full((60, 2, 90), 30_000.0)
    data[3, :, 5] = 0
    path = write_dxchange(tmp_path / "d.h5", **{"exchange/data": data})
    with pytest.warns(UserWarning, match="1 of 5400 transmissions are not positive"):
        scan_ = dxchange.read_dxchange(path, row=0, centre=40.0)
    assert torch.isfinite(scan_.problem.y).all()


def test_a_missing_dark_field_is_taken_as_zero(tmp_path: Path) -> None:
    path = write_dxchange(tmp_path / "d.h5", **{"exchange/data_dark": None})
    with pytest.warns(UserWarning, match="no dark field"):
        dxchange.read_dxchange(path)


DX_ASKEW: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "no data": ({"exchange/data": None}, {}, r"expected exchange/data \(views, rows, bins\), it is missing"),
    "no white": ({"exchange/data_white": None}, {}, "has no exchange/data_white"),
    "other white": (
        {"exchange/data_white": np.ones((3, 2, 8))},
        {},
        r"data_white has the shape \(3, 2, 8\), expected \(frames, 2, 90\)",
    ),
    "dark white": (
        {"exchange/data_white": np.ones((3, 2, 90))},
        {},
        "white field is not brighter than the dark field in 90 bins",
    ),
    "no theta": ({"exchange/theta": None}, {}, "add the angle of each of the 60 views"),
    "short theta": ({"exchange/theta": np.zeros(59)}, {}, r"theta has the shape \(59,\), exchange/data has 60 views"),
    "odd units": ({"exchange/theta:units": "gon"}, {}, "units 'gon', expected degrees or radians"),
    "other axes": ({"exchange/data:axes": "y:theta:x"}, {}, "has the axes 'y:theta:x'"),
    "no bin size": ({"measurement/instrument/detector/pixel_size_x": None}, {}, "pass detector_mm"),
    "bin size in nothing": (
        {"measurement/instrument/detector/pixel_size_x:units": None},
        {},
        "units None, expected one of m, mm",
    ),
    "row": ({}, {"row": 2}, "has 2 detector rows, there is no row 2"),
    "binning": ({}, {"binning": 91}, "binning must be between 1 and the 90 bins"),
    "centre": ({}, {"centre": 200.0}, "axis at column 200.0 is off the detector, which has 90 columns"),
    "no views": ({}, {"views": []}, "no view is left of the 60"),
    "detector_mm": ({}, {"detector_mm": -1.0}, "detector_mm must be positive"),
}


@pytest.mark.parametrize("case", DX_ASKEW)
def test_what_is_wrong_with_a_dxchange_file(tmp_path: Path, case: str) -> None:
    changes, arguments, message = DX_ASKEW[case]
    path = write_dxchange(tmp_path / "d.h5", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        dxchange.read_dxchange(path, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_kind_of_scan_is_told_by_its_content(tmp_path: Path, views: Views) -> None:
    write_scan(tmp_path / "scan.h5", Scan(Problem(views, random(N_ANGLES, N_BINS), 0.1)))
    assert views == dxchange.read_any_scan(tmp_path / "scan.h5", row=None).problem.A
    assert dxchange.read_any_scan(write_dxchange(tmp_path / "d.h5"), row=1).problem.y.shape == (60, 90)
    with pytest.raises(ValueError, match="is no DXchange file; row can only be given for one"):
        dxchange.read_any_scan(tmp_path / "scan.h5", row=1)
    with h5py.File(tmp_path / "neither.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(ValueError, match="it holds something"):
        dxchange.read_any_scan(tmp_path / "neither.h5")


HALF = np.linspace(0, np.pi, 60, endpoint=False)
AXES: dict[str, Callable[[float], tuple[np.ndarray, np.ndarray]]] = {
    "half a turn": lambda c: (disc_line_integrals(HALF, c), HALF),
    "seven views": lambda c: (disc_line_integrals(HALF[:42:6], c), HALF[:42:6]),
    "wider than the detector": lambda c: (
        disc_line_integrals(np.append(HALF, np.pi), c, radius=14.0)
        + disc_line_integrals(np.append(HALF, np.pi), c, x=4.0, radius=2.0),
        np.append(HALF, np.pi),
    ),
}


@pytest.mark.parametrize("column", [36.0, 44.5, 51.25])
@pytest.mark.parametrize("case", AXES)
def test_the_axis_is_found(case: str, column: float) -> None:
    sinogram, theta = AXES[case](column)
    assert axis.find_axis(sinogram, theta) == pytest.approx(column, abs=0.15)


def test_where_the_axis_cannot_be_found_the_error_asks_for_it() -> None:
    sinogram = disc_line_integrals(HALF[:40], 44.0, radius=14.0)
    with pytest.raises(ValueError, match="pass centre, its detector column"):
        axis.find_axis(sinogram, HALF[:40])


def test_a_measured_tooth() -> None:
    folder = os.environ.get("SCOREINV_DATA")
    if not folder or not (Path(folder) / "measured" / "tooth.h5").is_file():
        pytest.skip("needs measured/tooth.h5 in the folder that SCOREINV_DATA names")
    scan_ = dxchange.read_dxchange(Path(folder) / "measured" / "tooth.h5", row=0, detector_mm=0.01, binning=4)
    assert scan_.info["axis_column"] == pytest.approx(296, abs=1)
    air = scan_.problem.y[:, :7]
    measured = float((air[1:] - air[:-1]).std()) / math.sqrt(2)
    assert float(scan_.problem.noise_std[:, :7].mean()) == pytest.approx(measured, rel=0.15)
