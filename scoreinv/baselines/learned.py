"""What the learned baselines have in common: one scale for all operators, networks, weights with a card, the method around them.

A network sees data and images without units, and an operator of norm 1:

    K = A / ‖A‖,    v = x / unit,    g = y / (unit ‖A‖),    K v = g                                                 (1)

so that, with unit the attenuation of water, v = 1 + HU / 1000 and a step of length 1 is the right one for gradient descent.
KᵀK v is large where v is smooth (1 for the largest singular vector) and small for details (1/γ² for a pixel, on average),
with

    γ = ‖A‖ / √c,    c the mean of what one pixel's squared trace sums to,                                          (2)

by which gradients are multiplied before a network looks at them. Pixel sizes drop out of (1) as long as detector cells
grow with pixels.
"""

from __future__ import annotations

import abc
import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from scoreinv import plugins
from scoreinv.files.atomic import replacing
from scoreinv.linop import LinearOperator
from scoreinv.priors.blocks import start_at_unit_variance, start_at_zero
from scoreinv.priors.checkpoint import checked_card, write_cards
from scoreinv.priors.denoiser import pad_to_multiple
from scoreinv.priors.network import WHOLE, UNet, UNetConfig
from scoreinv.problem import Problem
from scoreinv.solvers import mean_column_square
from scoreinv.units import MU_WATER_PER_MM

FORM = "scoreinv-baseline-1"


@dataclass(frozen=True, eq=False)
class Scaled:
    """An operator in the coordinates of eq. (1); everything is computed in float32."""

    A: LinearOperator

    @property
    def norm(self) -> float:
        """‖A‖; 1 for an operator that measures nothing."""
        return self.A.norm_squared() ** 0.5 or 1.0

    @property
    def gain(self) -> float:
        """γ of eq. (2)."""
        return self.norm / (mean_column_square(self.A) ** 0.5 or 1.0)

    def forward(self, v: Tensor) -> Tensor:
        """K v: (batch, *in_shape) -> (batch, *out_shape)."""
        with torch.autocast(v.device.type, enabled=False):
            return self.A(v.float()) / self.norm

    def adjoint(self, g: Tensor) -> Tensor:
        """Kᵀ g: (batch, *out_shape) -> (batch, *in_shape)."""
        with torch.autocast(g.device.type, enabled=False):
            return self.A.H(g.float()) / self.norm

    def fbp(self, g: Tensor, window: str = "hann") -> Tensor:
        """Filtered back-projection of g, as v.

        Raises:
            ValueError: the operator has none.
        """
        fbp = getattr(self.A, "fbp", None)
        if fbp is None:
            raise ValueError(f"{type(self.A).__name__} has no method fbp(y, window), which this baseline begins with")
        return cast("Tensor", fbp(g.float() * self.norm, window=window))


class Network(nn.Module, abc.ABC):
    """A trained map from data to an image. Constructor arguments are plain values, kept in `settings` and in the card.

    Attributes:
        settings: the constructor's arguments.
        bound_to: entries of `geometry` that must be as in training; for the others a warning is enough.
    """

    settings: dict[str, Any]
    bound_to: tuple[str, ...] = ()

    @abc.abstractmethod
    def forward(self, problem: Scaled, g: Tensor) -> Tensor:
        """g (batch, *out_shape) -> v (batch, H, W)."""

    def loss(self, problem: Scaled, g: Tensor, v: Tensor, rng: Generator) -> Tensor:
        """What training makes small, a scalar: by default the mean squared error of the image; rng for losses that draw."""
        error: Tensor = self(problem, g) - v
        return error.square().mean()

    def check(self, A: LinearOperator) -> None:
        """Raise ValueError for an operator that the network is not made for."""
        if len(A.in_shape) != 2:
            raise ValueError(f"{type(self).__name__}: expected an operator on images (H, W), got {A.in_shape}")


class Refiner(nn.Module):
    """The prior's U-Net (`priors.network.UNet`) without a noise level: (batch, channels, H, W) of any size -> the same shape, 0 at first.

    Args:
        channels: in and out.
        widths: channels of each level, multiples of 16.
        unshuffle: side of the pixel block that becomes the channels of the first level.
    """

    def __init__(self, channels: int, widths: Sequence[int], unshuffle: int) -> None:
        super().__init__()
        config = UNetConfig(channels=channels, widths=tuple(widths), unshuffle=unshuffle, attention=(), embedding=16)
        self.multiple, self.unet = config.multiple, UNet(config)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        padded = pad_to_multiple(x.reshape(n * channels, height, width), self.multiple)
        padded = padded.reshape(n, channels, *padded.shape[-2:]).contiguous(memory_format=torch.channels_last)
        nothing = x.new_zeros(n)
        out: Tensor = self.unet(padded, nothing, nothing + torch.nan, x.new_tensor(WHOLE).expand(n, 4))
        return out[..., :height, :width].float()


class Convolutions(nn.Sequential):
    """Three 3 x 3 convolutions with PReLU between them, (batch, n_in, H, W) -> (batch, n_out, H, W); 0 at first."""

    def __init__(self, n_in: int, width: int, n_out: int) -> None:
        sizes = [(n_in, width), (width, width), (width, n_out)]
        first, second, last = (nn.Conv2d(a, b, 3, padding=1) for a, b in sizes)
        super().__init__(first, nn.PReLU(width), second, nn.PReLU(width), last)
        self.apply(start_at_unit_variance)
        start_at_zero(last)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x.float()


