"""Matrices below and above the core information I = diag(p) - ppᵀ, and how far from it they are.

λ_C vvᵀ <= I <= diag(p). A low-rank form from vectors Q that are no eigenvectors stays below I when it is written
I Q (QᵀIQ)⁺ QᵀI (Cauchy-Schwarz); λ̂ qqᵀ does not.

Reference: sun2025
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisheropt.theory.simplex import (
    checked_probabilities,
    core,
    core_times,
    core_trace,
    largest_eigenvalue,
    largest_eigenvector,
    leading_vector,
)

POWER_STEPS = 10
"""Of `leading_vectors`; from a random start a rank-one form then holds .99 of λ_C on average."""


def upper_envelope(p: Tensor) -> Tensor:
    """diag(p) >= I, [..., C, C]."""
    return torch.diag_embed(checked_probabilities(p, "upper_envelope(p)"))


def lower_envelope(p: Tensor) -> Tensor:
    """λ_C vvᵀ <= I, the best matrix of rank one below I, [..., C, C]."""
    v = largest_eigenvector(p)
    return largest_eigenvalue(p)[..., None, None] * v[..., :, None] * v[..., None, :]


def upper_error(p: Tensor) -> Tensor:
    """|diag(p) - I|_F = |p|² >= 1/C, [...]."""
    return checked_probabilities(p, "upper_error(p)").square().sum(-1)


def lower_error(p: Tensor) -> Tensor:
    """|I - λ_C vvᵀ|_F = √Σ_{i<C} λᵢ², [...]."""
    difference = core(p) - lower_envelope(p)
    return difference.flatten(-2).norm(dim=-1)


def lower_error_bound(p: Tensor) -> Tensor:
    """|p without its largest entry| >= `lower_error`, [...]."""
    return checked_probabilities(p, "lower_error_bound(p)").sort(-1).values[..., :-1].norm(dim=-1)


def captured(p: Tensor) -> Tensor:
    """λ_C/tr I, the share that one rank holds, [...]; NaN at a corner, where I vanishes.

    As p tends to a corner with its rest spread evenly it tends to C/(2(C - 1)), not to one.
    """
    return largest_eigenvalue(p) / core_trace(p)


def leading_vectors(p: Tensor, rank: int, steps: int = POWER_STEPS) -> Tensor:
    """Vectors near the leading eigenvectors of I: the first from the secular equation, more by orthogonal iteration.

    Args:
        p: probabilities [..., C]; not checked, so that no value is read back.
        rank: k <= C.
        steps: of the iteration, which starts from the likeliest classes.

    Returns:
        [..., C, k], orthonormal.
    """
    first = leading_vector(p)[..., None]
    if rank == 1:
        return first
    places = p.topk(rank - 1, -1).indices
    others = torch.zeros(*p.shape, rank - 1, dtype=p.dtype, device=p.device).scatter(-2, places[..., None, :], 1)
    vectors = torch.linalg.qr(torch.cat([first, others], -1)).Q
    for _ in range(steps):
        vectors = torch.linalg.qr(core_times(p[..., None, :], vectors.mT).mT).Q
    return vectors


def low_rank_factor(p: Tensor, vectors: Tensor) -> Tensor:
    """A factor W with WWᵀ = I Q (QᵀIQ)⁺ QᵀI <= I, for any Q; for one vector q it is Iq/√(qᵀIq).

    Where rounding could make it too large it is made smaller by as much.

    Args:
        p: probabilities [..., C]; not checked, so that no value is read back.
        vectors: Q [..., C, k], of comparable lengths.

    Returns:
        [..., C, k].
    """
    vectors = vectors - vectors.take_along_dim(p.argmax(-1)[..., None, None], -2)
    images = core_times(p[..., None, :], vectors.mT).mT
    form = vectors.mT @ images
    values, turn = torch.linalg.eigh((form + form.mT) / 2)
    noise = values[..., -1:].clamp(min=0) * (8 * p.shape[-1] ** 0.5 * torch.finfo(p.dtype).eps)
    kept = values > noise.clamp(min=torch.finfo(p.dtype).tiny)
    scale = torch.where(kept, torch.where(kept, values + noise, 1).rsqrt(), 0)
    return images @ (turn * scale[..., None, :])


def low_rank(p: Tensor, vectors: Tensor) -> Tensor:
    """I Q (QᵀIQ)⁺ QᵀI [..., C, C], which is never above I.

    Args:
        p: probabilities [..., C], C >= 2.
        vectors: Q [..., C, k], any.
    """
    factor = low_rank_factor(checked_probabilities(p, "low_rank(p, vectors)"), vectors)
    return factor @ factor.mT
