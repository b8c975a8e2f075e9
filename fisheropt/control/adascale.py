"""AdaScale: longer steps for batches that were made larger than the learning rate was tuned for."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.wish import unchanged

SLOWEST = 1000.0


@final
@dataclass(frozen=True)
class AdaScale(Controller):
    """eta <- r eta with the gain r = (V/b_0 + A)/(V/b + A), between 1 and S = b/b_0, after Johnson et al.

    The user sets b; the rule leaves it. In pure noise r = S, which is the linear scaling rule; in pure signal
    r = 1, as a larger batch then shows nothing new. A step counts for r steps at b_0: the state's `progress` is
    their sum, to which schedules and the end of training refer. V and A are averaged with the weight 1 - S/1000 of
    the past, and a negative average of A is taken for 0.

    Reference: johnson2020adascale

    Args:
        base: b_0, the batch size for which the learning rate was tuned; None for the size at the first step.
    """

    base: float | None = None
    name: ClassVar[str] = "adascale"
    planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.base is not None and not (math.isfinite(self.base) and self.base > 0.0):
            raise ValueError(f"AdaScale(base={self.base}): b_0 is a positive number; write AdaScale(base=32).")

    def kept(self, lr: float, wanted: float, actual: float) -> float:
        """All of it: the step size is the user's, or planned."""
        return 1.0

    def initial_state(self) -> State:
        """b_0; averages of V and A; the samples and the progress so far; the gain in use."""
        return {"base": 0.0, "trace": 0.0, "signal": 0.0, "seen": 0.0, "progress": 0.0, "lr_factor": 1.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """The size in use and the gain at it, which stays as it is where nothing was measured."""
        state = self._counted(state, moment)
        size = moment.stay()
        scale = size / state["base"]
        if reading is not None and reading.usable:
            kept = max(1.0 - scale / SLOWEST, 0.0)
            trace = kept * state["trace"] + (1.0 - kept) * reading.noise
            signal = kept * state["signal"] + (1.0 - kept) * reading.signal
            state |= {"trace": trace, "signal": signal}
        elif not state["trace"]:
            return unchanged(state, moment)
        share = max(state["signal"], 0.0) * state["base"] / state["trace"]
        gain = (1.0 + share) / (1.0 / scale + share)
        said = "" if reading is None else f"a step is worth {gain:.3g} at the batch of {state['base']:g}"
        return Proposal(size, state | {"lr_factor": gain}, gain, said)

    def _counted(self, state: State, moment: Moment) -> State:
        """A new state with b_0 and with the steps made since the last call."""
        base = state["base"] or float(self.base or moment.stay())
        steps = max(round((moment.samples - state["seen"]) / moment.batch_size), 1) if state["seen"] else 1
        progress = state["progress"] + steps * state["lr_factor"]
        return state | {"base": base, "seen": float(moment.samples), "progress": progress}
