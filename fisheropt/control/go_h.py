"""GO-H: the temperature follows the product of gradients that lie as far apart as the end of training does."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, Sketches, State

EVERY = 4
FIRST = 8
LONGEST_MEAN = 200
LARGEST_SHARE = 0.1
BEYOND = 50.0
SPENT = "the budget is spent; give a larger budget="


@final
@dataclass(frozen=True)
class GOH(Controller):
    """b falls while gradients L steps apart agree and grows once they oppose each other; L is the steps that are left.

        z = cos(u, w) sqrt(d_eff),   log b <- log b - 4 gamma tanh(z) min(0.1, b/(N - n)),

    with u the mean of the last W sketched gradients, w that of the W before step k - L, n samples seen. Where the
    gradient is the same for as long as training still lasts, noise does not matter yet: a smaller batch makes more of
    the samples that are left. What is forgotten before the end does not show at lag L, so that the slow directions
    decide, unlike in rules that look one step ahead. Beyond the largest batch it is the step that falls; below the
    size at the start it does not go, as smaller batches save samples but cost serial steps. Ours.

    Needs the budget. Has little power in a few dimensions, where cos(u, w) is near 1 or -1 by chance alone: use GO-F
    or averaging there. Lags are bounded by a third of the steps made, and by what the history of sketches holds: with
    4096 steps of it, a lag of 3896. It does not know of a change of the data or of the loss: start it after a warm-up.
    Once the budget is spent it keeps the size that it has, as no step is left to look back as far as.

    Args:
        horizon: c, the lag as a multiple of the steps that are left.
        gain: gamma.
        directions: d_eff, by which a chance cosine is judged, of the order of 1/sqrt(d_eff); from 10 to 100 the result
            is the same.
    """

    horizon: float = 1.0
    gain: float = 4.0
    directions: float = 30.0
    name: ClassVar[str] = "go_h"
    needs: ClassVar[frozenset[str]] = frozenset({"budget", "sketches"})

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) and x > 0.0 for x in (self.horizon, self.gain, self.directions)):
            raise ValueError(f"{self!r}: all are positive numbers; write GOH(horizon=1.0, gain=4.0, directions=30.0).")

    def initial_state(self) -> State:
        """Steps made, log b now and at the start (nan before it), z, the lag and the window it was seen with."""
        return {"steps": 0.0, "log_batch": math.nan, "log_start": math.nan, "z": 0.0, "lag": 0.0, "window": 0.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """Every fourth step from the eighth on, the size by z; else, where z is no number or no sample left, that of before.

        Raises:
            ValueError: without a budget or without sketches.
        """
        left, sketches = self._given(moment)
        steps = state["steps"] + 1.0
        known = moment.stay() if math.isnan(state["log_batch"]) else math.exp(state["log_batch"])
        start = math.log(known) if math.isnan(state["log_start"]) else state["log_start"]
        new = state | {"steps": steps, "log_batch": math.log(known), "log_start": start}
        why = SPENT if left <= -moment.batch_size else ""
        if left > 0.0 and steps >= FIRST and steps % EVERY == 0:
            size = moment.stay()
            lag, window = self._lag(int(steps), left / size, sketches.steps)
            z = self._cosine(sketches, lag, window) * math.sqrt(self.directions)
            if math.isfinite(z):
                log_batch = math.log(known) - EVERY * self.gain * math.tanh(z) * min(LARGEST_SHARE, size / left)
                new |= {
                    "log_batch": _clip(log_batch, start, moment),
                    "z": z,
                    "lag": float(lag),
                    "window": float(window),
                }
                why = f"gradients {lag} steps apart {'agree' if z > 0 else 'oppose each other'}, z = {z:.2g}"
        wanted, largest = math.exp(new["log_batch"]), moment.bounds[1]
        return Proposal(moment.clip(wanted), new, min(1.0, largest / wanted), why)

    def _given(self, moment: Moment) -> tuple[float, Sketches]:
        """Samples that are left, and the sketches."""
        if moment.budget is None:
            raise ValueError(
                "GOH().propose(state, reading, Moment(..., budget=None)) looks as far back as training still lasts and "
                "has to know the samples planned in all; write AdaptiveBatchSGD(..., budget=len(data) * epochs)"
            )
        if moment.sketches is None:
            raise ValueError(
                "GOH().propose(state, reading, Moment(..., sketches=None)) compares gradients of different steps; write "
                "Moment(..., sketches=history.Ring(group)), or use it in an optimizer that keeps them: "
                "AdaptiveBatchSGD(..., controller='go_h', budget=len(data) * epochs)"
            )
        return float(moment.budget - moment.samples), moment.sketches

    def _lag(self, steps: int, remaining: float, held: int) -> tuple[int, int]:
        """L and W: about the steps that are left, as far as the past allows."""
        longest = steps // 3 if held >= steps else min(steps // 3, held - LONGEST_MEAN)
        lag = max(min(round(self.horizon * remaining), longest), 1)
        return lag, max(min(lag, held - lag, LONGEST_MEAN), 1)

    @staticmethod
    def _cosine(sketches: Sketches, lag: int, window: int) -> float:
        if lag + window > sketches.steps:
            return math.nan
        now, then = sketches.mean(0, window).double(), sketches.mean(lag, window).double()
        return float(now @ then / (now.norm() * then.norm()))


def _clip(log_batch: float, start: float, moment: Moment) -> float:
    return min(max(log_batch, start, math.log(moment.bounds[0])), math.log(BEYOND * moment.bounds[1]))
