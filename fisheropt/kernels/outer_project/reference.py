"""The definition."""

from __future__ import annotations

import torch
from torch import Tensor

from fisheropt.kernels.kernel import TILE, accumulator


def outer_project(g: Tensor, a: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Σₙ hₙ and ⟨hₙ, v_k⟩ for hₙ = Σₜ gₙₜ aₙₜᵀ, some samples at a time.

    Args:
        g: gradients of a layer's outputs, [n, t, o].
        a: the layer's inputs, [n, t, i].
        basis: directions v, [k, o, i].

    Returns:
        [o, i] and [n, k], in float32 or wider.
    """
    wide = accumulator(g, a, basis)
    total, coordinates = g.new_zeros(basis.shape[1:], dtype=wide), []
    vectors = basis.to(wide).flatten(1).T
    tile = max(1, TILE // max(1, total.numel()))
    for left, right in zip(g.split(tile), a.split(tile), strict=True):
        h = left.to(wide).mT @ right.to(wide)
        total += h.sum(0)
        coordinates.append(h.flatten(1) @ vectors)
    return total, torch.cat(coordinates)
