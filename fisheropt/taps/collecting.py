"""Which collector a statistic needs beside its coordinates."""

from __future__ import annotations

from fisheropt.directions import Directions
from fisheropt.statistics import Gram, Statistic
from fisheropt.statistics.layerwise import Layerwise
from fisheropt.statistics.response import Response
from fisheropt.taps.collector import Collector
from fisheropt.taps.grams import Grams
from fisheropt.taps.layers import Layers
from fisheropt.taps.scores import Scores


def collector(statistic: Statistic, directions: dict[str, Directions]) -> Collector | None:
    """An empty one; None for a statistic that is complete in its coordinates.

    Args:
        statistic: of a tap.
        directions: as the tap holds them; they may be replaced in place.
    """
    if isinstance(statistic, Layerwise):
        return Layers(directions)
    if isinstance(statistic, Gram):
        return Grams(statistic.limit)
    return Scores() if isinstance(statistic, Response) else None
