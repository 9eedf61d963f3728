"""Learned baselines: before training they are classical iterations, trained they beat FBP, and their files are safe."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from scoreinv import cli, configure, plugins
from scoreinv.baselines import learned
from scoreinv.baselines.learned import Refiner, Scaled, geometry, load_network, network_class, save_network
from scoreinv.baselines.learned_sinogram import FACTOR, angles, interpolated
from scoreinv.baselines.run import train_baseline
from scoreinv.baselines.supervised import SupervisedConfig, SupervisedRun, fitted, noisy, reconstruction_psnr, train
from scoreinv.metrics import psnr, window
from scoreinv.operators import FanBeamCT, ParallelBeamCT, equispaced_angles
from scoreinv.operators.dense import Matrix
from scoreinv.priors.crops import ImageSet
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.validation import read_log
from scoreinv.problem import Problem
from scoreinv.units import MU_WATER_PER_MM

SMALL: dict[str, dict[str, Any]] = {
    "fbp_unet": {"widths": (16, 32), "unshuffle": 1},
    "learned_gradient": {"iterations": 4, "width": 16},
    "learned_primal_dual": {"iterations": 4, "width": 16},
    "neumann": {"terms": 3, "widths": (16, 32), "unshuffle": 1},
    "sin_4c_prn": {"sinogram_widths": (16, 32), "image_widths": (16, 32), "unshuffle": 1},
}
SIDE, VIEWS = 24, 8
TRAINED_ON = ParallelBeamCT((SIDE, SIDE), equispaced_angles(VIEWS), 35, 2.0, 2.0)
SHORT = SupervisedConfig(steps=8, side=SIDE, warmup=2, noise=(0.0, 0.02), ema=(0.9,))


def phantom() -> np.ndarray:
    """A body with two lungs and a spine [HU]."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    hu = np.full((SIDE, SIDE), -1000, np.int16)
    hu[(x / 11) ** 2 + (y / 9) ** 2 < 1] = 30
    for centre in (-5, 5):
        hu[((x - centre) / 3.5) ** 2 + ((y + 1) / 5) ** 2 < 1] = -800
    hu[(x / 2) ** 2 + ((y - 5) / 2) ** 2 < 1] = 600
    return hu


DATA = ImageSet([phantom()], ["a"], [2.0])
V = fitted(phantom(), SIDE)


def dense(A: Any) -> Tensor:
    """A's matrix, in float64."""
    n = math.prod(A.in_shape)
    return A(torch.eye(n).reshape(n, *A.in_shape)).reshape(n, -1).T.double()


def scaled_matrix(A: Any) -> Tensor:
    """K = A / ‖A‖, with the norm that the library finds."""
    return dense(A) / A.norm_squared() ** 0.5


def sinogram(A: Any, v: Tensor) -> Tensor:
    return (scaled_matrix(A) @ v.flatten().double()).float().reshape(1, *A.out_shape)


def network(name: str, seed: int = 0) -> learned.Network:
    torch.manual_seed(seed)
    return network_class(name)(**SMALL[name])


def disturbed(name: str) -> learned.Network:
    """A network none of whose weights is zero, as after training."""
    made = network(name)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=Generator().manual_seed(p.numel())))
    return made


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    """Files of disturbed networks, as if trained on TRAINED_ON."""
    paths = {name: tmp_path / f"{name}.safetensors" for name in SMALL}
    for name, path in paths.items():
        save_network(name, disturbed(name), path, {"geometry": geometry(TRAINED_ON)})
    return paths


def solve(name: str, path: Path, problem: Problem) -> Tensor:
    method = configure.method(name, {"weights": str(path)}, lambda: pytest.fail("needs no prior"))
    return method(problem, Generator())


# Before training: the classical iterations, by matrices


