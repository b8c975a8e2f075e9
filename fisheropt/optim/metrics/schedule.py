"""At which steps to measure where a measurement costs as much as many steps."""

from __future__ import annotations

from functools import lru_cache

_FIRST = (0, 1, 2, 4, 8, 10)
_GROWTH = 13, 10  # in whole numbers, so that no rounding moves a step


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
