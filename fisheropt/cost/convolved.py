"""Kernels that slide over positions.

n samples, t positions, o outputs, i numbers of a patch, of which `window` are of one channel, and x numbers of an input.
"""

from __future__ import annotations

from collections.abc import Mapping

from fisheropt.cost import outer
from fisheropt.cost.formed import summed, tiled, traced, turned
from fisheropt.cost.work import Ways, Work, both, holding, one, passes, product, times, update

_LANES = 8  # of channels that a convolution takes together, whether they are there or not
_CONVOLUTION = 25.0  # calls: layouts are changed on both sides
_EINSUM = 75.0  # calls beside those of the convolution: paths, permutations
_STRIDED = 8.0  # passes: a patch is copied number by number


def norms(n: int, t: int, o: int, i: int, groups: int, window: int, x: int) -> dict[str, Work]:
    """‖hₙ‖² of a kernel that slides."""
    found = {"formed": both(_slid(n, t, o, i, groups, window, x), passes(n * o * i, 0.5, 4.0))}
    if groups == 1:
        patches = _patches(n, t, i, window)
        found["patches"] = both(patches, outer.norms(n, max(t, 2), o, i)["formed"])
        gram = outer.norms(n, t, o, i)
        found["gram"] = both(patches, gram["gram"] if t > 1 else gram["sides"])
    return found


def square_sum(n: int, t: int, o: int, i: int, groups: int, window: int, x: int) -> dict[str, Work]:
    """Σₙ hₙ², elementwise."""
    return {"formed": both(_slid(n, t, o, i, groups, window, x), passes(n * o * i, 3.0, 4.0))}


def dense(n: int, t: int, o: int, i: int, groups: int, window: int, x: int, k: int) -> dict[str, Work]:
    """⟨hₙ, v_k⟩ for v [k, *kernel]."""
    return {"formed": both(_slid(n, t, o, i, groups, window, x), product(1, n, o * i, k), passes(0, 0.0, 3.0))}


def rank_one(n: int, t: int, o: int, i: int, groups: int, window: int, x: int, k: int) -> dict[str, Work]:
    """⟨hₙ, p_k q_kᵀ⟩."""
    taps = _padded(i // window) * window
    features = Work(2.0 * n * t * k * groups * taps, 4.0 * n * (x + 4 * t * k * groups + t * o), _CONVOLUTION + _EINSUM)
    filters = both(features, product(n, k, o, t), holding(2.0 * n * t * k * groups))
    formed = both(_slid(n, t, o, i, groups, window, x), product(n, o, i, k), passes(n * o * k, 4.0, 4.0))
    return {"filters": filters, "formed": formed}


def coordinates(n: int, t: int, o: int, i: int, groups: int, window: int, x: int, k: int) -> dict[str, Work]:
    """hₙ laid out among k coordinates."""
    return {"formed": both(_slid(n, t, o, i, groups, window, x), passes(n * k, 2.0, 3.0), holding(n * k))}


def combine(n: int, t: int, o: int, i: int, groups: int, window: int, x: int, k: int) -> dict[str, Work]:
    """Σₙ wₙₖ hₙ."""
    return {"formed": both(_slid(n, t, o, i, groups, window, x), product(1, k, n, o * i), passes(0, 0.0, 4.0))}


def traces(n: int, t: int, o: int, i: int, groups: int, window: int, x: int) -> dict[str, Work]:
    """Σₙ hₙhₙᵀ and Σₙ hₙᵀhₙ."""
    return {"formed": traced(_slid(n, t, o, i, groups, window, x), n, o, i)}


def rotated(n: int, t: int, o: int, i: int, groups: int, window: int, x: int) -> dict[str, Work]:
    """Σₙ (UᵀhₙU)², elementwise, without the square sum that every basis needs."""
    return {"formed": turned(n, o, i)}


def gram(n: int, t: int, o: int, i: int, groups: int, window: int, x: int) -> dict[str, Work]:
    """⟨hₙ, h_m⟩ of all pairs."""
    return {"formed": both(_slid(n, t, o, i, groups, window, x), times(product(1, n, o * i, n), 0.5))}


def norms_and_sum(n: int, t: int, o: int, i: int, groups: int, window: int, x: int) -> dict[str, Work]:
    """‖hₙ‖² and Σₙ hₙ, which hₙ once formed has for a pass."""
    return _and_sum(norms(n, t, o, i, groups, window, x), n, t, o, i, window, x)


def dense_and_sum(n: int, t: int, o: int, i: int, groups: int, window: int, x: int, k: int) -> dict[str, Work]:
    """⟨hₙ, v_k⟩ for v [k, *kernel], and Σₙ hₙ."""
    return _and_sum(dense(n, t, o, i, groups, window, x, k), n, t, o, i, window, x)


def rank_one_and_sum(n: int, t: int, o: int, i: int, groups: int, window: int, x: int, k: int) -> dict[str, Work]:
    """⟨hₙ, p_k q_kᵀ⟩ and Σₙ hₙ."""
    return _and_sum(rank_one(n, t, o, i, groups, window, x, k), n, t, o, i, window, x)


def _and_sum(found: dict[str, Work], n: int, t: int, o: int, i: int, window: int, x: int) -> dict[str, Work]:
    weight = _run(n, t, o, i, window, x)
    return {way: both(work, summed(n * o * i) if way == "formed" else weight) for way, work in found.items()}


def weight(n: int, t: int, o: int, i: int, groups: int, window: int, x: int) -> dict[str, Work]:
    """Σₙ hₙ by itself, as backward has it anyway."""
    return one(_run(n, t, o, i, window, x))


def step(n: int, t: int, o: int, i: int, groups: int, window: int, x: int) -> dict[str, Work]:
    """Forward, both products of backward, and the update."""
    return one(both(times(_run(n, t, o, i, window, x), 3.0), update(o * i)))


def _run(n: int, t: int, o: int, i: int, window: int, x: int) -> Work:
    """The convolution itself, or one of the two products of its backward."""
    return Work(2.0 * n * t * o * _padded(i // window) * window, 4.0 * n * (x + t * o), _CONVOLUTION)


def _slid(n: int, t: int, o: int, i: int, groups: int, window: int, x: int) -> Work:
    """hₙ as the weight's gradient of one convolution with a group for each sample and group of channels."""
    taps = _padded(i // window) * window
    traffic = 4.0 * n * (x + t * o + o * i)
    return both(Work(2.0 * n * t * o * taps, traffic, _CONVOLUTION), tiled(n, o * i))


def _patches(n: int, t: int, i: int, window: int) -> Work:
    """aₙₜ written out, [n, t, i]."""
    copied = passes(n * t * i, _STRIDED, 30.0) if window > 1 else passes(n * t * i, 1.0, 4.0)
    return both(copied, holding(float(n * t * i)))


def _padded(channels: int) -> int:
    return -(-channels // _LANES) * _LANES


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
