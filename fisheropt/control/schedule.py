"""Schedules: the factor of the step size as a function of the part of the budget that is spent."""

import math
from collections.abc import Callable

from fisheropt.control.base import Moment

Schedule = str | Callable[[float], float]
"""A name, or a function of the spent part in [0, 1] with values >= 0; defined in a module if it has to be pickled."""


def linear(spent: float) -> float:
    """1 - s: from 1 to 0."""
    return 1.0 - spent


def cosine(spent: float) -> float:
    """(1 + cos(pi s))/2: from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * spent))


_KNOWN: dict[str, Callable[[float], float]] = {"linear": linear, "cosine": cosine}


def check(owner: str, schedule: Schedule) -> None:
    """Raise unless it is a known name or something to be called."""
    if not (callable(schedule) or schedule in _KNOWN):
        raise ValueError(
            f"{owner}(schedule={schedule!r}): known are {', '.join(map(repr, _KNOWN))}; "
            "write one of these, or a function of the spent part of the budget, in [0, 1]."
        )


def factor_at(schedule: Schedule, spent: float) -> float:
    """f(s), which has to be a number of at least 0."""
    factor = float(_KNOWN[schedule](spent) if isinstance(schedule, str) else schedule(spent))
    if not (math.isfinite(factor) and factor >= 0.0):
        raise ValueError(f"schedule({spent:g}) = {factor}: it has to return a finite number >= 0 from 0 to 1.")
    return factor


def spent_at(owner: str, moment: Moment) -> float:
    """The part of the budget that is spent when the next batch begins, at most 1."""
    if moment.budget is None or not moment.budget > 0:
        raise ValueError(
            f"{owner}().propose(state, reading, Moment(..., budget={moment.budget})): it plans over the whole training; "
            "write AdaptiveBatchSGD(..., budget=epochs * len(data)), in samples."
        )
    return min(moment.samples / moment.budget, 1.0)


def spending(spent: float) -> str:
    """The same in words."""
    return f"{100.0 * spent:.0f} % of the budget is spent"
