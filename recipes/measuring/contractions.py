"""Whether the work model chooses well: every way to a quantity on a grid of shapes, timed in turns beside the chosen one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, final

import torch

from fisheropt.cost import options
from fisheropt.directions import DenseDirections, Directions, RankOneDirections
from fisheropt.persample import Convolved, Geometry, Outer, PerSample

TARGET = 1.2
"""The chosen way may take so many times the best one."""
_LEAST = 2e-3  # seconds of one timing, for which short calls are repeated
_DIRECTIONS = 16

_OUTER = (
    (256, 1, 784, 512),
    (16, 64, 128, 128),
    (16, 64, 384, 128),
    (16, 64, 512, 128),
    (16, 64, 128, 512),
    (16, 64, 256, 128),
    (64, 16, 64, 64),
    (64, 4, 64, 64),
    (32, 8, 128, 128),
    (256, 2, 32, 32),
    (8, 128, 64, 64),
    (8, 256, 128, 128),
    (32, 32, 32, 32),
    (4, 64, 768, 768),
    (16, 16, 16, 16),
    (128, 49, 32, 16),
    (64, 1, 64, 10),
)
"""Samples, positions, outputs, inputs."""

_CONVOLVED = (
    (128, 1, 16, 28, 3, 1, 1),
    (128, 16, 32, 14, 3, 1, 1),
    (64, 1, 16, 28, 3, 2, 1),
    (64, 16, 32, 14, 3, 2, 1),
    (32, 32, 64, 8, 3, 1, 1),
    (16, 64, 64, 16, 3, 1, 1),
    (8, 64, 128, 8, 3, 2, 1),
    (8, 128, 128, 4, 3, 1, 1),
    (16, 64, 64, 8, 1, 1, 1),
    (32, 32, 32, 8, 3, 1, 32),
    (16, 16, 32, 12, 5, 1, 1),
    (4, 256, 256, 4, 3, 1, 1),
)
"""Samples, channels in and out, side of the image, of the kernel, stride, groups."""


@final
@dataclass(frozen=True)
class Timed:
    """One quantity of one form.

    Args:
        form: with its sizes.
        quantity: which.
        chosen: the way that the model takes.
        seconds: of every way, the median over rounds.
        regret: seconds of the chosen way over those of the fastest, the median over rounds.
    """

    form: str
    quantity: str
    chosen: str
    seconds: dict[str, float]
    regret: float


def contractions(rounds: int) -> list[dict[str, Any]]:
    """A row for each quantity and form in which there is a choice.

    Args:
        rounds: how often every way has its turn.
    """
    return [
        vars(_timed(form, quantity, rounds))
        for form in _forms()
        for quantity in ("norms", "dense", "rank_one")
        if len(form.ways[quantity](*form.sizes, *_more(quantity))) > 1
    ]


def _forms() -> Iterator[PerSample]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    for n, t, o, i in _OUTER:
        yield Outer(draw(n, t, o), draw(n, t, i))
    for n, inputs, outputs, side, width, stride, groups in _CONVOLVED:
        geometry = Geometry((stride, stride), (width // 2, width // 2), (1, 1), groups)
        found = (side + 2 * (width // 2) - width) // stride + 1
        kernel = torch.Size((outputs, inputs // groups, width, width))
        yield Convolved(draw(n, outputs, found, found), draw(n, inputs, side, side), kernel, geometry)


def _more(quantity: str) -> tuple[int, ...]:
    return () if quantity == "norms" else (_DIRECTIONS,)


def _call(form: PerSample, quantity: str) -> Callable[[], object]:
    if quantity == "norms":
        return form.squared_norms
    directions = _directions(form, quantity)
    return lambda: form.project(directions)


def _directions(form: PerSample, quantity: str) -> Directions:
    shape = form.kernel if isinstance(form, Convolved) else torch.Size(form.sizes[2:4])
    if quantity == "dense":
        return DenseDirections(torch.ones(_DIRECTIONS, *shape))
    return RankOneDirections(torch.ones(_DIRECTIONS, shape[0]), torch.ones(_DIRECTIONS, shape[1:].numel()))


def _timed(form: PerSample, quantity: str, rounds: int) -> Timed:
    """Ways that the model expects to take ten times the best are left out: some would take minutes."""
    expected = {
        way: seconds
        for way, (_, seconds) in options(form.ways[quantity], "cpu", (*form.sizes, *_more(quantity))).items()
    }
    least = min(expected.values())
    calls = {way: _call(replace(form, way=way), quantity) for way, s in expected.items() if s < 10 * least}
    chosen = form.chosen(quantity, *_more(quantity))
    times: dict[str, list[float]] = {way: [] for way in calls}
    repeats = {way: max(1, int(_LEAST / max(_seconds(call, 2), 1e-6))) for way, call in calls.items()}
    for _ in range(rounds):
        for way, call in calls.items():
            times[way].append(_seconds(call, repeats[way]))
    seconds = {way: median(seen) for way, seen in times.items()}
    best = min(seconds, key=lambda way: seconds[way])
    regret = median(a / b for a, b in zip(times[chosen], times[best], strict=True))
    return Timed(f"{type(form).__name__} {form.sizes}", quantity, chosen, seconds, max(1.0, regret))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    began = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - began) / repeats
