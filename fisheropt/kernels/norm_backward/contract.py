"""The op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisheropt.kernels.kernel import Kernel, Sizes, accumulator, register, served
from fisheropt.kernels.norm_backward import reference
from fisheropt.kernels.norm_samples.contract import WIDEST


@torch.library.custom_op("fisheropt::norm_backward", mutates_args=())
def norm_backward(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    scale_basis: Tensor,
    shift_basis: Tensor,
    eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the input, scale and shift, squared norms and coordinates of the latter two; see the reference."""
    with torch.autocast(x.device.type, enabled=False):
        if not served(x, g, scale_basis, shift_basis) or x.shape[2] > WIDEST:
            return reference.norm_backward(x, g, weight, scale_basis, shift_basis, eps, centred)
        from fisheropt.kernels.norm_backward import triton

        return triton.norm_backward(x, g, weight, scale_basis, shift_basis, eps, centred)


@norm_backward.register_fake
def _(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    scale_basis: Tensor,
    shift_basis: Tensor,
    eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, _, i = x.shape
    scale = x.new_empty(i, dtype=accumulator(x, g))
    return (
        x.new_empty(x.shape),
        scale,
        torch.empty_like(scale),
        scale.new_empty(n),
        scale.new_empty(n),
        scale.new_empty(n, scale_basis.shape[0]),
        scale.new_empty(n, shift_basis.shape[0]),
    )


def _example(sizes: Sizes, tensor: Callable[..., Tensor]) -> tuple[Any, ...]:
    n, t, o, i, k = sizes
    weight = tensor(i) if o % 2 else None
    return tensor(n, t, i), tensor(n, t, i), weight, tensor(k, i), tensor(k, i), 1e-5, k % 2 == 0


register(Kernel(norm_backward, reference.norm_backward, _example))
