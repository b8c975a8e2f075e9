"""From a controller's proposal to what happens: the sampler's batch size first, then the length of the step.

    b ← quantise(b*),    step ← share · step,    share = factor · b/(bη + b*(1 - η)) for a batch b shorter than b*

The state is in the first parameter group: the controller's numbers, what it proposed, and the last changes.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch

from fisheropt.control import AdaptiveBatchSampler, Controller, GradientNoise, Moment, Part, quantise, resolve
from fisheropt.optim.group import Group, number

_UNBOUNDED = 1 << 30
_FASTEST = 0.9  # the rules are for steps η < 1 in a metric near H⁻¹; where η is in other units they are given this
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
    ) -> None:
        self.controller = None if controller is None else resolve(controller)
        self.sampler, self.budget, self.advise = sampler, budget, advise
        if budget is not None and budget < 1:
            raise ValueError(f"{owner}(budget={budget}): the samples planned in all are a whole number >= 1")
        if self.controller is not None and "budget" in self.controller.needs and budget is None:
            raise ValueError(
                f"{owner}(controller={self.controller.name!r}) plans up to the end of training and has to know when that is; "
                f"write {owner}(..., budget=epochs * len(data)), in samples"
            )
        self._committed = 0 if sampler is None else sampler.committed
        self.why = ""  # here, as torch.compile would compile the step anew for each new word in a group

    @property
    def name(self) -> str | None:
        """Of the controller."""
        return None if self.controller is None else self.controller.name

    def wants(self, what: str) -> bool:
        """Whether the controller asks for "loss", "drift" or "sketches"."""
        return self.controller is not None and what in self.controller.needs

    def fresh(self) -> Group:
        """The state of a group before anything was measured."""
        return {
            "controller_state": {} if self.controller is None else self.controller.initial_state(),
            "proposed_batch_size": 0.0,
            "factor": 1.0,
            "share": 1.0,
            "changed": 0.0,
            "changes": torch.zeros(_REMEMBERED, len(CHANGE), dtype=torch.float64),
        }

    def arrive(self) -> Part | None:
        """The part of the data that this step's gradients are of; None where nobody knows.

        A loop that calls `sampler.commit()` by itself goes on doing so.
        """
        sampler = self.sampler
        if sampler is None:
            return None
        by_the_loop = sampler.committed != self._committed
        if not by_the_loop and not sampler.outstanding:
            return None
        part = sampler.commit(0 if by_the_loop else 1)
        self._committed = sampler.committed
        return part

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
        lr = number(first["lr"]) / (1 - first["momentum"])
        lr = min(lr, _FASTEST) if controller.newton else lr
        wanted = first["proposed_batch_size"] or actual
        rate = min(lr, 1.0)
        share = first["factor"] * (actual / (actual * rate + wanted * (1 - rate)) if actual < wanted else 1.0)
        for group in groups:
            group["share"] = 1.0 if self.advise else share
        in_use = actual if self.sampler is None else self.sampler.batch_size
        data = None if self.sampler is None else self.sampler.data_size
        seen, bounds = self._samples(first, actual), self._bounds()
        moment = Moment(lr, actual, seen, bounds, self.budget, in_use=in_use, data_size=data, **facts)
        proposal = controller.propose(first["controller_state"], noise, moment)
        first["controller_state"], first["proposed_batch_size"] = proposal.state, proposal.batch_size
        first["factor"], self.why = proposal.lr_factor, proposal.why or self.why
        if self.sampler is not None and not self.advise:
            self._set(first, self.sampler, proposal.batch_size)

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

    def _samples(self, group: Group, actual: float) -> int:
        """Seen, this batch included."""
        return self.sampler.samples_seen if self.sampler is not None else round(group["samples"] + actual)

    def _bounds(self) -> tuple[float, float]:
        """Those of the sampler, but two samples a rank at least, as one has no noise to be seen."""
        if self.sampler is None:
            return 1, _UNBOUNDED
        hi = self.sampler.max_batch_size
        return min(max(self.sampler.min_batch_size, 2 * self.sampler.num_replicas), hi), hi


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
