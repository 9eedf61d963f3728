"""Priors of others in our coordinate, against exact Gaussian priors and against what the other library computes itself."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import math
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from scoreinv.priors.adapters import adm, azula, deepinv, diffusers
from scoreinv.priors.adapters import parametrisation as par
from scoreinv.priors.adapters.edm import EDMPrior
from scoreinv.priors.adapters.weights import load_torch_weights
from scoreinv.priors.denoiser import Rescaled
from scoreinv.priors.exact import GaussianPrior
from scoreinv.sampling import discrete, processes

SHAPE = (2, 2, 3)
"""Channels, rows, columns of the images here."""

Scales = Callable[[Tensor], tuple[Tensor, Tensor]]
"""label -> s and σ_t, as the foreign definition has them."""


@pytest.fixture
def prior(rng: Generator) -> GaussianPrior:
    d = math.prod(SHAPE)
    factor = torch.randn(d, d, generator=rng, dtype=torch.float64) / math.sqrt(d)
    return GaussianPrior(torch.randn(SHAPE, generator=rng, dtype=torch.float64), factor @ factor.T)


# Every parametrisation in every coordinate: a network that is exact there gives the exact D here


def stub(prior: GaussianPrior, scales: Scales, output: par.Output) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact network of a Gaussian prior in foreign coordinates, which it computes from nothing but the label."""

    def network(x_t: Tensor, label: Tensor) -> Tensor:
        s, noise = (v.reshape(-1, 1, 1, 1).to(x_t) for v in scales(label))
        x0 = prior(x_t / s, (noise / s).flatten())
        eps = (x_t - s * x0) / noise
        foreign = {"epsilon": eps, "v": s * eps - noise * x0, "sample": x0, "score": -eps / noise, "velocity": x0 - eps}
        return foreign[output]

    return network


def continuous(label: Tensor, *, sub: bool = False) -> tuple[Tensor, Tensor]:
    """marginal probabilities of a time, from the integral of β from 0.1 to 20."""
    t = label / 999
    s = torch.exp(-0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1)
    return s, 1 - s**2 if sub else (1 - s**2).sqrt()


ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
SIGMAS = torch.logspace(2, -2, 400, dtype=torch.float64)


