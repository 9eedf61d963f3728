"""The spatial transformer: pixels that attend to each other and to a sequence of tokens.

    h = W_in N(x),  pixels as a sequence
    h ← h + A(L h, L h);   h ← h + A(L h, tokens);   h ← h + W₂ (a ⊙ gelu(b)),  (a, b) = W₁ L h
    x ← x + W_out h

N is a group normalisation, L a layer normalisation, A(q, kv) multi-head attention. (Rombach, Blattmann, Lorenz, Esser, Ommer,
"High-Resolution Image Synthesis with Latent Diffusion Models", 2022, arXiv:2112.10752, sec. 3.3 and appendix E.2.1; the last
of the three is the GEGLU of Shazeer 2020, arXiv:2002.05202.) W_out starts at 0, so that the block is the identity at first.

Tokens have no order here: permuted ones give the same. Where order matters, it has to be in the tokens, as a text encoder
puts it there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreinv.priors.blocks import start_at_unit_variance, start_at_zero


class MultiHead(nn.Module):
    """Attention of one sequence to another, (batch, n, width) and (batch, m, source_width) -> (batch, n, width)."""

    def __init__(self, width: int, source_width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(source_width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (batch, m): False where a member of the source is not there; members without any get 0."""
        q, (k, v) = self._heads(self.query(h)), map(self._heads, self.key_value(source).chunk(2, dim=-1))
        if mask is None:
            return self._mixed(F.scaled_dot_product_attention(q, k, v))
        some = mask.any(dim=1)
        seen = (mask | ~some[:, None])[:, None, None]  # where nothing is seen the softmax would be 0 / 0
        mixed = self._mixed(F.scaled_dot_product_attention(q, k, v, attn_mask=seen))
        return torch.where(some[:, None, None], mixed, 0.0)

    def _heads(self, t: Tensor) -> Tensor:
        """(batch, n, width) -> (batch, heads, n, head)."""
        return t.reshape(*t.shape[:2], -1, self.head).transpose(1, 2)

    def _mixed(self, a: Tensor) -> Tensor:
        mixed: Tensor = self.out(a.transpose(1, 2).flatten(2))
        return mixed


class SpatialTransformer(nn.Module):
    """The block of the module's head, on features (batch, width, H, W).

    Args:
        width: of the features, a multiple of `head` and of 16.
        token_width: of the tokens.
        head: width of a head.

    Raises:
        ValueError: the widths do not fit.
    """

    def __init__(self, width: int, token_width: int, head: int = 64) -> None:
        super().__init__()
        if min(width, token_width, head) < 1 or width % head or width % 16:
            raise ValueError(
                f"SpatialTransformer: expected a width that is a multiple of head and of 16, and a token_width of at least 1, "
                f"got width {width}, head {head} and token_width {token_width}"
            )
        self.token_width = token_width
        self.norm = nn.GroupNorm(width // 16, width)
        self.enter, self.leave = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.to_pixels, self.to_tokens = MultiHead(width, width, head), MultiHead(width, token_width, head)
        self.widen, self.narrow = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
        self.apply(start_at_unit_variance)
        start_at_zero(self.leave)

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x attended to.

        Args:
            x: (batch, width, H, W).
            tokens: (batch, n, token_width); None for no tokens, as if all were masked.
            mask: (batch, n), True for the tokens that count; None for all.

        Raises:
            ValueError: tokens or mask have another shape.
        """
        h = self.enter(self.norm(x)).flatten(2).transpose(1, 2)
        own = self.norms[0](h)
        h = h + self.to_pixels(own, own)
        if tokens is not None and tokens.shape[1:2] != (0,):
            self._check(x, tokens, mask)
            h = h + self.to_tokens(self.norms[1](h), tokens.to(x.dtype), mask)
        a, b = self.widen(self.norms[2](h)).chunk(2, dim=-1)
        h = h + self.narrow(a * F.gelu(b))
        out: Tensor = x + self.leave(h.transpose(1, 2).reshape(x.shape))
        return out

    def _check(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> None:
        n = len(x)
        if tokens.ndim != 3 or len(tokens) != n or tokens.shape[2] != self.token_width:
            raise ValueError(
                f"SpatialTransformer: expected tokens ({n}, number, {self.token_width}), got {tuple(tokens.shape)}"
            )
        if mask is not None and (mask.shape != tokens.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"SpatialTransformer: expected a mask {tuple(tokens.shape[:2])} of truth values, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
