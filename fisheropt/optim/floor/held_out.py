"""Batches that are not trained on, for certificates: a fluctuation level holds at parameters that did not see the sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """One batch at a time, over and over, without touching any random state of the training.

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
        self.distinct = 0
        self._first = True
        self._iterator: Iterator[Any] | None = None

    def inputs(self, device: torch.device) -> Any:
        """The inputs of the next batch.

        Args:
            device: to bring them to.
        """
        with torch.random.fork_rng(devices=[]):
            batch = self._next()
        return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, _inputs(batch))

    def learn(self, group: Group, watch: Watch, decay: float) -> None:
        """Measure the next batch, into the running mean "held_information".

        Args:
            group: that is measured.
            watch: of the group.
            decay: by which earlier batches count less.
        """
        inputs = self.inputs(group["frame"].device)
        count = sample_count(inputs, "FisherFloorSGD(held_out=...)")
        self.distinct += count * self._first
        running.add(group, "held_information", watch.information(inputs), count, decay)

    def _next(self) -> Any:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self.batches)
            for batch in self._iterator:
                return batch
            self._iterator, self._first = None, self.distinct == 0
        raise ValueError("held_out= has no batches; give a loader, or a list of batches, that is not empty")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_iterator": None}


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
