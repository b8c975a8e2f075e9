"""The step around a direction by one kernel, on a GPU."""

from __future__ import annotations

from torch import Tensor

from fisheropt.kernels import on_cuda, sgd_update
from fisheropt.optim.group import Group


def fused(
    group: Group,
    parameters: list[Tensor],
    directions: list[Tensor],
    buffers: list[Tensor | None],
) -> bool:
    """Take the step in one pass over memory, and say whether it was taken.

    It rounds once where torch rounds after every operation, so it is no step of an optimizer that is to be torch's. Plain
    tensors on a GPU, whose momentum has begun and whose learning rate is a number, take it.

    Args:
        group: of the parameters.
        parameters: to change.
        directions: to step against, with weight decay and the sign of `maximize` in them.
        buffers: of the momentum, as many as parameters, or none.
    """
    if group["differentiable"] or group["foreach"] is False or isinstance(group["lr"], Tensor):
        return False
    begun = [b for b in buffers if b is not None]
    if len(begun) < len(buffers) or not on_cuda(*parameters, *directions, *begun):
        return False
    lr, momentum, dampening = group["lr"], group["momentum"], group["dampening"]
    sgd_update(parameters, directions, begun, lr, momentum, dampening, 0.0, group["nesterov"], False)
    return True
