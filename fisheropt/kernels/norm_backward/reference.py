"""The definition."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fisheropt.kernels.kernel import accumulator
from fisheropt.kernels.norm_samples.reference import normalise


class NormBackward(NamedTuple):
    """Gradients of the input [n, t, i], scale and shift [i]; of the latter two ‖hₙ‖² [n] and ⟨hₙ, v_k⟩ [n, k]."""

    input: Tensor
    scale: Tensor
    shift: Tensor
    scale_norms: Tensor
    shift_norms: Tensor
    scale_coordinates: Tensor
    shift_coordinates: Tensor


def norm_backward(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    scale_basis: Tensor,
    shift_basis: Tensor,
    eps: float,
    centred: bool,
) -> NormBackward:
    """The backward of y = w x̂ + b, with hₙ = Σₜ gₙₜ x̂ₙₜ of the scale w and Σₜ gₙₜ of the shift b.

    ∂x = (w g - x̂ mean(w g x̂) - mean(w g)) / σ; the last mean only where x̂ is centred.

    Args:
        x: the layer's inputs, [n, t, i].
        g: gradients of its outputs, [n, t, i].
        weight: w, [i]; none for ones.
        scale_basis: directions of the scale, [k, i].
        shift_basis: directions of the shift, [k, i].
        eps: ε under the root.
        centred: whether the mean is taken off, as LayerNorm does.

    Returns:
        The gradients; that of the input in its dtype, all else in float32 or wider.
    """
    wide = accumulator(x, g)
    hat, inverse = normalise(x.to(wide), eps, centred)
    given = g.to(wide)
    scales, shifts = (given * hat).sum(1), given.sum(1)
    given = given if weight is None else given * weight.to(wide)
    pulled = given - hat * (given * hat).mean(-1, keepdim=True)
    pulled = pulled - given.mean(-1, keepdim=True) if centred else pulled
    return NormBackward(
        (pulled * inverse).to(x.dtype).contiguous(),
        scales.sum(0),
        shifts.sum(0),
        scales.square().sum(1),
        shifts.square().sum(1),
        scales @ scale_basis.to(wide).T,
        shifts @ shift_basis.to(wide).T,
    )
