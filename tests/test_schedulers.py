"""Whole trajectories of our steps and of the schedulers of diffusers, on one network and the same noise."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from scoreinv.priors.adapters.diffusers import diffusers_prior
from scoreinv.priors.adapters.parametrisation import Parametrised
from scoreinv.sampling.ddpm import LearnedVariance, large_variance
from scoreinv.sampling.discrete import DiscreteVP
from scoreinv.sampling.loop import sample
from scoreinv.sampling.pndm import PNDM
from scoreinv.sampling.steps import Ancestral, DPMSolver2M, Step, euler, heun
from scoreinv.streams import split

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

N = 20
SHAPE = (2, 1, 8, 8)


@pytest.fixture(scope="module")
def library() -> Any:
    module = pytest.importorskip("diffusers", reason="diffusers is an optional extra")
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it tells of config entries that other schedulers have
    return module


@pytest.fixture(scope="module")
def unet(library: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = library.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return model.double().eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def same_noise(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is drawn in float32 whatever the dtype; theirs would be other numbers in float64."""

    def drawn(shape: Any, generator: list[Generator], dtype: torch.dtype, **_: Any) -> Tensor:
        return torch.stack([torch.randn(shape[1:], generator=g) for g in generator]).to(dtype)

    for module in ("scheduling_ddpm", "scheduling_ddim"):
        monkeypatch.setattr(importlib.import_module(f"diffusers.schedulers.{module}"), "randn_tensor", drawn)


def theirs(scheduler: Any, network: Callable[..., Any], x_t: Tensor, **more: Any) -> list[Tensor]:
    """x_t after each of a scheduler's calls."""
    states = []
    if type(scheduler).__name__ in ("DDPMScheduler", "DDIMScheduler"):
        more["generator"] = streams()
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x_t, t), t)
        x_t = scheduler.step(getattr(output, "sample", output), t, x_t, **more).prev_sample
        states.append(x_t)
    return states


def ours(step: Step, prior: Parametrised, x: Tensor, sigmas: Tensor) -> list[Tensor]:
    return list(sample(prior, x, sigmas, step=step, rngs=streams()))


def streams() -> list[Generator]:
    return split(Generator().manual_seed(3), SHAPE[0])


def levels(scheduler: Any, timesteps: Tensor) -> Tensor:
    """Of the times of a scheduler, then 0."""
    a = scheduler.alphas_cumprod[timesteps].double()
    return torch.cat([((1 - a) / a).sqrt(), torch.zeros(1, dtype=torch.float64)])


VP_SCHEDULERS: dict[str, tuple[str, dict[str, Any], Callable[[Any], Step]]] = {
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small"}, lambda chain: Ancestral(1.0)),
    "ddpm, large": ("DDPMScheduler", {"variance_type": "fixed_large"}, lambda chain: large_variance),
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": True}, lambda chain: Ancestral(0.0)),
    "dpm-solver++ 2m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
        lambda chain: DPMSolver2M(),
    ),
    "pndm": (
        "PNDMScheduler",
        {"skip_prk_steps": False, "set_alpha_to_one": True},
        lambda chain: PNDM(chain.middle),
    ),
}


CASES = [
    (name, predicts)
    for name in VP_SCHEDULERS
    for predicts in ("epsilon", "v_prediction")
    if (name, predicts) != ("pndm", "v_prediction")  # it averages what the network predicts, the paper noise estimates
]


@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("name", "predicts"), CASES)
def test_schedulers_in_vp(library: Any, unet: Any, name: str, betas: str, predicts: str, rng: Generator) -> None:
    kind, settings, make = VP_SCHEDULERS[name]
    if "clip_sample" in getattr(library, kind).__init__.__annotations__:
        settings = settings | {"clip_sample": False}
    scheduler = getattr(library, kind)(beta_schedule=betas, prediction_type=predicts, **settings)
    scheduler.set_timesteps(N)
    prior = diffusers_prior(unet, scheduler)
    half_steps = name == "pndm"
    sigmas = levels(scheduler, torch.arange(0, 1000, 1000 // N).flip(0) if half_steps else scheduler.timesteps)
    x_t = torch.randn(SHAPE, generator=rng, dtype=torch.float64)
    states = theirs(scheduler, unet, x_t)
    if half_steps:
        states = [*states[3:12:4], *states[12:]]  # four calls make one Runge-Kutta step
    scale = (1 + sigmas**2).rsqrt()
    got = ours(make(prior.coordinates), prior, x_t / scale[0], sigmas)
    assert len(states) == len(got) == N
    for k, (a, b) in enumerate(zip(states, got, strict=True)):
        torch.testing.assert_close(scale[k + 1] * b, a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise(library: Any, unet: Any, eta: float, rng: Generator) -> None:
    scheduler = library.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(N)
    prior, sigmas = diffusers_prior(unet, scheduler), levels(scheduler, scheduler.timesteps)
    x_t = torch.randn(SHAPE, generator=rng, dtype=torch.float64)
    states = theirs(scheduler, unet, x_t, eta=eta)
    scale = (1 + sigmas**2).rsqrt()
    got = ours(Ancestral(eta), prior, x_t / scale[0], sigmas)
    for k, (a, b) in enumerate(zip(states, got, strict=True)):
        torch.testing.assert_close(scale[k + 1] * b, a, rtol=1e-4, atol=1e-4)


def test_learned_range(library: Any, rng: Generator) -> None:
    """Improved DDPM's variance, from a network that predicts it beside ε."""
    scheduler = library.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(N)
    torch.manual_seed(1)
    conv = nn.Conv2d(1, 2, 3, padding=1).double().requires_grad_(False)
    prior = Parametrised(lambda x, t: conv(x).tanh(), DiscreteVP(scheduler.alphas_cumprod), "epsilon")
    sigmas = levels(scheduler, scheduler.timesteps)
    x_t = torch.randn(SHAPE, generator=rng, dtype=torch.float64)
    states = theirs(scheduler, lambda x, t: conv(x).tanh(), x_t)
    scale = (1 + sigmas**2).rsqrt()
    got = ours(LearnedVariance(), prior, x_t / scale[0], sigmas)
    for k, (a, b) in enumerate(zip(states, got, strict=True)):
        torch.testing.assert_close(scale[k + 1] * b, a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize(("kind", "step"), [("EulerDiscreteScheduler", euler), ("HeunDiscreteScheduler", heun)])
def test_schedulers_on_our_coordinate(
    library: Any, unet: Any, kind: str, step: Step, karras: bool, rng: Generator
) -> None:
    scheduler = getattr(library, kind)(beta_schedule="scaled_linear", beta_start=0.0008, beta_end=0.012)
    scheduler = getattr(library, kind).from_config(scheduler.config, use_karras_sigmas=karras)
    scheduler.set_timesteps(N)
    x = scheduler.init_noise_sigma * torch.randn(SHAPE, generator=rng, dtype=torch.float64)
    sigmas = scheduler.sigmas.double().unique().flip(0)
    prior = diffusers_prior(unet, scheduler)
    states = theirs(scheduler, unet, x)
    states = states if step is euler else [*states[1::2], states[-1]]  # two calls make one step, but the last
    got = ours(step, prior, x, sigmas)
    assert len(states) == len(got) == N
    for a, b, sigma in zip(states, got, sigmas, strict=False):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * max(1.0, float(sigma)))
