"""The definition: the arithmetic of torch.optim.SGD with foreach, rounding for rounding."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """One step in place: d ← ±d + λ p, b ← μ b + (1 - τ) d, p ← p - η b; with nesterov p ← p - η (d + μ b).

    Args:
        parameters: p, written to.
        directions: d, what to step against, before weight decay.
        buffers: b, written to; as many as parameters, or none where momentum is zero.
        lr: η.
        momentum: μ.
        dampening: τ.
        weight_decay: λ.
        nesterov: whether to look ahead.
        maximize: whether to go along the directions.
    """
    if not parameters:
        return
    steps = list(torch._foreach_neg(directions)) if maximize else directions
    if weight_decay:
        steps = list(torch._foreach_add(steps, parameters, alpha=weight_decay))
    if momentum:
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, steps, alpha=1 - dampening)
        steps = list(torch._foreach_add(steps, buffers, alpha=momentum)) if nesterov else buffers
    torch._foreach_add_(parameters, steps, alpha=-lr)
