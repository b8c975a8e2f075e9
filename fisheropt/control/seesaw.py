"""Half of a decay by the batch size and half by the step, for optimizers that normalise their gradients."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.schedule import Schedule, check, factor_at, spending, spent_at

ROUNDING = 1e-9
MOST_CUTS = 100


@final
@dataclass(frozen=True)
class Seesaw(Controller):
    """eta <- sqrt(a) eta and b <- b/a each time that a schedule has fallen by another factor a, after Meterez et al.

    The rule is for Adam and its like where noise dominates: there ||g|| ~ sqrt(V/b), a normalised step is as
    eta sqrt(b) in the units of SGD, and eta/sqrt(b) is the temperature. It is kept by the step alone beyond the
    largest batch. Plain SGD has the temperature eta/b, which this lowers by a^(3/2): use EqualTemperature there.

    Reference: meterez2025seesaw

    Args:
        schedule: f that is followed in cuts, "linear", "cosine", or a function of the part of the budget spent.
        cut: a, in (0, 1).
    """

    schedule: Schedule = "cosine"
    cut: float = 0.5
    name: ClassVar[str] = "seesaw"
    planned: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"budget"})

    def __post_init__(self) -> None:
        check("Seesaw", self.schedule)
        if not 0.0 < self.cut < 1.0:
            raise ValueError(f"{self!r}: cut is in (0, 1); write Seesaw(cut=0.5).")

    def kept(self, lr: float, wanted: float, actual: float) -> float:
        """All of it: the step size is the user's, or planned."""
        return 1.0

    def initial_state(self) -> State:
        """b_0, the size at the first call; 0 before it."""
        return {"start": 0.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """b_0/a^k after k cuts where that is allowed, and eta/sqrt(b) = a^k eta_0/sqrt(b_0)."""
        start, spent = state["start"] or float(moment.stay()), spent_at("Seesaw", moment)
        fallen = self.cut ** self._cuts(factor_at(self.schedule, spent))
        size = moment.clip(start / fallen)
        return Proposal(size, {"start": start}, fallen * math.sqrt(size / start), spending(spent))

    def _cuts(self, factor: float) -> int:
        """Whole cuts made: a^k >= f > a^(k + 1)."""
        if factor >= 1.0:
            return 0
        most = min(MOST_CUTS, math.floor(math.log(1e-30) / math.log(self.cut)))
        return min(math.floor(math.log(factor) / math.log(self.cut) + ROUNDING), most) if factor > 0.0 else most
