"""Steps that a non-finite gradient must not take."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def all_finite(grads: list[Tensor]) -> dict[torch.device, Tensor]:
    """For each device whether every gradient there is finite, as a 0-dim bool tensor that nothing has waited for.

    A sum carries every nan and inf, and is the cheapest pass over memory; it is taken in float32 or wider, as in half
    precision it would overflow by itself.
    """
    held: dict[torch.device, list[Tensor]] = {}
    for g in grads:
        if g.numel() and not g.is_sparse and not isinstance(g, DTensor):
            held.setdefault(g.device, []).append(g)
    return {
        device: torch.stack([g.sum(dtype=torch.promote_types(g.dtype, torch.float32)) for g in here]).isfinite().all()
        for device, here in held.items()
    }


@final
class Undo:
    """Keeps tensors as they are, to put them back where a flag on their device says so, without reading it.

    Args:
        tensors: that the step is about to change in place.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.kept = [t.clone() for t in tensors]

    def unless(self, flags: dict[torch.device, Tensor]) -> None:
        """Restore the tensors unless the flag of their device holds."""
        for tensor, kept in zip(self.tensors, self.kept, strict=True):
            tensor.copy_(torch.where(flags[tensor.device], tensor, kept))
