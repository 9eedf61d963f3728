"""Draws from p(x | y) by a score network that is given the filtered back-projection, trained on pairs.

    f = FBP(g),    D(u, σ | f) = E[u₀ | u = u₀ + σ n, f],    u = v − 1                                              (1)
    trained by     E[ λ(σ) ‖D(u₀ + σ n, σ | f) − u₀‖² ],  ln σ ~ N(P_mean, P_std²)                                  (2)
    drawn by       u ~ N(f, σ_max² I), then down the noise levels by D(·, · | f)                                    (3)

with the coordinates of `baselines.learned`. The minimum of (2) is the denoiser of p(x | f), which is p(x | y) as far as f
determines y: no data step is needed, and none is made (conditional denoising estimation: Saharia et al. 2022, SR3,
arXiv:2104.07636; Batzolis et al. 2021, arXiv:2111.13606). The work lies in the training, for one scanner; the
answer takes few evaluations (amortised). Network, preconditioning and λ are those of the prior (`priors.conditional`,
`priors.training`); f enters the first layer beside u. Starting at f instead of 0 changes the law by nothing once σ_max is large
beside the errors of f.

Trained on data of several noise levels, the network draws from p(x | f) with all of them possible: like the other learned
baselines it is not told how noisy the data are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Generator, Tensor

from scoreinv.baselines.learned import Learned, Network, Scaled
from scoreinv.priors.conditional import Condition, ConditionalConfig, ConditionalDenoiser, Conditioned
from scoreinv.priors.denoiser import Denoiser
from scoreinv.priors.network import UNetConfig
from scoreinv.priors.training import denoising_error
from scoreinv.problem import Problem
from scoreinv.progress import track
from scoreinv.sampling.levels import karras
from scoreinv.sampling.loop import last, member_streams, sample
from scoreinv.sampling.steps import Ancestral, DPMSolver2M, Step, euler, heun
from scoreinv.streams import normal

STEPS: dict[str, Callable[[], Step]] = {
    "ancestral": Ancestral,
    "dpm_solver_2m": DPMSolver2M,
    "euler": lambda: euler,
    "heun": lambda: heun,
}


class ConditionalScoreNetwork(Network):
    """D of eq. (1), for any operator with a filtered back-projection.

    Args:
        widths, unshuffle, attention, embedding: of the U-Net, see `priors.network.UNetConfig`.
        window: of the ramp filter.
        p_mean, p_std: of the noise levels in training.
    """

    def __init__(
        self, widths: Sequence[int] = (48, 96, 128, 192), unshuffle: int = 2, attention: Sequence[int] = (), embedding: int = 128,
        window: str = "hann", p_mean: float = -0.5, p_std: float = 1.5,
    ) -> None:  # fmt: skip
        super().__init__()
        if not p_std > 0:
            raise ValueError(f"ConditionalScoreNetwork: p_std must be positive, got {p_std}")
        self.settings = {
            "widths": list(widths), "unshuffle": unshuffle, "attention": list(attention), "embedding": embedding,
            "window": window, "p_mean": p_mean, "p_std": p_std,
        }  # fmt: skip
        self.window, self.p_mean, self.p_std = window, p_mean, p_std
        network = UNetConfig(widths=tuple(widths), unshuffle=unshuffle, attention=tuple(attention), embedding=embedding)
        self.model = ConditionalDenoiser(ConditionalConfig(network, image_channels=1))

    def given(self, problem: Scaled, g: Tensor) -> tuple[Denoiser, Tensor]:
        """D(·, · | f) on u (batch, H, W), and f as u; of g (1 or batch, *out_shape)."""
        f = problem.fbp(g, self.window) - 1
        return Conditioned(self.model, Condition(image=f[:, None])), f

    def forward(self, problem: Scaled, g: Tensor) -> Tensor:
        """The mean of v given f, (batch, H, W): D from under so much noise (always the same) that nothing else is known."""
        denoise, f = self.given(problem, g)
        sigma = torch.tensor(math.exp(self.p_mean + 2 * self.p_std), device=f.device)
        noise = torch.randn(f.shape[1:], generator=Generator().manual_seed(0)).to(f)
        return 1 + denoise(f + sigma * noise, sigma)

    def loss(self, problem: Scaled, g: Tensor, v: Tensor, rng: Generator) -> Tensor:
        """Eq. (2)."""
        denoise, _ = self.given(problem, g)
        u = v - 1
        sigma = torch.exp(self.p_mean + self.p_std * torch.randn(len(u), generator=rng)).to(u)
        noise = torch.randn(u.shape, generator=rng).to(u)
        denoised = denoise(u + sigma[:, None, None] * noise, sigma)
        return denoising_error(denoised, u, sigma, self.model.config.network.sigma_data).mean()


@dataclass(frozen=True)
class ConditionalScore(Learned):
    """Draws from p(x | y) by a score network trained on pairs of images and filtered back-projections, eq. (3).

    Attributes:
        samples: draws.
        step: "heun" (2 n_levels - 1 evaluations a draw), "dpm_solver_2m", "euler" or "ancestral" (n_levels).
        n_levels: noise levels.
        sigma_max: first of them, in units of 1000 HU.
        sigma_min: last positive one.
    """

    samples: int = 4
    step: str = "heun"
    n_levels: int = 10
    sigma_max: float = 8.0
    sigma_min: float = 0.01
    network: ClassVar[type[Network]] = ConditionalScoreNetwork

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step not in STEPS:
            raise ValueError(f"ConditionalScore: no step is named {self.step!r}; known: {', '.join(STEPS)}")
        if min(self.samples, self.n_levels) < 1 or not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                "ConditionalScore: expected samples and n_levels of at least 1 and 0 < sigma_min < sigma_max, got "
                f"{self.samples}, {self.n_levels}, {self.sigma_min} and {self.sigma_max}"
            )

    @torch.no_grad()
    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw: (samples, *batch, H, W); raises and warns as `Learned`."""
        flat = problem.flat()
        found, scaled, data = self.opened(flat)
        network, n = cast("Any", found), len(data)
        rngs = member_streams(rng, self.samples, n)
        sigmas = karras(self.n_levels, self.sigma_min, self.sigma_max).float().to(data.device)

        def draws(b: int) -> Tensor:
            denoise, f = network.given(scaled, data[b : b + 1])
            streams = rngs[b::n]
            x = f + sigmas[0] * normal(streams, f.expand(self.samples, *f.shape[1:]))
            return last(sample(denoise, x, sigmas, step=STEPS[self.step](), rngs=streams))

        members = [draws(b) for b in track(range(n), "conditional_score", n)]
        images = self.unit * (1 + torch.stack(members, dim=1))
        return images.to(flat.y).reshape(self.samples, *problem.batch_shape, *flat.A.in_shape)
