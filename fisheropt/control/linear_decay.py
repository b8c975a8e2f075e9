"""A step size that falls linearly to zero over the budget, at the batch size in use."""

from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.schedule import linear, spending, spent_at


@final
@dataclass(frozen=True)
class LinearDecay(Controller):
    """eta <- eta (1 - n/N), with n samples seen of N, and b as it is. The baseline of all schedules."""

    name: ClassVar[str] = "linear_decay"
    planned: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"budget"})

    def kept(self, lr: float, wanted: float, actual: float) -> float:
        """All of it: the step size is the user's, or planned."""
        return 1.0

    def initial_state(self) -> State:
        """Nothing to remember."""
        return {}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """The size in use, and what is left of the budget as the factor of the step."""
        spent = spent_at("LinearDecay", moment)
        return Proposal(moment.stay(), dict(state), linear(spent), spending(spent))
