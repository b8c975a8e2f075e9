"""At which steps to measure, or to look at a measurement, where that costs as much as many steps."""

from __future__ import annotations

from functools import lru_cache

from fisheropt.optim.group import Group

_FIRST = (0, 1, 2, 4, 8, 10)
_GROWTH = 13, 10  # in whole numbers, so that no rounding moves a step
_TENTH = 10

SOON = 10.0
"""In units of parameters and batch size, after how many samples the weights of gain="running" have risen."""


def scheduled(step: int, interval: int) -> bool:
    """Whether a step is measured: each a factor 1.3 after the one before, until that is `interval` steps.

    Args:
        step: its number, from 0.
        interval: the most steps between two measurements.
    """
    early = _early(interval)
    return step in early if step < early[-1] else (step - early[-1]) % interval == 0


@lru_cache
def _early(interval: int) -> tuple[int, ...]:
    """The steps up to the one after which they are `interval` apart."""
    steps = [0]
    for step in _FIRST[1:]:
        if step - steps[-1] >= interval:
            return tuple(steps)
        steps.append(step)
    while (grown := -(-steps[-1] * _GROWTH[0] // _GROWTH[1])) - steps[-1] < interval:
        steps.append(grown)
    return tuple(steps)


def looks(group: Group, dimension: int, reading: float) -> bool:
    """Whether a reading is asked if its gradient is clear of its noise, however small that gradient seems.

    Each is while weights rise, then each tenth.

    Args:
        group: the parameter group.
        dimension: d.
        reading: which one of the group's, from 1.
    """
    seen = group["samples"] - group["gain_from"] + group["count"]
    return bool(seen <= SOON * (dimension + group["count"]) or reading % _TENTH == 0)
