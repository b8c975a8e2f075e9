"""The op."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fisheropt.kernels.kernel import Kernel, Sizes, accumulator, register, served
from fisheropt.kernels.outer_project import reference


@torch.library.custom_op("fisheropt::outer_project", mutates_args=())
def outer_project(g: Tensor, a: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Σₙ hₙ [o, i] and ⟨hₙ, v_k⟩ [n, k] of g [n, t, o], a [n, t, i] and v [k, o, i]; see the reference."""
    with torch.autocast(g.device.type, enabled=False):
        if not served(g, a, basis):
            return reference.outer_project(g, a, basis)
        from fisheropt.kernels.outer_project import triton

        return triton.outer_project(g, a, basis)


@outer_project.register_fake
def _(g: Tensor, a: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulator(g, a, basis)
    return g.new_empty(basis.shape[1:], dtype=dtype), g.new_empty(g.shape[0], basis.shape[0], dtype=dtype)


def _example(sizes: Sizes, tensor: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    n, t, o, i, k = sizes
    return tensor(n, t, o), tensor(n, t, i), tensor(k, o, i)


register(Kernel(outer_project, reference.outer_project, _example))
