"""The definition."""

from __future__ import annotations

from torch import Tensor

from fisheropt.kernels.kernel import accumulator


def norm_samples(x: Tensor, g: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    """Σₜ gₙₜ x̂ₙₜ and Σₜ gₙₜ, the gradients of a scale and a shift for each sample.

    x̂ = (x - m) / √(mean (x - m)² + ε) over the last axis, m the mean (LayerNorm) or zero (RMSNorm).

    Args:
        x: the layer's inputs, [n, t, i].
        g: gradients of its outputs, [n, t, i].
        eps: ε.
        centred: whether the mean is taken off.

    Returns:
        [n, i] and [n, i], in float32 or wider.
    """
    wide = accumulator(x, g)
    normalised, _ = normalise(x.to(wide), eps, centred)
    return (g.to(wide) * normalised).sum(1), g.to(wide).sum(1)


def normalise(x: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    """The input normalised, and the inverse of the deviation that it was divided by."""
    x = x - x.mean(-1, keepdim=True) if centred else x
    inverse = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x * inverse, inverse