def test_scaled_operator_has_norm_one() -> None:
    singular = torch.linalg.svdvals(scaled_matrix(TRAINED_ON))
    assert float(singular[0]) == pytest.approx(1, abs=1e-3)
    columns = scaled_matrix(TRAINED_ON).square().sum(0).mean()
    assert Scaled(TRAINED_ON).gain == pytest.approx(float(columns) ** -0.5, rel=0.1)


def test_untrained_unet_is_fbp() -> None:
    g = sinogram(TRAINED_ON, V)
    fbp = TRAINED_ON.fbp(g * TRAINED_ON.norm_squared() ** 0.5, "hann")
    torch.testing.assert_close(network("fbp_unet")(Scaled(TRAINED_ON), g), fbp)


def test_untrained_learned_gradient_is_landweber() -> None:
    K, g = scaled_matrix(TRAINED_ON), sinogram(TRAINED_ON, V)
    v = Scaled(TRAINED_ON).fbp(g).flatten().double()
    for _ in range(4):
        v = v - K.T @ (K @ v - g.flatten().double())
    found = network("learned_gradient")(Scaled(TRAINED_ON), g)
    torch.testing.assert_close(found.flatten().double(), v, atol=1e-5, rtol=1e-4)


def test_gradient_of_roughness_against_autograd(rng: Generator) -> None:
    from scoreinv.baselines.learned_gradient import roughness_gradient

    v = torch.randn((2, 5, 7), generator=rng, dtype=torch.float64, requires_grad=True)
    half = 0.5 * sum(v.diff(dim=d).square().sum() for d in (-1, -2))
    torch.testing.assert_close(roughness_gradient(v), torch.autograd.grad(half, v)[0])


def test_untrained_primal_dual_is_chambolle_pock() -> None:
    """Their algorithm 1 for F(p) = ½‖p − g‖², G = 0: prox of F* is (p − τ g) / (1 + τ)."""
    K, g = scaled_matrix(TRAINED_ON), sinogram(TRAINED_ON, V).flatten().double()
    x, bar, dual, step = torch.zeros(SIDE**2).double(), torch.zeros(SIDE**2).double(), torch.zeros_like(g), 0.95
    for _ in range(4):
        dual = (dual + step * K @ bar - step * g) / (1 + step)
        new = x - step * K.T @ dual
        bar, x = 2 * new - x, new
    found = network("learned_primal_dual")(Scaled(TRAINED_ON), sinogram(TRAINED_ON, V))
    torch.testing.assert_close(found.flatten().double(), x, atol=1e-5, rtol=1e-4)


class Times(nn.Module):
    """A linear regulariser."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_neumann_series_is_the_analytic_inverse() -> None:
    """With R = λ I enough terms are (KᵀK + λ)⁻¹ Kᵀg; fewer are fewer steps of Landweber's iteration."""
    K, g = scaled_matrix(TRAINED_ON), sinogram(TRAINED_ON, V)
    right = K.T @ g.flatten().double()
    made: Any = network("neumann")
    landweber = torch.zeros_like(right)
    for _ in range(SMALL["neumann"]["terms"] + 1):
        landweber = landweber + right - K.T @ (K @ landweber)
    found = made(Scaled(TRAINED_ON), g).flatten().double()
    torch.testing.assert_close(found, landweber, atol=1e-5, rtol=1e-4)  # R = 0 before training
    made.terms, made.regulariser = 150, Times(0.1)
    exact = torch.linalg.solve(K.T @ K + 0.1 * torch.eye(SIDE**2).double(), right)
    torch.testing.assert_close(made(Scaled(TRAINED_ON), g).flatten().double(), exact, atol=1e-4, rtol=1e-3)


