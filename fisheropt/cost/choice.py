"""The cheapest of the ways to one quantity: the one place where a contraction is chosen."""

from __future__ import annotations

from functools import lru_cache

import torch

from fisheropt.cost.machine import machine
from fisheropt.cost.work import Ways, Work


def cheapest(ways: Ways, device: str, sizes: tuple[int, ...], asked: str | None = None) -> str:
    """The name of the way with the least expected time; the first of equals.

    Args:
        ways: to one quantity of one form, from its `WAYS`.
        device: its type, as in `tensor.device.type`.
        sizes: of the form, then of what it is contracted with.
        asked: the name of a way that is to be taken whatever it costs; None for the cheapest.

    Raises:
        ValueError: for a name that none of the ways has.
    """
    if torch.compiler.is_compiling():  # which sees no cache, and follows sizes that are not fixed
        return _chosen(ways, device, sizes, asked)
    return _remembered(ways, device, sizes, asked)


def options(ways: Ways, device: str, sizes: tuple[int, ...]) -> dict[str, tuple[Work, float]]:
    """The work of every way, and its expected seconds."""
    clock = machine(device)
    return {name: (work, clock.seconds(work)) for name, work in ways(*sizes).items()}


def _chosen(ways: Ways, device: str, sizes: tuple[int, ...], asked: str | None) -> str:
    found, clock = ways(*sizes), machine(device)
    if asked is not None:
        if asked not in found and len(found) > 1:
            raise ValueError(f"contraction={asked!r}: for this layer and statistic write one of {', '.join(found)}")
        return asked if asked in found else next(iter(found))
    best, least = "", float("inf")
    for name, work in found.items():  # min() with a key is not traced everywhere
        seconds = clock.flop * work[0] + clock.byte * work[1] + clock.call * work[2]
        if seconds < least:
            best, least = name, seconds
    return best


_remembered = lru_cache(maxsize=4096)(_chosen)
