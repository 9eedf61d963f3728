"""Nine models of digits, each by its own loss and sampler, compared by bits per dimension and Fréchet distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from gallery import digits
from gallery.draw import Panel, gray, panels, tiled
from gallery.setting import Outcome, Setting
from gallery.training import Criterion, LabelledUNet, LossRun, drawn, learnt, score_of
from scoreinv.priors.adapters.parametrisation import Output, Parametrised
from scoreinv.priors.denoiser import Denoiser, NetworkPrior
from scoreinv.priors.losses import ddpm
from scoreinv.priors.losses.denoising import (
    Times,
    noise_conditional,
    score_of_denoiser,
    time_continuous,
    uniform_times,
    vp_likelihood_times,
)
from scoreinv.priors.network import EDMDenoiser
from scoreinv.priors.training import denoising_error
from scoreinv.sampling import ncsn
from scoreinv.sampling.ddpm import LearnedVariance, large_variance
from scoreinv.sampling.discrete import DiscreteVP, cosine_betas, linear_betas
from scoreinv.sampling.levels import in_time, karras, respaced
from scoreinv.sampling.likelihood import FlowLikelihood, chain_bits, dequantised
from scoreinv.sampling.processes import VE, VP, FlowMatching, Process, SubVP
from scoreinv.sampling.reverse_sde import ReverseDiffusion
from scoreinv.sampling.steps import Step, euler, heun
from scoreinv.streams import split

T = 200
"""Steps of the chains."""
LOW, HIGH = 0.02, 16.0
"""Between which levels NCSN and VE work; the largest distance of two digits is about 15."""
STEPS = 6000
"""Of each training, with the full budget."""


@dataclass(frozen=True, eq=False)
class Model:
    """How a model is trained, and how it samples.

    Attributes:
        build: its network.
        criterion: its loss.
        prior: network -> D.
        levels, step: of its sampler, of which `finish` says whether it goes to 0 itself; from the number of levels.
        n_levels: of the sampler.
        dequantise: train on gray values with uniform noise, as the likelihood by the flow has it.
        chain: for the discrete bound; None without.
        reverse: prior -> the step back in the chain, for the discrete bound.
        low: where the flow of the likelihood begins.
    """

    build: Callable[[], Any]
    criterion: Criterion
    prior: Callable[[Any], Denoiser]
    levels: Callable[[int], Tensor]
    step: Callable[[], Step]
    finish: bool = True
    n_levels: int = 100
    dequantise: bool = True
    chain: ddpm.Chain | None = None
    reverse: Callable[[Any, Denoiser], ddpm.Reverse] | None = None
    sigma_max: float = 80.0


@dataclass(frozen=True, eq=False)
class Clipped:
    """D within the range of gray values, as DDPM's code has it in its sampler and in its bound."""

    prior: Any

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        out: Tensor = self.prior(x, sigma).clamp(-1, 1)
        return out

    def with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """And the learnt variance."""
        clean, v = self.prior.with_variance(x, sigma)
        return clean.clamp(-1, 1), v


def unet(labels: float | str, outputs: int = 1) -> Callable[[], LabelledUNet]:
    """The same network for all, told the level by other labels."""
    return lambda: LabelledUNet(digits.NETWORK, labels, outputs)


def sde(
    process: Process, labels: float | str, kind: Output, weight: Any, times: Times, step: Any, n_levels: int = 100, finish: bool = False
) -> Model:  # fmt: skip
    """A score model of a process, by the time-continuous loss."""

    def prior(net: Any) -> Denoiser:
        return Parametrised(net, process, kind)

    def criterion(net: Any, x: Tensor, rngs: Sequence[Generator]) -> Tensor:
        return time_continuous(
            score_of(prior(net), process), x, rngs, mean_scale=process.scale, std=process.std, weight=weight, times=times
        )  # fmt: skip

    top = min(80.0, process.levels[1])
    return Model(
        unet(labels), criterion, prior, lambda n: in_time(n, process), step, finish=finish, n_levels=n_levels, sigma_max=top
    )  # fmt: skip


