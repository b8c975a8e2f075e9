"""Steps that a non-finite gradient must not take."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fisheropt.taps.reduce import reduce_sum
from fisheropt.taps.shards import cut, here


def all_finite(grads: list[Tensor]) -> dict[torch.device, Tensor]:
    """For each device whether every gradient there is finite, as a 0-dim bool tensor that nothing has waited for.

    A sum carries every nan and inf, and is the cheapest pass over memory; it is taken in float32 or wider, as in half
    precision it would overflow by itself. Of gradients that are cut among ranks all ranks have one answer.
    """
    held: dict[torch.device, list[Tensor]] = {}
    for g in grads:
        if g.numel() and not g.is_sparse:
            held.setdefault(g.device, []).append(here(g))
    found = {
        device: torch.stack([g.sum(dtype=torch.promote_types(g.dtype, torch.float32)) for g in own]).isfinite().all()
        for device, own in held.items()
    }
    if cut(grads):
        return {device: reduce_sum((~flag).float()) == 0 for device, flag in found.items()}
    return found


@final
class Undo:
    """Keeps tensors as they are, to put them back where a flag on their device says so, without reading it.

    Args:
        tensors: that the step is about to change in place.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = [_own(t) for t in tensors]
        self.kept = [t.clone() for t in self.tensors]

    def unless(self, flags: dict[torch.device, Tensor]) -> None:
        """Restore the tensors unless the flag of their device holds."""
        for tensor, kept in zip(self.tensors, self.kept, strict=True):
            tensor.copy_(torch.where(flags[tensor.device], tensor, kept))


def _own(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that are on this rank, a copy of another rank's included."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()
