"""The inner-product and orthogonality tests, on the trace and the participation of the noise."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.wish import granted, unchanged, words


@final
@dataclass(frozen=True)
class InnerProduct(Controller):
    """The larger b of V/(d theta^2 ||g||_P^2) and V (1 - 1/d)/(nu^2 ||g||_P^2), after Bollapragada et al.

    The original asks that Var <g_i, g> <= b theta^2 ||g||^4 along g, and that the variance across g is at most
    b nu^2 ||g||^2. A reading has no variance along one direction: V/d is taken, the mean over the d that share
    the noise. A baseline: it hardly reacts once d > 1/theta^2. In pure noise the first size is b/(theta^2 d), so
    it falls where the norm test's grows.

    Reference: bollapragada2018adaptive

    Args:
        theta: accepted ratio of the noise along g to ||g||.
        nu: accepted ratio of the noise across g to ||g||. Both defaults are quoted from memory.
    """

    theta: float = 0.9
    nu: float = 5.84
    name: ClassVar[str] = "inner_product"
    needs: ClassVar[frozenset[str]] = frozenset({"participation"})

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value > 0.0 for value in (self.theta, self.nu)):
            raise ValueError(f"{self!r}: theta and nu are positive numbers; write InnerProduct().")

    def initial_state(self) -> State:
        """The factor of the step size."""
        return {"lr_factor": 1.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """The larger of the two sizes; the one in use where nothing, or no participation, was measured.

        Beyond the largest batch the step falls at equal temperature.
        """
        if reading is None or not reading.usable or not reading.participation >= 1.0:
            return unchanged(state, moment)
        along = 1.0 / reading.participation
        excess = max(along / self.theta**2, (1.0 - along) / self.nu**2)
        gradient = reading.signal + reading.noise / moment.batch_size
        if not gradient > 0.0:
            return replace(unchanged(state, moment), batch_size=moment.bounds[1])
        size, factor = granted(reading.noise * excess / gradient, moment)
        said = words(reading.signal, reading.noise, moment.batch_size, factor)
        return Proposal(size, {"lr_factor": factor}, factor, said)