def test_views_between_views() -> None:
    """Of a smooth body far off the axis, held against more views, the wrap from the last to the mirrored first included."""
    A = ParallelBeamCT((SIDE, SIDE), equispaced_angles(24), 35)
    y, x = torch.meshgrid(*[torch.arange(SIDE) - 11.5] * 2, indexing="ij")
    body = torch.exp(-((x - 4) ** 2 + (y + 3) ** 2) / 32)[None]
    full = dataclasses.replace(A, angles=angles(A))
    assert len(full.angles) == FACTOR * 24 and full.angles[::FACTOR] == pytest.approx(A.angles)
    found, true = interpolated(A(body)), full(body)
    assert torch.equal(found[:, ::FACTOR], A(body))
    error = (found - true).square().sum(-1).sqrt() / true.square().sum(-1).sqrt()
    assert float(error.max()) < 0.03


def test_measured_views_are_kept() -> None:
    made: Any = disturbed("sin_4c_prn")
    g = sinogram(TRAINED_ON, V)
    full = made.sinogram(g)
    assert torch.equal(full[:, ::FACTOR], g) and not torch.equal(full, interpolated(g))


def test_refiner_takes_any_size_and_starts_at_zero() -> None:
    made = Refiner(2, (16, 32, 48), 2)
    out = made(torch.randn(3, 2, 13, 21))
    assert out.shape == (3, 2, 13, 21) and not out.any()


# Training


@pytest.mark.parametrize("name", SMALL)
def test_one_image_is_learned(name: str) -> None:
    """Noise-free data of one image in four orientations: in seconds, clearly better than FBP."""
    steps = {"learned_primal_dual": 250, "neumann": 150, "sin_4c_prn": 120}.get(
        name, 60
    )  # begin without an FBP, or learn twice
    config = dataclasses.replace(SHORT, steps=steps, noise=(0.0,), lr=3e-3, warmup=5)
    run = SupervisedRun(name, SMALL[name], config, DATA, TRAINED_ON)
    losses = [run.advance()[0] for _ in range(steps)]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    problem = Scaled(TRAINED_ON)
    (found,) = reconstruction_psnr(run.averages[0], problem, [V], [0.0])
    hu = [1000 * (problem.fbp(sinogram(TRAINED_ON, V), w) - 1) for w in ("ramp", "hann")]
    fbp = max(float(psnr(window(x), window(1000 * (V[None] - 1)), 1.0)) for x in hu)
    assert found > fbp + 2, (found, fbp)


