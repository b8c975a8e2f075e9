"""What the tracks of convex sets and of mixtures share: passes and seconds until f - f* is small."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from recipes.racing.case import Case
from recipes.racing.entrants import Entrant
from recipes.racing.track import Outcome, Track
from recipes.racing.walks import Point, full_batch, minibatches

COARSE, FINE = 1e-4, 1e-6
LOOKS = 5  # in a pass
HOPELESS = (10.0, 1e-2)  # a trial that is above this gap after so many passes is given up
FULL = 10  # times as many passes for full-batch optimizers, whose passes are cheap
PATIENCE = 12.0  # passes after which a run that is within COARSE need not come within FINE


class ToTarget(Track):
    """Runs until f - f* ≤ FINE, or PATIENCE passes once f - f* ≤ COARSE, or `cap` passes; trials until COARSE."""

    def __init__(self, cap: float) -> None:
        self.cap = cap

    @abstractmethod
    def case(self, name: str) -> Case:
        """The case of that name, built once."""

    @abstractmethod
    def optimum(self, name: str) -> float:
        """f*."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"cap": self.cap}

    def run(self, case: str, entrant: Entrant, rate: float, seed: int, best: float | None = None) -> Outcome:
        race, optimum = self.case(case), self.optimum(case)
        cap = self.cap if best is None else min(self.cap, best)
        enough = FINE if best is None else COARSE
        if entrant.kind == "full batch":
            whole = full_batch(race, entrant.make, rate, seed, math.ceil(FULL * cap), optimum + enough)
            return reached(whole, optimum, FULL * cap, enough)
        points = minibatches(race, entrant.make, rate, seed, LOOKS)
        return reached(points, optimum, cap, enough, patience=PATIENCE, trial=best is not None)


def reached(
    points: Iterable[Point],
    optimum: float,
    cap: float,
    enough: float,
    *,
    patience: float = math.inf,
    trial: bool = False,
) -> Outcome:
    """When a run was first within COARSE and within FINE; None for never while it ran."""
    found: Outcome = {"epochs": None, "seconds": None, "fine_epochs": None, "fine_seconds": None, "gap": None}
    for point in points:
        gap = point.value - optimum
        if not math.isfinite(gap) or gap > 1e6:
            break
        found["gap"] = gap if found["gap"] is None else min(gap, found["gap"])
        if point.passes > cap + 1e-9:
            break
        for name, bound in (("", COARSE), ("fine_", FINE)):
            if gap <= bound and found[f"{name}epochs"] is None:
                found[f"{name}epochs"], found[f"{name}seconds"] = point.passes, point.seconds
        if trial and point.passes >= HOPELESS[0] and gap > HOPELESS[1]:
            break
        if gap <= enough or (found["epochs"] is not None and point.passes > patience):
            break
    return found
