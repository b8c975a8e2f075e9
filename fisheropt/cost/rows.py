"""Tables that are looked up: n samples, t positions, rows of d numbers, `size` of them."""

from __future__ import annotations

from collections.abc import Mapping

from fisheropt.cost.work import Ways, Work, both, holding, one, passes, product, update


def norms(n: int, t: int, d: int, size: int) -> dict[str, Work]:
    """‖hₙ‖² of a table, after equal rows of a sample were added up."""
    return one(both(passes(n * t * d, 8.0, 12.0), passes(n * t, 6.0, 6.0), holding(3.0 * n * t * d)))


def square_sum(n: int, t: int, d: int, size: int) -> dict[str, Work]:
    """Σₙ hₙ² of a table."""
    return one(both(norms(n, t, d, size)["only"], passes(n * t * d + size * d, 2.0, 3.0)))


def dense(n: int, t: int, d: int, size: int, k: int) -> dict[str, Work]:
    """⟨hₙ, v_k⟩ of a table, looked up in v_k."""
    return one(both(passes(n * t * d * k, 5.0, 4.0 * k), holding(2.0 * n * t * d)))


def rank_one(n: int, t: int, d: int, size: int, k: int) -> dict[str, Work]:
    """⟨hₙ, p_k q_kᵀ⟩ of a table."""
    return one(both(product(1, n * t, d, k), passes(n * t * k, 5.0, 4.0), holding(3.0 * n * t * k)))


def coordinates(n: int, t: int, d: int, size: int, k: int) -> dict[str, Work]:
    """hₙ of a table laid out among k coordinates."""
    return {"formed": both(passes(n * size * d + n * k, 2.0, 6.0), holding(n * size * d + n * k))}


def traces(n: int, t: int, d: int, size: int) -> dict[str, Work]:
    """Σₙ hₙᵀhₙ of a table, whose other factor is too long to be asked for."""
    return one(both(norms(n, t, d, size)["only"], product(1, d, n * t, d)))


def rotated(n: int, t: int, d: int, size: int) -> dict[str, Work]:
    """Σₙ (hₙU)², elementwise, without the square sum that every basis needs."""
    return one(product(1, n * t, d, d))


def gram(n: int, t: int, d: int, size: int) -> dict[str, Work]:
    """⟨hₙ, h_m⟩ of all pairs of lookups."""
    return one(both(product(1, n * t, d, n * t), passes(n * t * n * t, 4.0, 6.0), holding(n * t * n * t)))


def step(n: int, t: int, d: int, size: int) -> dict[str, Work]:
    """Looking up, scattering the gradient, and the update."""
    return one(both(passes(n * t * d, 6.0, 6.0), update(size * d)))


WAYS: Mapping[str, Ways] = {
    "norms": norms,
    "square_sum": square_sum,
    "combine": dense,
    "dense": dense,
    "rank_one": rank_one,
    "coordinates": coordinates,
    "traces": traces,
    "rotated": rotated,
    "gram": gram,
    "step": step,
}
"""By the quantity; projections by the kind of the directions."""
