"""Three constants of a machine, which turn work into time."""

from __future__ import annotations

from typing import NamedTuple

from fisheropt.cost.work import Work


class Machine(NamedTuple):
    """Seconds are the sum of three terms, none hidden behind another.

    Args:
        flop: seconds of a multiplication or an addition in a product of matrices.
        byte: seconds of a byte that is read or written.
        call: seconds until a small operation on tensors is done.
    """

    flop: float
    byte: float
    call: float

    def seconds(self, work: Work) -> float:
        """The expected time."""
        return self.flop * work.flops + self.byte * work.bytes + self.call * work.calls


_MACHINES = {
    "cpu": Machine(flop=1 / 62e9, byte=1 / 8e9, call=4e-6),
    "cuda": Machine(flop=1 / 30e12, byte=1 / 1.5e12, call=8e-6),
}
"""Ours. CPU: one thread of an AMD EPYC, from the times of products, squares and sums between 1 and 1e7 numbers; the byte
is one of fresh memory, as a temporary's are. CUDA: float32 of a data-centre GPU at half its peak, a call as Python issues it;
not measured. Only ratios of times are used."""


def machine(device: str) -> Machine:
    """The constants of a kind of device, those of a GPU for any that is no CPU.

    Args:
        device: its type, as in `tensor.device.type`.
    """
    return _MACHINES["cpu" if device in ("cpu", "meta") else "cuda"]
