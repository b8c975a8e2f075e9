"""Turns: every call is timed right after a plain one in the same process, so that a busy machine falls on both."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

import torch

from recipes.measuring.row import Call

LONG, LEAST = 4.0, 5
"""A call that has taken so many seconds altogether has no further turn, after so many."""

Clock = Callable[[Call], float]
Tell = Callable[[float, str], None]


@final
@dataclass(frozen=True)
class Pair:
    """A call and the plain one that it is compared with."""

    plain: Call
    call: Call


@final
@dataclass
class Times:
    """What was seen, a number a round.

    Args:
        ratios: seconds of the call over those of the plain call before it.
        seconds: of the call.
        plain: of the plain call.
        failed: why there is no more; None if all rounds were run.
    """

    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    failed: str | None = None


def within(tell: Tell, low: float, high: float) -> Tell:
    """The same for a part of the work, from one share to another."""
    return lambda done, words: tell(low + (high - low) * done, words)


def clock(device: torch.device) -> Clock:
    """Seconds of a call: of the process on a CPU, as the machine may be shared; on a GPU until it is done."""
    return _until_done if device.type == "cuda" else _of_process


def _of_process(call: Call) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _until_done(call: Call) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def take_turns(pairs: Mapping[str, Pair], rounds: int, seconds: Clock, tell: Tell) -> dict[str, Times]:
    """Round after round each pair once; both of its calls come after a plain one, which leaves the same heap and caches.

    Args:
        pairs: by name; each was called before.
        rounds: how many.
        seconds: times a call.
        tell: takes the share that is done and a few words.
    """
    found = {name: Times() for name in pairs}
    for index in range(rounds):
        gc.collect()
        gc.disable()
        try:
            for place, (name, pair) in enumerate(pairs.items()):
                tell((index + place / len(pairs)) / rounds, name)
                _turn(pair, found[name], seconds)
        finally:
            gc.enable()
    return found


def _turn(pair: Pair, seen: Times, seconds: Clock) -> None:
    if seen.failed is not None or (sum(seen.seconds) > LONG and len(seen.seconds) >= LEAST):
        return
    pair.plain()
    plain = seconds(pair.plain)
    try:
        taken = seconds(pair.call)
    except Exception as error:  # a peer may raise what it likes; its row says so
        seen.failed = first_line(error)
        return
    seen.plain.append(plain)
    seen.seconds.append(taken)
    seen.ratios.append(taken / plain)


def at_first(fresh: Callable[[], Call], plain: Call, steps: int, starts: int, seconds: Clock) -> list[float]:
    """Seconds of the first steps of something new over those of as many plain ones, in turns; a number a start.

    Args:
        fresh: makes it.
        plain: what it is compared with.
        steps: of a start.
        starts: how many, fewer where they take long.
        seconds: times a call.
    """
    ratios: list[float] = []
    spent = 0.0
    while len(ratios) < starts and spent <= LONG:
        call, own, others = fresh(), 0.0, 0.0
        for _ in range(steps):
            others += seconds(plain)
            own += seconds(call)
        ratios.append(own / others)
        spent += own
    return ratios


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its words."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
