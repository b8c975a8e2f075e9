"""A table that embeds u positions of a sample and un-embeds t: n samples, o rows of i numbers."""

from __future__ import annotations

from collections.abc import Mapping

from fisheropt.cost import outer, rows
from fisheropt.cost.work import Ways, Work, both, holding, one, passes, product


def norms(n: int, t: int, o: int, i: int, u: int) -> dict[str, Work]:
    """‖hₙ‖² of a table that embeds u positions and un-embeds t, with the cross term at the rows looked up."""
    looked = both(rows.norms(n, u, i, o)["only"], _met(n, t, i, u))
    return {name: both(work, looked) for name, work in outer.norms(n, t, o, i).items()}


def square_sum(n: int, t: int, o: int, i: int, u: int) -> dict[str, Work]:
    """Σₙ hₙ² of the same."""
    looked = both(rows.square_sum(n, u, i, o)["only"], _met(n, t, i, u))
    return {name: both(work, looked) for name, work in outer.square_sum(n, t, o, i).items()}


def dense(n: int, t: int, o: int, i: int, u: int, k: int) -> dict[str, Work]:
    """⟨hₙ, v_k⟩ of the same."""
    looked = rows.dense(n, u, i, o, k)["only"]
    return {name: both(work, looked) for name, work in outer.dense(n, t, o, i, k).items()}


def rank_one(n: int, t: int, o: int, i: int, u: int, k: int) -> dict[str, Work]:
    """⟨hₙ, p_k q_kᵀ⟩ of the same."""
    looked = rows.rank_one(n, u, i, o, k)["only"]
    return {name: both(work, looked) for name, work in outer.rank_one(n, t, o, i, k).items()}


def coordinates(n: int, t: int, o: int, i: int, u: int, k: int) -> dict[str, Work]:
    """hₙ of the same laid out among k coordinates."""
    looked = rows.coordinates(n, u, i, o, k)["formed"]
    return {name: both(work, looked) for name, work in outer.coordinates(n, t, o, i, k).items()}


def combine(n: int, t: int, o: int, i: int, u: int, k: int) -> dict[str, Work]:
    """Σₙ wₙₖ hₙ of the same."""
    looked = rows.dense(n, u, i, o, k)["only"]
    return {name: both(work, looked) for name, work in outer.combine(n, t, o, i, k).items()}


def step(n: int, t: int, o: int, i: int, u: int) -> dict[str, Work]:
    """Looking up, the product, both of backward, and the update."""
    return one(both(outer.step(n, t, o, i)["only"], passes(n * u * i, 6.0, 6.0)))


def _met(n: int, t: int, i: int, u: int) -> Work:
    """The rows of an outer product at the places that were looked up."""
    return both(product(n, u, t, i), passes(n * t * u, 3.0, 4.0), passes(n * u * i, 3.0, 3.0), holding(n * t * u))


WAYS: Mapping[str, Ways] = {
    "norms": norms,
    "square_sum": square_sum,
    "combine": combine,
    "dense": dense,
    "rank_one": rank_one,
    "coordinates": coordinates,
    "step": step,
}
"""By the quantity; projections by the kind of the directions."""
