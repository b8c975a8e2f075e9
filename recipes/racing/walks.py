"""The loop of the race: the same for every entrant, with a clock that runs while it trains."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recipes.racing.case import Case

Make = Callable[[nn.Module, float, Case], Sequence[Optimizer]]
"""From a model, a learning rate and the case to the optimizers that share the model's parameters."""


@final
@dataclass(frozen=True)
class Point:
    """Where a run is.

    Attributes:
        passes: over the data so far.
        seconds: of one core, spent on training alone.
        value: of the case's objective.
    """

    passes: float
    seconds: float
    value: float


@final
class Loop:
    """A model in training.

    The clock is the processor time of this process: where others use the machine too, it is what the wall clock of an idle
    one would show, as torch has one thread here.
    """

    def __init__(self, case: Case, make: Make, lr: float, seed: int, *, planned: int | None = None) -> None:
        torch.manual_seed(seed)
        self.case = case
        self._planned = planned or case.planned
        self.model = case.model(seed)
        self.parameters = list(self.model.parameters())
        self.optimizers = list(make(self.model, lr, case))
        self.seconds = 0.0
        self.taken = 0
        self.seen = 0
        self._order = case.order(seed)
        self._rates = [(group, group["lr"]) for optimizer in self.optimizers for group in optimizer.param_groups]
        self._ridge = 0.0 if any(group.get("weight_decay") for group, _ in self._rates) else case.ridge

    def advance(self, steps: int) -> None:
        """Take so many steps; batches are laid out before the clock starts."""
        batches = [next(self._order) for _ in range(steps)]
        began = time.process_time()
        for batch in batches:
            self._step(batch)
        self.seconds += time.process_time() - began

    def _step(self, batch: tuple[Tensor, ...]) -> None:
        if self._planned is not None:
            left = 1.0 - self.taken / self._planned
            for group, rate in self._rates:
                group["lr"] = rate * left
        self.case.loss(self.model, batch).backward()
        if self._ridge:
            for parameter in self.parameters:
                parameter.grad.add_(parameter.detach(), alpha=self._ridge)
        for optimizer in self.optimizers:
            optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.taken += 1
        self.seen += len(batch[0])

    def value(self) -> float:
        """Of the case, now; where an optimizer keeps a mean of its iterates, as ASGD does, of that mean."""
        states = [optimizer.state for optimizer in self.optimizers]
        means = [(p, state[p]["ax"]) for state in states for p in self.parameters if "ax" in state.get(p, {})]
        if not means:
            return self.case.value(self.model)
        held = [p.detach().clone() for p, _ in means]
        _put([p for p, _ in means], [mean for _, mean in means])
        value = self.case.value(self.model)
        _put([p for p, _ in means], held)
        return value

    @property
    def passes(self) -> float:
        """Over the data so far."""
        return self.seen / self.case.samples


@torch.no_grad()
def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def minibatches(case: Case, make: Make, lr: float, seed: int, looks: float) -> Iterator[Point]:
    """Train without end, and look so many times a pass, at its end too."""
    loop = Loop(case, make, lr, seed)
    for look in count(1):
        wanted = max(round(look * case.steps / looks), loop.taken + 1)
        loop.advance(wanted - loop.taken)
        yield Point(loop.passes, loop.seconds, loop.value())


class _Enough(Exception):  # noqa: N818 - it ends a line search from inside the closure, and is no error
    """No more evaluations are wanted."""


def full_batch(case: Case, make: Make, lr: float, seed: int, passes: int, enough: float) -> Iterator[Point]:
    """Train on all data at once by a closure; each evaluation, of a line search too, is a pass and a point.

    It ends after `passes`, or where the objective is `enough`.
    """
    model = case.model(seed)
    (optimizer,) = make(model, lr, case)
    points: list[Point] = []
    spent, began = 0.0, time.process_time()

    def closure() -> Tensor:
        nonlocal spent, began
        spent += time.process_time() - began
        points.append(Point(len(points), spent, case.value(model)))
        if len(points) > passes or points[-1].value <= enough:
            raise _Enough
        began = time.process_time()
        optimizer.zero_grad()
        loss = case.loss(model, case.data)
        if case.ridge:
            loss = loss + 0.5 * case.ridge * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    with contextlib.suppress(_Enough):
        optimizer.step(closure)
    yield from points
