"""The median of a few seeds, with an interval that assumes nothing about their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import final

LEVEL = 0.95


@final
@dataclass(frozen=True)
class Interval:
    """A median over seeds and an interval for the median of all seeds.

    Attributes:
        median: of the values.
        low: lower end, an order statistic.
        high: upper end, an order statistic.
        seeds: how many values.
        coverage: probability that the interval covers the median of the distribution.
    """

    median: float
    low: float
    high: float
    seeds: int
    coverage: float


def median_interval(values: Sequence[float]) -> Interval | None:
    """The narrowest interval between order statistics that covers with 95 %; of few values, the range.

    x_(k) .. x_(n+1-k) covers the median with probability 1 - 2 P(Bin(n, 1/2) < k), whatever the distribution.
    """
    if not values:
        return None
    ordered, n = sorted(values), len(values)
    k = max((k for k in range(1, (n + 1) // 2 + 1) if _coverage(n, k) >= LEVEL), default=1)
    return Interval(median(ordered), ordered[k - 1], ordered[n - k], n, _coverage(n, k))


def _coverage(n: int, k: int) -> float:
    return 1 - float(2 * sum(comb(n, i) for i in range(k)) / 2**n)
