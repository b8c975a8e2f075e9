"""Gradients that are there: n samples of p numbers."""

from __future__ import annotations

from collections.abc import Mapping

from fisheropt.cost.work import Ways, Work, both, holding, one, passes, product, times, update


def norms(n: int, p: int) -> dict[str, Work]:
    """‖hₙ‖² of gradients that are there."""
    return one(passes(n * p, 1.0, 3.0))


def square_sum(n: int, p: int) -> dict[str, Work]:
    """Σₙ hₙ² of gradients that are there."""
    return one(both(passes(n * p, 3.0, 2.0), holding(n * p)))


def project(n: int, p: int, k: int) -> dict[str, Work]:
    """⟨hₙ, v_k⟩ of gradients that are there."""
    return one(both(product(1, n, p, k), passes(0, 0.0, 2.0)))


def coordinates(n: int, p: int, k: int) -> dict[str, Work]:
    """hₙ laid out among k coordinates."""
    return one(both(passes(n * p, 1.0, 2.0), passes(n * k, 1.0, 1.0), holding(n * k)))


def traces(n: int, p: int) -> dict[str, Work]:
    """Σₙ hₙhₙᵀ of vectors."""
    return one(product(1, p, n, p))


def rotated(n: int, p: int) -> dict[str, Work]:
    """Σₙ (Uᵀhₙ)² of vectors, elementwise, without the square sum that every basis needs."""
    return one(product(1, n, p, p))


def gram(n: int, p: int) -> dict[str, Work]:
    """⟨hₙ, h_m⟩ of all pairs."""
    return one(times(product(1, n, p, n), 0.5))


def step(n: int, p: int) -> dict[str, Work]:
    """What a small parameter adds to a step."""
    return one(update(p))


WAYS: Mapping[str, Ways] = {
    "norms": norms,
    "square_sum": square_sum,
    "combine": project,
    "dense": project,
    "rank_one": project,
    "coordinates": coordinates,
    "traces": traces,
    "rotated": rotated,
    "gram": gram,
    "step": step,
}
"""By the quantity; projections by the kind of the directions."""