@dataclass(frozen=True)
class Learned(abc.ABC):
    """A trained network as a method: by default one image, deterministic. Subclasses name the network's class.

    Attributes:
        weights: file written by `scoreinv train-baseline` (.safetensors); None takes the one that ships, if any.
        unit: size of the images' values [their unit]: the attenuation of water for CT.
    """

    weights: str | None = None
    unit: float = MU_WATER_PER_MM
    network: ClassVar[type[Network]]

    def __post_init__(self) -> None:
        if not self.unit > 0:
            raise ValueError(f"{type(self).__name__}: unit must be positive, got {self.unit}")

    @torch.no_grad()
    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Reconstruct: (1, *batch, H, W); rng is not used.

        Raises:
            ValueError, FileNotFoundError: no weights, damaged ones, or an operator that they cannot be used with.

        Warns:
            UserWarning: the weights were trained on another geometry.
        """
        flat = problem.flat()
        network, scaled, data = self.opened(flat)
        images = [network(scaled, g[None]) for g in data]  # one by one: a batch gives what its members give alone
        return (self.unit * torch.cat(images)).to(flat.y).reshape(1, *problem.batch_shape, *flat.A.in_shape)

    def opened(self, flat: Problem) -> tuple[Network, Scaled, Tensor]:
        """The trained network, and operator and data of a problem with one batch dimension in its coordinates; as `__call__`."""
        name = plugins.name_of("methods", type(self))
        path = weights_path(name, self.weights)
        network, card = _loaded(name, str(path), path.stat().st_mtime_ns if path.is_file() else 0, str(flat.y.device))
        network.check(flat.linear)
        _compare(name, network, card, geometry(flat.linear))
        scaled = Scaled(flat.linear)
        return network, scaled, flat.y.float() / (self.unit * scaled.norm)


def weights_path(name: str, given: str | None) -> Path:
    """Where the weights of a method are.

    Raises:
        ValueError: none are given and none ship.
    """
    shipped = Path(str(files("scoreinv.baselines.weights"))) / f"{name}.safetensors"
    if given is None and not shipped.is_file():
        raise ValueError(
            f"method {name!r} has no weights yet: train them with `scoreinv train-baseline {name} IMAGES --out FOLDER` and give "
            f"them with --set weights=FOLDER/{name}.safetensors"
        )
    return shipped if given is None else Path(given)


def network_class(name: str) -> type[Network]:
    """The network of a learned method.

    Raises:
        ValueError: no such method, or one that is not trained.
    """
    method = plugins.get("methods", name)
    if not (isinstance(method, type) and issubclass(method, Learned)):
        trained = [n for n, path in plugins.BUILT_IN["methods"].items() if path.startswith(f"{__package__}.learned_")]
        raise ValueError(f"method {name!r} has no network to train; those that have: {', '.join(trained)}")
    return method.network


def geometry(A: LinearOperator) -> dict[str, Any]:
    """What a network may depend on, as plain values; lengths only as ratios, see eq. (1)."""
    angles: Sequence[float] = getattr(A, "angles", ())
    ratio = getattr(A, "detector_mm", 1.0) / getattr(A, "pixel_mm", 1.0)
    return {
        "operator": type(A).__name__,
        "image_shape": list(A.in_shape),
        "data_shape": list(A.out_shape),
        "angles_degrees": [round(float(torch.tensor(a).rad2deg()), 3) for a in angles],
        "detector_pixels": round(float(ratio), 4),
    }


def save_network(name: str, network: Network, path: Path, card: Mapping[str, Any]) -> None:
    """Write a network's weights in float16 and its cards."""
    with replacing(path) as temporary:
        save_file({k: v.detach().to("cpu", torch.float16).contiguous() for k, v in network.state_dict().items()}, temporary)  # fmt: skip
    write_cards(path, {"method": name, "network": network.settings, **card}, form=FORM)


def load_network(name: str, path: Path) -> tuple[Network, dict[str, Any]]:
    """Read weights and card of a method's network; float32, evaluation mode, without gradients.

    Raises:
        FileNotFoundError: the weights or the card are missing.
        ValueError: the file is damaged, a pickle, or another method's.
    """
    card = checked_card(path, what="a baseline's weights", form=FORM)
    if card.get("method") != name:
        raise ValueError(f"{path}: holds weights of {card.get('method')!r}, not of {name!r}")
    try:
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in card["network"].items()}
        network = network_class(name)(**settings)
        network.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: its card describes no network that these weights fit: {error}") from error
    return network.eval().requires_grad_(False), card


@functools.lru_cache(maxsize=8)
def _loaded(name: str, path: str, modified: int, device: str) -> tuple[Network, dict[str, Any]]:
    """Remembered until the file changes."""
    network, card = load_network(name, Path(path))
    return network.to(device), card


def _compare(name: str, network: Network, card: Mapping[str, Any], used: Mapping[str, Any]) -> None:
    """Refuse or warn where weights meet another geometry than that of their training."""
    trained: Mapping[str, Any] = card.get("geometry", {})
    different = [k for k, v in used.items() if trained.get(k) != v]
    if not different:
        return
    words = "; ".join(f"{k.replace('_', ' ')} {_short(trained.get(k))}, here {_short(used[k])}" for k in different)
    if any(k in network.bound_to for k in different):
        raise ValueError(f"{name} works on the geometry of its training only ({words}): train it on this one")
    warnings.warn(f"{name} was trained on another geometry ({words}): expect more errors than there", stacklevel=5)


def _short(value: Any) -> str:
    return f"{len(value)} from {value[0]} to {value[-1]}" if isinstance(value, list) and len(value) > 3 else str(value)
