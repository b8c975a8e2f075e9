"""All rows on one model: prepare them, take turns, and put what was seen into records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from recipes.measuring.memory import kept, peak
from recipes.measuring.models import Subject
from recipes.measuring.row import MEASURED, ORDINARY, Call, NothingThere, Prepared, Row
from recipes.measuring.schedule import FIRST, amortised
from recipes.measuring.trainee import Trainee, plain_step
from recipes.measuring.turns import Clock, Pair, Tell, Times, at_first, clock, first_line, take_turns, within
from recipes.medians import median_interval

Record = dict[str, Any]
ABSENT, NOTHING = "not installed", "–"
STARTS = 3  # of a new optimizer, for its first steps


def measure(subject: Subject, rows: Sequence[Row], rounds: int, device: torch.device, tell: Tell) -> Iterator[Record]:
    """A record for each row; of a package that is not installed, or refuses the model, it says so.

    Args:
        subject: the model.
        rows: to be measured.
        rounds: turns of each row.
        device: where.
        tell: takes the share that is done and a few words.
    """
    turns = [[row] for row in rows] if subject.large else [rows]
    for index, together in enumerate(turns):
        part = within(tell, index / len(turns), (index + 1) / len(turns))
        yield from _together(subject, together, rounds, device, part)


def _together(subject: Subject, rows: Sequence[Row], rounds: int, device: torch.device, tell: Tell) -> Iterator[Record]:
    plain = Plain(subject, device)
    prepared: dict[str, Prepared] = {}
    pairs: dict[str, Pair] = {}
    records = {row.name: _started(row, subject) for row in rows}
    for index, row in enumerate(rows):
        if "why" in records[row.name]:
            continue
        tell(0.3 * index / len(rows), f"memory of {row.name}")
        try:
            ready = row.prepare(subject, device)
            records[row.name] |= plain.sizes(ready)
        except NothingThere:
            records[row.name]["why"] = NOTHING
            continue
        except Exception as error:  # a peer may raise what it likes, and ours are listed with their reason too
            records[row.name]["why"] = f"refused: {first_line(error)}"
            continue
        prepared[row.name] = ready
        pairs |= {f"{row.name}/{kind}": Pair(plain.of(ready), call) for kind, call in ready.calls.items()}
    times = take_turns(pairs, rounds, clock(device), within(tell, 0.3, 0.9))
    for index, (name, ready) in enumerate(prepared.items()):
        tell(0.9 + 0.1 * index / len(prepared), f"first steps of {name}")
        records[name] |= _seen(name, ready, times)
        if ready.fresh is not None and "why" not in records[name]:
            records[name]["first"] = _first(ready, plain.of(ready), min(rounds, STARTS), clock(device))
    yield from records.values()


class Plain:
    """The two calls that others are compared with, and what they allocate."""

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self._subject, self._device = subject, device
        self._trainee, self._step = Trainee(subject, device), plain_step(subject, device)
        self._peaks = {whole: peak(self.call(whole), device) for whole in (False, True)}

    def call(self, whole: bool) -> Call:
        """Forward and backward, or a whole step."""
        return self._step if whole else self._trainee.pass_through

    def of(self, ready: Prepared) -> Call:
        """The one that belongs to a row."""
        return self.call(ready.whole_steps)

    def sizes(self, ready: Prepared) -> Record:
        """Peaks of a row's calls as ratios, weights counted for whole steps; and what is kept between calls."""
        weights = self._trainee.size if ready.whole_steps else 0
        below = weights + self._peaks[ready.whole_steps]
        peaks = {kind: peak(call, self._device) for kind, call in ready.calls.items()}
        found: Record = {
            "memory": {kind: (weights + value) / below for kind, value in peaks.items()},
            "bytes": {"plain": self._peaks[ready.whole_steps], **peaks},
        }
        if ready.settle is not None:
            trainee, settle = Trainee(self._subject, self._device), ready.settle
            found["kept"] = kept(lambda: settle(trainee), self._device)
        found["remark"] = ready.remark() if callable(ready.remark) else ready.remark
        return found


def _started(row: Row, subject: Subject) -> Record:
    record: Record = {"model": subject.key, "row": row.name, "part": row.part, "package": row.package}
    return record if row.installed else record | {"why": ABSENT}


def _seen(name: str, ready: Prepared, times: dict[str, Times]) -> Record:
    """The times of a row's calls; and amortised, where it measures now and then."""
    seen = {kind: times[f"{name}/{kind}"] for kind in ready.calls}
    failed = [each.failed for each in seen.values() if each.failed is not None]
    if failed:
        return {"why": f"refused: {failed[0]}"}
    record: Record = {"calls": {kind: _numbers(each) for kind, each in seen.items()}, "share": ready.share}
    if MEASURED in seen:
        record["amortised"] = asdict(amortised(seen[ORDINARY].ratios, seen[MEASURED].ratios, ready.share))
    return record


def _numbers(seen: Times) -> Record:
    ratio = median_interval(seen.ratios)
    milliseconds = median_interval([1e3 * value for value in seen.seconds])
    plain = median_interval([1e3 * value for value in seen.plain])
    assert ratio is not None and milliseconds is not None and plain is not None
    shown = {"ratio": asdict(ratio), "milliseconds": asdict(milliseconds), "plain": asdict(plain)}
    return shown | {"ratios": seen.ratios}


def _first(ready: Prepared, plain: Call, starts: int, seconds: Clock) -> Record:
    assert ready.fresh is not None
    found = median_interval(at_first(ready.fresh, plain, FIRST, starts, seconds))
    assert found is not None
    return asdict(found)
