"""Iterative solvers for batches: every norm and inner product is one member's own, never the batch's.

    cg      M x = b with M symmetric positive (semi-)definite: Hestenes & Stiefel 1952, doi:10.6028/jres.049.044
    cr      the same with M singular and b not in its range: min ‖b − M x‖ by conjugate residuals (Stiefel 1955,
            doi:10.1007/BF02565599), where cg goes astray
    cgls    min ‖W^½ (A x − y)‖²: CG on AᵀW A x = AᵀW y without forming it (Björck 1996, algorithm 7.4.1)

A member that has converged stays where it is while the others go on, so that a batch gives what its members give alone, but for rounding:
that of a batched operator may depend on the batch, and steps far from convergence, with data of very uneven noise, make it larger (1e-2
of the image was seen in float32). A member whose map gives NaN, or numbers that the dtype does not hold, becomes NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from scoreinv.linop import LinearOperator
from scoreinv.problem import Problem


def inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of every member: (batch, *shape) -> (batch,)."""
    return (a * b).flatten(1).sum(1)


def like(per_member: Tensor, x: Tensor) -> Tensor:
    """Numbers of shape (batch,) shaped to multiply x (batch, *shape)."""
    return per_member.reshape(-1, *[1] * (x.ndim - 1))


@torch.no_grad()
def cg(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    x0: Tensor | None = None,
    *,
    max_iterations: int | Tensor,
    tolerance: float | Tensor = 0.0,
) -> Tensor:
    """Solve M x = b by conjugate gradients.

    Args:
        apply: x -> M x on (batch, *shape), symmetric positive (semi-)definite, member by member.
        b: (batch, *shape).
        x0: start; zero without one.
        max_iterations: at most so many applications of M (one more for the first residual, if x0 is given); one number, or one for each member.
        tolerance: a member is done when ‖b − M x‖ <= tolerance ‖b‖; one number, or one for each member.

    Returns:
        x, shaped like b; not differentiable.

    Raises:
        ValueError: max_iterations or tolerance is negative, or x0 is not shaped like b.
    """
    limit = torch.as_tensor(max_iterations, device=b.device)
    relative = torch.as_tensor(tolerance, dtype=b.dtype, device=b.device)
    _check(int(limit.min()), float(relative.min()), b, x0)
    if x0 is None:
        x, r = torch.zeros_like(b), b.clone()
    else:
        x, r = x0.clone(), b - apply(x0)
    unit = _power_of_two(r)  # of r, q and p, so that no square leaves the range of the dtype
    r, whole = r / like(unit, r), b / like(unit, b)
    p, rr = r, inner(r, r)
    goal = relative.clamp(min=_rounding(b)) ** 2 * inner(whole, whole)
    for k in range(int(limit.max())):
        active = _unmet(rr, goal) & (k < limit)
        if not active.any():
            break
        q = apply(p)
        pq = inner(p, q)
        pq = torch.where(pq.isfinite(), pq, torch.nan)
        active &= ~(pq <= 0)  # rounding, or a direction in the null space: no step can help this member
        alpha = like(_ratio(rr, pq, active), x)
        x = x + alpha * (like(unit, p) * p)
        r = r - alpha * q
        rr, previous = torch.where(active, inner(r, r), 0), rr
        p = torch.where(like(active, p), r + like(_ratio(rr, previous, active), p) * p, p)
    return x


