"""A schedule of the step size, played on the batch size at the same temperature."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.schedule import Schedule, check, factor_at, spending, spent_at


@final
@dataclass(frozen=True)
class EqualTemperature(Controller):
    """b <- b_0/f(n/N) in place of eta <- eta f(n/N), after Smith et al.: eta/b at n samples is the same.

    Over a linear decay that takes half the steps, N/(2 b_0). What a bound on b does not allow is left to the
    step, so that eta/b = (eta_0/b_0) f(n/N) always. The two runs are alike as long as eta/b is all that matters,
    which is so for plain gradients and steps well below the largest stable one.

    Reference: smith2018dont

    Args:
        schedule: f, "linear", "cosine", or a function of the part of the budget that is spent.
    """

    schedule: Schedule = "linear"
    name: ClassVar[str] = "equal_temperature"
    planned: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"budget"})

    def __post_init__(self) -> None:
        check("EqualTemperature", self.schedule)

    def initial_state(self) -> State:
        """b_0, the size at the first call; 0 before it."""
        return {"start": 0.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """b_0/f where that is allowed, and the rest by the step."""
        start, spent = state["start"] or float(moment.stay()), spent_at("EqualTemperature", moment)
        size, factor = _converted(factor_at(self.schedule, spent), start, moment.bounds)
        return Proposal(size, {"start": start}, factor, spending(spent))


def as_batches(
    schedule: Schedule, budget: int, batch_size: int, bounds: tuple[float, float] = (1.0, math.inf)
) -> list[tuple[int, float]]:
    """The whole plan in whole samples: sizes b_k with the factors eta_k/eta, so that eta_k/b_k = eta f(n_k/N)/b_0.

    Args:
        schedule: f, "linear", "cosine", or a function of the part of the budget that is spent.
        budget: N samples, which the sizes add up to.
        batch_size: b_0.
        bounds: smallest and largest batch size; the last batch may be smaller.
    """
    check("as_batches", schedule)
    if not (budget >= 1 and batch_size >= 1 and 1 <= bounds[0] <= bounds[1]):
        raise ValueError(
            f"as_batches(schedule, budget={budget}, batch_size={batch_size}, bounds={bounds}): needed are a budget and a "
            "size of at least 1, and 1 <= smallest <= largest."
        )
    plan, seen = [], 0
    while seen < budget:
        factor = factor_at(schedule, seen / budget)
        size, _ = _converted(factor, float(batch_size), bounds)
        whole = round(min(size, budget - seen))
        plan.append((whole, whole * factor / batch_size))
        seen += whole
    return plan


def _converted(factor: float, start: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """The size nearest to start/factor within the bounds, and the factor of the step that makes up for the rest."""
    wanted = start / factor if factor > 0.0 else math.inf
    size = min(max(wanted, bounds[0]), bounds[1])
    return size, 1.0 if size == wanted else size * factor / start
