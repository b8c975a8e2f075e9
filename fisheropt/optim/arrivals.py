"""Which batches of a sampler the gradients of a step are of."""

from __future__ import annotations

from typing import final

from fisheropt.control import AdaptiveBatchSampler, Part

_IDLE = 10  # steps with no batch of the sampler, after which it is not a matter of the first ones


@final
class Arrivals:
    """Commits for each step what it was trained on, so that the sampler's position is that of the parameters.

    A loop that calls `sampler.commit()` by itself goes on doing so. One that accumulates several batches a step is found out
    by the first measurement, which counts their samples.

    Args:
        owner: class of the optimizer, for messages.
        sampler: that the loop draws from.
    """

    def __init__(self, owner: str, sampler: AdaptiveBatchSampler) -> None:
        self._owner, self._sampler = owner, sampler
        self._committed, self._seen = sampler.committed, sampler.samples_seen
        self._each, self._idle, self._own = 1, 0, False

    def next(self) -> Part | None:
        """The part of the data that this step's gradients are of; None where nobody knows.

        Raises:
            RuntimeError: if ten steps were taken and no batch came from the sampler.
        """
        sampler = self._sampler
        self._own = sampler.committed == self._committed
        waiting = sampler.outstanding
        if self._own and not waiting:
            self._check_drawn()
            return None
        number = min(self._each, len(waiting)) if self._own else 0
        whole = sum(waiting[:number]) if self._own else sampler.samples_seen - self._seen
        return self._settled(sampler.commit(number), whole)

    def counted(self, part: Part | None, samples: float) -> Part | None:
        """The same once a measurement has counted more: batches whose gradients were accumulated before this step.

        Args:
            part: what `next` gave.
            samples: in the gradients, of all ranks.
        """
        waiting, whole = self._sampler.outstanding, 0 if part is None else part.whole
        if part is None or not self._own or self._sampler.device_batch_size is not None or samples <= whole:
            return part
        for more in range(1, len(waiting) + 1):
            if whole + sum(waiting[:more]) == samples:
                self._each += more
                return self._settled(self._sampler.commit(more), round(samples))
        return part

    def _settled(self, part: Part, whole: int) -> Part:
        self._committed, self._seen = self._sampler.committed, self._sampler.samples_seen
        if self._sampler.device_batch_size is not None or whole <= part.whole:
            return part
        return Part(whole, whole)

    def _check_drawn(self) -> None:
        self._idle += 1
        if self._idle >= _IDLE and not self._sampler.committed:
            raise RuntimeError(
                f"{self._owner}(sampler=sampler) took {self._idle} steps and no batch came from the sampler; give the loop "
                f"the same object, DataLoader(data, batch_sampler=sampler)"
            )