@torch.no_grad()
def cr(apply: Callable[[Tensor], Tensor], b: Tensor, *, max_iterations: int, tolerance: float = 0.0) -> Tensor:
    """Least squares, min ‖M x − b‖, for a symmetric positive semi-definite M, by conjugate residuals from zero.

    Args:
        apply: x -> M x on (batch, *shape), member by member.
        b: (batch, *shape); what lies outside M's range changes x within M's null space only.
        max_iterations: at most so many applications of M (and one more).
        tolerance: a member is done when ⟨r, M r⟩ <= tolerance² ⟨b, M b⟩, r = b − M x, or when M r is 0 but for rounding: then r lies
            outside M's range.

    Returns:
        x, shaped like b; not differentiable.

    Raises:
        ValueError: max_iterations or tolerance is negative.
    """
    _check(max_iterations, tolerance, b, None)
    unit = _power_of_two(b)
    x, r = torch.zeros_like(b), b / like(unit, b)
    p, s = r, apply(r)
    q, rs = s, inner(r, s)
    goal, steepest = max(tolerance, _rounding(b)) ** 2 * rs, torch.zeros_like(rs)
    for _ in range(max_iterations):
        qq, steepness = inner(q, q), _ratio(inner(s, s), inner(r, r), inner(r, r) > 0)
        qq, steepest = torch.where(qq.isfinite(), qq, torch.nan), torch.maximum(steepest, steepness)
        active = _unmet(rs, goal) & ~(qq <= 0) & _unmet(steepness, (10 * _rounding(b)) ** 2 * steepest)
        if not active.any():
            break
        alpha = _ratio(rs, qq, active)
        x, r = x + like(alpha, x) * (like(unit, p) * p), r - like(alpha, r) * q
        s = apply(r)
        rs, previous = torch.where(active, inner(r, s), 0), rs
        beta = like(_ratio(rs, previous, active), r)
        p, q = torch.where(like(active, p), r + beta * p, p), torch.where(like(active, q), s + beta * q, q)
    return x


