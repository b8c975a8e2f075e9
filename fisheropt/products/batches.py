"""The data of a product: batches that can be gone through again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fisheropt.products.forward import sample_count

_ROUNDING = 1e-9


class Batch(NamedTuple):
    """Inputs and targets of `samples` samples; targets are None where the data have none."""

    inputs: Any
    targets: Any
    samples: int


@final
class Batches:
    """Iterates over data as batches on one device, and sees that every pass has the same samples, in any order.

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
        self._pass: _Pass | None = None

    @property
    def samples(self) -> int:
        """Number of samples of one pass."""
        if self._pass is None:
            seen = _Pass()
            for given in self.data:
                seen.add(self._read(given))
            self._agree(seen)
        assert self._pass is not None
        return self._pass.samples

    def on(self, device: torch.device) -> Iterator[Batch]:
        """One pass; its tensors are moved to the device."""
        seen = _Pass()
        for given in self.data:
            batch = self._read(given)
            seen.add(batch)
            inputs, targets = tree_map_only(Tensor, lambda x: x.to(device), batch[:2])
            yield Batch(inputs, targets, batch.samples)
        self._agree(seen)

    def _agree(self, seen: _Pass) -> None:
        if seen.samples == 0:
            raise ValueError(f"{self.call}: data has no batch")
        if self._pass is not None and not seen.agrees(self._pass):
            before, now = self._pass.samples, seen.samples
            found = f"{before} samples before and {now} now" if before != now else f"{now} other samples before"
            raise ValueError(
                f"{self.call}: data had {found}, so that every product is of another matrix (as with drop_last and shuffle, "
                f"or augmentation); write data=list(loader)"
            )
        self._pass = self._pass or seen

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


@final
class _Pass:
    """What one pass has seen: the number of samples, and of inputs and targets the sums of x, |x| and x².

    Sums do not know the order, which may change; in float64 they differ by rounding alone where the samples are the same.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sums = torch.zeros(2, 3, dtype=torch.float64)

    def add(self, batch: Batch) -> None:
        self.samples += batch.samples
        self._sums = self._sums + torch.stack([_sums(batch.inputs), _sums(batch.targets)])

    def agrees(self, other: _Pass) -> bool:
        if self.samples != other.samples:
            return False
        mine, theirs = self._sums, other._sums
        scale = torch.stack([theirs[:, 1], theirs[:, 1], theirs[:, 2]], 1)
        return bool((((mine - theirs).abs() <= _ROUNDING * scale) | ~(mine + theirs).isfinite()).all())


def _sums(tree: Any) -> Tensor:
    """Sums of x, |x| and x² over all tensors, [3], on the host."""
    total = torch.zeros(3, dtype=torch.float64)
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            x = (torch.view_as_real(leaf) if leaf.is_complex() else leaf).detach().double()
            total = total + torch.stack([x.sum(), x.abs().sum(), x.square().sum()]).cpu()
    return total
