"""The quantiser: allowed sizes only, no flapping, and clear gains both ways."""

import math
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from fisheropt.control.quantise import quantise

quick = settings(max_examples=100, deadline=None, derandomize=True)
ladder = {
    "previous": st.integers(1, 5000),
    "ratio": st.floats(0.3, 3.0) | st.floats(1e-4, 1e4),
    "lo": st.integers(1, 64),
    "width": st.integers(8, 4096),
    "multiple": st.integers(1, 8),
}


@quick
@given(**ladder, wobbles=st.lists(st.floats(0.96, 1.04), min_size=2, max_size=8))
@example(previous=1, ratio=2.3125, lo=1, width=8, multiple=1, wobbles=[1.03125, 0.96875])
def test_quantised_sizes_are_allowed_and_do_not_flap(
    previous: int, ratio: float, lo: int, width: int, multiple: int, wobbles: list[float]
) -> None:
    """Proposals within 4 % of one another move the size once at most."""
    sizes, low, high = [previous], multiple * math.ceil(lo / multiple), multiple * ((lo + width) // multiple)
    for wobble in wobbles:
        proposed = min(max(ratio * previous * wobble, low + 0.1), high - 0.1)
        sizes.append(quantise(sizes[-1], proposed, lo, lo + width, multiple=multiple))
        assert lo <= sizes[-1] <= lo + width and sizes[-1] % multiple == 0
    assert sum(a != b for a, b in pairwise(sizes)) <= 1


@quick
@given(**ladder, more=st.floats(1.0, 100.0))
def test_quantised_sizes_grow_with_the_proposal(
    previous: int, ratio: float, lo: int, width: int, multiple: int, more: float
) -> None:
    proposals = ratio * previous, more * ratio * previous
    low, high = (quantise(previous, proposal, lo, lo + width, multiple=multiple) for proposal in proposals)
    assert low <= high


def test_quantised_sizes_move_by_clear_gains_both_ways_and_reach_the_bounds() -> None:
    assert [quantise(64, p, 8, 1000) for p in (50.0, 64.0, 82.0)] == [64, 64, 64]
    assert [quantise(64, p, 8, 1000) for p in (84.0, 128.0, 45.0, 16.0)] == [91, 128, 45, 16]
    assert [quantise(64, p, 8, 1000) for p in (2000.0, 1.0)] == [1000, 8]
    assert quantise(100, 100.0, 8, 1000) == 100
    assert [quantise(800, 1000.0, 8, 1000), quantise(9, 8.0, 8, 1000)] == [1000, 8]
    assert quantise(100, 100.0, 8, 1000, multiple=8) == 88


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((8, math.nan, 1, 9), "finite"), ((8, 8.0, 9, 8), "1 <= lo <= hi"), ((0, 8.0, 1, 9), "positive")],
)
def test_quantise_refuses_what_has_no_answer(arguments: tuple[int, float, int, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        quantise(*arguments)
    with pytest.raises(ValueError, match="no multiple of 16"):
        quantise(8, 8.0, 1, 9, multiple=16)
