"""Unconditional networks of Hugging Face diffusers, with any of the schedulers that are defined by ᾱ."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scoreinv.priors.adapters.optional import optional
from scoreinv.priors.adapters.parametrisation import Output, Parametrised
from scoreinv.sampling.discrete import DiscreteVP

_OUTPUTS: dict[str, Output] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


def diffusers_prior(model: Callable[..., Any], scheduler: Any) -> Parametrised:
    """A prior from a `UNet2DModel` and the scheduler it was trained with, or any other made from that one's config.

    Only ᾱ and the kind of prediction are read from the scheduler: clipping and thresholding of images, which are parts of
    its sampling, are not. Class labels: `functools.partial(model, class_labels=labels)`.

    Args:
        model: the network; called as model(x_t, t, return_dict=False).
        scheduler: DDPM, DDIM, PNDM, DPM-Solver, Euler, Heun ...: what has `alphas_cumprod` and `config.prediction_type`.

    Raises:
        ValueError: the scheduler has no ᾱ, or the network predicts something else.
    """
    name = type(scheduler).__name__
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None:
        raise ValueError(
            f"diffusers_prior: {name} has no alphas_cumprod; take the scheduler of the training, such as DDPMScheduler"
        )
    predicts = scheduler.config.prediction_type
    if predicts not in _OUTPUTS:
        raise ValueError(f"diffusers_prior: expected {name} to predict one of {', '.join(_OUTPUTS)}, got {predicts!r}")
    if getattr(scheduler.config, "timestep_type", "discrete") == "continuous":
        raise ValueError(f"diffusers_prior: {name} labels levels by ln σ / 4, not by discrete times")
    return Parametrised(functools.partial(model, return_dict=False), DiscreteVP(alphas_cumprod), _OUTPUTS[predicts])


def load_diffusers(folder: str | Path, device: str = "cpu") -> Parametrised:
    """A prior from a local pipeline folder with `unet/` and `scheduler/`; nothing is fetched, only safetensors are read.

    Raises:
        ImportError: diffusers is not installed.
        FileNotFoundError: the folder or one of the two in it is missing.
        ValueError: see `diffusers_prior`, or the folder names no scheduler of diffusers.
    """
    folder = Path(folder)
    for needed in (folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json"):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed}: no such file (a pipeline's folder has unet/ and scheduler/)")
    library = optional("diffusers")
    named = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")).get("_class_name")
    scheduler: Any = getattr(library, str(named), None)
    known = isinstance(scheduler, type) and issubclass(scheduler, library.SchedulerMixin)
    if not known:
        raise ValueError(f"{folder}: expected the name of a scheduler of diffusers, got {named!r}")
    where = {"local_files_only": True, "pretrained_model_name_or_path": str(folder)}
    model = library.UNet2DModel.from_pretrained(**where, subfolder="unet", use_safetensors=True)
    return diffusers_prior(
        model.to(device).eval().requires_grad_(False), scheduler.from_pretrained(**where, subfolder="scheduler")
    )
