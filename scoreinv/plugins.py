"""A name -> the class that it stands for: built-in ones first, then entry points of installed packages.

A package adds an operator in its pyproject.toml:

    [project.entry-points."scoreinv.operators"]
    my_blur = "my_package:MyBlur"

and a method in the group `scoreinv.methods`. Files and command lines hold names, never import paths.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

BUILT_IN: dict[str, dict[str, str]] = {
    "operators": {
        "fan_beam_ct": "scoreinv.operators.ct:FanBeamCT",
        "grayscale": "scoreinv.operators.grayscale:Grayscale",
        "masking": "scoreinv.operators.masking:Masking",
        "matrix": "scoreinv.operators.dense:Matrix",
        "parallel_beam_ct": "scoreinv.operators.ct:ParallelBeamCT",
    },
    "methods": {
        "cgls": "scoreinv.baselines.iterative:CGLS",
        "conditional_score": "scoreinv.baselines.learned_conditional:ConditionalScore",
        "daps": "scoreinv.posterior.daps:DAPS",
        "ddnm": "scoreinv.posterior.ddnm:DDNM",
        "ddnm_plus": "scoreinv.posterior.ddnm:DDNMPlus",
        "ddrm": "scoreinv.posterior.ddrm:DDRM",
        "dds": "scoreinv.posterior.dds:DDS",
        "dds_published": "scoreinv.posterior.dds:DDSPublished",
        "diffpir": "scoreinv.posterior.diffpir:DiffPIR",
        "dps": "scoreinv.posterior.dps:DPS",
        "fbp": "scoreinv.baselines.fbp:FBP",
        "fbp_unet": "scoreinv.baselines.learned_fbp_unet:FBPUNet",
        "fista_tv": "scoreinv.baselines.fista:FistaTV",
        "fista_wavelet": "scoreinv.baselines.fista:FistaWavelet",
        "flow_dps": "scoreinv.posterior.flow:FlowDPS",
        "flower": "scoreinv.posterior.flow:Flower",
        "latent_daps": "scoreinv.posterior.latent_daps:LatentDAPS",
        "learned_gradient": "scoreinv.baselines.learned_gradient:LearnedGradient",
        "learned_primal_dual": "scoreinv.baselines.learned_primal_dual:LearnedPrimalDual",
        "mcg": "scoreinv.posterior.mcg:MCG",
        "mcg_diff": "scoreinv.posterior.mcg_diff:MCGDiff",
        "mmps": "scoreinv.posterior.mmps:MMPS",
        "neumann": "scoreinv.baselines.learned_neumann:Neumann",
        "padis": "scoreinv.posterior.padis:PaDIS",
        "pigdm": "scoreinv.posterior.pigdm:PiGDM",
        "pnp_admm": "scoreinv.posterior.pnp_admm:PnPADMM",
        "pnp_dm": "scoreinv.posterior.pnp_dm:PnPDM",
        "proximal": "scoreinv.posterior.proximal:Proximal",
        "red_diff": "scoreinv.posterior.red_diff:REDDiff",
        "repaint": "scoreinv.posterior.repaint:RePaint",
        "score_ald": "scoreinv.posterior.score_ald:ScoreALD",
        "score_sde": "scoreinv.posterior.score_sde:ScoreSDE",
        "sin_4c_prn": "scoreinv.baselines.learned_sinogram:SIN4cPRN",
        "sirt": "scoreinv.baselines.iterative:SIRT",
        "sitcom": "scoreinv.posterior.sitcom:SITCOM",
        "song_exact": "scoreinv.posterior.song:SongExact",
        "song_faithful": "scoreinv.posterior.song:SongFaithful",
        "tds": "scoreinv.posterior.smc:TDS",
        "tmpd": "scoreinv.posterior.tmpd:TMPD",
    },
}


def names(kind: str) -> list[str]:
    """All names of a kind ("operators" or "methods"), sorted."""
    return sorted(set(BUILT_IN[kind]) | {e.name for e in entry_points(group=f"scoreinv.{kind}")})


def get(kind: str, name: str) -> Any:
    """The class with that name.

    Raises:
        ValueError: there is none, with the nearest name, or its package cannot be imported.
    """
    if name in BUILT_IN[kind]:
        module, _, attribute = BUILT_IN[kind][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    for entry in entry_points(group=f"scoreinv.{kind}", name=name):
        try:
            return entry.load()
        except Exception as error:  # a plugin may fail in any way
            where = f"the {kind[:-1]} {name!r} is registered as {entry.value}"
            raise ValueError(f"{where}, which cannot be imported: {error!r}") from error
    hint = did_you_mean(name, names(kind))
    raise ValueError(f"no {kind[:-1]} is named {name!r}.{hint} Known: {', '.join(names(kind))}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The sentence that names the nearest known name, with a space before it; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def name_of(kind: str, cls: type) -> str:
    """The name under which a class is known.

    Raises:
        ValueError: it has none, so it cannot be written to a file.
    """
    path = f"{cls.__module__}:{cls.__qualname__}"
    for name, target in BUILT_IN[kind].items():
        if target == path:
            return name
    package = cls.__module__.partition(".")[0]
    for entry in entry_points(group=f"scoreinv.{kind}"):
        # The entry point may name another module of the package that the class is imported into.
        if entry.value == path or (entry.value.partition(":")[0].partition(".")[0] == package and entry.load() is cls):
            return entry.name
    raise ValueError(
        f"{cls.__qualname__} has no name among the {kind}: add an entry point to the group scoreinv.{kind}"
    )
