"""The op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisheropt.kernels.kernel import Kernel, Sizes, register, served
from fisheropt.kernels.sgd_update import reference


@torch.library.custom_op("fisheropt::sgd_update", mutates_args=("parameters", "buffers"))
def sgd_update(
    parameters: list[Tensor],
    directions: list[Tensor],
    buffers: list[Tensor],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """One step of SGD against `directions`, in place; see the reference."""
    update = reference.sgd_update
    if parameters and served(*parameters, *directions, *buffers) and not _capturing(parameters[0]):
        from fisheropt.kernels.sgd_update import triton

        update = triton.sgd_update
    update(parameters, directions, buffers, lr, momentum, dampening, weight_decay, nesterov, maximize)


@sgd_update.register_fake
def _(
    parameters: list[Tensor],
    directions: list[Tensor],
    buffers: list[Tensor],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    return None


def _capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is recorded, which would keep the addresses of this step's gradients."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _example(sizes: Sizes, tensor: Callable[..., Tensor]) -> tuple[Any, ...]:
    """Of three shapes; the sizes choose among the settings."""
    n, t, o, i, k = sizes
    momentum, nesterov, maximize = (0.0, False, k % 2 == 0) if k == 0 else (0.9, k % 2 == 0, t == 1)
    shapes = ((o, i), (n, t), (i,))
    several = [[tensor(*shape) for shape in shapes] for _ in range(3)]
    dampening, decay = 0.0 if nesterov else 0.1, 0.01 if n % 2 else 0.0
    return several[0], several[1], several[2] if momentum else [], 0.1, momentum, dampening, decay, nesterov, maximize


register(Kernel(sgd_update, reference.sgd_update, _example, mutates=(0, 2)))