def chain_model(betas: Tensor, *, learned: bool) -> Model:
    """DDPM, or improved DDPM with its learned variance."""
    discrete = DiscreteVP.of(betas)
    chain = ddpm.Chain(discrete.alphas_cumprod)

    def both(net: Any) -> ddpm.VarianceNetwork:
        def network(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            noise, v = net(x_t.reshape(-1, 1, *digits.SHAPE), t - 1).chunk(2, dim=1)
            return noise.reshape(x_t.shape), (v.reshape(x_t.shape) + 1) / 2

        return network

    def prior(net: Any) -> Parametrised:
        return Parametrised(net, discrete, "epsilon")

    def simple(net: Any, x: Tensor, rngs: Sequence[Generator]) -> Tensor:
        return ddpm.simple(lambda x_t, t: net(x_t, t - 1), x, rngs, chain)

    def hybrid(net: Any, x: Tensor, rngs: Sequence[Generator]) -> Tensor:
        return ddpm.hybrid(both(net), x, rngs, chain, digits.DECODER, weight=0.001 / math.log(2))

    def fixed(net: Any, p: Denoiser) -> ddpm.Reverse:
        return ddpm.fixed_variance(ddpm.noise_of_denoiser(Clipped(p), chain), chain)

    def learnt_variance(net: Any, p: Denoiser) -> ddpm.Reverse:
        noise = ddpm.noise_of_denoiser(Clipped(p), chain)
        return ddpm.learned_variance(lambda x_t, t: (noise(x_t, t), both(net)(x_t, t)[1]), chain)

    return Model(
        unet(float(len(betas)), 2 if learned else 1),
        hybrid if learned else simple,
        prior,
        lambda n: respaced(n, discrete),
        LearnedVariance if learned else (lambda: large_variance),
        n_levels=len(betas),
        dequantise=False,
        chain=chain,
        reverse=learnt_variance if learned else fixed,
        sigma_max=min(80.0, discrete.levels[1]),
    )


def _ncsn() -> Model:
    def prior(net: Any) -> Denoiser:
        return ncsn.unconditional(net, LOW, HIGH)

    levels, step = ncsn.settings(64, LOW, HIGH)

    def criterion(net: Any, x: Tensor, rngs: Sequence[Generator]) -> Tensor:
        return noise_conditional(score_of_denoiser(prior(net)), x, levels[:-1], rngs)

    return Model(
        unet("none"), criterion, prior, lambda n: levels, lambda: step, n_levels=len(levels) - 1, sigma_max=HIGH
    )


def _edm() -> Model:
    def criterion(net: Any, x: Tensor, rngs: Sequence[Generator]) -> Tensor:
        z = torch.stack([torch.randn(x.shape[1:], generator=g) for g in rngs])
        ln = torch.stack([torch.randn((), generator=g) for g in rngs])
        sigma = (-0.5 + 1.3 * ln).exp()
        return denoising_error(net(x + sigma[:, None, None, None] * z, sigma), x, sigma, digits.NETWORK.sigma_data)

    return Model(
        lambda: EDMDenoiser(digits.NETWORK),
        criterion,
        lambda net: NetworkPrior(net, chunk=512),
        lambda n: karras(n, LOW, 40.0),
        lambda: heun,
        n_levels=30,
        sigma_max=40.0,
    )


def models() -> dict[str, Model]:
    """All, by name."""
    ve, vp, sub, flow = VE(LOW, HIGH), VP(), SubVP(), FlowMatching()
    noise = {p: (lambda t, p=p: p.std(t) ** 2) for p in (ve, vp, sub)}
    likelihood = vp_likelihood_times(vp.beta, vp.integral, vp.t_min, 1.0)
    return {
        "NCSNv2": _ncsn(),
        "DDPM, L_simple": chain_model(linear_betas(T), learned=False),
        "improved DDPM, hybrid": chain_model(cosine_betas(T), learned=True),
        "VE SDE": sde(ve, "sigma", "epsilon", noise[ve], uniform_times(0.0, 1.0), lambda: ReverseDiffusion(ve)),
        "VP SDE": sde(vp, 999.0, "epsilon", noise[vp], uniform_times(vp.t_min, 1.0), lambda: ReverseDiffusion(vp)),
        "VP SDE, likelihood weighting": sde(
            vp, 999.0, "epsilon", lambda t: vp.diffusion(t) ** 2, likelihood, lambda: ReverseDiffusion(vp)
        ),
        "sub-VP SDE": sde(sub, 999.0, "epsilon", noise[sub], uniform_times(sub.t_min, 1.0), lambda: ReverseDiffusion(sub)),
        "flow matching": sde(
            flow, 1.0, "velocity", lambda t: flow.sigma(t) ** 2, uniform_times(flow.t_min, flow.t_max), lambda: euler,
            n_levels=100, finish=True,
        ),
        "EDM": _edm(),
    }  # fmt: skip


def trained(setting: Setting, name: str) -> tuple[Any, Denoiser]:
    """The network of a model and D."""
    model = models()[name]
    steps = setting.steps(STEPS)
    run = LossRun(model.build, digits.training(steps), digits.examples(dequantise=model.dequantise), model.criterion)
    slug = name.lower().replace(", ", "-").replace(" ", "-").replace("_", "-")
    net = learnt(run, setting.work / f"digits-{slug}-{steps}")
    return net, model.prior(net)


def flow_bits(prior: Denoiser, sigma_max: float, x: Tensor, low: float = LOW) -> Tensor:
    """Bits per dimension by the flow with one random projection and one draw of the dequantisation, (n,)."""
    flow = FlowLikelihood(prior, sigma_min=low, sigma_max=sigma_max, data_std=0.7, tolerance=1e-3)
    return dequantised(flow, x, split(Generator().manual_seed(5), len(x)), digits.VALUES).bits


def run(setting: Setting) -> Outcome:
    """Train, sample and measure every model."""
    judge, held = digits.judge(setting), digits.data().held_out
    n, n_bits = setting.draws(500, 8), setting.draws(32, 2)
    figures: dict[str, str] = {}
    numbers: dict[str, Any] = {}
    shown = []
    for name, model in models().items():
        net, prior = trained(setting, name)
        n_levels = setting.count(model.n_levels, 8)
        drawn_from = Clipped(prior) if model.chain is not None else prior
        x = drawn(drawn_from, digits.SHAPE, n, model.levels(n_levels), model.step(), finish=model.finish)
        row: dict[str, Any] = {"frechet": judge.distance(x)}
        bits = flow_bits(prior, model.sigma_max, held[:n_bits])
        row["bits"], row["bits_error"] = float(bits.mean()), float(bits.std() / len(bits) ** 0.5)
        words = f"{row['bits']:.2f} bits"
        if model.chain is not None and model.reverse is not None:
            bound = chain_bits(
                model.reverse(net, prior),
                held[: 2 * n_bits],
                split(Generator().manual_seed(6), 2 * n_bits),
                model.chain,
                digits.DECODER,
            )
            row["bound"] = float(bound.mean())
            words = f"bound {row['bound']:.2f} bits"
        numbers[name] = row
        figures[f"digits: {name}"] = f"{words} per dimension, Fréchet {row['frechet']:.2f}"
        shown.append(Panel(name, f"{words}; Fréchet {row['frechet']:.2f}", gray(tiled(x[:40].clamp(-1, 1), 8))))
    real = Panel(
        "Held-out digits",
        f"Fréchet distance of training digits from them: {judge.floor:.2f}",
        gray(tiled(held[:40], 8)),
    )
    panels(setting.picture("digits_models"), [real, *shown], 5, width=2.9, aspect=5 / 8)
    levels = models()["NCSNv2"].levels(0)
    figures["digits: NCSNv2"] += (
        f"; {len(levels) - 1} levels from {HIGH:g} to {LOW:g} and step by techniques 2 and 4, one network without labels"
    )
    figures["discrete bound of DDPM"] = (
        f"{numbers['DDPM, L_simple']['bound']:.2f} and {numbers['improved DDPM, hybrid']['bound']:.2f} bits per dimension (learned variance)"
    )
    spread = [row["bits_error"] for row in numbers.values()]
    figures["bits per dimension by the flow"] = (
        f"{n_bits} held-out digits, standard errors up to {max(spread):.2f}: see the table of digits"
    )
    return Outcome(
        figures, {"models": numbers, "floor": judge.floor, "accuracy": judge.accuracy, "n": n, "n_bits": n_bits}
    )
