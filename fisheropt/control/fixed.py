"""No control: the batch size stays."""

from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, clip


@final
@dataclass(frozen=True)
class Fixed(Controller):
    """b <- b. The baseline, and the way to measure without acting."""

    name: ClassVar[str] = "fixed"

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
        """The size in use."""
        return dict(state), clip(batch_size, bounds)
