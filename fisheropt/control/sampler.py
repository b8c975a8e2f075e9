"""A batch sampler whose batch size may change at any moment, with an exact position in the data."""

from collections.abc import Iterator
from typing import final

import torch
from torch.utils.data import Sampler

from fisheropt.control.checked import bounds, device_bound, place, saved_number, saved_numbers, whole_number
from fisheropt.control.order import IndexSource, MapDataset, order_of
from fisheropt.control.parts import Part, divided, parts_of
from fisheropt.control.progress import Progress


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

    *Parts.* A batch of more than `device_batch_size` samples a rank is yielded in parts, equal within one sample a
    rank and equally many on all ranks. An optimizer that has this sampler adds their gradients up and steps after
    the last. The size of a batch under way stays: a new one holds from the next whole batch yielded.

    *What counts as seen.* Whole batches only. A batch counts when its last part is yielded. DataLoader workers
    fetch ahead, so there the loop, or the optimizer that has this sampler, calls `commit()` for each part trained on:
    from the first call on (`commit(0)` before the loop will do) only committed batches count. `iter(sampler)` goes on
    where the counted batches end; after an iteration that missed some commits and ran to its end, with the next
    epoch. A batch that was left between its parts comes again as a whole, as the gradients of its first parts are in
    no state; it and those fetched ahead, whose parts `outstanding` has, keep their sizes unless one is set before
    they come.

    A new DataLoader iterator draws a seed from the global generator. For a resumed run with dropout to be the same
    bit for bit, write DataLoader(..., generator=torch.Generator()).

    Args:
        sampler_or_dataset: data with a length and items, visited in permutations of our own; or a sized
            iterable of indices, such as a torch Sampler, visited in its order.
        batch_size: global batch size b at the start.
        max_batch_size: largest b; the length of the data when None.
        min_batch_size: smallest b; at least `num_replicas`.
        device_batch_size: largest number of samples of one rank in one forward; no limit when None.
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
        device_batch_size: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        self._replicas, self._rank = place(num_replicas, rank)
        self._order = order_of(sampler_or_dataset, self._replicas, whole_number("seed", seed))
        self._bounds = bounds(min_batch_size, max_batch_size, len(self._order), self._replicas)
        self._device_batch_size = device_bound(device_batch_size, self._replicas)
        self._progress = Progress()
        self._planned: list[int] = []
        self._turn = 0
        self.batch_size = batch_size

    @property
    def batch_size(self) -> int:
        """Global size of the next whole batch to be yielded; set it at any moment."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        size = whole_number("batch_size", size)
        if not 1 <= size <= len(self._order):
            raise ValueError(
                f"AdaptiveBatchSampler: batch_size = {size}, but a batch has at least 1 and at most all "
                f"{len(self._order)} samples; set batch_size = {min(max(size, 1), len(self._order))}."
            )
        self._batch_size = self._clip(size)
        self._planned = []

    @property
    def min_batch_size(self) -> int:
        """Smallest global batch, at least one sample a rank."""
        return self._bounds[0]

    @property
    def max_batch_size(self) -> int:
        """Largest global batch."""
        return self._bounds[1]

    @property
    def device_batch_size(self) -> int | None:
        """Largest number of samples of one rank in one forward."""
        return self._device_batch_size

    @property
    def num_replicas(self) -> int:
        """Number of ranks that share a batch."""
        return self._replicas

    @property
    def data_size(self) -> int:
        """Samples of an epoch, n."""
        return len(self._order)

    @property
    def samples_seen(self) -> int:
        """Samples in all whole batches that count, over all ranks and epochs."""
        return self._progress.seen

    @property
    def epoch(self) -> int:
        """Whole passes over the data in `samples_seen`."""
        return self.samples_seen // len(self._order)

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Global sizes of the parts yielded by the running iteration and not committed, oldest first."""
        return self._progress.outstanding

    @property
    def committed(self) -> int:
        """Parts committed since this sampler was made; in no state, for whoever wants to know if another has committed."""
        return self._progress.committed

    def __len__(self) -> int:
        """Parts left in the epoch if the size stays."""
        start, count = self.samples_seen, 0
        end, planned = self._iteration_end(start), self._plan()
        while planned and start < end:
            stop = self._batch_end(start, end, planned.pop(0))
            start, count = stop, count + self._parts(stop - start)
        whole, rest = divmod(end - start, self._batch_size)
        if whole and rest < self._replicas:
            whole, rest = whole - 1, rest + self._batch_size
        return count + whole * self._parts(self._batch_size) + (self._parts(rest) if rest else 0)

    def __iter__(self) -> Iterator[list[int]]:
        """Parts of batches from the position of what counts to the end of the epoch."""
        position, plan = self._progress.position, [] if self._progress.over else self._plan()
        self._order.forget_before(position // len(self._order))
        self._restart(position, plan)
        return self._batches(self._turn, position)

    def commit(self, batches: int = 1) -> Part:
        """Count the oldest `batches` outstanding parts as seen, and from now on only committed ones.

        Call it for each batch trained on, or part where batches come in parts, also if its step was skipped
        (GradScaler) or took several batches.

        Returns:
            The last part committed since this sampler was made or loaded; `Part(0, 0)` if there is none.
        """
        batches = whole_number("batches", batches)
        waiting = len(self.outstanding)
        if not 0 <= batches <= waiting:
            raise ValueError(
                f"AdaptiveBatchSampler.commit({batches}): {waiting} batches were yielded and not "
                "committed. Call commit() once for each batch, or part of one, that the DataLoader gave."
            )
        part = self._progress.commit(batches)
        self._order.forget_before(self.epoch)
        return part

    def state_dict(self) -> dict[str, int | list[int]]:
        """Position, batch sizes and order as plain ints and lists; the same on every rank.

        Over a dataset that is a few numbers; over an index sampler also the indices of the epoch under way.
        Of a batch under way the position is the start. `device_batch_size` belongs to the machine and is not saved.
        """
        self._order.forget_before(self.epoch)
        return {
            "length": len(self._order),
            "samples_seen": self.samples_seen,
            "batch_size": self._batch_size,
            "planned": self._plan(),
            "commits": int(self._progress.commits),
            **self._order.state_dict(),
        }

    def load_state_dict(self, state: dict[str, int | list[int]]) -> None:
        """Go to a saved position, ending a running iteration; sizes are clipped to our own bounds."""
        length, seen = saved_number(state, "length"), saved_number(state, "samples_seen")
        size, commits = saved_number(state, "batch_size"), saved_number(state, "commits")
        if length != len(self._order):
            raise ValueError(
                f"AdaptiveBatchSampler.load_state_dict(state): it was saved over {length} samples, "
                f"this sampler has {len(self._order)}, so the position is void; start without loading it."
            )
        planned = saved_numbers(state, "planned")
        self._order.load_state_dict(state, seen // length)
        self.batch_size = size
        self._progress.load(seen, bool(commits))
        self._restart(seen, planned)

    def _restart(self, position: int, planned: list[int]) -> None:
        self._progress.restart(position)
        self._planned = planned
        self._turn += 1

    def _plan(self) -> list[int]:
        """Sizes that the batches after `samples_seen` have already: they were begun, or were when the state was saved."""
        return self._progress.pending + self._planned

    def _batches(self, turn: int, start: int) -> Iterator[list[int]]:
        end = self._iteration_end(start)
        while start < end:
            for part in self._next_batch(turn, start, end):
                self._check(turn)
                self._progress.take(part)
                yield self._share(start, start + part.samples)
                start += part.samples
        if turn == self._turn:
            self._progress.finished = True

    def _next_batch(self, turn: int, start: int, end: int) -> list[Part]:
        self._check(turn)
        size = self._planned.pop(0) if self._planned else self._batch_size
        return divided(self._batch_end(start, end, size) - start, self._replicas, self._device_batch_size)

    def _check(self, turn: int) -> None:
        if turn != self._turn:
            raise RuntimeError(
                "AdaptiveBatchSampler: a newer iterator or load_state_dict has taken over; two at once "
                "would repeat samples. Use one iterator at a time, or a second sampler."
            )

    def _parts(self, whole: int) -> int:
        return parts_of(whole, self._replicas, self._device_batch_size)

    def _clip(self, size: int) -> int:
        return min(max(size, self.min_batch_size), self.max_batch_size)

    def _iteration_end(self, start: int) -> int:
        """End of the epoch under way, or of the next one where fewer samples than ranks are left in it."""
        length = len(self._order)
        end = (start // length + 1) * length
        return end if end - start >= self._replicas else end + length

    def _batch_end(self, start: int, end: int, size: int) -> int:
        stop = start + self._clip(size)
        return stop if end - stop >= self._replicas else end

    def _share(self, start: int, stop: int) -> list[int]:
        """This rank's part of the stream from `start` to `stop`."""
        length = len(self._order)
        epochs = range(start // length, (stop - 1) // length + 1)
        parts = [self._order.epoch(e)[max(start - e * length, 0) : stop - e * length] for e in epochs]
        share: list[int] = torch.cat(parts)[self._rank :: self._replicas].tolist()
        return share
