"""Medians with bootstrap intervals, and what they say of ours beside the best of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from recipes.racing.track import Measure, Target

DRAWS = 4000
LEVEL = 0.95

Row = Mapping[str, Any]
"""An entrant of a case: "entrant", "kind" and "values", a list over seeds by measure; infinity for not reached."""


@final
@dataclass(frozen=True)
class Spread:
    """A median over seeds with its bootstrap interval of 95 %; ends may be infinite."""

    median: float
    low: float
    high: float
    seeds: int
    reached: int


@final
@dataclass(frozen=True)
class Standing:
    """Ours beside the best of the others by one measure of one case.

    Attributes:
        measure: what is compared.
        ours: our entrant and its number.
        best: the entrant with the smallest median among minibatch and full-batch optimizers, or None.
        limit: the same among limit rows.
        ratio: ours over best, with its interval.
        verdict: "win" and "loss" where the interval leaves out 1, "tie" where not, "neither" where nobody came.
        targets: bound in words, the number seen and whether it is met.
    """

    measure: Measure
    ours: tuple[str, Spread]
    best: tuple[str, Spread] | None
    limit: tuple[str, Spread] | None
    ratio: Spread | None
    verdict: str
    targets: tuple[tuple[str, float, bool], ...]


def spread(values: Sequence[float]) -> Spread:
    """Median and interval by resampling seeds."""
    given = np.asarray(values, float)
    medians = np.median(given[_resampled(len(given))], axis=1)
    low, high = _ends(medians)
    return Spread(float(np.median(given)), low, high, len(given), int(np.isfinite(given).sum()))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread | None:
    """The ratio of the medians, both resampled with the same seeds; None where neither has a number."""
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    shared = min(len(a), len(b))
    a, b = a[:shared], b[:shared]
    draws = _resampled(shared)
    above, below = np.median(a[draws], axis=1), np.median(b[draws], axis=1)
    whole = _divided(np.median(a, keepdims=True), np.median(b, keepdims=True))[0]
    if math.isnan(whole):
        return None
    ratios = _divided(above, below)
    low, high = _ends(np.where(np.isnan(ratios), whole, ratios))
    return Spread(float(whole), low, high, shared, shared)


def standing(rows: Sequence[Row], ours: Row, measure: Measure, case: str) -> Standing:
    """Ours beside all others of its case."""
    values = ours["values"][measure.key]
    best = _smallest(rows, ("peer", "full batch"), measure.key)
    limit = _smallest(rows, ("limit",), measure.key)
    against = None if best is None else ratio(values, best["values"][measure.key])
    targets = [_judged(rows, ours, measure, target) for target in measure.targets if not target.on or case in target.on]
    return Standing(
        measure,
        (ours["entrant"], spread(values)),
        None if best is None else (best["entrant"], spread(best["values"][measure.key])),
        None if limit is None else (limit["entrant"], spread(limit["values"][measure.key])),
        against,
        "neither" if against is None else verdict(against),
        tuple(target for target in targets if target is not None),
    )


def verdict(against: Spread) -> str:
    """Win, tie or loss, by the interval of the ratio."""
    return "win" if against.high < 1 else "loss" if against.low > 1 else "tie"


def _judged(rows: Sequence[Row], ours: Row, measure: Measure, target: Target) -> tuple[str, float, bool] | None:
    """The target in words, the number and whether it is met; None where the row that it speaks of is missing or came not."""
    if target.of == "value":
        seen, words = spread(ours["values"][measure.key]).median, f"≤ {target.bound:g}"
        return words, seen, seen <= target.bound
    rival = (
        _smallest(rows, ("peer",), measure.key)
        if target.of == "peer"
        else next((row for row in rows if row["entrant"] == target.of), None)
    )
    if rival is None or not math.isfinite(spread(rival["values"][measure.key]).median):
        return None
    found = ratio(ours["values"][measure.key], rival["values"][measure.key])
    seen = math.inf if found is None else found.median
    name = "the best minibatch peer's" if target.of == "peer" else f"{target.of}'s"
    return f"≤ {target.bound:g} of {name}", seen, seen <= target.bound


def _smallest(rows: Sequence[Row], kinds: Sequence[str], key: str) -> Row | None:
    found = [row for row in rows if row["kind"] in kinds and row["values"][key]]
    return min(found, key=lambda row: float(np.median(row["values"][key])), default=None)


def _resampled(seeds: int) -> Any:
    return np.random.default_rng(0).integers(0, seeds, (DRAWS, seeds))


def _ends(values: Any) -> tuple[float, float]:
    """Order statistics, which infinity does no harm to."""
    ordered = np.sort(values)
    cut = int((1 - LEVEL) / 2 * len(ordered))
    return float(ordered[cut]), float(ordered[len(ordered) - 1 - cut])


def _divided(above: Any, below: Any) -> Any:
    """inf/inf is nan, x/inf is 0 and inf/x is infinite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return above / below
