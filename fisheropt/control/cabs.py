"""CABS: a batch size coupled to the learning rate by the loss."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import LARGEST, Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.wish import granted, unchanged, words


@final
@dataclass(frozen=True)
class CABS(Controller):
    """b <- c eta V/L, with running averages of V and of the minibatch loss L, after Balles et al.

    The rule has a smallest loss of 0. Where the loss stays at L* > 0, b stays at c eta V/L* while the signal goes
    on falling: it does not anneal, and the last iterate keeps a temperature of L*/(c V) for ever.

    Reference: balles2017coupling

    Args:
        scale: c, by which L stands for ||grad L||_P^2 over the curvature; 1 in the original.
        smoothing: weight in [0, 1) of the past in both averages; 0.95 in the original.
    """

    scale: float = 1.0
    smoothing: float = 0.95
    name: ClassVar[str] = "cabs"
    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0.0 and 0.0 <= self.smoothing < 1.0):
            raise ValueError(f"{self!r}: scale is positive and smoothing in [0, 1); write CABS().")

    def initial_state(self) -> State:
        """Averages of V and L, not yet divided by the weight that they have; the factor of the step size."""
        return {"trace": 0.0, "loss": 0.0, "lr_factor": 1.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """The ratio of the averages times c eta; the size in use where V or a positive loss is missing.

        Beyond the largest batch the step falls at equal temperature.
        """
        if reading is None or not reading.usable or not 1.0 / LARGEST < moment.loss < LARGEST:
            return unchanged(state, moment)
        kept = self.smoothing
        trace = kept * state["trace"] + (1.0 - kept) * reading.noise
        loss = kept * state["loss"] + (1.0 - kept) * moment.loss
        size, factor = granted(self.scale * moment.lr * trace / loss, moment)
        said = words(reading.signal, reading.noise, moment.batch_size, factor)
        return Proposal(size, {"trace": trace, "loss": loss, "lr_factor": factor}, factor, said)
