"""The op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisheropt.kernels.kernel import Kernel, Sizes, accumulator, register, served
from fisheropt.kernels.norm_samples import reference

WIDEST = 16384
"""Features that one program holds in registers; of more the reference takes care."""


@torch.library.custom_op("fisheropt::norm_samples", mutates_args=())
def norm_samples(x: Tensor, g: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    """Σₜ gₙₜ x̂ₙₜ [n, i] and Σₜ gₙₜ [n, i] of x and g [n, t, i]; see the reference."""
    with torch.autocast(x.device.type, enabled=False):
        if not served(x, g) or x.shape[2] > WIDEST:
            return reference.norm_samples(x, g, eps, centred)
        from fisheropt.kernels.norm_samples import triton

        return triton.norm_samples(x, g, eps, centred)


@norm_samples.register_fake
def _(x: Tensor, g: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    h = x.new_empty(x.shape[0], x.shape[2], dtype=accumulator(x, g))
    return h, torch.empty_like(h)


def _example(sizes: Sizes, tensor: Callable[..., Tensor]) -> tuple[Any, ...]:
    n, t, _, i, k = sizes
    return tensor(n, t, i), tensor(n, t, i), 1e-5, k % 2 == 0


register(Kernel(norm_samples, reference.norm_samples, _example))
