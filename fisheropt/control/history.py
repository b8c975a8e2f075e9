"""The last sketches of gradients, one a step, in one tensor of a parameter group.

A group, and not an attribute, because pickle, deepcopy, DCP and FSDP2 keep nothing else. The tensor has one shape from
the beginning, so that a saved state fits a fresh optimizer.

With momentum, gradients at lags below 1/(1 - momentum) are of parameters that still move by the older one: products mean
what the rules take them for at larger lags only. It is raw gradients that belong here, never momentum buffers.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

CAPACITY = 4096
"""Steps that are remembered. Rules that want to look back further look back as far as they can."""
WIDTH = 256


def fresh(capacity: int = CAPACITY, width: int = WIDTH) -> dict[str, Any]:
    """Entries of a group before the first step: 4 MB as they stand.

    Args:
        capacity: steps to remember.
        width: m of the sketch.
    """
    return {"sketches": torch.zeros(capacity, width), "sketched": 0}


def add(group: dict[str, Any], sketch: Tensor) -> None:
    """Remember the sketch [m] of this step, and forget the oldest if there is no room; in place, with no synchronisation.

    Raises:
        ValueError: for a sketch of another width than the history's.
    """
    rows = group["sketches"]
    if sketch.shape != rows.shape[1:]:
        raise ValueError(
            f"history.add(group, sketch of {tuple(sketch.shape)}): the history has sketches of {rows.shape[1]} numbers; "
            f"write CountSketch(width={rows.shape[1]}), or history.fresh(width={sketch.numel()})"
        )
    if rows.device != sketch.device:
        group["sketches"] = rows = rows.to(sketch.device)
    rows[group["sketched"] % len(rows)] = sketch
    group["sketched"] += 1


@final
class Ring:
    """A view of a group's history, with the newest sketch at 0.

    Args:
        group: with the entries of `fresh`.
    """

    def __init__(self, group: dict[str, Any]) -> None:
        self._rows: Tensor = group["sketches"]
        self._count: int = group["sketched"]

    @property
    def steps(self) -> int:
        """How many steps back it reaches, the present one included: those of the run, or the capacity."""
        return min(self._count, len(self._rows))

    def last(self, steps: int) -> Tensor:
        """The sketches [steps, m] of the last steps, oldest first.

        Raises:
            ValueError: beyond the history.
        """
        return torch.cat(self._window(0, steps))

    def mean(self, latest: int, steps: int) -> Tensor:
        """The mean sketch [m] of `steps` consecutive steps, of which the newest lies `latest` steps back.

        A direct sum: differences of running sums would be faster for long windows, and lose the digits that a lag
        product consists of.

        Raises:
            ValueError: beyond the history.
        """
        pieces = self._window(latest, steps)
        return torch.stack([piece.sum(0) for piece in pieces]).sum(0) / steps

    def _window(self, latest: int, steps: int) -> list[Tensor]:
        """One slice of the ring or two, in order of time."""
        if latest < 0 or steps < 1 or latest + steps > self.steps:
            raise ValueError(
                f"{steps} steps up to {latest} steps back: the history reaches {self.steps} steps back; give "
                f"latest >= 0 and steps >= 1 with latest + steps <= {self.steps}"
            )
        size = len(self._rows)
        start = (self._count - latest - steps) % size
        if start + steps <= size:
            return [self._rows[start : start + steps]]
        return [self._rows[start:], self._rows[: start + steps - size]]