def steps(label: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1 − ᾱ), ln of their ratio linear between steps."""
    low = label.floor().clamp(max=len(ALPHAS) - 2).long()
    ln_sigma = (((1 - ALPHAS) / ALPHAS).sqrt()).log().to(label.device)
    sigma = torch.lerp(ln_sigma[low], ln_sigma[low + 1], label.double() - low).exp()
    return (1 / (1 + sigma**2)).sqrt(), (sigma**2 / (1 + sigma**2)).sqrt()


COORDINATES: dict[str, tuple[processes.Coordinates, Scales]] = {
    "ve": (processes.VE(0.01, 50.0), lambda sigma: (torch.ones_like(sigma), sigma)),
    "vp": (processes.VP(), continuous),
    "sub-vp": (processes.SubVP(), functools.partial(continuous, sub=True)),
    "flow matching": (processes.FlowMatching(0.001, 0.99), lambda tau: (tau, 1 - tau)),
    "ddpm": (discrete.DiscreteVP(ALPHAS), steps),
    "ddpm at whole steps": (
        discrete.DiscreteVP(ALPHAS, "nearest"),
        lambda i: (ALPHAS[i].sqrt(), (1 - ALPHAS[i]).sqrt()),
    ),
    "ve in a list": (discrete.DiscreteVE(SIGMAS), lambda i: (torch.ones_like(SIGMAS[i]), SIGMAS[i])),
}
LEVELS: dict[str, list[float]] = {
    "ddpm at whole steps": [float(((1 - a) / a).sqrt()) for a in ALPHAS[[0, 300, 999]]],
    "ve in a list": SIGMAS[[399, 200, 0]].tolist(),
}


@pytest.mark.parametrize("output", get_args(par.Output))
@pytest.mark.parametrize("name", COORDINATES)
def test_an_exact_network_gives_the_exact_prior(
    prior: GaussianPrior, name: str, output: par.Output, rng: Generator
) -> None:
    coordinates, scales = COORDINATES[name]
    lowest, highest = coordinates.levels
    levels = LEVELS.get(name, [lowest, 0.02, 0.5, 7.3, highest])
    adapted = par.Parametrised(stub(prior, scales, output), coordinates, output)
    sigma = torch.tensor(levels, dtype=torch.float64)
    x = prior.draw(len(levels), rng) + sigma[:, None, None, None] * torch.randn(
        len(levels), *SHAPE, generator=rng, dtype=torch.float64
    )
    torch.testing.assert_close(adapted(x, sigma), prior(x, sigma), rtol=1e-6, atol=1e-6)
    for k, level in enumerate(levels):  # a scalar, and a batch is its members
        torch.testing.assert_close(adapted(x, sigma[k])[k], adapted(x, sigma)[k])
        torch.testing.assert_close(
            adapted(x[k : k + 1], torch.tensor(level))[0], adapted(x, sigma)[k], rtol=1e-5, atol=1e-5
        )


def test_levels_are_those_of_the_definitions() -> None:
    for name, (coordinates, scales) in COORDINATES.items():
        labels = {
            "ve": [0.01, 50.0],
            "vp": [0.999, 999.0],
            "sub-vp": [0.999, 999.0],
            "flow matching": [0.999, 0.01],
            "ve in a list": [399, 0],
        }
        ends = torch.tensor(labels.get(name, [0, 999]), dtype=torch.float64)
        s, noise = scales(ends if name not in LEVELS else ends.long())
        assert coordinates.levels == pytest.approx((noise / s).tolist(), rel=1e-6), name
    assert discrete.DiscreteVP(ALPHAS).levels[1] == pytest.approx(157.4, rel=1e-3)  # the largest level of DDPM


@pytest.mark.parametrize("name", LEVELS)
def test_lists_take_the_nearest_level(name: str) -> None:
    coordinates, scales = COORDINATES[name]
    sigma = torch.tensor([0.0123, 0.5, 3.21, 90.0], dtype=torch.float64)
    place = coordinates.at(sigma)
    s, noise = scales(place.label)
    assert place.label.dtype == torch.int64
    torch.testing.assert_close(place.sigma, noise / s)
    torch.testing.assert_close(place.scale, s)
    for step in (-1, 1):
        other_s, other_noise = scales((place.label + step).clamp(0, 399 if "list" in name else 999))
        assert ((place.sigma / sigma).log().abs() <= (other_noise / other_s / sigma).log().abs()).all()


def test_a_last_step_without_signal_is_left_out() -> None:
    alphas = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
    assert discrete.DiscreteVP(alphas).levels == pytest.approx((1 / 3, 1.0))
    assert discrete.DiscreteVP(alphas).at(torch.tensor([1.0], dtype=torch.float64)).label == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: discrete.DiscreteVP(ALPHAS.flip(0)), "must decrease"),
        (lambda: discrete.DiscreteVP(torch.tensor([1.0, 0.5])), r"within \(0, 1\)"),
        (lambda: discrete.DiscreteVP(ALPHAS, "closest"), "'interpolated' or 'nearest', got 'closest'"),  # type: ignore[arg-type]
        (lambda: discrete.DiscreteVE(SIGMAS.flip(0)), "positive and decrease"),
        (lambda: discrete.DiscreteVE(SIGMAS - 1), "positive and decrease"),
        (
            lambda: par.Parametrised(lambda x, t: x, processes.VP(), "noise"),
            "epsilon, v, sample, score, velocity, got 'noise'",
        ),  # type: ignore[arg-type]
    ],
)
def test_impossible_coordinates(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# Outside the range, at the edges of the interface


@pytest.mark.parametrize("output", get_args(par.Output))
@pytest.mark.parametrize("name", COORDINATES)
def test_outside_the_range(prior: GaussianPrior, name: str, output: par.Output, rng: Generator) -> None:
    coordinates, scales = COORDINATES[name]
    lowest, highest = coordinates.levels
    adapted = par.Parametrised(stub(prior, scales, output), coordinates, output)
    x = prior.draw(3, rng)
    assert torch.equal(adapted(x, torch.tensor(0.0)), x)
    edge = adapted(x, torch.tensor(lowest, dtype=torch.float64))
    torch.testing.assert_close(edge, prior(x, torch.tensor(lowest)), rtol=1e-5, atol=1e-5)
    for fraction in (0.1, 0.5):
        torch.testing.assert_close(
            adapted(x, torch.tensor(lowest * fraction, dtype=torch.float64)), x + fraction * (edge - x)
        )
    wanted = prior(x / 10, torch.tensor(highest))
    torch.testing.assert_close(adapted(x, torch.tensor(10 * highest)), wanted, rtol=1e-4, atol=1e-4)
    mixed = torch.tensor([0.0, 10 * highest, 1.0], dtype=torch.float64)
    assert torch.isfinite(adapted(x, mixed)).all() and torch.equal(adapted(x, mixed)[0], x[0])


@pytest.mark.parametrize("sigma", [0.0, 0.004, 0.7, 500.0])
def test_gradients_are_the_exact_ones(prior: GaussianPrior, sigma: float, rng: Generator) -> None:
    adapted = par.Parametrised(stub(prior, continuous, "epsilon"), processes.VP(), "epsilon")
    x = prior.draw(2, rng).requires_grad_()
    weights = torch.randn(2, *SHAPE, generator=rng, dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    lowest, highest = adapted.levels
    (got,) = torch.autograd.grad((adapted(x, level) * weights).sum(), x)
    inside, fade, shrink = level.clamp(lowest, highest), min(sigma / lowest, 1), min(highest / max(sigma, 1e-9), 1)
    (wanted,) = torch.autograd.grad(((x + fade * (prior(shrink * x, inside) - x)) * weights).sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def flat(x: Tensor, sigma: Tensor) -> Tensor:
    """A prior of single-channel images, x₀ ~ N(0, 1): (batch, H, W) and nothing else."""
    assert x.ndim == 3 and sigma.shape == x.shape[:1]
    return x / (1 + sigma.to(x)[:, None, None] ** 2)


class Tiny(nn.Module):
    """A network whose result depends on everything."""

    def __init__(self, channels: int, n_out: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, n_out * channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        assert t.shape == x.shape[:1] and t.is_floating_point()
        out: Tensor = self.conv(x) * (1 + t.to(x.dtype)[:, None, None, None]).log()
        return out


FOREIGN: dict[str, Callable[[nn.Module], Any]] = {
    **{
        name: functools.partial(lambda c, network: par.Parametrised(network, c, "epsilon"), coordinates)
        for name, (coordinates, _) in COORDINATES.items()
        if name not in LEVELS
    },
    "edm": EDMPrior,
    "adm": adm.adm_prior,
    "deepinv": deepinv.DeepinvPrior,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_laws_of_adapters(name: str, rng: Generator) -> None:
    """Members are independent; dtype, device and shape follow x; single-channel images have no channel axis."""
    adapted = FOREIGN[name](Tiny(1))
    x = torch.randn(3, 6, 5, generator=rng, dtype=torch.float64)
    sigma = torch.tensor([0.001, 1.2, 400.0])
    d = adapted(x, sigma)
    assert d.dtype == torch.float64 and d.shape == x.shape
    for k in range(3):
        torch.testing.assert_close(adapted(x[k : k + 1], sigma[k]), d[k : k + 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapted(x[:, None], sigma)[:, 0], d)
    torch.testing.assert_close(adapted(x.float(), sigma), d.float())
    elsewhere = FOREIGN[name](Tiny(2).to("meta"))
    moved = elsewhere(torch.zeros(3, 2, 6, 5, device="meta"), sigma)
    assert moved.device.type == "meta" and moved.shape == (3, 2, 6, 5)
    with pytest.raises(ValueError, match=r"expected images \(batch, H, W\)"):
        adapted(x[0], sigma)
    again = pickle.loads(pickle.dumps(adapted))  # noqa: S301
    torch.testing.assert_close(again(x, sigma), d)


def test_half_precision_is_of_the_network_only(rng: Generator) -> None:
    """Labels and the arithmetic around it keep their digits: at σ = 30, bfloat16 would lose 0.1 of x₀."""
    seen: list[torch.dtype] = []

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.extend([x.dtype, t.dtype])
            return torch.zeros_like(x)

    x = 30 * torch.randn(2, 4, 4, generator=rng)
    adapted = par.Parametrised(functools.partial(Half()), processes.VP(), "epsilon")
    assert torch.equal(adapted(x, torch.tensor(30.0)), x) and seen == [torch.bfloat16, torch.float32]


def test_units_are_mapped_by_rescaled(prior: GaussianPrior, rng: Generator) -> None:
    adapted = Rescaled(par.Parametrised(stub(prior, continuous, "v"), processes.VP(), "v"), 0.5, 2.0)
    x = 0.5 + 2 * prior.draw(2, rng)
    got = adapted(x, torch.tensor(0.8))
    torch.testing.assert_close(got, 0.5 + 2 * prior((x - 0.5) / 2, torch.tensor(0.4)), rtol=1e-6, atol=1e-6)


def test_a_result_of_another_shape_is_refused() -> None:
    network = Tiny(1, n_out=3)
    with pytest.raises(ValueError, match=r"images \(2, 1, 4, 4\) came back from the network as \(2, 3, 4, 4\)"):
        par.Parametrised(network, processes.VP(), "epsilon")(torch.zeros(2, 4, 4), torch.tensor(1.0))


# EDM


def test_edm_labels_and_levels(prior: GaussianPrior, rng: Generator) -> None:
    seen: list[Any] = []

    def network(x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        seen.append(class_labels)
        return prior(x, sigma)

    x, sigma = prior.draw(2, rng), torch.tensor([0.002, 80.0], dtype=torch.float64)
    torch.testing.assert_close(EDMPrior(network)(x, sigma), prior(x, sigma))
    EDMPrior(network, torch.tensor([0, 1, 0]))(x, sigma)
    assert seen[0] is None and torch.equal(seen[1], torch.tensor([[0.0, 1.0, 0.0]] * 2, dtype=torch.float64))


# ADM


def test_adm_schedules() -> None:
    linear, cosine = discrete.linear_betas(1000), discrete.cosine_betas(1000)
    assert linear[0] == pytest.approx(1e-4) and linear[-1] == pytest.approx(0.02)
    torch.testing.assert_close((1 - linear).cumprod(0), ALPHAS)
    assert cosine[0] == pytest.approx(4.128e-5, rel=1e-3) and cosine[-1] == 0.999
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    wanted = (torch.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    torch.testing.assert_close((1 - cosine).cumprod(0)[:-1], wanted)
    with pytest.raises(ValueError, match="'linear' or 'cosine', got 'quadratic'"):
        adm.adm_prior(lambda x, t: x, "quadratic")  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_adm_leaves_learned_variances_aside(schedule: Any, prior: GaussianPrior, rng: Generator) -> None:
    alphas = (1 - {"linear": discrete.linear_betas, "cosine": discrete.cosine_betas}[schedule](1000)).cumprod(0)
    exact = stub(prior, lambda t: (alphas[t.round().long()].sqrt(), (1 - alphas[t.round().long()]).sqrt()), "epsilon")
    adapted = adm.adm_prior(lambda x, t: torch.cat([exact(x, t), 1e3 + x], dim=1), schedule)
    x, steps = prior.draw(3, rng), torch.tensor([0, 500, 990])
    sigma = ((1 - alphas[steps]) / alphas[steps]).sqrt()
    torch.testing.assert_close(adapted(x, sigma), prior(x, sigma), rtol=1e-6, atol=1e-6)


# diffusers


@pytest.fixture
def library() -> Any:
    module = pytest.importorskip("diffusers", reason="diffusers is an optional extra")
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it tells of config entries that other schedulers have
    return module


@pytest.fixture
def unet(library: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = library.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return model.eval()


OF_DIFFUSERS = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SCHEDULERS = [
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
]


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_diffusers_own_conversion(library: Any, unet: Any, predicts: str, betas: str, rng: Generator) -> None:
    """What a step of a scheduler takes x₀ to be, from x_t and the network's output."""
    scheduler = library.DDIMScheduler(prediction_type=predicts, beta_schedule=betas, clip_sample=False)
    scheduler.set_timesteps(1000)
    adapted = diffusers.diffusers_prior(unet, scheduler)
    for step in (0, 371, 900):
        x_t = torch.randn(2, 2, 8, 8, generator=rng)
        with torch.no_grad():
            wanted = scheduler.step(unet(x_t, step).sample, step, x_t).pred_original_sample
            a = scheduler.alphas_cumprod[step].double()
            got = adapted(x_t / a.sqrt(), ((1 - a) / a).sqrt())
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@OF_DIFFUSERS
def test_diffusers_between_its_steps(library: Any, unet: Any, rng: Generator) -> None:
    """The Euler scheduler has our coordinate, and steps between those of the training."""
    scheduler = library.EulerDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(7)
    adapted = diffusers.diffusers_prior(unet, scheduler)
    assert any(t != t.round() for t in scheduler.timesteps)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = sigma * torch.randn(2, 2, 8, 8, generator=rng)
        with torch.no_grad():
            output = unet(scheduler.scale_model_input(x, t), t).sample
            wanted = scheduler.step(output, t, x, generator=rng).pred_original_sample
            torch.testing.assert_close(adapted(x, sigma), wanted, rtol=1e-3, atol=1e-3 * (1 + float(sigma)))


