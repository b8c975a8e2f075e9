"""The gradient noise scale as a batch size."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, clip


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

    def initial_state(self) -> dict[str, float]:
        """Averages of V and A, not yet divided by the weight that they have."""
        return {"trace": 0.0, "signal": 0.0}

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
        """The ratio of the averages; the size in use while the averaged signal is not positive."""
        if reading is None or not reading.usable:
            return dict(state), clip(batch_size, bounds)
        kept = self.smoothing
        trace = kept * state["trace"] + (1.0 - kept) * reading.noise
        signal = kept * state["signal"] + (1.0 - kept) * reading.signal
        wanted = self.scale * trace / signal if signal > 0.0 else batch_size
        return {"trace": trace, "signal": signal}, clip(wanted, bounds)
