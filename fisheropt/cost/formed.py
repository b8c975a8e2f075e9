"""hₙ itself, some samples at a time, and what is made of it."""

from __future__ import annotations

from fisheropt.cost.work import Work, both, holding, passes, product

_TILE = 1 << 23  # as in fisheropt.persample.base on a device; on a CPU its temporaries are smaller


def tiled(n: int, numbers: int) -> Work:
    """What is there at one time of n gradients and of their squares."""
    return holding(2.0 * min(n * numbers, max(numbers, _TILE)))


def formed(n: int, t: int, o: int, i: int) -> Work:
    """hₙ as one product of matrices a sample."""
    return both(product(n, o, t, i), tiled(n, o * i))


def traced(forming: Work, n: int, o: int, i: int) -> Work:
    """hₙhₙᵀ and hₙᵀhₙ, summed over samples."""
    return both(forming, product(1, o, n * i, o), product(1, i, n * o, i), passes(0, 0.0, 6.0))


def turned(n: int, o: int, i: int) -> Work:
    """hₙ between two orthogonal matrices."""
    return both(product(n, o, o, i), product(n, o, i, i), holding(2.0 * n * o * i))


def summed(numbers: int) -> Work:
    """Σₙ hₙ of what was just written, and is still in a cache."""
    return passes(numbers, 0.5, 2.0)