@OF_DIFFUSERS
@pytest.mark.parametrize("name", SCHEDULERS)
def test_diffusers_schedulers_of_one_config_are_one_prior(library: Any, unet: Any, name: str, rng: Generator) -> None:
    base = library.DDPMScheduler(
        prediction_type="v_prediction", beta_schedule="scaled_linear", beta_start=0.0008, beta_end=0.013
    )
    other = getattr(library, name).from_config(base.config)
    other.set_timesteps(10)
    x, sigma = torch.randn(2, 2, 8, 8, generator=rng), torch.tensor([0.3, 6.0])
    with torch.no_grad():
        a, b = (diffusers.diffusers_prior(unet, s)(x, sigma) for s in (base, other))
    torch.testing.assert_close(a, b)


def test_diffusers_from_a_folder(library: Any, unet: Any, tmp_path: Path, rng: Generator) -> None:
    scheduler = library.DPMSolverMultistepScheduler(prediction_type="v_prediction")
    x, sigma = torch.randn(2, 2, 8, 8, generator=rng), torch.tensor(0.9)
    with pytest.raises(FileNotFoundError, match=r"unet.config\.json: no such file"):
        diffusers.load_diffusers(tmp_path)
    unet.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    loaded = diffusers.load_diffusers(tmp_path)
    torch.testing.assert_close(loaded(x, sigma), diffusers.diffusers_prior(unet, scheduler)(x, sigma).detach())
    unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        diffusers.load_diffusers(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="name of a scheduler of diffusers, got 'UNet2DModel'"):
        diffusers.load_diffusers(tmp_path)


