"""A batch sampler whose batch size may change at any moment, with an exact position in the data."""

import operator
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import final

import torch
import torch.distributed
from torch.utils.data import Sampler

from fisheropt.control.order import IndexSource, MapDataset, order_of


@final
class AdaptiveBatchSampler(Sampler[list[int]]):
    """Yields batches of indices, for `DataLoader(dataset, batch_sampler=...)`, of a size that may change.

    Epochs laid end to end form one stream, and the position s in it, `samples_seen`, is all there is to
    know: epoch = s // n. The batch at s is the stream from s to s + b, cut at the epoch's end. So every index
    is yielded once an epoch, whatever sizes are set, and any number of ranks can go on from s.

    *Ranks.* Sizes are global; each rank yields every `num_replicas`-th index of the batch. Shares are
    disjoint, differ by one at most, and are never empty nor padded: fewer samples than ranks at the end of
    an epoch join the batch before (less than one sample a rank too many); an iteration that starts with
    fewer, on more ranks than before, runs on to the end of the next epoch. All ranks have to set the same
    sizes. Multiples of `num_replicas` keep the mean over ranks of mean gradients exact.

    *What counts as seen.* A batch counts when it is yielded. DataLoader workers fetch ahead, so there the
    loop, or the optimizer that has this sampler, calls `commit()` for each batch trained on: from the first
    call on (`commit(0)` before the loop will do) only committed batches count. A new size holds from the next
    batch yielded, after those fetched ahead, whose sizes `outstanding` has. `iter(sampler)` goes on where the
    counted batches end; after an iteration that ran to its end, with the next epoch.

    Args:
        sampler_or_dataset: data with a length and items, visited in permutations of our own; or a sized
            iterable of indices, such as a torch Sampler, visited in its order.
        batch_size: global batch size b at the start.
        max_batch_size: largest b; the length of the data when None.
        min_batch_size: smallest b; at least `num_replicas`.
        num_replicas: number of ranks; that of torch.distributed when None, or 1.
        rank: this process' rank; that of torch.distributed when None, or 0.
        seed: of the permutations, with the epoch. No global generator is touched.
    """

    def __init__(
        self,
        sampler_or_dataset: MapDataset | IndexSource,
        batch_size: int,
        *,
        max_batch_size: int | None = None,
        min_batch_size: int = 1,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        self._replicas, self._rank = _place(num_replicas, rank)
        self._order = order_of(sampler_or_dataset, self._replicas, _integer("seed", seed))
        self._bounds = _bounds(min_batch_size, max_batch_size, len(self._order), self._replicas)
        self._counted = 0
        self._ends: deque[int] = deque()
        self._commits = False
        self._finished = False
        self._turn = 0
        self.batch_size = batch_size

    @property
    def batch_size(self) -> int:
        """Global size of the next batch to be yielded; set it at any moment."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        size = _integer("batch_size", size)
        if not 1 <= size <= len(self._order):
            raise ValueError(
                f"AdaptiveBatchSampler: batch_size = {size}, but a batch has at least 1 and at most all "
                f"{len(self._order)} samples; set batch_size = {min(max(size, 1), len(self._order))}."
            )
        self._batch_size = min(max(size, self.min_batch_size), self.max_batch_size)

    @property
    def min_batch_size(self) -> int:
        """Smallest global batch, at least one sample a rank."""
        return self._bounds[0]

    @property
    def max_batch_size(self) -> int:
        """Largest global batch."""
        return self._bounds[1]

    @property
    def num_replicas(self) -> int:
        """Number of ranks that share a batch."""
        return self._replicas

    @property
    def samples_seen(self) -> int:
        """Samples in all batches that count, over all ranks and epochs."""
        return self._ends[-1] if self._ends and not self._commits else self._counted

    @property
    def epoch(self) -> int:
        """Whole passes over the data in `samples_seen`."""
        return self.samples_seen // len(self._order)

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Global sizes of the batches yielded by the running iteration and not committed, oldest first."""
        return tuple(stop - start for start, stop in pairwise([self._counted, *self._ends]))

    def __len__(self) -> int:
        """Batches left in the epoch if the size stays."""
        left = self._iteration_end(self.samples_seen) - self.samples_seen
        whole, rest = divmod(left, self._batch_size)
        return whole + (rest >= self._replicas or whole == 0)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from the position of what counts to the end of the epoch."""
        self._counted = self._ends[-1] if self._ends and self._finished else self.samples_seen
        self._order.forget_before(self._counted // len(self._order))
        self._restart()
        return self._batches(self._turn)

    def commit(self, batches: int = 1) -> None:
        """Count the oldest `batches` outstanding ones as seen, and from now on only committed ones.

        Call it for each batch trained on, also if its step was skipped (GradScaler) or took several batches.
        """
        batches = _integer("batches", batches)
        if not 0 <= batches <= len(self._ends):
            raise ValueError(
                f"AdaptiveBatchSampler.commit({batches}): {len(self._ends)} batches were yielded and not "
                "committed. Call commit() once for each batch that the DataLoader gave."
            )
        self._commits = True
        for _ in range(batches):
            self._counted = self._ends.popleft()
        self._order.forget_before(self.epoch)

    def state_dict(self) -> dict[str, int | list[int]]:
        """Position, batch size and order as plain ints and lists; the same on every rank.

        Over a dataset that is five numbers; over an index sampler also the indices of the epoch under way.
        """
        self._order.forget_before(self.epoch)
        return {
            "length": len(self._order),
            "samples_seen": self.samples_seen,
            "batch_size": self._batch_size,
            "commits": int(self._commits),
            **self._order.state_dict(),
        }

    def load_state_dict(self, state: dict[str, int | list[int]]) -> None:
        """Go to a saved position, ending a running iteration; the size is clipped to our own bounds."""
        length, seen = _entry(state, "length"), _entry(state, "samples_seen")
        size, commits = _entry(state, "batch_size"), _entry(state, "commits")
        if length != len(self._order):
            raise ValueError(
                f"AdaptiveBatchSampler.load_state_dict(state): it was saved over {length} samples, "
                f"this sampler has {len(self._order)}, so the position is void; start without loading it."
            )
        self._order.load_state_dict(state, seen // length)
        self.batch_size = size
        self._counted = seen
        self._commits = bool(commits)
        self._restart()

    def _restart(self) -> None:
        self._ends.clear()
        self._finished = False
        self._turn += 1

    def _batches(self, turn: int) -> Iterator[list[int]]:
        start, end = self._counted, self._iteration_end(self._counted)
        while start < end:
            if turn != self._turn:
                raise RuntimeError(
                    "AdaptiveBatchSampler: a newer iterator or load_state_dict has taken over; two at once "
                    "would repeat samples. Use one iterator at a time, or a second sampler."
                )
            stop = self._batch_end(start, end)
            self._ends.append(stop)
            yield self._share(start, stop)
            start = stop
        self._finished = turn == self._turn

    def _iteration_end(self, start: int) -> int:
        """End of the epoch under way, or of the next one where fewer samples than ranks are left in it."""
        length = len(self._order)
        end = (start // length + 1) * length
        return end if end - start >= self._replicas else end + length

    def _batch_end(self, start: int, end: int) -> int:
        stop = start + self._batch_size
        return stop if end - stop >= self._replicas else end

    def _share(self, start: int, stop: int) -> list[int]:
        """This rank's part of the stream from `start` to `stop`."""
        length = len(self._order)
        epochs = range(start // length, (stop - 1) // length + 1)
        parts = [self._order.epoch(e)[max(start - e * length, 0) : stop - e * length] for e in epochs]
        share: list[int] = torch.cat(parts)[self._rank :: self._replicas].tolist()
        return share


def _integer(name: str, value: int) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"AdaptiveBatchSampler: {name} = {value!r} is no int; write {name}=<a whole number>.")


def _entry(state: dict[str, int | list[int]], key: str) -> int:
    value = state.get(key)
    if not isinstance(value, int):
        raise ValueError(
            f"AdaptiveBatchSampler.load_state_dict(state): no whole number under {key!r}; "
            "give what state_dict() of an AdaptiveBatchSampler returned."
        )
    return value


def _place(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    if num_replicas is None and rank is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0
    if num_replicas is None or rank is None:
        raise ValueError(
            f"AdaptiveBatchSampler(..., num_replicas={num_replicas}, rank={rank}): give both, or neither to "
            "take them from torch.distributed."
        )
    if not 0 <= _integer("rank", rank) < _integer("num_replicas", num_replicas):
        raise ValueError(
            f"AdaptiveBatchSampler(..., num_replicas={num_replicas}, rank={rank}): rank runs from 0 to "
            "num_replicas - 1."
        )
    return num_replicas, rank


def _bounds(smallest: int, largest: int | None, length: int, replicas: int) -> tuple[int, int]:
    low = max(_integer("min_batch_size", smallest), replicas)
    high = length if largest is None else min(_integer("max_batch_size", largest), length)
    if smallest < 1 or low > high:
        raise ValueError(
            f"AdaptiveBatchSampler(..., min_batch_size={smallest}, max_batch_size={largest}): no size is "
            f"allowed for {length} samples on {replicas} ranks; needed is 1 <= min_batch_size <= "
            "max_batch_size and a sample for every rank."
        )
    return low, high
