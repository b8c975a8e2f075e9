"""How far into the data a run is: which parts were yielded, and up to where they count."""

from collections import deque
from typing import final

from fisheropt.control.parts import Part


@final
class Progress:
    """Counts whole batches: when yielded, or, from the first commit on, when committed.

    A batch of which some parts only count does not count yet. Their gradients are in no state, so whoever goes on
    from `seen` has to begin that batch anew.

    Workers fetch the same number of parts ahead all the time. More outstanding than at the iteration's first commit
    are a sign of parts that were trained on, or dropped, without a commit: such an iteration counts as a whole when it
    has come to its end. Without that sign what is outstanding at the end was fetched by a loop that broke off.
    """

    def __init__(self) -> None:
        self.commits = False
        self.committed = 0
        self.finished = False
        self._latest = Part(0, 0)
        self.restart(0)

    @property
    def seen(self) -> int:
        """Samples in all batches that count."""
        return self._counted if self.commits else self._yielded

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Sizes of the parts yielded and not committed, oldest first."""
        return tuple(part.samples for part in self._parts)

    @property
    def pending(self) -> list[int]:
        """Sizes of the batches begun that do not count yet, oldest first."""
        return [size for start, size in self._begun if start >= self.seen]

    def restart(self, position: int) -> None:
        """Begin an iteration at `position`; what was outstanding is forgotten."""
        self._counted = self._yielded = position
        self._parts: deque[Part] = deque()
        self._begun: deque[tuple[int, int]] = deque()
        self._ahead: int | None = None
        self._missed = False
        self.finished = False

    @property
    def over(self) -> bool:
        """Whether all that was yielded counts, so that the next iteration begins after it."""
        return self.finished and (self._missed or not self.commits)

    @property
    def position(self) -> int:
        """Where the next iteration begins."""
        return self._yielded if self.over else self.seen

    def take(self, part: Part) -> None:
        """A part is yielded."""
        if part.first:
            self._begun.append((self._yielded, part.whole))
        self._parts.append(part)
        self._missed |= self._ahead is not None and len(self._parts) > self._ahead
        if part.last:
            self._yielded += part.whole

    def commit(self, count: int) -> Part:
        """The oldest `count` outstanding parts count; from now on only committed ones do."""
        self.commits = True
        if count and self._ahead is None:
            self._ahead = len(self._parts)
        for _ in range(count):
            self._latest = self._parts.popleft()
            if self._latest.last:
                self._counted += self._begun.popleft()[1]
        self.committed += count
        return self._latest

    def load(self, position: int, commits: bool) -> None:
        """Go on from a saved position."""
        self.commits, self._latest = commits, Part(0, 0)
        self.restart(position)