def test_diffusers_schedulers_of_other_kinds(library: Any, unet: Any) -> None:
    with pytest.raises(ValueError, match="KarrasVeScheduler has no alphas_cumprod"):
        diffusers.diffusers_prior(unet, SimpleNamespace.__new__(type("KarrasVeScheduler", (SimpleNamespace,), {})))
    with pytest.raises(ValueError, match="labels levels by ln σ / 4"):
        diffusers.diffusers_prior(unet, library.EulerDiscreteScheduler(timestep_type="continuous"))
    strange = SimpleNamespace(alphas_cumprod=ALPHAS, config=SimpleNamespace(prediction_type="flow_prediction"))
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample, got 'flow_prediction'"):
        diffusers.diffusers_prior(unet, strange)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("diffusers", lambda folder: diffusers.load_diffusers(folder)),
        ("deepinv", lambda folder: deepinv.as_deepinv(lambda x, sigma: x)),
        ("azula", lambda folder: azula.as_azula(lambda x, sigma: x)),
    ],
)
def test_a_missing_library_is_named(
    name: str, use: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("unet/config.json", "scheduler/scheduler_config.json"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("{}")
    for module in [m for m in sys.modules if m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'scoreinv\[{name}\]'"):
        use(tmp_path)


# deepinv


def test_ours_in_deepinv_and_back(prior: GaussianPrior, rng: Generator) -> None:
    models = pytest.importorskip("deepinv.models", reason="deepinv is an optional extra", exc_type=ImportError)
    theirs = deepinv.as_deepinv(prior)
    assert isinstance(theirs, models.Denoiser)
    x, sigma = prior.draw(3, rng), torch.tensor([0.1, 0.7, 3.0], dtype=torch.float64)
    for form in (sigma, sigma[:, None, None, None]):
        torch.testing.assert_close(theirs(x, form), prior(x, sigma))
    torch.testing.assert_close(theirs(x, 0.3), prior(x, torch.tensor(0.3, dtype=torch.float64)))
    torch.testing.assert_close(deepinv.DeepinvPrior(theirs)(x, sigma), prior(x, sigma))
    y = torch.randn(3, 4, 4, generator=rng)
    torch.testing.assert_close(deepinv.as_deepinv(flat)(y[:, None], sigma)[:, 0], flat(y, sigma))
    torch.testing.assert_close(deepinv.DeepinvPrior(deepinv.as_deepinv(flat))(y, sigma), flat(y, sigma))


def test_a_network_of_deepinv(rng: Generator) -> None:
    models = pytest.importorskip("deepinv.models", reason="deepinv is an optional extra", exc_type=ImportError)
    drunet = models.DRUNet(in_channels=1, out_channels=1, nc=(2, 2, 2, 2), nb=1, pretrained=None).eval()
    x, sigma = torch.rand(2, 16, 16, generator=rng), torch.tensor([0.05, 0.1])
    adapted = deepinv.DeepinvPrior(drunet, levels=(0.0, 50 / 255))
    torch.testing.assert_close(adapted(x, sigma), drunet(x[:, None], sigma)[:, 0])
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(adapted(x, sigma).sum(), x)
    assert gradient.abs().max() > 0


# azula


def azula_module(name: str) -> Any:
    pytest.importorskip("azula", reason="azula is an optional extra")
    return importlib.import_module(f"azula.{name}")


@pytest.mark.parametrize(
    "schedule", ["VESchedule", "VPSchedule", "CosineSchedule", "RectifiedSchedule", "DecaySchedule"]
)
def test_azulas_own_gaussian(schedule: str, prior: GaussianPrior, rng: Generator) -> None:
    """Exact on both sides, in every schedule that it has."""
    denoise, noise = azula_module("denoise"), azula_module("noise")
    covariance = importlib.import_module("azula.linalg.covariance")
    times = getattr(noise, schedule)()
    variance = 0.2 + torch.rand(SHAPE, generator=rng, dtype=torch.float64)
    ours = GaussianPrior(prior.mean, torch.diag(variance.flatten()))
    theirs = denoise.GaussianDenoiser(prior.mean, covariance.DiagonalCovariance(variance), times)
    adapted, exported = azula.AzulaPrior(theirs), azula.as_azula(ours, times)
    assert isinstance(exported, denoise.Denoiser)
    x = torch.randn(1, *SHAPE, generator=rng, dtype=torch.float64)
    for sigma in torch.tensor([0.01, 0.6, 20.0], dtype=torch.float64):
        torch.testing.assert_close(adapted(x, sigma), ours(x, sigma), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(azula.AzulaPrior(exported)(x, sigma), ours(x, sigma), rtol=1e-6, atol=1e-6)
    for t in torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64):
        torch.testing.assert_close(exported(x, t).mean, theirs(x, t).mean)


def test_azula_there_and_back(prior: GaussianPrior, rng: Generator) -> None:
    noise = azula_module("noise")
    again = azula.AzulaPrior(azula.as_azula(prior))
    x, sigma = prior.draw(3, rng), torch.tensor([0.01, 0.7, 30.0], dtype=torch.float64)
    torch.testing.assert_close(again(x, sigma), prior(x, sigma), rtol=1e-6, atol=1e-6)
    assert again.levels == pytest.approx((1e-3, 1e3))
    y = torch.randn(3, 4, 4, generator=rng)
    back = azula.AzulaPrior(azula.as_azula(flat, noise.VPSchedule()))
    torch.testing.assert_close(back(y, sigma), flat(y, sigma), rtol=1e-4, atol=1e-4)


def test_a_network_of_azula(rng: Generator) -> None:
    denoise, noise = azula_module("denoise"), azula_module("noise")
    denoiser = denoise.KarrasDenoiser(Tiny(2), noise.VPSchedule())
    adapted = azula.AzulaPrior(denoiser)
    t = torch.tensor([0.4, 0.8])
    alpha, sigma = denoiser.schedule(t.double())
    x = torch.randn(2, 2, 5, 5, generator=rng).requires_grad_()
    scaled = alpha.float()[:, None, None, None] * x
    torch.testing.assert_close(adapted(x, sigma / alpha), denoiser(scaled, t).mean, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(adapted(x, sigma / alpha).sum(), x)
    assert gradient.abs().max() > 0


def test_a_sampler_of_azula_draws_from_our_prior(rng: Generator) -> None:
    sample, noise = azula_module("sample"), azula_module("noise")
    prior = GaussianPrior(torch.full((2, 2), 3.0), 0.25 * torch.eye(4))
    sampler = sample.DDIMSampler(azula.as_azula(prior, noise.VPSchedule()), steps=64, silent=True)
    x = sampler(torch.randn(2000, 2, 2, generator=rng))
    torch.testing.assert_close(x.mean(0), prior.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(x.std(0), torch.full((2, 2), 0.5), atol=0.05, rtol=0)


# Files


def test_weights_of_all_safe_kinds(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.float64)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "w.pt")
    torch.save({"model": tensors, "step": 3, "ema": {"shadow_params": [tensors["a"]]}}, tmp_path / "deep.pth")
    for name in ("w.safetensors", "w.pt"):
        loaded = load_torch_weights(tmp_path / name)
        assert {k: (v.dtype, v.tolist()) for k, v in loaded.items()} == {
            k: (v.dtype, v.tolist()) for k, v in tensors.items()
        }
    assert load_torch_weights(tmp_path / "deep.pth")["step"] == 3


class Trap:
    """A pickle that, once loaded, leaves a file behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.folder / "code-ran",)


def test_pickles_are_refused_with_a_way_out(tmp_path: Path) -> None:
    for path, write in [(tmp_path / "whole.pt", torch.save), (tmp_path / "plain.pkl", _pickle)]:
        for thing in (Trap(tmp_path), Tiny(1)):
            write(thing, path)
            with pytest.raises(ValueError, match=rf"{path.name}: is a pickle .*load.*{path.stem}\.safetensors"):
                load_torch_weights(path)
    assert not (tmp_path / "code-ran").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path)))  # noqa: S301 (so that the line above can fail)
    assert (tmp_path / "code-ran").exists()


@pytest.mark.parametrize("name", ["whole.pt", "whole.pkl"])
def test_the_way_out_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Tiny(1)
    (torch.save if name.endswith(".pt") else _pickle)(network, tmp_path / name)
    with pytest.raises(ValueError, match="is a pickle") as refused:
        load_torch_weights(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(str(refused.value).split('python -c "')[1].removesuffix('"'))  # noqa: S102
    converted = load_torch_weights(tmp_path / "whole.safetensors")
    assert {k: v.tolist() for k, v in converted.items()} == {k: v.tolist() for k, v in network.state_dict().items()}


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt: no such file"):
        load_torch_weights(tmp_path / "nothing.pt")
    for name in ("empty.pt", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match="holds no readable weights"):
            load_torch_weights(tmp_path / name)
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(ValueError, match=r"text\.pt: "):
        load_torch_weights(tmp_path / "text.pt")


def _pickle(thing: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(thing))


# What the page says


PAGE = (Path(__file__).parents[1] / "docs" / "bring-your-own-prior.md").read_text(encoding="utf-8")


def test_the_page_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks run, one after the other; those of libraries that are not there are left out."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    ran = 0
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        foreign = re.search(r"^(?:import|from) (diffusers|deepinv|azula)\b", block, re.MULTILINE)
        if foreign is None or importlib.util.find_spec(foreign[1]) is not None:
            exec(block, names)  # noqa: S102
            ran += 1
    direct, through_reconstruct = "torch.Size([1, 32, 32])", "torch.Size([32, 32]) 8.0"
    said = capsys.readouterr().out.splitlines()
    assert said == [direct, through_reconstruct, *[direct] * (ran - 2)] and ran >= 6


def test_the_page_names_every_adapter() -> None:
    for module in sorted(p.stem for p in Path(str(par.__file__)).parent.glob("*.py")):
        if module not in ("__init__", "optional", "weights", "score_sde_layers"):
            assert f"scoreinv.priors.adapters.{module}" in PAGE
    for word in (*get_args(par.Output), "VE", "VP", "SubVP", "FlowMatching", "DiscreteVP", "DiscreteVE"):
        assert word in PAGE
