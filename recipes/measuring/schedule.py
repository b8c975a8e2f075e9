"""What an optimizer costs that measures now and then: its ordinary and its measured steps, by its own schedule."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from fisheropt import FisherOptimizer
from recipes.medians import Interval, median_interval

FIRST = 10  # steps of the start, stated apart: all of them are measured by most schedules
HORIZON = 1000  # steps after the first ones that a share is of
NEVER = 10**9
_NORMAL = 1.96


def due(optimizer: FisherOptimizer, steps: Sequence[int]) -> list[bool]:
    """Whether an optimizer that has stepped already would measure at these steps.

    Args:
        optimizer: its first group is asked; it is left as it was.
        steps: numbers of steps from 0.
    """
    group: dict[str, Any] = optimizer.param_groups[0]
    kept, found = group["steps"], []
    for step in steps:
        group["steps"] = step
        found.append(bool(optimizer._due(group)))  # the schedule has no public name
    group["steps"] = kept
    return found


def share(optimizer: FisherOptimizer) -> float:
    """The share of measured steps among `HORIZON` after the first ones."""
    found = due(optimizer, range(FIRST, FIRST + HORIZON))
    return sum(found) / len(found)


def amortised(ordinary: Sequence[float], measured: Sequence[float], share: float) -> Interval:
    """(1 - s)·ordinary + s·measured for the share s of measured steps.

    Of ordinary steps the median over rounds, of measured ones the mean: some of them cost much more than others, as they
    decompose a matrix, and a median would leave that out. The interval is of 95 %, of the sum of both.

    Args:
        ordinary: ratios to a plain step, one a round.
        measured: the same of measured steps.
        share: from 0 to 1.
    """
    usual = median_interval(ordinary)
    assert usual is not None
    rare = mean(measured) if share else 0.0
    error = share * _NORMAL * stdev(measured) / len(measured) ** 0.5 if share and len(measured) > 1 else 0.0
    below, above = ((1 - share) * abs(usual.median - end) for end in (usual.low, usual.high))
    centre = (1 - share) * usual.median + share * rare
    low, high = centre - (below**2 + error**2) ** 0.5, centre + (above**2 + error**2) ** 0.5
    return Interval(centre, low, high, usual.seeds, usual.coverage)
