"""NCSN++, DDPM++ and DDPM: the layout of the original's checkpoints, and each formula computed another way."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from scoreinv.priors.adapters import score_sde_layers as layers
from scoreinv.priors.adapters.score_sde import coordinates, load_score_sde, score_sde_prior
from scoreinv.priors.adapters.score_sde_network import NCSNpp, ScoreSDEConfig
from scoreinv.sampling.processes import SubVP

SMALL: dict[str, Any] = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "image_size": 8, "num_channels": 1}
DEEPER = SMALL | {"ch_mult": (1, 2, 1)}

CONFIGS = {
    "skips": ScoreSDEConfig(**DEEPER, attn_resolutions=(4,), progressive="output_skip", progressive_input="input_skip"),
    "cifar": ScoreSDEConfig(**DEEPER | {"num_channels": 3}, attn_resolutions=(), centered=True),
    "residual": ScoreSDEConfig(
        **DEEPER,
        attn_resolutions=(),
        embedding_type="positional",
        scale_by_sigma=False,
        sde="vpsde",
        resblock_type="ddpm",
        fir=False,
        skip_rescale=False,
        progressive="residual",
        progressive_input="input_skip",
        progressive_combine="cat",
        nonlinearity="elu",
    ),
    "ddpm": ScoreSDEConfig(name="ddpm", **SMALL | {"nf": 32}, attn_resolutions=(4,), sde="vesde", continuous=False),
    "ddpm++": ScoreSDEConfig(
        **SMALL,
        attn_resolutions=(8,),
        embedding_type="positional",
        scale_by_sigma=False,
        sde="vpsde",
        fir=False,
        progressive_input="none",
        centered=True,
    ),
}

EXPECTED = {
    "skips": """fourier 8, linear 16 32, linear 32 32, conv 1 8, big 8 8, big 8 8 resampled, combine 1 8, big 8 16,
        attention 16, big 16 16 resampled, combine 1 16, big 16 8, big 8 8, attention 8, big 8 8, big 16 8, big 24 8, norm 8,
        conv 8 1, big 8 8 resampled, big 24 16, big 24 16, attention 16, norm 16, conv 16 1, big 16 16 resampled,
        big 24 8, big 16 8, norm 8, conv 8 1""",
    "cifar": """fourier 8, linear 16 32, linear 32 32, conv 3 8, big 8 8, big 8 8 resampled, fir 3 8, big 8 16,
        big 16 16 resampled, fir 8 16, big 16 8, big 8 8, attention 8, big 8 8, big 16 8, big 24 8, big 8 8 resampled,
        big 24 16, big 24 16, big 16 16 resampled, big 24 8, big 16 8, norm 8, conv 8 3""",
    "residual": """linear 8 32, linear 32 32, conv 1 8, ddpm 8 8, resampling 8 8, combine 1 8, ddpm 16 16, resampling 16 16,
        combine 1 16, ddpm 32 8, ddpm 8 8, attention 8, ddpm 8 8, ddpm 16 8, ddpm 40 8, norm 8, conv 8 8, resampling 8 8,
        ddpm 24 16, ddpm 32 16, resampling 8 16, resampling 16 16, ddpm 24 8, ddpm 16 8, resampling 16 8, norm 8,
        conv 8 1""",
    "ddpm": """linear 32 128, linear 128 128, conv 1 32, ddpm 32 32, resampling 32 32, ddpm 32 64, attention 64, ddpm 64 64,
        attention 64, ddpm 64 64, ddpm 128 64, ddpm 96 64, attention 64, resampling 64 64, ddpm 96 32, ddpm 64 32,
        norm 32, conv 32 1""",
    "ddpm++": """linear 8 32, linear 32 32, conv 1 8, big 8 8, attention 8, big 8 8 resampled, big 8 16, big 16 16,
        attention 16, big 16 16, big 32 16, big 24 16, big 16 16 resampled, big 24 8, big 16 8, attention 8, norm 8,
        conv 8 1""",
}
"""`all_modules` of the original for each configuration, written down from a reading of models/ncsnpp.py and ddpm.py."""


def layout(kind: str, n: list[int], embedding: int, resampled: bool) -> dict[str, tuple[int, ...]]:
    """Parameters of one module of the original, in their order, from layerspp.py and layers.py."""
    a, b = n[0], n[-1]
    affine = {"weight": (a,), "bias": (a,)}
    conv = {"weight": (b, a, 3, 3), "bias": (b,)}
    pointwise = {"weight": (b, a, 1, 1), "bias": (b,)}
    nin = {"W": (a, b), "b": (b,)}

    def block(shortcut: dict[str, dict[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
        return named(
            GroupNorm_0=affine,
            Conv_0=conv,
            Dense_0={"weight": (b, embedding), "bias": (b,)},
            GroupNorm_1={"weight": (b,), "bias": (b,)},
            Conv_1={"weight": (b, b, 3, 3), "bias": (b,)},
            **shortcut,
        )

    known: dict[str, dict[str, tuple[int, ...]]] = {
        "fourier": {"W": (a,)},
        "linear": {"weight": (b, a), "bias": (b,)},
        "conv": conv,
        "norm": affine,
        "combine": named(Conv_0=pointwise),
        "fir": named(Conv2d_0=conv),
        "resampling": named(Conv_0=conv),
        "attention": named(GroupNorm_0=affine, NIN_0=nin, NIN_1=nin, NIN_2=nin, NIN_3=nin),
        "big": block({"Conv_2": pointwise} if a != b or resampled else {}),
        "ddpm": block({"NIN_0": nin} if a != b else {}),
    }
    return known[kind]


def named(**parts: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{part}.{name}": shape for part, inner in parts.items() for name, shape in inner.items()}


def filled(module: nn.Module, rng: Generator, size: float = 0.3) -> Any:
    """The module with random parameters in float64, small enough for a stable network."""
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(size * torch.randn(p.shape, generator=rng, dtype=torch.float64))
    return module.eval()


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ScoreSDEConfig:
    return CONFIGS[request.param]


@pytest.mark.parametrize("name", CONFIGS)
def test_names_shapes_and_order_are_the_originals(name: str) -> None:
    c = CONFIGS[name]
    wanted: dict[str, tuple[int, ...]] = {"sigmas": (1000,)}
    for k, entry in enumerate(re.split(r",\s+", EXPECTED[name])):
        kind, *numbers = entry.removesuffix(" resampled").split()
        parts = layout(kind, [int(n) for n in numbers], 4 * c.nf, entry.endswith("resampled"))
        wanted |= {f"all_modules.{k}.{part}": shape for part, shape in parts.items()}
    state = NCSNpp(c).state_dict()
    assert [(k, tuple(v.shape)) for k, v in state.items()] == list(wanted.items())
    torch.testing.assert_close(state["sigmas"][[0, -1]], torch.tensor([50.0, 0.01], dtype=torch.float64))


@pytest.mark.parametrize("name", CONFIGS)
def test_groups(name: str) -> None:
    norms = [m for m in NCSNpp(CONFIGS[name]).modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(
        m.num_groups == (32 if name == "ddpm" else min(m.num_channels // 4, 32)) and m.eps == 1e-6 for m in norms
    )


def test_the_published_size() -> None:
    """DDPM has 35.7 million parameters on CIFAR-10 (Ho et al. 2020, appendix B); Song's has two attentions fewer in it."""
    with torch.device("meta"):
        network = NCSNpp(ScoreSDEConfig(name="ddpm", sde="vpsde", num_res_blocks=2))
    attention = 4 * (256 * 256 + 256) + 2 * 256
    total = sum(p.numel() for p in network.parameters()) + 2 * attention
    assert total / 1e6 == pytest.approx(35.7, abs=0.05)


