"""The op."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fisheropt.kernels.kernel import Kernel, Sizes, accumulator, register, served
from fisheropt.kernels.outer_square_sum import reference


@torch.library.custom_op("fisheropt::outer_square_sum", mutates_args=())
def outer_square_sum(g: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σₙ hₙ [o, i], Σₙ hₙ² [o, i] and ‖hₙ‖² [n] of g [n, t, o] and a [n, t, i]; see the reference."""
    with torch.autocast(g.device.type, enabled=False):
        if not served(g, a):
            return reference.outer_square_sum(g, a)
        from fisheropt.kernels.outer_square_sum import triton

        return triton.outer_square_sum(g, a)


@outer_square_sum.register_fake
def _(g: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = g.new_empty(g.shape[2], a.shape[2], dtype=accumulator(g, a))
    return total, torch.empty_like(total), total.new_empty(g.shape[0])


def _example(sizes: Sizes, tensor: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    n, t, o, i, _ = sizes
    return tensor(n, t, o), tensor(n, t, i)


register(Kernel(outer_square_sum, reference.outer_square_sum, _example))
