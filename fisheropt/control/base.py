"""What every batch-size controller is: a deterministic map of (state, reading) to (state, batch size).

Legend: A = ||grad L||_P^2, V = tr(PG) a sample, d = V^2/tr((PG)^2), b batch size, eta step size.
"""

import abc
from dataclasses import dataclass
from typing import ClassVar

LARGEST = 1e100


@dataclass(frozen=True)
class GradientNoise:
    """One measurement of signal and noise of the gradient in the metric P, at the parameters before the step.

    Args:
        signal: unbiased estimate of A = ||grad L||_P^2; negative where noise wins.
        noise: unbiased estimate of V = tr(PG), the variance of one sample's gradient.
        participation: d = V^2/tr((PG)^2), the number of directions that share the noise; nan if unknown.
        batch_size: samples in the measurement, which is what its error depends on.
    """

    signal: float
    noise: float
    participation: float
    batch_size: int

    @property
    def usable(self) -> bool:
        """Whether it says anything: numbers, some noise, and their squares within the range of a float."""
        return abs(self.signal) < LARGEST and 1.0 / LARGEST < self.noise < LARGEST


class Controller(abc.ABC):
    """Proposes batch sizes. Subclasses are frozen dataclasses of hyper-parameters, in a file of their own.

    A controller holds no history: that is in `state`, plain floats, so that it can live in a parameter group
    and is saved with the optimizer.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def initial_state(self) -> dict[str, float]:
        """State before the first reading."""

    @abc.abstractmethod
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
        """New state and the real-valued size of the next batch, within the bounds.

        Args:
            state: from `initial_state` or the last call; not changed.
            reading: of the gradient with which the present step is made; None where it was not measured.
            lr: eta of that step, theta <- theta - eta P g (with momentum m: lr/(1 - m)).
            batch_size: b of that step.
            samples: samples seen, this batch included.
            bounds: smallest and largest batch size.
        """


def clip(value: float, bounds: tuple[float, float]) -> float:
    """The number nearest to `value` within the bounds."""
    return min(max(value, bounds[0]), bounds[1])
