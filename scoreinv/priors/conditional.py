"""The score network with more to go by: a class, an image beside the noisy one, a sequence of tokens.

    D(x, σ | c) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ), pixel size, position, c)

as in `priors.network`, with c in F by three ways, of which a network has one or more:

    class      a learnt vector a class, added to the embedding of the noise level (Dhariwal, Nichol 2021, arXiv:2105.05233)
    image      its pixels enter the first layer beside those of x (Saharia et al. 2022, SR3, arXiv:2104.07636)
    sequence   cross-attention on coarse levels, `priors.transformer` (Rombach et al. 2022, arXiv:2112.10752)

Nothing need be told: without a class the network has a vector of its own for that, without an image or tokens these parts add
nothing. One network is so the conditional and the unconditional denoiser of classifier-free guidance, if it is trained with
conditions left out now and then (`priors.conditional_training`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scoreinv.files.atomic import replacing
from scoreinv.priors.blocks import start_at_unit_variance
from scoreinv.priors.checkpoint import checked_card, write_cards
from scoreinv.priors.denoiser import pad_to_multiple
from scoreinv.priors.network import UNet, UNetConfig, preconditioned
from scoreinv.priors.transformer import SpatialTransformer

FORMAT = "scoreinv-conditional-1"
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Condition:
    """What a conditional network is told of every member of a batch; whatever is None is not told.

    Attributes:
        classes: (batch,) whole numbers from 0.
        image: (batch, image_channels, H, W), in the unit of x.
        tokens: (batch, n, token_width).
        mask: (batch, n), True for the tokens that count; None for all.
        told: (batch,), False for members that are told nothing of all this; None for none such.
    """

    classes: Tensor | None = None
    image: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    told: Tensor | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same after a change of every tensor."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Condition(**{name: None if t is None else change(t) for name, t in parts.items()})

    def of(self, n: int) -> Condition:
        """For a batch of n: a single member's condition is everyone's.

        Raises:
            ValueError: there are neither 1 nor n members.
        """

        def expand(t: Tensor) -> Tensor:
            if len(t) not in (1, n):
                raise ValueError(f"Condition: a batch of {n} needs a condition of 1 or {n} members, got {len(t)}")
            return t.expand(n, *t.shape[1:])

        return self.mapped(expand)


@dataclass(frozen=True)
class ConditionalConfig:
    """Constructor arguments of a conditional network.

    Attributes:
        network: of the U-Net.
        n_classes: how many classes there are; 0 for none.
        image_channels: of the image beside x; 0 for none.
        token_width: of the tokens; 0 for none.
        cross_attention: levels that attend to tokens, counted from the finest (0); their widths are multiples of 64.

    Raises:
        ValueError: there is no condition at all, or the parts do not fit together.
    """

    network: UNetConfig
    n_classes: int = 0
    image_channels: int = 0
    token_width: int = 0
    cross_attention: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.n_classes, self.image_channels, self.token_width)
        if min(sizes) < 0 or max(sizes) < 1:
            raise ValueError(
                "ConditionalConfig: expected n_classes, image_channels or token_width of at least 1, none negative, got "
                f"{self.n_classes}, {self.image_channels} and {self.token_width}"
            )
        if bool(self.token_width) != bool(self.cross_attention):
            raise ValueError(
                "ConditionalConfig: tokens need both, their token_width and levels of cross_attention, got "
                f"{self.token_width} and {self.cross_attention}"
            )
        for k in self.cross_attention:
            if not 0 <= k < len(self.network.widths) or self.network.widths[k] % 64:
                raise ValueError(
                    f"ConditionalConfig: cross_attention needs levels between 0 and {len(self.network.widths) - 1} whose width "
                    f"is a multiple of 64, got level {k} of the widths {self.network.widths}"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConditionalConfig:
        """Build from the plain values of a JSON card; unknown keys raise TypeError."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        plain["network"] = UNetConfig.from_dict(plain["network"])
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """The plain values that `from_dict` takes."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"network": self.network.to_dict()}

    def check(self, condition: Condition, x: Tensor) -> None:
        """Raise ValueError for a condition that such a network cannot be told beside x (batch, channels, H, W)."""
        for what, given, size in (
            ("classes", condition.classes, self.n_classes),
            ("image", condition.image, self.image_channels),
            ("tokens", condition.tokens, self.token_width),
        ):
            if given is not None and not size:
                raise ValueError(f"the network has no condition {what!r}; it was made with {self.to_dict()}")
        if condition.classes is not None:
            check_classes(condition.classes, self.n_classes, "the network")
        wanted = (self.image_channels, *x.shape[-2:])
        if condition.image is not None and tuple(condition.image.shape[1:]) != wanted:
            raise ValueError(f"the network expects an image {wanted} beside x, got {tuple(condition.image.shape[1:])}")


def check_classes(classes: Tensor, n_classes: int, name: str) -> None:
    """Raise ValueError unless these are whole numbers from 0 to n_classes - 1."""
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise ValueError(f"{name}: a class is a whole number, got {classes.dtype}")
    outside = classes[(classes < 0) | (classes >= n_classes)]
    if len(outside):
        raise ValueError(f"{name}: expected a class from 0 to {n_classes - 1}, got {int(outside[0])}")


class ConditionalUNet(UNet):
    """F of the module's head; without a condition as `UNet`, but for the vector that stands for no class."""

    def __init__(self, config: ConditionalConfig) -> None:
        super().__init__(config.network)
        self.conditions, network = config, config.network
        self.classes = nn.Embedding(config.n_classes + 1, network.embedding) if config.n_classes else None
        n = config.image_channels * network.unshuffle**2
        self.image_stem = nn.Conv2d(n, network.widths[0], 3, padding=1) if n else None
        self.transformers = nn.ModuleDict(
            {str(k): SpatialTransformer(network.widths[k], config.token_width) for k in config.cross_attention}
        )
        if self.image_stem is not None:
            start_at_unit_variance(self.image_stem)

    def forward(
        self, x: Tensor, c_noise: Tensor, pixel_mm: Tensor, box: Tensor, condition: Condition | None = None
    ) -> Tensor:
        """As `UNet.forward`, with an image of size 1 where there is one; raises ValueError as `ConditionalConfig.check`."""
        told = (condition or Condition()).of(len(x))
        self.conditions.check(told, x)
        h = self.entered(x, box)
        some = torch.ones(len(x), dtype=torch.bool, device=x.device) if told.told is None else told.told
        if self.image_stem is not None and told.image is not None:
            beside = self.image_stem(F.pixel_unshuffle(told.image.to(x.dtype), self.config.unshuffle))
            h = h + torch.where(some[:, None, None, None], beside, 0.0)
        also = None
        if self.classes is not None:
            none = torch.full((len(x),), self.conditions.n_classes, device=x.device)
            also = self.classes(none if told.classes is None else torch.where(some, told.classes, none))
        mask = told.mask
        if told.tokens is not None and told.told is not None:
            mask = some[:, None] & (torch.ones_like(told.tokens[..., 0], dtype=torch.bool) if mask is None else mask)
        return self.through(
            h, self.embed(c_noise, pixel_mm, also), functools.partial(self._attend, tokens=told.tokens, mask=mask)
        )

    def _attend(self, k: int, h: Tensor, *, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.attended(k, h)
        if str(k) not in self.transformers:
            return h
        return cast("Tensor", self.transformers[str(k)](h, tokens, mask))


class ConditionalDenoiser(nn.Module):
    """D(x, σ | c) of the module's head: what `network.EDMDenoiser` is without conditions."""

    def __init__(self, config: ConditionalConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = ConditionalUNet(config)

    def forward(
        self, x: Tensor, sigma: Tensor, condition: Condition | None = None, pixel_mm: Tensor | float | None = None,
        box: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The mean of x₀ given x = x₀ + σ n and the condition.

        Args:
            x: (batch, channels, H, W), H and W multiples of `config.network.multiple` (`Conditioned` pads others).
            sigma, pixel_mm, box: as for `EDMDenoiser`.
            condition: of the batch, or of one member for all; None tells nothing.

        Raises:
            ValueError: a condition that the network does not have, or a class that it does not know.
        """
        sd = self.config.network.sigma_data
        if condition is not None and condition.image is not None:
            condition = dataclasses.replace(condition, image=condition.image / sd)
        return preconditioned(functools.partial(self.unet, condition=condition), sd, x, sigma, pixel_mm, box)


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A conditional network with its condition: a denoiser of images (batch, H, W) or (batch, channels, H, W) of any size.

    Attributes:
        model: the network.
        condition: of one member, for all, or of as many as there are images.
        pixel_mm: side of a pixel [mm]; None where it is unknown.
    """

    model: ConditionalDenoiser
    condition: Condition
    pixel_mm: float | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if x.ndim not in (3, 4):
            raise ValueError(f"Conditioned: expected images (batch, H, W) or (batch, C, H, W), got {tuple(x.shape)}")
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        multiple, (height, width) = self.model.config.network.multiple, x.shape[-2:]
        images = pad_to_multiple(x.float(), multiple)
        condition = self.condition
        if condition.image is not None:
            condition = dataclasses.replace(condition, image=pad_to_multiple(condition.image.float(), multiple))
        out = self.model(images.reshape(len(x), -1, *images.shape[-2:]), sigma, condition, self.pixel_mm)
        return cast("Tensor", out.reshape(images.shape)[..., :height, :width].to(x.dtype))


def save_conditional(model: ConditionalDenoiser, path: str | Path, card: Mapping[str, Any]) -> None:
    """Write a conditional network's weights (.safetensors, float16) and its cards; see `priors.checkpoint`."""
    write_network(model, Path(path), {"network": model.config.to_dict(), **card}, FORMAT)


def load_conditional(path: str | Path) -> tuple[ConditionalDenoiser, dict[str, Any]]:
    """Read what `save_conditional` wrote, in float32 and evaluation mode, without gradients.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.load_prior`.
    """

    def build(network: Mapping[str, Any]) -> ConditionalDenoiser:
        return ConditionalDenoiser(ConditionalConfig.from_dict(network))

    return read_network(Path(path), FORMAT, "a conditional prior", build)


def write_network(model: nn.Module, path: Path, card: Mapping[str, Any], form: str) -> None:
    """Weights in float16 and cards, whole or not at all.

    Raises:
        ValueError: the path does not end in .safetensors.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written to a .safetensors file, got {path.suffix or 'no suffix'!r}")
    with replacing(path) as temporary:
        save_file(
            {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in model.state_dict().items()}, temporary
        )
    write_cards(path, dict(card), form=form)


def read_network(
    path: Path, form: str, what: str, build: Callable[[Mapping[str, Any]], Module]
) -> tuple[Module, dict[str, Any]]:
    """The network that `build` makes of a card's entry "network", with the weights, and the card; raises as `checkpoint.load_prior`."""
    card = checked_card(path, what=what, form=form)
    try:
        model = build(card["network"])
        model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: its card describes no network that these weights fit: {error}") from error
    return model.eval().requires_grad_(False), card
