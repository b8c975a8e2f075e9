"""The op."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fisheropt.kernels.kernel import Kernel, Sizes, accumulator, register, served
from fisheropt.kernels.rank_one_project import reference


@torch.library.custom_op("fisheropt::rank_one_project", mutates_args=())
def rank_one_project(g: Tensor, a: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """⟨Σₜ gₙₜ aₙₜᵀ, p_k q_kᵀ⟩ [n, k] of g [n, t, o], a [n, t, i], p [k, o] and q [k, i]; see the reference."""
    with torch.autocast(g.device.type, enabled=False):
        if not served(g, a, left, right):
            return reference.rank_one_project(g, a, left, right)
        from fisheropt.kernels.rank_one_project import triton

        return triton.rank_one_project(g, a, left, right)


@rank_one_project.register_fake
def _(g: Tensor, a: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return g.new_empty(g.shape[0], left.shape[0], dtype=accumulator(g, a, left, right))


def _example(sizes: Sizes, tensor: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    n, t, o, i, k = sizes
    return tensor(n, t, o), tensor(n, t, i), tensor(k, o), tensor(k, i)


register(Kernel(rank_one_project, reference.rank_one_project, _example))
