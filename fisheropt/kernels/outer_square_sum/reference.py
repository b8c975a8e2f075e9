"""The definition."""

from __future__ import annotations

import torch
from torch import Tensor

from fisheropt.kernels.kernel import TILE, accumulator


def outer_square_sum(g: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σₙ hₙ, Σₙ hₙ² elementwise and ‖hₙ‖² for hₙ = Σₜ gₙₜ aₙₜᵀ, some samples at a time.

    Args:
        g: gradients of a layer's outputs, [n, t, o].
        a: the layer's inputs, [n, t, i].

    Returns:
        [o, i], [o, i] and [n], in float32 or wider.
    """
    wide = accumulator(g, a)
    total = g.new_zeros(g.shape[2], a.shape[2], dtype=wide)
    squares, lengths = torch.zeros_like(total), []
    tile = max(1, TILE // max(1, total.numel()))
    for left, right in zip(g.split(tile), a.split(tile), strict=True):
        h = left.to(wide).mT @ right.to(wide)
        total += h.sum(0)
        h = h.square()
        squares += h.sum(0)
        lengths.append(h.sum((1, 2)))
    return total, squares, torch.cat(lengths)
