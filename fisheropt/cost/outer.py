"""hₙ = Σₜ gₙₜ aₙₜᵀ: n samples, t positions, o outputs, i inputs."""

from __future__ import annotations

from collections.abc import Mapping

from fisheropt.cost.formed import formed, summed, traced, turned
from fisheropt.cost.work import Ways, Work, both, holding, one, passes, product, times, update


def norms(n: int, t: int, o: int, i: int) -> dict[str, Work]:
    """‖Σₜ gₙₜ aₙₜᵀ‖²."""
    if t == 1:
        return {"sides": both(passes(n * (o + i), 1.0, 2.0), passes(n, 4.0, 2.0))}
    grams = both(product(n, t, o, t), product(n, t, i, t), passes(n * t * t, 2.0, 6.0), holding(3.0 * n * t * t))
    return {"gram": grams, "formed": both(formed(n, t, o, i), passes(n * o * i, 1.5, 6.0))}


def square_sum(n: int, t: int, o: int, i: int) -> dict[str, Work]:
    """Σₙ hₙ², elementwise."""
    if t == 1:
        return {"sides": both(passes(n * (o + i), 2.0, 2.0), product(1, o, n, i), holding(n * (o + i)))}
    return {"formed": both(formed(n, t, o, i), passes(n * o * i, 3.0, 5.0))}


def dense(n: int, t: int, o: int, i: int, k: int) -> dict[str, Work]:
    """⟨hₙ, v_k⟩ for v [k, o, i]."""
    direct = both(product(1, n * t, i, k * o), passes(n * t * k * o, 3.0, 10.0), holding(2.0 * n * t * k * o))
    return {"formed": both(formed(n, t, o, i), product(1, n, o * i, k), passes(0, 0.0, 3.0)), "direct": direct}


def rank_one(n: int, t: int, o: int, i: int, k: int) -> dict[str, Work]:
    """⟨hₙ, p_k q_kᵀ⟩."""
    sides = both(
        product(1, n * t, o, k), product(1, n * t, i, k), passes(n * t * k, 2.0, 4.0), holding(3.0 * n * t * k)
    )
    whole = both(formed(n, t, o, i), product(n, o, i, k), passes(n * o * k, 4.0, 4.0))
    return {"sides": sides, "formed": whole}


def coordinates(n: int, t: int, o: int, i: int, k: int) -> dict[str, Work]:
    """hₙ laid out among k coordinates."""
    return {"formed": both(formed(n, t, o, i), passes(n * k, 2.0, 3.0), holding(n * k))}


def combine(n: int, t: int, o: int, i: int, k: int) -> dict[str, Work]:
    """Σₙ wₙₖ hₙ, one product in which the narrower side is repeated for every column, or hₙ before they are weighed."""
    narrow, wide = min(o, i), max(o, i)
    repeated = both(
        passes(n * t * narrow * k, 2.0, 6.0), product(1, k * narrow, n * t, wide), holding(n * t * narrow * k)
    )
    return {"repeated": repeated, "formed": both(formed(n, t, o, i), product(1, k, n, o * i), passes(0, 0.0, 4.0))}


def traces(n: int, t: int, o: int, i: int) -> dict[str, Work]:
    """Σₙ hₙhₙᵀ and Σₙ hₙᵀhₙ."""
    if t == 1:
        return {"sides": both(product(1, o, n, o), product(1, i, n, i), passes(n * (o + i), 3.0, 8.0))}
    left = both(product(n, t, i, t), product(n, t, t, o), product(1, o, n * t, o))
    right = both(product(n, t, o, t), product(n, t, t, i), product(1, i, n * t, i))
    gram = both(left, right, passes(0, 0.0, 6.0), holding(n * t * (2.0 * t + o + i)))
    return {"gram": gram, "formed": traced(formed(n, t, o, i), n, o, i)}


def rotated(n: int, t: int, o: int, i: int) -> dict[str, Work]:
    """Σₙ (UᵀhₙU)², elementwise, without the square sum that every basis needs."""
    sides = both(product(1, n * t, o, o), product(1, n * t, i, i), holding(n * t * (o + i)))
    return {"sides": sides, "formed": turned(n, o, i)}


def gram(n: int, t: int, o: int, i: int) -> dict[str, Work]:
    """⟨hₙ, h_m⟩ of all pairs."""
    if t == 1:
        return {"sides": both(product(1, n, o, n), product(1, n, i, n), passes(n * n, 3.0, 3.0))}
    return {"formed": both(formed(n, t, o, i), times(product(1, n, o * i, n), 0.5))}


def norms_and_sum(n: int, t: int, o: int, i: int) -> dict[str, Work]:
    """‖hₙ‖² and Σₙ hₙ, which hₙ once formed has for a pass."""
    return _and_sum(norms(n, t, o, i), n, t, o, i)


def dense_and_sum(n: int, t: int, o: int, i: int, k: int) -> dict[str, Work]:
    """⟨hₙ, v_k⟩ for v [k, o, i], and Σₙ hₙ."""
    return _and_sum(dense(n, t, o, i, k), n, t, o, i)


def rank_one_and_sum(n: int, t: int, o: int, i: int, k: int) -> dict[str, Work]:
    """⟨hₙ, p_k q_kᵀ⟩ and Σₙ hₙ."""
    return _and_sum(rank_one(n, t, o, i, k), n, t, o, i)


def _and_sum(found: dict[str, Work], n: int, t: int, o: int, i: int) -> dict[str, Work]:
    weight = product(1, o, n * t, i)
    return {way: both(work, summed(n * o * i) if way == "formed" else weight) for way, work in found.items()}


def weight(n: int, t: int, o: int, i: int) -> dict[str, Work]:
    """Σₙ hₙ by itself, as backward has it anyway."""
    return one(product(1, o, n * t, i))


def step(n: int, t: int, o: int, i: int) -> dict[str, Work]:
    """Forward, both products of backward, and the update."""
    return one(both(times(product(1, n * t, i, o), 3.0), update(o * i)))


WAYS: Mapping[str, Ways] = {
    "norms": norms,
    "square_sum": square_sum,
    "combine": combine,
    "dense": dense,
    "rank_one": rank_one,
    "norms_and_sum": norms_and_sum,
    "dense_and_sum": dense_and_sum,
    "rank_one_and_sum": rank_one_and_sum,
    "coordinates": coordinates,
    "traces": traces,
    "rotated": rotated,
    "gram": gram,
    "weight": weight,
    "step": step,
}
"""By the quantity; projections by the kind of the directions."""
