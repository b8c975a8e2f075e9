"""How the calls of one parameter in one forward come together before anything is squared.

A statistic of each parameter by itself is not additive over calls: of a module called twice, or a weight that two modules
share, the sample's gradient is the sum over calls. So every call leaves its form, and one zero that all calls take as an
input gets its gradient when all of them have had theirs; at that point autograd asks for the statistic.
"""

from __future__ import annotations

from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fisheropt.persample import PerSample, joined
from fisheropt.statistics import ParameterStatistic
from fisheropt.taps.sink import Differentiated


class Gathered(Protocol):
    """What has collected the calls."""

    def reduced(self) -> tuple[Tensor, Tensor | None, int] | None:
        """Σₙ φ(hₙ), Σₙ hₙ and the number of samples; None if no call left anything."""
        ...


class Gather(torch.autograd.Function):
    """A zero whose gradient reaches three leaves as Σₙ φ(hₙ), Σₙ hₙ and the number of samples."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, total: Tensor, size: Tensor, gathered: Gathered) -> Tensor:
        ctx.gathered = gathered
        return size.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            reduced = ctx.gathered.reduced()
        if reduced is None:  # frozen between forward and backward
            return None, None, None, None
        second, total, samples = reduced
        return second, total, grads[0].new_full((), samples), None


@final
class Gathering:
    """The forms of one parameter's calls in one forward, as long as the backward runs that made them.

    Args:
        statistic: to reduce them by.
        passage: which counts the backwards that come by.
    """

    def __init__(self, statistic: ParameterStatistic, passage: Differentiated) -> None:
        self.statistic, self.passage = statistic, passage
        self._forms: list[PerSample] = []
        self._unsummed: list[PerSample] = []
        self._task = -1

    def open(self, leaf: Tensor, total: Tensor, size: Tensor) -> None:
        """Make the zero that all calls take."""
        self.sink: Tensor = Gather.apply(leaf, total, size, self)  # type: ignore[no-untyped-call]

    def keep(self, form: PerSample, summed: bool) -> None:
        """Leave the form of one call; those of a backward that never asked for the statistic are dropped.

        Args:
            form: of the call.
            summed: whether Σₙ hₙ of the call reaches its leaf by itself.
        """
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._forms, self._unsummed, self._task = [], [], task
        self._forms.append(form)
        if not summed:
            self._unsummed.append(form)

    def reduced(self) -> tuple[Tensor, Tensor | None, int] | None:
        """Σₙ φ(hₙ), Σₙ hₙ as far as the calls have not summed it, and the number of samples; None without any call."""
        self.passage.differentiate()
        forms, unsummed, self._forms, self._unsummed = self._forms, self._unsummed, [], []
        if not forms:
            return None
        form = joined(forms)
        total = (form if len(unsummed) == len(forms) else joined(unsummed)).sum() if unsummed else None
        return self.statistic.of(form), total, form.samples
