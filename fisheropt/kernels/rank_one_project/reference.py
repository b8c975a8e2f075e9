"""The definition."""

from __future__ import annotations

from torch import Tensor

from fisheropt.kernels.kernel import accumulator


def rank_one_project(g: Tensor, a: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """⟨Σₜ gₙₜ aₙₜᵀ, p_k q_kᵀ⟩ = Σₜ (gₙₜ·p_k)(aₙₜ·q_k).

    Args:
        g: gradients of a layer's outputs, [n, t, o].
        a: the layer's inputs, [n, t, i].
        left: p, [k, o].
        right: q, [k, i].

    Returns:
        [n, k], in float32 or wider.
    """
    wide = accumulator(g, a, left, right)
    g, a, left, right = g.to(wide), a.to(wide), left.to(wide), right.to(wide)
    return ((g @ left.T) * (a @ right.T)).sum(1)
