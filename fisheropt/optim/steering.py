"""From a controller's proposal to what happens: the sampler's batch size first, then the length of the step.

    b ← quantise(b*),    step ← factor · kept(η, b*, b) · step

What was proposed and changed is in the first parameter group. The controller's own state, lists that grow among it, is here
and enters the group's copy in a state_dict only: torch.compile would compile the step anew for each of their changes.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch

from fisheropt.control import AdaptiveBatchSampler, Controller, GradientNoise, Moment, Part, quantise, resolve
from fisheropt.control.base import State
from fisheropt.optim.arrivals import Arrivals
from fisheropt.optim.group import Group, number

_UNBOUNDED = 1 << 30
_REMEMBERED = 64

CHANGE = ("step", "samples", "from", "to")


@final
class Steering:
    """Asks a controller at every step, and does what it says unless it is only to advise.

    Args:
        owner: class of the optimizer, for messages.
        controller: an object, a name, or None.
        sampler: whose `batch_size` is set.
        budget: N, samples planned in all; None where the controller does not ask for it.
        advise: log what would be done, and do nothing.
        metric: whether steps are made, and noise is measured, in a metric.

    Raises:
        ValueError: if the controller needs what is not given.
    """

    def __init__(
        self,
        owner: str,
        controller: Controller | str | None,
        sampler: AdaptiveBatchSampler | None,
        budget: int | None,
        advise: bool,
        metric: bool,
    ) -> None:
        self.controller = None if controller is None else resolve(controller)
        self.sampler, self.budget, self.advise = sampler, budget, advise
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
            raise ValueError(f"{owner}(budget={budget!r}): the samples planned in all are a whole number >= 1")
        if self.controller is not None and "budget" in self.controller.needs and budget is None:
            raise ValueError(
                f"{owner}(controller={self.controller.name!r}) plans up to the end of training and has to know when that is; "
                f"write {owner}(..., budget=epochs * len(data)), in samples"
            )
        if self.controller is not None and not metric:
            self._check_plain(owner, self.controller)
        self.arrivals = None if sampler is None else Arrivals(owner, sampler)
        self.state: State = {} if self.controller is None else self.controller.initial_state()
        self.why = ""

    @staticmethod
    def _check_plain(owner: str, controller: Controller) -> None:
        if controller.newton:
            raise ValueError(
                f"{owner}(controller={controller.name!r}) is a rule for Newton steps, η < 1 in a metric near H⁻¹, and is far "
                f"off in the units of plain SGD; write AdaptiveBatchSGD(..., metric='curvature', likelihood=...), "
                f"controller=fisheropt.control.NormTest(theta=0.9), or controller='go_h' with budget="
            )
        if "participation" in controller.needs:
            raise ValueError(
                f"{owner}(controller={controller.name!r}) needs the number of directions that share the noise, which is not "
                f"measured without a metric; write AdaptiveBatchSGD(..., metric='fisher'), or controller='go_h' with budget="
            )

    @property
    def name(self) -> str | None:
        """Of the controller."""
        return None if self.controller is None else self.controller.name

    @property
    def idle(self) -> bool:
        """Whether there is nothing to steer and nobody to tell of a batch."""
        return self.controller is None and self.arrivals is None

    def wants(self, what: str) -> bool:
        """Whether the controller asks for "loss", "drift" or "sketches"."""
        return self.controller is not None and what in self.controller.needs

    def fresh(self) -> Group:
        """The state of a group before anything was measured."""
        return {
            "controller_state": {},
            "proposed_batch_size": 0.0,
            "factor": 1.0,
            "share": 1.0,
            "acted_on": 0.0,
            "changed": 0.0,
            "changes": torch.zeros(_REMEMBERED, len(CHANGE), dtype=torch.float64),
        }

    def steer(self, groups: list[Group], noise: GradientNoise | None, part: Part | None, facts: dict[str, Any]) -> None:
        """Ask the controller, set the sampler, and say how much of its length each group's step keeps.

        Args:
            groups: all; the first is steered by.
            noise: of this step's gradient, None where it was not measured.
            part: of the data.
            facts: "loss" and "drift" of the step, "sketches".
        """
        controller, first = self.controller, groups[0]
        actual = part.whole if part is not None else first["count"]
        if controller is None or not actual:
            return
        lr = rate(first)
        wanted = first["proposed_batch_size"] if self.sampler is not None and first["proposed_batch_size"] else actual
        share = 1.0 if self.advise else first["factor"] * controller.kept(lr, wanted, actual)
        for group in groups:
            group["share"], group["acted_on"] = share, float(actual)
        proposal = controller.propose(self.state, noise, self._moment(first, lr, actual, facts))
        self.state = self._believed(proposal.state)
        first["proposed_batch_size"] = proposal.batch_size
        first["factor"], self.why = proposal.lr_factor, proposal.why or self.why
        if self.sampler is not None and not self.advise:
            self._set(first, self.sampler, proposal.batch_size)

    def _moment(self, group: Group, lr: float, actual: float, facts: dict[str, Any]) -> Moment:
        sampler = self.sampler
        return Moment(
            lr,
            actual,
            sampler.samples_seen if sampler is not None else round(group["samples"] + actual),
            self._bounds(),
            self.budget,
            in_use=actual if sampler is None else sampler.batch_size,
            data_size=None if sampler is None else sampler.data_size,
            **facts,
        )

    def _believed(self, state: State) -> State:
        """Where steps are not shortened, a rule that predicts them must not believe that they are."""
        return state | {"lr_factor": 1.0} if self.advise and "lr_factor" in state else state

    def _set(self, group: Group, sampler: AdaptiveBatchSampler, proposed: float) -> None:
        before = sampler.batch_size
        lo, hi = (round(bound) for bound in self._bounds())
        if self.controller is not None and self.controller.planned:
            size = min(max(round(proposed), lo), hi)
        else:
            size = quantise(before, proposed, lo, hi, multiple=sampler.num_replicas)
        size = _even(size, lo, hi, sampler)
        if size == before:
            return
        sampler.batch_size = size
        row = torch.tensor([group["steps"], sampler.samples_seen, before, size], dtype=torch.float64)
        group["changes"][int(group["changed"]) % _REMEMBERED] = row
        group["changed"] += 1

    def _bounds(self) -> tuple[float, float]:
        """Those of the sampler, but two samples a rank at least, as one has no noise to be seen."""
        if self.sampler is None:
            return 1, _UNBOUNDED
        hi = self.sampler.max_batch_size
        return min(max(self.sampler.min_batch_size, 2 * self.sampler.num_replicas), hi), hi


def rate(group: Group) -> float:
    """What momentum m and dampening d make of the learning rate in the long run, η (1 - d)/(1 - m)."""
    return number(group["lr"]) * (1 - number(group["dampening"])) / (1 - number(group["momentum"]))


def changes(group: Group) -> list[dict[str, float]]:
    """The last changes of the batch size, oldest first."""
    count = int(group["changed"])
    rows = [group["changes"][i % _REMEMBERED].tolist() for i in range(max(0, count - _REMEMBERED), count)]
    return [dict(zip(CHANGE, row, strict=True)) for row in rows]


def _even(size: int, lo: int, hi: int, sampler: AdaptiveBatchSampler) -> int:
    """The nearest size with equal shares for all ranks, and in all parts, if one lies within the bounds."""
    ranks, held = sampler.num_replicas, sampler.device_batch_size
    parts = 1 if held is None else math.ceil(size / (held * ranks))
    for multiple in (parts * ranks, ranks):
        even = multiple * round(size / multiple)
        if even and lo <= even <= hi and (held is None or even <= parts * held * ranks):
            return even
    return size
