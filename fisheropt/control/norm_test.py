"""The sampled norm test, in the metric and with the threshold that the step size asks for."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, clip


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

    def initial_state(self) -> dict[str, float]:
        """Nothing to remember."""
        return {}

    def propose(
        self,
        state: dict[str, float],
        reading: GradientNoise | None,
        *,
        lr: float,
        batch_size: float,
        samples: int,
        bounds: tuple[float, float],
    ) -> tuple[dict[str, float], float]:
        """V/(theta^2 (A + V/b)); the size in use where nothing was measured."""
        theta = self._threshold(lr)
        if reading is None or not reading.usable:
            return dict(state), clip(batch_size, bounds)
        gradient = reading.signal + reading.noise / batch_size
        wanted = reading.noise / (theta**2 * gradient) if gradient > 0.0 else math.inf
        return dict(state), clip(wanted, bounds)

    def _threshold(self, lr: float) -> float:
        if self.theta is not None:
            return self.theta
        if not 0.0 <= lr < 1.0:
            raise ValueError(
                f"NormTest().propose(lr={lr}): theta = 1 - lr needs 0 <= lr < 1, a step in a metric "
                "P ~ H^-1; lower lr, or fix the threshold: NormTest(theta=0.9)."
            )
        return 1.0 - lr