def cgls(
    A: LinearOperator,
    y: Tensor,
    x0: Tensor | None = None,
    *,
    max_iterations: int,
    tolerance: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Least squares, min ‖W^½ (A x − y)‖², by conjugate gradients; stopped early it regularises.

    Args:
        A: the operator.
        y: (batch, *A.out_shape).
        x0: start; zero without one. What lies in A's null space stays as it is in the start.
        max_iterations: at most so many applications of A and Aᵀ.
        tolerance: a member is done when ‖AᵀW (y − A x)‖ <= tolerance ‖AᵀW y‖.
        weights: W's diagonal, broadcast to y, not negative; 1 without.

    Returns:
        (batch, *A.in_shape); not differentiable.

    Raises:
        ValueError: max_iterations or tolerance is negative, or x0 is not of the shape (batch, *A.in_shape).
    """
    x = y.new_zeros(y.shape[0], *A.in_shape) if x0 is None else x0
    for x in cgls_iterates(A, y, x0, max_iterations=max_iterations, tolerance=tolerance, weights=weights):  # noqa: B007
        pass
    return x


@torch.no_grad()
def cgls_iterates(
    A: LinearOperator,
    y: Tensor,
    x0: Tensor | None = None,
    *,
    max_iterations: int,
    tolerance: float = 0.0,
    weights: Tensor | None = None,
) -> Iterator[Tensor]:
    """The iterates 1, 2, ... of `cgls`, ended early when every member is done."""
    root = None if weights is None else weights.sqrt()
    s0 = A.H(y if weights is None else weights * y)
    _check(max_iterations, tolerance, s0, x0)
    x = torch.zeros_like(s0) if x0 is None else x0.clone()
    r = _times(root, y if x0 is None else y - A(x0))
    s = s0 if x0 is None else A.H(_times(root, r))
    p, ss = s, inner(s, s)
    goal = max(tolerance, _rounding(s0)) ** 2 * inner(s0, s0)
    for _ in range(max_iterations):
        active = _unmet(ss, goal)
        if not active.any():
            return
        q = _times(root, A(p))
        qq = inner(q, q)
        active &= ~(qq <= 0)
        alpha = _ratio(ss, qq, active)
        x = x + like(alpha, x) * p
        r = r - like(alpha, r) * q
        s = A.H(_times(root, r))
        ss, previous = torch.where(active, inner(s, s), 0), ss
        p = torch.where(like(active, p), s + like(_ratio(ss, previous, active), p) * p, p)
        yield x


def noise_weights(problem: Problem) -> tuple[Tensor | None, Tensor]:
    """Statistical weights of the data and the noise that they are relative to, for a problem with one batch dimension.

    The log-likelihood is −½ Σ wᵢ (A x − y)ᵢ² / σ² with σ the smallest noise of the member and w = (σ / σᵢ)² <= 1.

    Data that the operator does not see (`A.seen`) have no say in σ; their w is 0 to 1, and means nothing.

    Returns:
        w (batch, *A.out_shape), None where the noise is uniform; σ (batch,), 0 for noise-free members.

    Raises:
        ValueError: some data of a member are noise-free and others are not, so that no weights exist.
    """
    y, std = problem.y, torch.as_tensor(problem.noise_std, device=problem.y.device, dtype=problem.y.dtype)
    if std.ndim == 0:
        return None, std.expand(y.shape[0])
    std = std.expand(y.shape)
    if problem.A.seen is not None:
        seen = problem.A.seen.to(y.device)
        least = torch.where(seen, std, torch.inf).flatten(1).amin(1)
        std = torch.where(seen, std, like(torch.where(least.isfinite(), least, 1), std))
    least, most = std.flatten(1).amin(1), std.flatten(1).amax(1)
    if ((least == 0) & (most > 0)).any():
        raise ValueError(
            "noise_std is zero for some data of a member and positive for others: give those a small positive value"
        )
    if bool((least == most).all()):
        return None, least
    sigma = like(least, y)
    return torch.where(sigma > 0, (sigma / std) ** 2, 1.0), least


@functools.lru_cache(maxsize=64)
def mean_column_square(A: LinearOperator, probes: int = 8) -> float:
    """‖A‖_F² / n, the mean over pixels of what one pixel's squared trace in the data sums to; remembered.

    For CT it is proportional to the number of views and hardly depends on the size of the image, unlike ‖A‖².
    Estimated as E‖A z‖² with random signs z from a fixed seed (Hutchinson 1989); exact for operators that keep pixels
    apart.
    """
    rng = torch.Generator().manual_seed(0)
    z = torch.randint(2, (probes, *A.in_shape), generator=rng).float() * 2 - 1
    with torch.no_grad():
        return float(A(z).double().square().sum() / z.numel())


def _ratio(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """a / b where wanted, 0 elsewhere (also for 0 / 0)."""
    return torch.where(where, a / torch.where(where, b, 1), 0)


def _unmet(left: Tensor, goal: Tensor) -> Tensor:
    """Whether more than the goal is left of each member; of those that are not numbers always, so that they do not pass for solved."""
    return ~(left <= goal) | ~left.isfinite()


def _power_of_two(x: Tensor) -> Tensor:
    """The power of two next to each member's largest number, (batch,): scaling by it rounds nothing. 1 for members that are 0 or NaN."""
    largest = x.abs().flatten(1).amax(1) if x.numel() else x.new_zeros(len(x))
    _, exponent = torch.frexp(largest)
    return torch.where((largest > 0) & largest.isfinite(), torch.ldexp(torch.ones_like(largest), exponent - 1), 1)


def _rounding(x: Tensor) -> float:
    """Relative residual that is rounding only: further steps would blow it up along the null space of the matrix."""
    return 10 * torch.finfo(x.dtype).eps


def _times(w: Tensor | None, y: Tensor) -> Tensor:
    return y if w is None else w * y


def _check(max_iterations: int, tolerance: float, b: Tensor, x0: Tensor | None) -> None:
    if max_iterations < 0 or tolerance < 0:
        raise ValueError(f"max_iterations and tolerance must not be negative, got {max_iterations} and {tolerance}")
    if x0 is not None and x0.shape != b.shape:
        raise ValueError(f"x0 must have the shape {tuple(b.shape)}, got {tuple(x0.shape)}")
