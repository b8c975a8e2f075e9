"""Where only parameters are given, one backward is one sample: the fallback that serves any model.

The gradient of the m-th backward is the difference of `p.grad` after and before it. Joint statistics are linear in it up
to their last step, so the differences are taken of k projections and no gradient is copied; but for a `Response`, which
needs the gradient itself.
"""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fisheropt.directions import Directions
from fisheropt.persample import Dense, PerSample
from fisheropt.statistics import JointStatistic, Moments, Statistic
from fisheropt.taps.base import Tap, Unit, joint_moments, of_parameter
from fisheropt.taps.collecting import collector
from fisheropt.taps.grams import Grams
from fisheropt.taps.layers import Layers
from fisheropt.taps.reduce import ranks, reduce_sum
from fisheropt.taps.scores import Scores
from fisheropt.taps.shards import cut, here, laid_out, total


@final
class MicrobatchTap(Tap):
    """Post-accumulate hooks on the parameters.

    Args:
        parameters: by name.
        statistic: what to collect.
    """

    unit: Unit = "microbatch"

    def __init__(self, parameters: dict[str, Tensor], statistic: Statistic) -> None:
        self.parameters = parameters
        self.statistic = statistic
        self.directions = statistic.directions(parameters) if isinstance(statistic, JointStatistic) else {}
        self.on = True
        self.clear()
        self.attach()

    def attach(self) -> None:
        self._handles: list[Any] = []
        for name, p in self.parameters.items():
            if p.requires_grad and not isinstance(p, DTensor):  # whose gradient comes once backward is over
                self._handles.append(p.register_hook(_BeforeAccumulation(self, name)))
                self._handles.append(p.register_post_accumulate_grad_hook(_AfterAccumulation(self, name)))

    def clear(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._share: Tensor | None = None
        self._scores = collector(self.statistic, self.directions)
        self._forms: dict[str, PerSample] = {}
        self._rows: list[Tensor] = []
        self._second: dict[str, Tensor] = {}
        self._sum: dict[str, Tensor] = {}
        self._backwards = 0
        self._running = False
        self._added = False

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_handles": []}  # a copied parameter has lost its hooks

    def drop_gradients(self) -> None:
        self.clear()

    def enable(self, on: bool = True) -> None:
        self.on = on

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def tapped(self, name: str) -> bool:
        """Whether the statistic has a part in this parameter."""
        return not isinstance(self.statistic, JointStatistic) or name in self.directions

    def begin(self, name: str) -> None:
        """Before a backward adds to `p.grad`, keep what it held; ask to be told of the backward's end."""
        if not self._running:
            self._running = True
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        held = self.parameters[name].grad
        if held is None:
            self._before.pop(name, None)
        else:
            self._before[name] = self._measure(name, held)

    def add(self, name: str) -> None:
        """Take in the gradient that a backward has just added to `p.grad`."""
        held = self.parameters[name].grad
        assert held is not None
        self._added = True
        self._add(name, self._measure(name, held) - self._before.get(name, 0.0))

    def _add(self, name: str, added: Tensor) -> None:
        if isinstance(self.statistic, JointStatistic):
            share = self._coordinates(name, added) if self._scores is not None else added
            self._share = share if self._share is None else self._share + share
            return
        self._sum[name] = self._sum.get(name, 0.0) + added
        self._second[name] = self._second.get(name, 0.0) + self._squared(added)

    def observed(self) -> bool:
        """Whether there is anything to read.

        On several ranks `p.grad` is what they share once backward is over, so the step's gradient is the observation: their
        own would let the ranks drift apart.
        """
        if self.on and (ranks() > 1 or cut(self.parameters.values())):
            self.clear()
            for name, parameter in self.parameters.items():
                if parameter.grad is not None and self.tapped(name):
                    self._add(name, self._measure(name, parameter.grad))
                    self._added = True
            if self._share is not None:
                self._share = total(self._share, self.parameters.values())
            self._running = True
        if self._running:  # also where a step is taken inside backward, once its one parameter has its gradient
            self._finish()
        return self._backwards > 0

    def _measure(self, name: str, grad: Tensor) -> Tensor:
        """What is differenced: the k coordinates of a gradient, or a copy of it."""
        wide = grad.detach().to(self.statistic.accumulator(grad))
        if self._scores is not None or not isinstance(self.statistic, JointStatistic):
            return here(wide).clone()
        return Dense(laid_out(wide).unsqueeze(0)).project(self.directions[name])[0]

    def _coordinates(self, name: str, added: Tensor) -> Tensor:
        """The coordinates of a gradient, which is kept until all parameters have theirs."""
        self._forms[name] = Dense(added.unsqueeze(0))
        return self._forms[name].project(self.directions[name])[0]

    def _squared(self, gradient: Tensor) -> Tensor:
        return of_parameter(self.statistic).of(Dense(gradient.unsqueeze(0)))

    def _finish(self) -> None:
        """At the end of a backward its coordinates are complete."""
        if not self._running:
            return
        self._running = False
        if not self._added:  # torch.autograd.grad, which leaves p.grad alone
            return
        self._added = False
        self._backwards += 1
        if self._share is not None:
            if self._scores is not None:
                self._scores.add(self._forms, self._share.unsqueeze(0), respond=True)
                self._forms = {}
            self._rows.append(self._share)
            self._share = None

    def aim(self, directions: dict[str, Directions]) -> None:
        self.directions.update(directions)

    def scores(self) -> Scores | None:
        return self._scores if isinstance(self._scores, Scores) else None

    def layers(self) -> Layers | None:
        return self._scores if isinstance(self._scores, Layers) else None

    def grams(self) -> Grams | None:
        return self._scores if isinstance(self._scores, Grams) else None

    def seen(self) -> int:
        if self._backwards == 0:
            raise RuntimeError("no backward() was seen since the last clear")
        return self._backwards

    def augmented(self) -> Tensor | None:
        if not self._rows:
            return None
        z = torch.stack(self._rows)
        z = torch.cat([z, z.new_ones(len(z), 1)], 1)
        return z.T @ z

    def sums(self, name: str | None) -> Moments:
        seen = self.seen()
        if name is None:
            return joint_moments(cast(Tensor, self.augmented()))
        parameter = self.parameters[name]
        zero = torch.zeros_like(here(parameter.detach()), dtype=self.statistic.accumulator(parameter))
        second, squared = self._second.get(name, self._squared(zero)), self._squared(self._sum.get(name, zero))
        if isinstance(parameter, DTensor):  # of this rank's rows; the optimizers measure traces, which add up
            second, squared = reduce_sum(torch.stack([second, squared])).unbind()
        return Moments(second, squared, seen, self.statistic.shape)

    def all_sums(self) -> dict[str, Moments]:
        return {name: self.sums(name) for name in self.parameters}


@final
class _BeforeAccumulation:
    def __init__(self, tap: MicrobatchTap, name: str) -> None:
        self.tap, self.name = tap, name

    def __call__(self, grad: Tensor) -> None:
        if self.tap.on and self.tap.tapped(self.name):
            self.tap.begin(self.name)


@final
class _AfterAccumulation:
    def __init__(self, tap: MicrobatchTap, name: str) -> None:
        self.tap, self.name = tap, name

    def __call__(self, parameter: Tensor) -> None:
        if self.tap.on and self.tap.tapped(self.name):
            self.tap.add(self.name)
