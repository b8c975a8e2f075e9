"""The data of a product: batches that can be gone through again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fisheropt.products.forward import sample_count


class Batch(NamedTuple):
    """Inputs and targets of `samples` samples; targets are None where the data have none."""

    inputs: Any
    targets: Any
    samples: int


@final
class Batches:
    """Iterates over data as batches on one device, and sees that every pass has the same number of samples.

    Args:
        data: an iterable of (inputs, targets), or of inputs alone, that can be iterated again.
        call: the user's call, for messages.
    """

    def __init__(self, data: Iterable[Any], call: str) -> None:
        if isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise TypeError(f"{call}: data is {type(data).__name__}, not batches; write data=[(inputs, targets)]")
        if isinstance(data, Iterator):
            raise TypeError(f"{call}: data is {type(data).__name__}, which one pass uses up; write data=list(data)")
        self.data, self.call = data, call
        self._samples: int | None = None

    @property
    def samples(self) -> int:
        """Number of samples of one pass."""
        if self._samples is None:
            self._agree(sum(self._read(batch).samples for batch in self.data))
        assert self._samples is not None
        return self._samples

    def on(self, device: torch.device) -> Iterator[Batch]:
        """One pass; its tensors are moved to the device."""
        total = 0
        for given in self.data:
            batch = self._read(given)
            total += batch.samples
            inputs, targets = tree_map_only(Tensor, lambda x: x.to(device), batch[:2])
            yield Batch(inputs, targets, batch.samples)
        self._agree(total)

    def _agree(self, samples: int) -> None:
        if samples == 0:
            raise ValueError(f"{self.call}: data has no batch")
        if self._samples not in (None, samples):
            raise ValueError(
                f"{self.call}: data had {self._samples} samples before and {samples} now, so that every product is of "
                f"another matrix; write data=list(loader)"
            )
        self._samples = samples

    def _read(self, given: Any) -> Batch:
        if isinstance(given, Tensor | Mapping):
            given = (given,)
        if not isinstance(given, tuple | list) or not 1 <= len(given) <= 2:
            raise TypeError(
                f"{self.call}: a batch is {type(given).__name__}, not (inputs, targets); write "
                f"data=[((x, mask), y) for x, mask, y in loader] for a model of several inputs"
            )
        inputs, targets = (*given, None)[:2]
        return Batch(inputs, targets, sample_count(inputs, self.call))
