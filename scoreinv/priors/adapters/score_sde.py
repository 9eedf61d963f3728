"""Checkpoints of github.com/yang-song/score_sde_pytorch (Song et al. 2021, arXiv:2011.13456) as priors.

In its coordinates (appendices B and C of the paper):

    vesde      x_t = x₀ + σ ε, the network is the score; labelled by σ, or in discrete time by a place in a list of levels
    vpsde      x_t = s x₀ + √(1 − s²) ε, the network is ε; labelled by 999 t, or in discrete time by a step
    subvpsde   x_t = s x₀ + (1 − s²) ε, the network is ε; labelled by 999 t

Images are in [-1, 1] where the configuration is `centered`, else in [0, 1]. The checkpoints of score_inverse_problems are
of JAX and do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scoreinv.priors.adapters.parametrisation import Parametrised
from scoreinv.priors.adapters.score_sde_network import NCSNpp, ScoreSDEConfig
from scoreinv.priors.adapters.weights import load_torch_weights
from scoreinv.sampling.discrete import DiscreteVE, DiscreteVP
from scoreinv.sampling.processes import VE, VP, Coordinates, SubVP


def score_sde_prior(network: NCSNpp) -> Parametrised:
    """The prior of a network with weights, in the coordinates of its configuration."""
    return Parametrised(network, coordinates(network.config), "score" if network.config.sde == "vesde" else "epsilon")


def load_score_sde(
    path: str | Path, config: ScoreSDEConfig, *, weights: Literal["ema", "model"] = "ema", device: str = "cpu"
) -> Parametrised:
    """A prior from a checkpoint file, {"model": ..., "ema": {"shadow_params": ...}, ...} or the network's state alone.

    Args:
        path: written by torch.save or safetensors.
        config: what the weights were trained with.
        weights: their moving average, with which the paper's results were made, or the last ones.
        device: where the weights go.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read safely, or does not fit the configuration.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f"load_score_sde: weights are 'ema' or 'model', got {weights!r}")
    network = NCSNpp(config)
    try:
        _fill(network, load_torch_weights(path), weights)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: is no checkpoint that fits the configuration: {error}") from error
    return score_sde_prior(network.to(device).eval().requires_grad_(False))


def coordinates(config: ScoreSDEConfig) -> Coordinates:
    """What the network of a configuration sees."""
    if config.sde == "vesde":
        return VE(config.sigma_min, config.sigma_max) if config.continuous else DiscreteVE(config.sigmas)
    if config.sde == "subvpsde":
        return SubVP(config.beta_min, config.beta_max)
    if config.continuous:
        return VP(config.beta_min, config.beta_max)
    n = config.num_scales
    betas = torch.linspace(config.beta_min / n, config.beta_max / n, n, dtype=torch.float64)
    return DiscreteVP.of(betas)


def _fill(network: NCSNpp, checkpoint: Mapping[str, Any], weights: str) -> None:
    state: Mapping[str, Tensor] = checkpoint.get("model", checkpoint)
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    network.load_state_dict({"sigmas": network.sigmas, **plain})
    if weights == "ema" and "model" in checkpoint:
        trained = [p for p in network.parameters() if p.requires_grad]
        averages = checkpoint["ema"]["shadow_params"]
        if [p.shape for p in trained] != [a.shape for a in averages]:
            raise RuntimeError("the moving averages have other shapes than the weights")
        with torch.no_grad():
            for p, average in zip(trained, averages, strict=True):
                p.copy_(average)
