"""No control: the batch size stays."""

from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State


@final
@dataclass(frozen=True)
class Fixed(Controller):
    """b <- b. The baseline, and the way to measure without acting."""

    name: ClassVar[str] = "fixed"
    planned: ClassVar[bool] = True

    def kept(self, lr: float, wanted: float, actual: float) -> float:
        """All of it: the step size is the user's, or planned."""
        return 1.0

    def initial_state(self) -> State:
        """Nothing to remember."""
        return {}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """The size in use."""
        return Proposal(moment.stay(), dict(state))
