"""The spatial transformer: a set of tokens told to pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from scoreinv.priors.transformer import SpatialTransformer


def block(width: int = 32, token_width: int = 5, head: int = 16, *, disturb: bool = True) -> SpatialTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = SpatialTransformer(width, token_width, head)
    with torch.no_grad():
        for p in made.parameters() if disturb else ():
            p.add_(0.05 * torch.randn(p.shape, generator=Generator().manual_seed(p.numel())))
    return made


@pytest.fixture
def x(rng: Generator) -> Tensor:
    return torch.randn(2, 32, 3, 4, generator=rng)


@pytest.fixture
def tokens(rng: Generator) -> Tensor:
    return torch.randn(2, 6, 5, generator=rng)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def test_identity_at_first(x: Tensor, tokens: Tensor) -> None:
    assert torch.equal(block(disturb=False)(x, tokens), x)
    assert apart(block()(x, tokens), x) > 0.1


def test_against_torch_attention(x: Tensor, tokens: Tensor) -> None:
    """The same function with `nn.MultiheadAttention` given our weights, step by step."""
    made = block()
    h = made.enter(F.group_norm(x, 2, made.norm.weight, made.norm.bias)).reshape(2, 32, 12).transpose(1, 2)
    for norm, attention, source in ((made.norms[0], made.to_pixels, None), (made.norms[1], made.to_tokens, tokens)):
        width = 32 if source is None else 5
        theirs = torch.nn.MultiheadAttention(32, 2, kdim=width, vdim=width, batch_first=True)
        key, value = attention.key_value.weight.chunk(2)
        with torch.no_grad():
            theirs.in_proj_bias.zero_()
            theirs.out_proj.weight.copy_(attention.out.weight)
            theirs.out_proj.bias.copy_(attention.out.bias)
            if source is None:
                theirs.in_proj_weight.copy_(torch.cat([attention.query.weight, key, value]))
            else:
                for mine, to in ((attention.query.weight, "q"), (key, "k"), (value, "v")):
                    getattr(theirs, f"{to}_proj_weight").copy_(mine)
        q = norm(h)
        kv = q if source is None else source
        h = h + theirs(q, kv, kv)[0]
    a, b = made.widen(made.norms[2](h)).chunk(2, dim=-1)
    h = h + made.narrow(a * F.gelu(b))
    expected = x + made.leave(h.transpose(1, 2).reshape(2, 32, 3, 4))
    torch.testing.assert_close(made(x, tokens), expected, atol=1e-5, rtol=1e-5)


def test_the_order_of_tokens_does_not_matter_and_of_pixels_comes_along(x: Tensor, tokens: Tensor) -> None:
    made, order = block(), torch.tensor([3, 1, 5, 0, 2, 4])
    out = made(x, tokens)
    torch.testing.assert_close(made(x, tokens[:, order]), out)
    torch.testing.assert_close(made(x.flip(-1), tokens), out.flip(-1))
    assert apart(made(x, tokens.flip(0)), out) > 1e-3  # another member's tokens do matter


def test_masked_tokens_are_as_if_they_were_not_there(x: Tensor, tokens: Tensor) -> None:
    made, mask = block(), torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    out = made(x, tokens, mask)
    torch.testing.assert_close(out[:1], made(x[:1], tokens[:1, :4]))
    torch.testing.assert_close(out[1:], made(x[1:]))  # none at all
    torch.testing.assert_close(made(x[1:], tokens[1:, :0]), made(x[1:]))
    changed = tokens + torch.where(mask[..., None], 0.0, 100.0)
    torch.testing.assert_close(made(x, changed, mask), out)
    torch.testing.assert_close(made(x, tokens, torch.ones_like(mask)), made(x, tokens))


def test_gradients_reach_the_tokens_that_count(x: Tensor, tokens: Tensor) -> None:
    point, mask = tokens.requires_grad_(), torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    block()(x, point, mask).square().sum().backward()
    assert point.grad is not None and point.grad.isfinite().all()
    size = point.grad.abs().amax(-1)
    assert (size[mask] > 1e-4).all() and not size[~mask].any()
    fresh = tokens.detach().requires_grad_()
    block(disturb=False)(x, fresh).square().sum().backward()
    assert fresh.grad is not None and not fresh.grad.any()  # W_out is 0: it moves first


def test_a_batch_is_its_members(x: Tensor, tokens: Tensor) -> None:
    made = block()
    torch.testing.assert_close(made(x, tokens)[1:], made(x[1:], tokens[1:]))


def test_what_does_not_fit(x: Tensor, tokens: Tensor) -> None:
    made = block()
    for bad, words in ((tokens[..., :4], r"tokens \(2, number, 5\), got \(2, 6, 4\)"), (tokens[:1], "tokens"), (tokens[0], "tokens")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            made(x, bad)
    for mask in (torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 6)):
        with pytest.raises(ValueError, match=r"mask \(2, 6\) of truth values"):
            made(x, tokens, mask)
    with pytest.raises(ValueError, match="multiple of head"):
        SpatialTransformer(48, 5, 64)
