"""One entrant on one case: trials to tune its rate on seeds of their own, then the runs that count."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from recipes.racing.entrants import Entrant
from recipes.racing.track import Outcome, Track

TUNING = 1000
"""The first of the seeds that trials have, far from those that count."""

Score = tuple[float, float]


def heat(track: Track, case: str, entrant: Entrant, trials: int, tuning: int, seeds: int) -> dict[str, Any]:
    """Tune, then run every seed with the rate chosen for each tuned measure."""
    began = time.process_time()
    keys = [measure.key for measure in track.measures if measure.tuned]
    tried = _trials(track, case, entrant, trials, [TUNING + index for index in range(tuning)], keys)
    rates = {key: min(tried, key=lambda trial: trial["scores"][key])["rate"] for key in keys}
    runs: dict[float, list[Outcome]] = {}
    for rate in rates.values():
        if rate not in runs:
            runs[rate] = [_attempt(track, case, entrant, rate, seed, None) for seed in range(seeds)]
    return {
        "track": track.name,
        "case": case,
        "entrant": entrant.name,
        "kind": entrant.kind,
        "tried": tried,
        "rates": rates,
        "edge": {key: entrant.at_edge(rate, trials) for key, rate in rates.items()},
        "outcomes": {key: runs[rate] for key, rate in rates.items()},
        "spent": time.process_time() - began,
    }


def score(outcomes: Sequence[Outcome], key: str) -> Score:
    """What a trial is judged by: the measure, and where that was not reached, how near it came."""
    values = [math.inf if outcome.get(key) is None else float(outcome[key]) for outcome in outcomes]
    gaps = [math.inf if outcome.get("gap") is None else float(outcome["gap"]) for outcome in outcomes]
    return sum(values) / len(values), sum(gaps) / len(gaps)


def _trials(
    track: Track, case: str, entrant: Entrant, trials: int, seeds: Sequence[int], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """The same number for every entrant that is tuned; with one seed and one measure, hopeless ones end early."""
    rates = entrant.grid(trials)
    if len(rates) == 1:
        return [{"rate": rates[0], "scores": {key: (0.0, 0.0) for key in keys}}]
    tried, best = [], math.inf
    for rate in rates:
        outcomes = [_attempt(track, case, entrant, rate, seed, best) for seed in seeds]
        scores = {key: score(outcomes, key) for key in keys}
        tried.append({"rate": rate, "scores": scores})
        if len(seeds) == len(keys) == 1:
            best = min(best, scores[keys[0]][0])
    return tried


def _attempt(track: Track, case: str, entrant: Entrant, rate: float, seed: int, best: float | None) -> Outcome:
    """A run; an entrant that breaks, on numbers that are not finite for instance, has reached nothing."""
    try:
        return track.run(case, entrant, rate, seed, best)
    except (RuntimeError, ValueError, torch.linalg.LinAlgError) as error:
        first = str(error).strip().splitlines()[:1]
        return {"failed": f"{type(error).__name__}: {''.join(first)}"}
