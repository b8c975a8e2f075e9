"""The ring of sketches is a list that forgets, and survives being saved."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from fisheropt.control import history


def filled(steps: int, capacity: int = 12, width: int = 3) -> tuple[dict[str, Any], list[Tensor]]:
    group = history.fresh(capacity, width)
    rows = [torch.tensor([float(k), -2.0 * k, 1.0]) for k in range(steps)]
    for row in rows:
        history.add(group, row)
    return group, rows


@pytest.mark.parametrize("steps", [1, 7, 12, 13, 29, 36])
def test_a_ring_is_a_list_of_the_last_steps(steps: int) -> None:
    group, rows = filled(steps)
    ring, kept = history.Ring(group), rows[-12:]
    assert ring.steps == len(kept)
    for latest in range(ring.steps):
        for window in range(1, ring.steps - latest + 1):
            expected = torch.stack(kept[len(kept) - latest - window : len(kept) - latest])
            assert torch.equal(ring.mean(latest, window), expected.sum(0) / window)
            if latest == 0:
                assert torch.equal(ring.last(window), expected)


@pytest.mark.parametrize(("latest", "steps"), [(-1, 1), (0, 0), (0, 8), (3, 5), (7, 1)])
def test_nothing_is_made_up_beyond_the_history(latest: int, steps: int) -> None:
    ring = history.Ring(filled(7)[0])
    with pytest.raises(ValueError, match="reaches 7 steps back"):
        ring.mean(latest, steps)


def test_an_empty_ring_has_no_mean() -> None:
    ring = history.Ring(history.fresh())
    assert ring.steps == 0
    with pytest.raises(ValueError, match="reaches 0 steps back"):
        ring.last(1)


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"CountSketch\(width=256\)"):
        history.add(history.fresh(), torch.zeros(64))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda group: pickle.loads(pickle.dumps(group))])
def test_a_copy_goes_on_by_itself(copied: Any) -> None:
    group, rows = filled(20)
    other = copied(group)
    history.add(other, torch.full((3,), 100.0))
    assert torch.equal(history.Ring(group).last(1)[0], rows[-1])
    assert torch.equal(history.Ring(other).last(2), torch.stack([rows[-1], torch.full((3,), 100.0)]))


def test_the_shape_never_changes() -> None:
    """A saved state has to fit a fresh optimizer."""
    assert filled(50)[0]["sketches"].shape == history.fresh(12, 3)["sketches"].shape
    assert history.fresh()["sketches"].shape == (history.CAPACITY, history.WIDTH)


def test_the_sketch_is_copied() -> None:
    group, sketch = history.fresh(4, 3), torch.ones(3)
    history.add(group, sketch)
    sketch.zero_()
    assert torch.equal(history.Ring(group).last(1), torch.ones(1, 3))
