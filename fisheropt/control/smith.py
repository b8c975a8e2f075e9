"""Larger batches at given parts of the budget, in place of smaller steps."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.schedule import spending, spent_at

LARGEST_SHARE = 0.1


@final
@dataclass(frozen=True)
class Smith(Controller):
    """b <- factor b at each stage where a schedule would divide eta by factor, after Smith et al.

    That keeps the noise of their stochastic equation, eta (n/b - 1), where b << n. From b = n/10 on it is eta that
    is divided, as the rule of the paper ends there.

    Reference: smith2018dont

    Args:
        factor: of a stage, above 1. Ours; 5 is what is quoted of the paper from memory.
        stages: parts of the budget at which they begin, in (0, 1), rising. Ours.
        length: n, samples in the data set; None where only the sampler's bounds limit b.
    """

    factor: float = 4.0
    stages: tuple[float, ...] = (0.5, 0.75, 0.9)
    length: int | None = None
    name: ClassVar[str] = "smith"
    planned: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"budget"})

    def __post_init__(self) -> None:
        rising = list(self.stages) == sorted(set(self.stages)) and all(0.0 < stage < 1.0 for stage in self.stages)
        positive = self.length is None or self.length > 0
        if not (math.isfinite(self.factor) and self.factor > 1.0 and rising and positive):
            raise ValueError(
                f"{self!r}: factor is above 1, stages rise within (0, 1), length is positive; "
                "write Smith(factor=4.0, stages=(0.5, 0.75, 0.9), length=len(data))."
            )

    def initial_state(self) -> State:
        """b_0, the size at the first call; 0 before it."""
        return {"start": 0.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """b_0 factor^k in the k-th stage where that is allowed, and the rest by the step."""
        start, spent = state["start"] or float(moment.stay()), spent_at("Smith", moment)
        stage = sum(spent >= begin for begin in self.stages)
        wanted = start * self.factor**stage
        most = math.inf if self.length is None else max(LARGEST_SHARE * self.length, start)
        size = moment.clip(min(wanted, most))
        return Proposal(size, {"start": start}, size / wanted, spending(spent))