# Layers


def separable(x: Tensor, kernel: Any, *, up: int = 1, down: int = 1, pad: tuple[int, int]) -> Tensor:
    """Zeros put in, padded (negative: cropped), filtered, every down-th kept, by scipy and rows and columns on their own."""

    def line(v: Any) -> Any:
        sparse = np.zeros(len(v) * up)
        sparse[::up] = v
        padded = np.pad(sparse, pad)
        return scipy.signal.upfirdn(kernel, padded)[len(kernel) - 1 : len(padded)][::down]

    array = np.apply_along_axis(line, -2, np.apply_along_axis(line, -1, x.detach().numpy()))
    return torch.from_numpy(array)


@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 4, 8), (1, 1), (1, 2, 3, 3, 2, 2)])
def test_resampling_is_that_of_scipy(kernel: tuple[float, ...], rng: Generator) -> None:
    x = torch.randn(2, 3, 6, 8, generator=rng, dtype=torch.float64)
    k, p = np.array(kernel) / sum(kernel), len(kernel) - 2
    torch.testing.assert_close(layers.halve(x, kernel), separable(x, k, down=2, pad=((p + 1) // 2, p // 2)))
    torch.testing.assert_close(layers.double(x, kernel), separable(x, 2 * k, up=2, pad=((p + 1) // 2 + 1, p // 2)))


def test_resampling_without_a_filter(rng: Generator) -> None:
    x = torch.randn(2, 3, 4, 6, generator=rng)
    torch.testing.assert_close(layers.halve(x, None), x.unfold(-2, 2, 2).unfold(-2, 2, 2).mean((-1, -2)))
    torch.testing.assert_close(layers.double(x, None), x.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_convolutions_that_resample(rng: Generator) -> None:
    x = torch.randn(2, 3, 6, 8, generator=rng, dtype=torch.float64)
    k = np.array([1, 3, 3, 1]) / 8
    down, up = (filled(c(3, 4, (1, 3, 3, 1), True), rng) for c in (layers.Downsample, layers.Upsample))
    wanted = F.conv2d(separable(x, k, pad=(2, 2)), down.Conv2d_0.weight, down.Conv2d_0.bias, stride=2)
    torch.testing.assert_close(down(x), wanted)
    sparse = torch.zeros(2, 3, 12, 16, dtype=torch.float64)
    sparse[..., ::2, ::2] = x
    smeared = F.conv2d(F.pad(sparse, (2, 1, 2, 1)), up.Conv2d_0.weight)  # all that one tap or more reaches
    wanted = separable(smeared, 2 * k, pad=(1, 1)) + up.Conv2d_0.bias[:, None, None]
    torch.testing.assert_close(up(x), wanted)
    plain_down, plain_up = (filled(c(3, 4, None, True), rng) for c in (layers.Downsample, layers.Upsample))
    corner = F.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(
        plain_down(x), F.conv2d(corner, plain_down.Conv_0.weight, plain_down.Conv_0.bias, stride=2)
    )
    torch.testing.assert_close(plain_up(x), plain_up.Conv_0(x.repeat_interleave(2, -1).repeat_interleave(2, -2)))


def test_features(rng: Generator) -> None:
    v, f = torch.rand(4, generator=rng).double(), torch.randn(5, generator=rng).double()
    got = layers.fourier_features(v, f)
    for i, j in ((0, 0), (3, 4)):
        assert got[i, j] == pytest.approx(math.sin(2 * math.pi * v[i] * f[j]))
        assert got[i, 5 + j] == pytest.approx(math.cos(2 * math.pi * v[i] * f[j]))
    t = torch.tensor([0.0, 3.0, 999.0], dtype=torch.float64)
    got = layers.positional_features(t, 9)
    assert got.shape == (3, 9) and (got[:, 8] == 0).all()
    for j, frequency in ((0, 1.0), (1, 10000 ** (-1 / 3)), (3, 1e-4)):
        torch.testing.assert_close(got[:, j], (t * frequency).sin())
        torch.testing.assert_close(got[:, 4 + j], (t * frequency).cos())


def test_attention(rng: Generator) -> None:
    m = filled(layers.Attention(8, 2, math.sqrt(0.5)), rng)
    x = torch.randn(2, 8, 3, 5, generator=rng, dtype=torch.float64)
    h = m.GroupNorm_0(x)
    q, k, v = (torch.einsum("bchw,cd->bdhw", h, n.W) + n.b[:, None, None] for n in (m.NIN_0, m.NIN_1, m.NIN_2))
    weights = torch.einsum("bchw,bcij->bhwij", q, k) / math.sqrt(8)
    weights = weights.flatten(-2).softmax(-1).reshape(weights.shape)
    mixed = torch.einsum("bhwij,bcij->bchw", weights, v)
    wanted = (x + torch.einsum("bchw,cd->bdhw", mixed, m.NIN_3.W) + m.NIN_3.b[:, None, None]) / math.sqrt(2)
    torch.testing.assert_close(m(x), wanted)


@pytest.mark.parametrize("biggan", [True, False])
def test_block(biggan: bool, rng: Generator) -> None:
    resample = (lambda x: layers.halve(x, (1, 3, 3, 1))) if biggan else None
    m = filled(
        layers.Block(
            8,
            16,
            embedding=6,
            groups=lambda n: n // 4,
            act=F.silu,
            residual_scale=0.5,
            biggan=biggan,
            resample=resample,
        ),
        rng,
    )
    x, e = torch.randn(2, 8, 4, 4, generator=rng).double(), torch.randn(2, 6, generator=rng).double()
    r: Callable[[Tensor], Tensor] = resample or (lambda x: x)
    for embedding in (e, None):
        h = m.Conv_0(r(F.silu(F.group_norm(x, 2, m.GroupNorm_0.weight, m.GroupNorm_0.bias, eps=1e-6))))
        if embedding is not None:
            h = h + m.Dense_0(F.silu(e))[..., None, None]
        h = m.Conv_1(F.silu(F.group_norm(h, 4, m.GroupNorm_1.weight, m.GroupNorm_1.bias, eps=1e-6)))
        wanted = (h + (m.Conv_2 if biggan else m.NIN_0)(r(x))) * 0.5
        torch.testing.assert_close(m(x, embedding), wanted)


# Whole networks, wired by hand


def by_hand(name: str, network: Any, x: Tensor, label: Tensor) -> Tensor:
    """The original's order of operations with its module numbers, for the five small configurations."""
    m, act = network.all_modules, network.act
    halve = lambda x: layers.halve(x, network.config.kernel)  # noqa: E731
    double = lambda x: layers.double(x, network.config.kernel)  # noqa: E731
    cat = lambda *parts: torch.cat(parts, dim=1)  # noqa: E731
    if name == "skips":
        e = m[2](act(m[1](layers.fourier_features(label.log(), m[0].W))))
        x = 2 * x - 1
        half = halve(x)
        a = m[3](x)
        b = m[4](a, e)
        c = m[6].Conv_0(half) + m[5](b, e)
        d = m[8](m[7](c, e))
        f = m[10].Conv_0(halve(half)) + m[9](d, e)
        g = m[11](f, e)
        h = m[14](m[13](m[12](g, e)), e)
        h = m[16](cat(m[15](cat(h, g), e), f), e)
        out = m[18](act(m[17](h)))
        h = m[22](m[21](cat(m[20](cat(m[19](h, e), d), e), c), e))
        out = double(out) + m[24](act(m[23](h)))
        h = m[27](cat(m[26](cat(m[25](h, e), b), e), a), e)
        return (double(out) + m[29](act(m[28](h)))) / label[:, None, None, None]
    if name == "cifar":
        e = m[2](act(m[1](layers.fourier_features(label.log(), m[0].W))))
        a = m[3](x)
        b = m[4](a, e)
        c = (m[6](x) + m[5](b, e)) / math.sqrt(2)
        d = m[7](c, e)
        f = (m[9](c) + m[8](d, e)) / math.sqrt(2)
        g = m[10](f, e)
        h = m[13](m[12](m[11](g, e)), e)
        h = m[15](cat(m[14](cat(h, g), e), f), e)
        h = m[18](cat(m[17](cat(m[16](h, e), d), e), c), e)
        h = m[21](cat(m[20](cat(m[19](h, e), b), e), a), e)
        return m[23](act(m[22](h))) / label[:, None, None, None]
    e = m[1](act(m[0](layers.positional_features(label.float(), network.config.nf).double())))
    if name == "residual":
        x = 2 * x - 1
        half = F.avg_pool2d(x, 2)
        a = m[2](x)
        b = m[3](a, e)
        c = cat(m[5].Conv_0(half), m[4](b))
        d = m[6](c, e)
        f = cat(m[8].Conv_0(F.avg_pool2d(half, 2)), m[7](d))
        g = m[9](f, e)
        h = m[12](m[11](m[10](g, e)), e)
        h = m[14](cat(m[13](cat(h, g), e), f), e)
        pyramid = m[16](act(m[15](h)))
        h = m[19](cat(m[18](cat(m[17](h), d), e), c), e)
        pyramid = m[20](pyramid) + h
        h = m[23](cat(m[22](cat(m[21](pyramid), b), e), a), e)
        return m[26](act(m[25](m[24](pyramid) + h)))
    if name == "ddpm":
        a = m[2](2 * x - 1)
        b = m[3](a, e)
        c = m[4](b)
        d = m[6](m[5](c, e))
        h = m[9](m[8](m[7](d, e)), e)
        h = m[13](m[12](m[11](cat(m[10](cat(h, d), e), c), e)))
        h = m[15](cat(m[14](cat(h, b), e), a), e)
        return m[17](act(m[16](h))) / network.sigmas[label][:, None, None, None]
    a = m[2](x)
    b = m[4](m[3](a, e))
    c = m[5](b, e)
    d = m[6](c, e)
    h = m[9](m[8](m[7](d, e)), e)
    h = m[12](m[11](cat(m[10](cat(h, d), e), c), e), e)
    h = m[15](m[14](cat(m[13](cat(h, b), e), a), e))
    return m[17](act(m[16](h)))


@pytest.mark.parametrize("name", CONFIGS)
def test_wiring(name: str, rng: Generator) -> None:
    network = filled(NCSNpp(CONFIGS[name]), rng)
    x = torch.rand(2, CONFIGS[name].num_channels, 8, 8, generator=rng, dtype=torch.float64)
    label = torch.tensor([3, 400]) if name == "ddpm" else torch.tensor([0.7, 20.0], dtype=torch.float64)
    torch.testing.assert_close(network(x, label), by_hand(name, network, x, label))


def test_without_the_level(rng: Generator) -> None:
    """NCSNv2 style: unconditional, but for the division by σ."""
    c = ScoreSDEConfig(**SMALL, attn_resolutions=(), conditional=False, embedding_type="positional", continuous=False)
    network = filled(NCSNpp(c), rng)
    x, label = torch.rand(2, 1, 8, 8, generator=rng, dtype=torch.float64), torch.tensor([10, 500])
    out = network(x, label) * network.sigmas[label][:, None, None, None]
    torch.testing.assert_close(out, network(x, label.flip(0)) * network.sigmas[label.flip(0)][:, None, None, None])


# Priors and files


def test_priors_near_zero_noise_and_of_other_sizes(config: ScoreSDEConfig, rng: Generator) -> None:
    prior = score_sde_prior(filled(NCSNpp(config), rng, 0.1))
    shape = (2, 12, 16) if config.num_channels == 1 else (2, 3, 12, 16)
    x = torch.rand(shape, generator=rng, dtype=torch.float64).requires_grad_()
    for sigma in (0.01, 1e-4):
        assert (prior(x, torch.tensor(sigma)) - x).abs().max() < 10 * sigma
    assert torch.equal(prior(x, torch.tensor(0.0)), x)
    sigma = torch.tensor([0.5, 30.0])
    d = prior(x, sigma)
    torch.testing.assert_close(d[1:], prior(x[1:], sigma[1]))
    (gradient,) = torch.autograd.grad(d.sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_coordinates_of_each_sde(rng: Generator) -> None:
    """x + σ² score is D: with the score there (net / σ, −net / std), by hand at one time each."""
    x = torch.rand(2, 8, 8, generator=rng, dtype=torch.float64)
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    log_s = -0.25 * t**2 * 19.9 - 0.05 * t
    steps = torch.tensor([200, 900])
    discrete = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[steps].sqrt()
    cases = [
        ("vpsde", True, log_s.exp(), (1 - (2 * log_s).exp()).sqrt(), t * 999),
        ("subvpsde", True, log_s.exp(), 1 - (2 * log_s).exp(), t * 999),
        ("vpsde", False, discrete, (1 - discrete**2).sqrt(), steps.double()),
    ]
    for sde, continuous, s, std, label in cases:
        c = ScoreSDEConfig(**SMALL, sde=sde, continuous=continuous, embedding_type="positional", scale_by_sigma=False)
        network = filled(NCSNpp(c), rng, 0.1)
        x_t = s[:, None, None] * x
        score = -network(x_t[:, None], label)[:, 0] / std[:, None, None]
        wanted = (x_t + std[:, None, None] ** 2 * score) / s[:, None, None]
        torch.testing.assert_close(score_sde_prior(network)(x, std / s), wanted, rtol=1e-6, atol=1e-6)
    for name, sigma, label in (
        ("skips", torch.tensor([0.01, 7.0]), torch.tensor([0.01, 7.0])),
        ("ddpm", CONFIGS["ddpm"].sigmas[[999, 300]], torch.tensor([999, 300])),
    ):
        network = filled(NCSNpp(CONFIGS[name]), rng, 0.1)
        wanted = x + sigma.double()[:, None, None] ** 2 * network(x[:, None], label)[:, 0]
        torch.testing.assert_close(score_sde_prior(network)(x, sigma), wanted, rtol=1e-6, atol=1e-6)
    assert isinstance(coordinates(ScoreSDEConfig(sde="subvpsde")), SubVP)


def test_checkpoints_of_the_original(config: ScoreSDEConfig, tmp_path: Path, rng: Generator) -> None:
    """As its utils.py and ema.py write them: DataParallel's prefix, averages of what is trained, in order."""
    last, average = (filled(NCSNpp(config), rng, 0.1).float() for _ in range(2))
    fixed = {k: v for k, v in last.named_parameters() if not v.requires_grad}
    average.load_state_dict(average.state_dict() | fixed)  # the Fourier frequencies are not averaged
    torch.save(
        {
            "optimizer": torch.optim.Adam(last.parameters()).state_dict(),
            "model": {f"module.{k}": v for k, v in last.state_dict().items()},
            "ema": {
                "decay": 0.999,
                "num_updates": 7,
                "shadow_params": [p.detach() for p in average.parameters() if p.requires_grad],
            },
            "step": 7,
        },
        tmp_path / "checkpoint.pth",
    )
    save_file({k: v.contiguous() for k, v in last.state_dict().items() if k != "sigmas"}, tmp_path / "last.safetensors")
    x, sigma = torch.rand(2, config.num_channels, 8, 8, generator=rng), torch.tensor([0.1, 3.0])
    for path, weights, wanted in [
        ("checkpoint.pth", "ema", average),
        ("checkpoint.pth", "model", last),
        ("last.safetensors", "ema", last),
    ]:
        loaded = load_score_sde(tmp_path / path, config, weights=weights)  # type: ignore[arg-type]
        torch.testing.assert_close(loaded(x, sigma), score_sde_prior(wanted)(x, sigma).detach())
        assert not any(p.requires_grad for p in loaded.network.parameters())  # type: ignore[attr-defined]


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    network = NCSNpp(CONFIGS["cifar"])
    whole = {"model": network.state_dict(), "ema": {"shadow_params": list(network.parameters())[1:]}}
    cases: list[tuple[Any, str]] = [
        ({"model": NCSNpp(CONFIGS["skips"]).state_dict()}, "size mismatch|Missing key"),
        ({"model": network.state_dict()}, "fits the configuration: 'ema'"),
        (whole | {"ema": {"shadow_params": whole["ema"]["shadow_params"][::-1]}}, "averages have other shapes"),
        ([1, 2], "no checkpoint that fits"),
    ]
    for checkpoint, words in cases:
        torch.save(checkpoint, path)
        with pytest.raises(ValueError, match=words):
            load_score_sde(path, CONFIGS["cifar"])
    with pytest.raises(ValueError, match="'ema' or 'model', got 'best'"):
        load_score_sde(path, CONFIGS["cifar"], weights="best")  # type: ignore[arg-type]


def test_configurations_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="progressive is one of none, output_skip, residual, got 'output-skip'"):
        ScoreSDEConfig(progressive="output-skip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="even length"):
        ScoreSDEConfig(fir_kernel=(1, 2, 1))