@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    def run(until: int, folder: str) -> SupervisedRun:
        made = SupervisedRun(name, SMALL[name], SHORT, DATA, TRAINED_ON)
        list(train(made, tmp_path / folder, validation=[V], training=[V], until=until, validate_every=4))
        return made

    straight, _, resumed = run(8, "straight"), run(5, "halves"), run(8, "halves")
    for a, b in ((straight.model, resumed.model), (straight.averages[0], resumed.averages[0])):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    logs = [read_log(tmp_path / folder / "log.csv") for folder in ("straight", "halves")]
    assert [r["step"] for r in logs[1]] == ["4", "5", "8"]
    keys = ("loss", "psnr_0", "psnr_0.02", "train_psnr_0")
    assert [[r[k] for k in keys] for r in logs[0]] == [[r[k] for k in keys] for r in logs[1] if r["step"] != "5"]
    assert [(h["from_step"], h["to_step"]) for h in resumed.history] == [(0, 5), (5, 8)]


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_learns_the_same(name: str) -> None:
    """Operators stay in float32; what the networks round is small beside the loss."""
    runs = [
        SupervisedRun(name, SMALL[name], dataclasses.replace(SHORT, bfloat16=b), DATA, TRAINED_ON)
        for b in (False, True)
    ]
    losses = [[run.advance()[0] for _ in range(3)] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_noise_is_relative_to_the_mean_of_each_image() -> None:
    problem, v = Scaled(TRAINED_ON), torch.stack([V, 3 * V])
    clean = problem.forward(v)
    g = noisy(problem, v, torch.tensor([0.1, 0.02]), torch.ones_like(clean))
    torch.testing.assert_close((g - clean)[:, 0, 0], torch.tensor([0.1, 0.02]) * clean.mean((-1, -2)))
    run = SupervisedRun("neumann", SMALL["neumann"], dataclasses.replace(SHORT, batch_size=400), DATA, TRAINED_ON)
    share = (run.batch(0).relative == 0).float().mean()
    assert set(run.batch(0).relative.tolist()) == {0.0, float(np.float32(0.02))} and 0.4 < share < 0.6


def test_images_of_other_sizes_are_cut_or_get_air() -> None:
    ramp = np.arange(12, dtype=np.int16).reshape(2, 6)
    assert fitted(ramp, 4).tolist() == [[0.0] * 4, *(1 + torch.tensor(ramp[:, 1:5]) / 1000).tolist(), [0.0] * 4]


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    SupervisedRun("neumann", SMALL["neumann"], SHORT, DATA, TRAINED_ON).save(tmp_path / "state.safetensors")
    more = dataclasses.replace(TRAINED_ON, angles=equispaced_angles(9))
    for name, settings, A, words in (
        ("fbp_unet", SMALL["fbp_unet"], TRAINED_ON, "holds the method neumann"),
        ("neumann", SMALL["neumann"] | {"terms": 2}, TRAINED_ON, "holds the network"),
        ("neumann", SMALL["neumann"], more, "holds the geometry"),
    ):
        with pytest.raises(ValueError, match=words):
            list(train(SupervisedRun(name, settings, SHORT, DATA, A), tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise": ()}, "noise needs one or more levels"),
        ({"noise": (-0.1,)}, "noise needs one or more levels"),
        ({"side": 0}, "side must be a whole number"),
        ({"lr": 0.0}, "lr and clip must be positive"),
        ({"ema": ()}, "one or more decays"),
        ({"side": 32}, "operator on images of 32 x 32"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SupervisedRun("neumann", SMALL["neumann"], dataclasses.replace(SHORT, **changes), DATA, TRAINED_ON)


# Weights in use


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_back_as_a_method(name: str, weights: dict[str, Path], rng: Generator) -> None:
    """Card round trip; units go in and out; a batch gives what its members give alone."""
    back, card = load_network(name, weights[name])
    before = disturbed(name).state_dict()
    for key, value in back.state_dict().items():
        torch.testing.assert_close(value, before[key], atol=1e-4, rtol=1e-3)
    assert card["geometry"] == geometry(TRAINED_ON) and back.settings == disturbed(name).settings
    assert weights[name].with_suffix(".md").read_text().startswith(f"# {name}")
    x = MU_WATER_PER_MM * (V + 0.1 * torch.rand((2, 3, SIDE, SIDE), generator=rng))
    problem = Problem(TRAINED_ON, TRAINED_ON(x))
    found = solve(name, weights[name], problem)
    assert found.shape == (1, 2, 3, SIDE, SIDE) and not found.requires_grad
    alone = solve(name, weights[name], Problem(TRAINED_ON, problem.y[1, 2]))
    assert torch.equal(alone[0], found[0, 1, 2])
    with torch.no_grad():
        v = back(Scaled(TRAINED_ON), problem.y[1, 2][None] / (MU_WATER_PER_MM * Scaled(TRAINED_ON).norm))
    torch.testing.assert_close(found[0, 1, 2], MU_WATER_PER_MM * v[0])
    double = solve(name, weights[name], Problem(TRAINED_ON, problem.y.double()))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), found)


@pytest.mark.parametrize("name", SMALL)
def test_lengths_drop_out(name: str, weights: dict[str, Path]) -> None:
    """Pixels and cells twice as large: the same attenuation per mm, twice the data, the same image and no warning."""
    larger = dataclasses.replace(TRAINED_ON, pixel_mm=4.0, detector_mm=4.0)
    x = MU_WATER_PER_MM * V
    found = [solve(name, weights[name], Problem(A, A(x))) for A in (TRAINED_ON, larger)]
    torch.testing.assert_close(found[0], found[1], atol=1e-3 * MU_WATER_PER_MM, rtol=1e-3)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"sin_4c_prn"}))
