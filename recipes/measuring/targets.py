"""What was aimed at, set before anything was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from recipes.measuring.optimizers import DEFAULTS
from recipes.measuring.statistics import COUNT

SMALL = ("mlp", "cnn", "transformer")
Quantity = Literal["time", "memory"]
TIME: Quantity = "time"
MEMORY: Quantity = "memory"


@final
@dataclass(frozen=True)
class Target:
    """A ratio to the plain call that should not be exceeded.

    Args:
        row: of the table.
        subject: the model.
        quantity: time or memory; of an optimizer amortised.
        most: the ratio.
        known: the best that was known, with a peer or a prototype.
    """

    row: str
    subject: str
    quantity: Quantity
    most: float
    known: str = ""

    def verdict(self, seen: float) -> str:
        """Met, or by how much it was missed."""
        return "met" if seen <= self.most else f"missed by {100 * (seen / self.most - 1):.0f} %"


def targets(device: str) -> Sequence[Target]:
    """Those of a CPU or of a GPU."""
    return _cpu() if device == "cpu" else _cuda()


def _cpu() -> Sequence[Target]:
    found = [
        *_over("noise trace", (1.08, 1.30, 1.15), ("1.08", "1.51", "1.26")),
        Target("noise trace, normalisation only", "transformer", TIME, 1.03, "1.03"),
        *_over(f"{COUNT} rank-one directions", (1.09, 1.35, 1.15), ("1.09", "1.60", "1.28")),
        Target(f"{COUNT} dense directions", "transformer", TIME, 1.25, "1.38"),
        Target(f"{COUNT} dense directions", "transformer", MEMORY, 1.10, "3.4"),
        *_over(f"top {COUNT} noise eigenpairs", (1.60, 1.50, 1.45), ("1.97", "1.65", "1.60")),
    ]
    return [*found, *_steps(SMALL)]


def _cuda() -> Sequence[Target]:
    """Projections from the work and the traffic of memory, of the model that is large enough to fill a GPU."""
    rows = {
        "noise trace": 1.10,
        "noise trace, normalisation only": 1.01,
        f"{COUNT} rank-one directions": 1.10,
        f"{COUNT} dense directions": 1.20,
        f"top {COUNT} noise eigenpairs": 1.50,
    }
    return [*(Target(row, "transformer12", TIME, most) for row, most in rows.items()), *_steps(("transformer12",))]


def _over(row: str, most: Sequence[float], known: Sequence[str]) -> list[Target]:
    return [Target(row, subject, TIME, m, k) for subject, m, k in zip(SMALL, most, known, strict=True)]


def _steps(subjects: Sequence[str]) -> list[Target]:
    times = [Target(row, subject, TIME, 1.05, "SINGD 1.3 to 2") for row in DEFAULTS for subject in subjects]
    return times + [Target(row, subject, MEMORY, 1.10) for row in DEFAULTS for subject in subjects]
