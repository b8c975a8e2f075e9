"""The gradient noise scale as a batch size."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.wish import granted, unchanged, words


@final
@dataclass(frozen=True)
class NoiseScale(Controller):
    """b <- scale V/A, a multiple of the noise scale, after McCandlish et al.

    V and A are averaged apart and then divided: the mean of their ratios does not exist, as A may be zero. The
    sample-optimal multiple is eta/(1 - eta) in a metric P = H^-1; one for all step sizes anneals too late or early.

    Reference: mccandlish2018empirical

    Args:
        scale: multiple of V/A.
        smoothing: weight in [0, 1) of the past in both averages. Ours.
    """

    scale: float = 1.0
    smoothing: float = 0.9
    name: ClassVar[str] = "noise_scale"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0.0 and 0.0 <= self.smoothing < 1.0):
            raise ValueError(f"{self!r}: scale is positive and smoothing in [0, 1); write NoiseScale().")

    def initial_state(self) -> State:
        """Averages of V and A, not yet divided by the weight that they have; the factor of the step size."""
        return {"trace": 0.0, "signal": 0.0, "lr_factor": 1.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """The ratio of the averages; the size in use while the averaged signal is not positive.

        Beyond the largest batch the step falls at equal temperature.
        """
        if reading is None or not reading.usable:
            return unchanged(state, moment)
        kept = self.smoothing
        trace = kept * state["trace"] + (1.0 - kept) * reading.noise
        signal = kept * state["signal"] + (1.0 - kept) * reading.signal
        if not signal > 0.0:
            return unchanged(state | {"trace": trace, "signal": signal}, moment)
        size, factor = granted(self.scale * trace / signal, moment)
        said = words(signal, trace, moment.batch_size, factor)
        return Proposal(size, {"trace": trace, "signal": signal, "lr_factor": factor}, factor, said)
