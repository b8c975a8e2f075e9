"""Batches that are not trained on, for certificates: a fluctuation level holds at parameters that did not see the sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fisheropt.optim import running
from fisheropt.optim.floor.watch import Watch
from fisheropt.optim.group import Group
from fisheropt.products.forward import sample_count


@final
class HeldOut:
    """One batch a step for all groups, over and over, without touching any random state of the training.

    Args:
        batches: a loader or a list of batches, each the inputs or (inputs, labels).

    Raises:
        ValueError: for an iterator, which can be gone through once only.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        if isinstance(batches, Iterator) or not isinstance(batches, Iterable):
            raise ValueError(
                f"held_out={type(batches).__name__} cannot be gone through again and again; write held_out=loader, or a "
                f"list of batches"
            )
        self.batches = batches
        self.passes = self.position = 0
        self._iterator: Iterator[Any] | None = None
        self._current: Any = None

    @staticmethod
    def fresh() -> Group:
        """What a group keeps before any batch: how far the batches were gone through, and how many samples it has seen."""
        return dict.fromkeys(("held_pass", "held_position", "held_in_pass", "held_distinct"), 0.0)

    def resume(self, groups: list[Group]) -> None:
        """Go on where these groups were, after the batches that they have seen."""
        self.release()
        self._iterator = None
        self.passes, self.position = max((int(g["held_pass"]), int(g["held_position"])) for g in groups)

    def release(self) -> None:
        """Let the next group that asks have the next batch."""
        self._current = None

    def learn(self, group: Group, watch: Watch, decay: float) -> None:
        """Measure the batch of this step, into the running mean "held_information".

        Args:
            group: that is measured.
            watch: of the group.
            decay: by which earlier batches count less.
        """
        if self._current is None:
            with torch.random.fork_rng(devices=[]):
                self._current = (_inputs(self._next()),)
        device = group["frame"].device
        inputs = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, self._current[0])
        count = sample_count(inputs, "FisherFloorSGD(held_out=...)")
        self._note(group, count)
        running.add(group, "held_information", watch.information(inputs), count, decay)

    def _note(self, group: Group, count: int) -> None:
        """Samples of one pass are distinct, and a group that is not measured each time has not seen all of them."""
        seen = group["held_in_pass"] if group["held_pass"] == self.passes else 0.0
        group["held_pass"], group["held_position"] = float(self.passes), float(self.position)
        group["held_in_pass"] = seen + count
        group["held_distinct"] = max(group["held_distinct"], group["held_in_pass"])

    def _next(self) -> Any:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = islice(self.batches, self.position, None)
            for batch in self._iterator:
                self.position += 1
                return batch
            self._iterator, self.position = None, 0
            self.passes += 1
        raise ValueError("held_out= has no batches; give a loader, or a list of batches, that is not empty")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_iterator": None, "_current": None}


def _inputs(batch: Any) -> Any:
    """The inputs of (inputs, labels), of (inputs,), or the batch itself."""
    if not isinstance(batch, tuple | list):
        return batch
    if len(batch) > 2:
        raise ValueError(
            f"held_out= has batches of {len(batch)} parts; write batches of inputs, or of (inputs, labels), with several "
            f"inputs as a tuple or dictionary of their own"
        )
    return batch[0]
