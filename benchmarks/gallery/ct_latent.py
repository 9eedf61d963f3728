"""Latent diffusion on CT: a KL autoencoder, a prior of its latents, images of it, and reconstruction through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from gallery import ct
from gallery.draw import Panel, gray, panels, tiled
from gallery.setting import Outcome, Setting, pace
from gallery.training import learnt
from scoreinv import configure, plugins
from scoreinv.priors.autoencoder import AutoencoderConfig, KLAutoencoder
from scoreinv.priors.latent import LatentNetwork, LatentPrior
from scoreinv.priors.latent_training import AutoencoderRun, AutoencoderTraining, LatentTrainer
from scoreinv.priors.network import UNetConfig
from scoreinv.sampling.unconditional import generate

CODER = AutoencoderConfig(factor=4, latent_channels=4, widths=(16, 32, 64))
NETWORK = UNetConfig(channels=4, widths=(64, 64), unshuffle=1, attention=(1,), embedding=128, sigma_data=1.0)


def trained(setting: Setting) -> LatentPrior:
    """The autoencoder, then the prior of its latents."""
    data = ct.slices(setting).train
    steps = setting.steps(3000)
    settings = AutoencoderTraining(**pace(steps, 0.998), batch_size=4, crop=ct.SIDE, zoom=0.0)
    run = AutoencoderRun(CODER, settings, data)
    coder: KLAutoencoder = learnt(run, setting.work / f"ct-autoencoder-{steps}")
    coder.standardise([run.batch(k).u for k in range(setting.count(32, 2))])
    steps_2 = setting.steps(6000)
    latent = LatentTrainer(NETWORK, ct.training(steps_2, p_mean=-0.7, batch_size=8), data, coder, f"{steps} steps")
    model = learnt(latent, setting.work / f"ct-latent-{steps}-{steps_2}")
    return LatentPrior(LatentNetwork(model), coder, coder.residual_std)


def run(setting: Setting) -> Outcome:
    """Autoencoding, samples, and few-view CT."""
    prior, held = trained(setting), ct.slices(setting).held_out
    m = setting.count(4, 1)
    u = held[:m]
    with torch.no_grad():
        back = prior.autoencoder.decode(prior.autoencoder.encode(u))
        x = generate(
            prior,
            (ct.SIDE, ct.SIDE),
            setting.count(8, 2),
            Generator().manual_seed(1),
            n_levels=setting.count(25, 4),
            sigma_min=0.02,
        )
    coded = ct.psnr(back, u)
    problem = ct.scan(u)
    settings: dict[str, Any] = {"samples": setting.count(4, 2), "n_levels": setting.count(12, 3)}
    draws = configure.method("latent_daps", settings, lambda: ct.in_mm(prior))(problem, Generator().manual_seed(0))
    fbp = plugins.get("methods", "fbp")(window="hann")(problem, Generator())
    mean = ct.in_u(draws.mean(0))
    found = {"fbp": ct.psnr(ct.in_u(fbp[0]), u), "mean": ct.psnr(mean, u), "draw": ct.psnr(ct.in_u(draws[0]), u)}
    fit = ct.chi2(problem, draws)
    figures = {
        "KL autoencoder": f"{CODER.latent_channels} numbers for {CODER.factor**2} pixels: held-out slices come back at {coded:.1f} dB",
        "latent diffusion": f"{len(x)} images from a network on 4 x 16 x 16 latents, {sum(p.numel() for p in prior.denoiser.model.parameters()) / 1e6:.2f} million weights",  # type: ignore[attr-defined]
        "latent posterior sampling": (
            f"{ct.VIEWS} views, {100 * ct.NOISE:g} % noise: mean of {len(draws)} draws {found['mean']:.1f} dB, a draw {found['draw']:.1f} "
            f"(χ² {fit:.2f}), FBP {found['fbp']:.1f}"
        ),
    }
    panels(
        setting.picture("ct_latent"),
        [
            Panel("Made up in latents", "decoded samples of the latent prior", gray(tiled(x, 4))),
            Panel("Through the autoencoder", f"held-out slices above, decoded below: {coded:.1f} dB", gray(tiled(torch.cat([u, back]), m))),
            Panel(f"From {ct.VIEWS} views", f"above FBP {found['fbp']:.1f} dB, below the mean of {len(draws)} draws {found['mean']:.1f} dB", gray(tiled(torch.cat([ct.in_u(fbp[0]), mean]), m))),
        ],
        3,
        width=4.0,
        aspect=0.5,
    )  # fmt: skip
    return Outcome(figures, {"autoencoder": coded, **found, "chi2": fit})