def test_other_geometries_are_taken_with_a_warning(name: str, weights: dict[str, Path]) -> None:
    x = MU_WATER_PER_MM * V
    for A in (
        dataclasses.replace(TRAINED_ON, angles=equispaced_angles(10)),
        FanBeamCT((SIDE, SIDE), equispaced_angles(VIEWS, 2 * math.pi), 80, 200.0, 100.0, 2.0, 2.0),
    ):
        with pytest.warns(UserWarning, match=f"{name} was trained on another geometry.*data shape"):
            assert solve(name, weights[name], Problem(A, A(x))).isfinite().all()


def test_inpainting_is_bound_to_its_views(weights: dict[str, Path]) -> None:
    path = weights["sin_4c_prn"]

    def refused(A: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            solve("sin_4c_prn", path, Problem(A, torch.ones(A.out_shape)))

    refused(dataclasses.replace(TRAINED_ON, angles=equispaced_angles(10)), "geometry of its training only.*angles")
    refused(dataclasses.replace(TRAINED_ON, angles=equispaced_angles(VIEWS, 2.0)), "equal steps over half a turn")
    refused(dataclasses.replace(TRAINED_ON, detector_offset_mm=1.0), "centred detector")
    refused(FanBeamCT((SIDE, SIDE), equispaced_angles(8, 2 * math.pi), 80, 200.0, 100.0, 2.0, 2.0), "got FanBeamCT")


def test_operators_that_are_not_ct(weights: dict[str, Path]) -> None:
    """Gradient descent and the Neumann series need A and Aᵀ alone."""
    A = Matrix(torch.randn(30, 64, generator=Generator().manual_seed(0)), image_shape=(8, 8))
    problem = Problem(A, A(torch.ones(8, 8)))
    for name in ("learned_gradient", "neumann"):
        with pytest.warns(UserWarning, match="another geometry"):
            assert solve(name, weights[name], problem).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fbp_unet", "no method fbp"),
        ("learned_primal_dual", "data of two dimensions"),
        ("sin_4c_prn", "expected a ParallelBeamCT, got Matrix"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*another geometry")
def test_operators_that_are_refused(name: str, words: str, weights: dict[str, Path]) -> None:
    A = Matrix(torch.eye(64), image_shape=(8, 8))
    with pytest.raises(ValueError, match=words):
        solve(name, weights[name], Problem(A, torch.ones(64)))


def test_missing_and_damaged_weights(weights: dict[str, Path], tmp_path: Path) -> None:
    problem, path = Problem(TRAINED_ON, torch.ones(TRAINED_ON.out_shape)), weights["neumann"]
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors: no such file \(a baseline's weights"):
        solve("neumann", tmp_path / "nothing.safetensors", problem)
    with pytest.raises(ValueError, match="holds weights of 'neumann', not of 'fbp_unet'"):
        solve("fbp_unet", path, problem)
    with pytest.raises(ValueError, match="can run code"):
        solve("neumann", tmp_path / "mine.pt", problem)
    whole = path.read_bytes()
    for broken in (whole[:-9], whole[:50] + b"x" + whole[51:], b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="checksum differs"):
            solve("neumann", path, problem)
    path.write_bytes(whole)
    assert solve("neumann", path, problem).isfinite().all()
    card = path.with_suffix(".json")
    for text, words in (("{", "is no JSON"), (card.read_text().replace('"terms": 3', '"term": 3'), "describes no network")):  # fmt: skip
        card.write_text(text)
        with pytest.raises(ValueError, match=words):
            load_network("neumann", path)


@pytest.mark.parametrize("name", SMALL)
def test_without_weights_the_command_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(learned, "files", lambda _: tmp_path)  # as if none were shipped
    method = plugins.get("methods", name)()
    with pytest.raises(ValueError, match=f"scoreinv train-baseline {name} .*--set weights=FOLDER/{name}.safetensors"):
        method(Problem(TRAINED_ON, torch.ones(TRAINED_ON.out_shape)), Generator())
    save_network(name, disturbed(name), tmp_path / f"{name}.safetensors", {"geometry": geometry(TRAINED_ON)})
    assert method(Problem(TRAINED_ON, torch.ones(TRAINED_ON.out_shape)), Generator()).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_default_networks_are_small(name: str) -> None:
    made = network_class(name)()
    assert 2 * sum(p.numel() for p in made.parameters()) < 8e6  # bytes in float16


# From files, by the command


def write_images(path: Path, patients: list[str]) -> Path:
    with h5py.File(path, "w") as file:
        file["hu"] = np.stack([phantom()] * len(patients))
        file["patient"] = patients
        file["pixel_mm"] = np.full(len(patients), 2.0)
    return path


def test_train_by_command_then_reconstruct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, others = write_images(tmp_path / "a.h5", ["a", "b"]), write_images(tmp_path / "b.h5", ["c"])
    run = tmp_path / "run"
    command = [
        "train-baseline",
        "neumann",
        str(images),
        "--validation",
        str(others),
        "--views",
        "8",
        "--noise",
        "0",
        "0.01",
    ]
    command += ["--out", str(run), "--validate-every", "2", "--set", f"side={SIDE}", "--network", "terms=2"]
    command += ["--network", "widths=[16,32]", "--geometry", "n_detectors=35", "--set", "warmup=2"]
    for steps in ("2", "4"):  # the same folder: goes on
        assert cli.main([*command, "--steps", steps]) == 0
        assert capsys.readouterr().out.strip() == str(run / "neumann.safetensors")
    _, card = load_network("neumann", run / "neumann.safetensors")
    assert card["steps"] == 4 and card["network"]["terms"] == 2 and card["geometry"]["data_shape"] == [8, 35]
    assert card["data"] == {"images": 2, "patients": 2, "validation_patients": 1}
    assert card["operator"] == {"operator": "parallel_beam_ct", "n_views": 8, "n_detectors": 35, "pixel_mm": 2.0}
    assert set(card["reconstruction_psnr_db"]) == {"0", "0.01"} and card["training"]["noise"] == [0, 0.01]
    assert (run / "log.png").read_bytes().startswith(b"\x89PNG")
    scan = ["simulate", str(others), "--views", "8", "--detectors", "35", "--out", str(tmp_path / "scan.h5")]
    assert cli.main(scan) == 0
    solve_it = ["reconstruct", str(tmp_path / "scan.h5"), "--method", "neumann", "--set"]
    assert cli.main([*solve_it, f"weights={run / 'neumann.safetensors'}"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert cli.main([*command, "--steps", "4", "--network", "terms=3"]) == 2
    assert "holds the network" in capsys.readouterr().err


def test_a_run_may_start_from_weights(tmp_path: Path) -> None:
    """Network and weights are theirs, and their history goes on; network settings of its own are refused."""
    images = write_images(tmp_path / "a.h5", ["anna", "bert"])
    training = {"steps": 3, "side": SIDE}
    first = train_baseline("neumann", [images], tmp_path / "one", training=training, network=SMALL["neumann"])
    again = train_baseline(
        "neumann", [images], tmp_path / "two", training=training | {"lr": 1e-9, "ema": [0.0]}, start=first
    )
    (old, old_card), (new, card) = load_network("neumann", first), load_network("neumann", again)
    for name, weight in old.state_dict().items():
        torch.testing.assert_close(new.state_dict()[name], weight, atol=1e-3, rtol=1e-3)
    assert [r["start"] for r in card["history"]] == ["scratch", old_card["sha256"][:12]]
    assert card["steps"] == 6 and card["hours"] >= old_card["hours"] and card["network"] == old_card["network"]
    with pytest.raises(ValueError, match=r"leave its settings \['terms'\] out"):
        train_baseline("neumann", [images], tmp_path / "three", network={"terms": 3}, start="shipped")
    with pytest.raises(ValueError, match=r"holds weights of 'neumann', not of 'fbp_unet'"):
        train_baseline("fbp_unet", [images], tmp_path / "three", start=first)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "fbp"}, "'fbp' has no network to train; those that have: .*fbp_unet, .*sin_4c_prn"),
        ({"name": "fbp_unett"}, "Did you mean 'fbp_unet'"),
        ({"network": {"width": 3}}, "has no setting 'width'"),
        ({"network": {"widths": [5]}}, "multiples of 16"),
        ({"training": {"batch": 3}}, "Did you mean 'batch_size'"),
        ({"arguments": {"n_view": 3}}, "Did you mean 'n_views'"),
        ({"validation": "a.h5"}, "in the training and in the validation images"),
        ({"name": "sin_4c_prn", "network": {}, "arguments": {"arc": 2.0}}, "equal steps over half a turn"),
    ],
)
def test_what_cannot_be_trained(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "a.h5", ["a", "b"])
    call: dict[str, Any] = {"name": "fbp_unet", "training": {"side": SIDE, "steps": 1}, **changes}
    if "validation" in call:
        call["validation"] = [tmp_path / call["validation"]]
    with pytest.raises(ValueError, match=words):
        train_baseline(call.pop("name"), [images], tmp_path / "run", **call)


# Plug-and-play ADMM


def gaussian_problem(noise: float) -> tuple[GaussianPrior, Problem]:
    rng = Generator().manual_seed(0)
    root = torch.randn((16, 16), generator=rng) / 4
    prior = GaussianPrior(torch.linspace(-1, 1, 16).reshape(4, 4), root @ root.T + 0.1 * torch.eye(16))
    A = Matrix(torch.randn((9, 16), generator=rng), image_shape=(4, 4))
    return prior, Problem(A, A(prior.draw(1, rng)[0]) + noise * torch.randn(9, generator=rng), noise)


@pytest.mark.parametrize("sigma", [0.2, 0.7])
def test_admm_rests_at_the_posterior_mean_and_splitting_does_not(sigma: float) -> None:
    prior, problem = gaussian_problem(0.3)
    exact = prior.posterior(problem).mean
    settings = {"n_levels": 400, "sigma_max": sigma, "sigma_min": sigma, "trust": 1.0, "iterations": 30}
    found = configure.method("pnp_admm", settings, lambda: prior)(problem, Generator())[0]
    torch.testing.assert_close(found, exact, atol=1e-3, rtol=1e-3)
    x = exact  # half-quadratic splitting at the same noise level moves away from there
    A = dense(problem.A).float()
    rho = (0.3 / sigma) ** 2
    for _ in range(400):
        z = prior(x[None], torch.tensor(sigma))[0]
        x = torch.linalg.solve(A.T @ A + rho * torch.eye(16), A.T @ problem.y + rho * z.flatten()).reshape(4, 4)
    assert float((x - exact).abs().max()) > 0.02


def test_admm_on_noise_free_data_and_batches() -> None:
    prior, noise_free = gaussian_problem(0.0)
    method = configure.method("pnp_admm", {"iterations": 30}, lambda: prior)
    found = method(noise_free, Generator())
    assert float((noise_free.A(found[0]) - noise_free.y).abs().max()) < 1e-3
    y = noise_free.y * torch.tensor([[1.0], [0.5]])
    together = method(Problem(noise_free.A, y, torch.tensor([[0.1], [0.3]])), Generator())
    for k, noise in enumerate((0.1, 0.3)):
        alone = method(Problem(noise_free.A, y[k], noise), Generator())
        torch.testing.assert_close(together[:, k], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("setting", "value"), [("n_levels", 0), ("sigma_min", 0.4), ("trust", 0.0)])
def test_admm_settings(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"PnPADMM: .*{setting}"):
        configure.method("pnp_admm", {setting: value}, lambda: gaussian_problem(0.1)[0])
