"""The order in which an epoch visits the data: our own permutations, or those of an index sampler."""

import hashlib
from collections.abc import Iterator
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import (
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


class EpochOrder(Protocol):
    """Gives every epoch its order, a tensor of `len(self)` indices, and can save and restore it."""

    def __len__(self) -> int: ...

    def epoch(self, number: int) -> Tensor:
        """Order of epoch `number`, the same at every call."""
        ...

    def forget_before(self, number: int) -> None:
        """Declare that no epoch below `number` will be asked for again."""
        ...

    def state_dict(self) -> dict[str, int | list[int]]:
        """What `load_state_dict` needs, as plain ints and lists."""
        ...

    def load_state_dict(self, state: dict[str, int | list[int]], number: int) -> None:
        """Restore a state that was saved in epoch `number`."""
        ...


@runtime_checkable
class MapDataset(Protocol):
    """Data with a length and an item for every index below it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


@runtime_checkable
class IndexSource(Protocol):
    """A sized iterable of indices, such as a torch Sampler."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...


@final
class Permutations:
    """Epoch e is a permutation of range(length) drawn from (seed, e) alone, so nothing has to be stored."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._seed = seed
        self._drawn: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._length

    def epoch(self, number: int) -> Tensor:
        """Permutation of epoch `number`."""
        if number not in self._drawn:
            generator = torch.Generator().manual_seed(_mixed(self._seed, number))
            self._drawn[number] = torch.randperm(self._length, generator=generator)
        return self._drawn[number]

    def forget_before(self, number: int) -> None:
        """Free the permutations of the epochs below `number`."""
        self._drawn = {key: order for key, order in self._drawn.items() if key >= number}

    def state_dict(self) -> dict[str, int | list[int]]:
        """The seed."""
        return {"seed": self._seed}

    def load_state_dict(self, state: dict[str, int | list[int]], number: int) -> None:
        """Take over the seed; `number` is of no consequence here."""
        seed = state.get("seed")
        if not isinstance(seed, int):
            raise ValueError(
                "AdaptiveBatchSampler.load_state_dict(state): no seed in it, so it was saved over "
                "an index sampler, not a dataset as here; write AdaptiveBatchSampler(index_sampler, ...)."
            )
        self._seed = seed
        self._drawn = {}


@final
class DrawnOrders:
    """Epoch e is what the index sampler yields when e is first asked for; kept until the epoch is over.

    Its order cannot be drawn again, so the state holds the indices of the epoch under way. Later epochs are
    the index sampler's business: restore its generator too where they have to be the same.
    """

    def __init__(self, source: IndexSource) -> None:
        self._source = source
        self._length = len(source)
        self._drawn: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._length

    def epoch(self, number: int) -> Tensor:
        """Order of epoch `number`."""
        if number not in self._drawn:
            self._drawn[number] = self._draw()
        return self._drawn[number]

    def forget_before(self, number: int) -> None:
        """Free the orders of the epochs below `number`."""
        self._drawn = {key: order for key, order in self._drawn.items() if key >= number}

    def state_dict(self) -> dict[str, int | list[int]]:
        """The indices of the epochs drawn and not over, in one list."""
        return {"order": [index for key in sorted(self._drawn) for index in self._drawn[key].tolist()]}

    def load_state_dict(self, state: dict[str, int | list[int]], number: int) -> None:
        """Take over the indices of epoch `number` and those after it."""
        order = state.get("order")
        if not isinstance(order, list) or len(order) % self._length:
            raise ValueError(
                "AdaptiveBatchSampler.load_state_dict(state): no whole order in it, so it was saved "
                "over a dataset, not an index sampler as here; write AdaptiveBatchSampler(dataset, ...)."
            )
        epochs = torch.tensor(order, dtype=torch.int64).view(-1, self._length)
        self._drawn = {number + offset: epoch for offset, epoch in enumerate(epochs)}

    def _draw(self) -> Tensor:
        indices = list(self._source)
        if len(indices) != self._length:
            raise ValueError(
                f"AdaptiveBatchSampler({type(self._source).__name__}(...), ...): the index sampler announced "
                f"{self._length} indices and yielded {len(indices)}; its __len__ has to be what it yields."
            )
        return torch.tensor(indices, dtype=torch.int64)


def _mixed(seed: int, epoch: int) -> int:
    """A seed for (seed, epoch): torch keeps 32 bits, so seed + epoch would repeat orders between seeds."""
    digest = hashlib.blake2b(f"{seed},{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def order_of(source: MapDataset | IndexSource, replicas: int, seed: int) -> EpochOrder:
    """Our own permutations for a dataset, its own order for an index sampler, an error for the rest."""
    call = f"AdaptiveBatchSampler({type(source).__name__}(...), ...)"
    if isinstance(source, DistributedSampler):
        raise TypeError(
            f"{call}: a DistributedSampler has dealt to the ranks already, which is done here; "
            "write AdaptiveBatchSampler(dataset, batch_size, num_replicas=..., rank=...)."
        )
    if isinstance(source, IterableDataset) or not isinstance(source, MapDataset | IndexSource):
        raise TypeError(
            f"{call}: needed is a dataset with __len__ and __getitem__, or an index sampler with __len__ and "
            "__iter__; a stream has no epochs to divide. Set the batch size of a stream in its own loader."
        )
    if not len(source):
        raise ValueError(f"{call}: it is empty; give data with at least one sample.")
    if isinstance(source, MapDataset) and not isinstance(source, Sampler):
        return Permutations(len(source), seed)
    random = RandomSampler | SubsetRandomSampler | WeightedRandomSampler
    if isinstance(source, random) and replicas > 1 and source.generator is None:
        raise ValueError(
            f"{call} over {replicas} ranks: without a generator each rank draws another order and shares "
            f"overlap; write {type(source).__name__}(..., generator=torch.Generator().manual_seed(0))."
        )
    return DrawnOrders(source)
