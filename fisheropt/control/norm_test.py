"""The sampled norm test, in the metric and with the threshold that the step size asks for."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.matched_step import matched_step
from fisheropt.control.wish import granted, unchanged, words


@final
@dataclass(frozen=True)
class NormTest(Controller):
    """b <- V/(theta^2 ||g||_P^2), after Byrd et al., with theta = 1 - eta in the metric of the step (ours).

    For P = H^-1 the sample-optimal size is eta/(1 - eta) V/A, and along it E||g||_P^2 = V/(b (1 - eta))
    while b grows by 1/(1 - eta) a step, so the sampled test has to be passed at theta = 1 - eta exactly; a
    theta that is right at one step size is an order of magnitude off at another. Each reading acts alone,
    without a memory.

    In pure noise E||g||_P^2 = V/b, hence b_next/b = 1/theta^2: for theta < 1 the size grows without end, for
    theta > 1 it falls to its bound. There is no fixed point in between.

    Reference: byrd2012

    Args:
        theta: accepted ratio of the noise's to the gradient's norm; None for 1 - eta, with eta < 1.
    """

    theta: float | None = None
    name: ClassVar[str] = "norm_test"

    def __post_init__(self) -> None:
        if self.theta is not None and not (math.isfinite(self.theta) and self.theta > 0.0):
            raise ValueError(f"NormTest(theta={self.theta}): theta is a positive number; write NormTest(theta=0.9).")

    @property
    def newton(self) -> bool:
        """Of steps eta < 1 in a metric P near H^-1, as theta = 1 - eta is."""
        return self.theta is None

    def kept(self, lr: float, wanted: float, actual: float) -> float:
        """As in `matched_step`, which loses no efficiency; at equal temperature for a given theta."""
        if not self.newton:
            return super().kept(lr, wanted, actual)
        return matched_step(lr, wanted, actual) / lr if lr and actual < wanted else 1.0

    def initial_state(self) -> State:
        """The factor of the step size."""
        return {"lr_factor": 1.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """V/(theta^2 (A + V/b)); the size in use where nothing was measured.

        Beyond the largest batch the step falls: at equal temperature for a given theta, which then asks for
        1/theta^2 batches at most; as in `matched_step` for theta = 1 - eta, with the eta of the last step made.
        """
        step = self._step(moment.lr) * state["lr_factor"]
        if reading is None or not reading.usable:
            return unchanged(state, moment)
        gradient = reading.signal + reading.noise / moment.batch_size
        if not gradient > 0.0:
            return replace(unchanged(state, moment), batch_size=moment.bounds[1])
        theta = 1.0 - step if self.theta is None else self.theta
        wanted = reading.noise / (theta**2 * gradient)
        size, factor = self._granted(wanted, step, state["lr_factor"], moment)
        said = words(reading.signal, reading.noise, moment.batch_size, factor)
        return Proposal(size, {"lr_factor": factor}, factor, said)

    def _granted(self, wanted: float, step: float, factor: float, moment: Moment) -> tuple[float, float]:
        """The size for the whole step eta: b* at a step e of n_0 + n samples is e/(1 - e) (n_0 + n)."""
        if self.theta is not None:
            return granted(wanted, moment)
        if factor < 1.0:
            wanted *= (1.0 - step) / ((1.0 - moment.lr) * factor)
        return granted(wanted, moment, moment.lr)

    def _step(self, lr: float) -> float:
        if self.theta is None and not 0.0 <= lr < 1.0:
            raise ValueError(
                f"NormTest().propose(state, reading, Moment(lr={lr}, ...)): theta = 1 - lr needs 0 <= lr < 1, a step "
                "in a metric P ~ H^-1; lower lr, or fix the threshold: NormTest(theta=0.9)."
            )
        return lr
