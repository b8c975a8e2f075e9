"""What a measured step is expected to cost, from the shapes of one forward.

A step is what its layers take, three products each and passes over what they return; a measured one takes the contractions
of the statistic beside, and the calls of Python that the engine and a reading are. Times are by the model of
`fisheropt.cost`: the same on every machine and every rank, and not what a clock would show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import final

from fisheropt.cost import cheapest, machine, options
from fisheropt.cost.work import Work, both, passes, times
from fisheropt.directions import Directions
from fisheropt.persample import PerSample
from fisheropt.statistics import ParameterStatistic, Statistic
from fisheropt.statistics.base import Need
from fisheropt.taps.routes import Route
from fisheropt.taps.shapes import Call, forms

_LAYER = passes(0, 0.0, 12.0)  # calls of a module in a plain step, forward and back, with the activation that follows
_ENGINE = passes(0, 0.0, 30.0)  # of a call's hook, sink and contributions
_STEP = passes(0, 0.0, 60.0)  # of the loss and the optimizer
_READING = passes(0, 0.0, 300.0)
_PARAMETER = passes(0, 0.0, 20.0)  # of what a statistic of each parameter keeps and centres of one
_RETURNED = 8.0  # passes over what a module returns: the activation that follows, and their gradients
_SUMMED = 2.0  # passes over the gradient of what a module returns
FIRST = 10
"""Ours: so many steps are all measured, and later ones at most every so many."""
MOST = 100
"""Ours: as many steps apart at most, as a metric or a floor of long ago is worth less than what its measurement costs."""


@final
@dataclass(frozen=True)
class Contraction:
    """One quantity of one parameter.

    Args:
        quantity: what is had.
        way: by which way.
        seconds: that each way adds to a step; where the gradient of the weight comes of it, less those of the gradient.
        work: of the one taken, that gradient included.
    """

    quantity: str
    way: str
    seconds: dict[str, float]
    work: Work


@final
@dataclass(frozen=True)
class Line:
    """One parameter.

    Args:
        form: in which its per-sample gradients come.
        sizes: of the form, as `fisheropt.cost` takes them.
        contractions: what the statistic asks of them.
        seconds: of all of these.
    """

    form: str
    sizes: tuple[int, ...]
    contractions: tuple[Contraction, ...]
    seconds: float

    @property
    def held(self) -> float:
        """Bytes of the temporaries that are there at one time."""
        return max((c.work.held for c in self.contractions), default=0.0)


@final
@dataclass(frozen=True)
class Expected:
    """A measured step beside a plain one.

    Args:
        lines: by parameter, of those that the forward used.
        step: seconds of a plain step.
        extra: seconds that measuring adds to it.
    """

    lines: dict[str, Line]
    step: float
    extra: float

    @property
    def share(self) -> float:
        """What measuring adds, in plain steps."""
        return self.extra / self.step


def expected(
    routes: list[Route],
    calls: tuple[Call, ...],
    statistic: Statistic,
    directions: Mapping[str, Directions],
    device: str,
    *,
    likelihood: bool = False,
    by_token: bool = False,
    ways: Mapping[str, str] | None = None,
) -> Expected:
    """The expected cost of a step that measures a statistic.

    Args:
        routes: of the tapped parameters.
        calls: of one forward.
        statistic: what is measured.
        directions: of a joint statistic, in each parameter.
        device: type of the parameters' device.
        likelihood: whether the likelihood's backward runs as well.
        by_token: whether an observation is a position.
        ways: contractions that are asked for, by parameter.
    """
    asked, used = ways or {}, forms(routes, calls, by_token)

    def lines(beside: bool) -> dict[str, Line]:
        along = {name: directions.get(name) for name in used}
        return {n: _line(form, statistic.needs(along[n]), device, asked.get(n), beside) for n, form in used.items()}

    own, clock = lines(True), machine(device)
    step = clock.seconds(both(_STEP, *map(_called, calls), *(form.work("step") for form in used.values())))
    engine = clock.seconds(both(*map(_seen, calls)))
    extra = clock.seconds(_READING) + engine + sum(line.seconds for line in own.values())
    if isinstance(statistic, ParameterStatistic):
        extra += clock.seconds(times(_PARAMETER, len(own)))
    if likelihood:
        extra += engine + sum(line.seconds for line in lines(False).values()) + step / 3  # which leaves the weights out
    return Expected(own, step, extra)


def smallest_step(device: str) -> float:
    """Seconds of a step of one small layer.

    Args:
        device: type of the parameters' device.
    """
    return machine(device).seconds(both(_STEP, _LAYER))


def interval(share: float, overhead: float) -> int:
    """How many steps apart to measure so that it costs `overhead` of a step, at least ten.

    Args:
        share: what one measurement adds, in plain steps.
        overhead: what it may add on average.
    """
    return max(FIRST, ceil(share / overhead - 1e-9))


def _line(form: PerSample, needs: tuple[Need, ...], device: str, asked: str | None, beside: bool) -> Line:
    """What is asked of one parameter, `beside` the gradient of its weight, whose own work is a plain step's."""
    made = []
    for quantity, more in needs:
        joined = f"{quantity}_and_sum"
        together = beside and joined in form.ways
        if quantity not in form.ways:
            continue
        ways, sizes = form.ways[joined if together else quantity], (*form.sizes, *more)
        found, way = options(ways, device, sizes), cheapest(ways, device, sizes, asked)
        plain = machine(device).seconds(form.work("weight")) if together else 0.0
        added = {name: max(0.0, seconds - plain) for name, (_, seconds) in found.items()}
        made.append(Contraction(quantity, way, added, found[way][0]))
    return Line(type(form).__name__, form.sizes, tuple(made), sum(c.seconds[c.way] for c in made))


def _seen(call: Call) -> Work:
    """The engine's own share: biases and scales sum the output's gradient over positions."""
    return both(_ENGINE, passes(call.output[0].numel(), _SUMMED, 0.0))


def _called(call: Call) -> Work:
    """A module's own share of a plain step beside that of its weights."""
    return both(_LAYER, passes(call.output[0].numel(), _RETURNED, 0.0))
