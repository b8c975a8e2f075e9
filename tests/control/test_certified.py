"""The certified controller waits for stationarity, does not miss it, and lowers the temperature by its factor."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from fisheropt.control import history
from fisheropt.control.base import GradientNoise, Moment, Proposal, State
from fisheropt.control.certified import Certified, products
from fisheropt.theory.stationarity import stationarity_certificate

LARGE = (2.0, 1e9)


def driven(
    rule: Certified,
    rows: list[Tensor],
    noise: float | None = 1.0,
    *,
    batch: int = 10,
    lr: float = 0.1,
    bounds: tuple[float, float] = LARGE,
    data_size: int | None = None,
    capacity: int = 4096,
) -> list[Proposal]:
    """What it proposes at each step, with batches and steps that do not follow it."""
    group, state, proposals = history.fresh(capacity, len(rows[0])), rule.initial_state(), []
    for k, row in enumerate(rows, start=1):
        history.add(group, row)
        ring = history.Ring(group)
        moment = Moment(lr, batch, k * batch, bounds, sketches=ring, in_use=None, data_size=data_size)
        reading = None if noise is None else GradientNoise(0.0, noise, 5.0, batch)
        before = dict(state)
        proposals.append(rule.propose(state, reading, moment))
        assert state == before
        state = proposals[-1].state
        assert state.keys() == rule.initial_state().keys()
    return proposals


def opposed(steps: int, seed: int = 0) -> list[Tensor]:
    """Rows of which consecutive ones oppose each other: A + C < 0 without doubt."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.tensor([(-1.0) ** k, 0.0]) + 0.1 * torch.randn(2, generator=generator) for k in range(steps)]


def changes(proposals: list[Proposal]) -> list[int]:
    counts = [0.0] + [p.state["changes"] for p in proposals]
    return [k for k in range(1, len(counts)) if counts[k] > counts[k - 1]]


def test_asks_every_twenty_steps_and_acts_on_the_second_certificate() -> None:
    """60 products need 61 gradients, hence 80 and 100; then 60 and 80 steps after each change."""
    proposals = driven(Certified(), opposed(400), 1e-6)
    assert changes(proposals) == [100, 180, 260, 340]
    assert [k for k, p in enumerate(proposals, start=1) if p.why][:4] == [80, 100, 160, 180]
    assert proposals[98].batch_size == 10 and proposals[99].batch_size == 40 and proposals[179].batch_size == 160
    assert all(p.lr_factor == 1 for p in proposals)


def test_what_the_largest_batch_cannot_do_the_step_does() -> None:
    proposals = driven(Certified(factor=3.0), opposed(300), 1e-6, bounds=(2.0, 45.0))
    assert (proposals[99].batch_size, proposals[99].lr_factor) == (30, 1)
    assert proposals[179].batch_size == 45 and proposals[179].lr_factor == pytest.approx(0.5)
    assert proposals[259].lr_factor == pytest.approx(0.5 / 3)


def test_one_certificate_is_not_enough() -> None:
    """Stationary at 80, clearly not at 100."""
    rows = opposed(80) + [torch.tensor([3.0, 0.0])] * 60
    proposals = driven(Certified(), rows, 1e-6)
    assert proposals[79].state["in_a_row"] == 1 and proposals[99].state["in_a_row"] == 0
    assert changes(proposals) == []


def test_no_certificate_while_the_loss_falls_or_without_a_reading() -> None:
    assert changes(driven(Certified(), [torch.ones(2)] * 300, 1e-6)) == []
    assert changes(driven(Certified(), opposed(300), None)) == []


@pytest.mark.parametrize("data_size", [None, 40])
def test_the_verdict_is_that_of_the_certificate(data_size: int | None) -> None:
    """A_k = |s_k|^2 - V/b and C_k = <s_{k-1}, s_k>, each with V/n of a shuffled loader, over all steps."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(6, generator=generator) + 0.2 for _ in range(120)]
    state = driven(Certified(share=0.3, level=0.9), rows, 2.0, data_size=data_size)[-1].state
    bias = 0.0 if data_size is None else 2.0 / data_size
    squared = torch.stack([rows[k] @ rows[k] - 2.0 / 10 + bias for k in range(1, 120)])
    lagged = torch.stack([rows[k - 1] @ rows[k] + bias for k in range(1, 120)])
    expected = stationarity_certificate(squared, lagged, 0.1, share=0.3, level=0.9)
    seen = [state[key] for key in ("upper", "decrease", "decrease_se", "tested")]
    assert seen == pytest.approx([expected.upper, expected.decrease, expected.decrease_se, expected.steps], rel=1e-5)


def test_products_are_of_neighbours() -> None:
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, -4.0]])
    squared, lagged = products(rows)
    assert squared.tolist() == [4.0, 9.0, 17.0] and lagged.tolist() == [2.0, 0.0, -12.0]


def test_noise_and_batch_are_averaged_since_the_last_change() -> None:
    rule, state, ring = Certified(), Certified().initial_state(), history.Ring(history.fresh())
    for batch, noise in ((8, 1.0), (8, 2.0), (4, 6.0)):
        moment = Moment(0.1, batch, 8, LARGE, sketches=ring)
        state = rule.propose(state, GradientNoise(0.0, noise, 5.0, batch), moment).state
    assert state["inverse_batch"] == pytest.approx((1 / 8 + 1 / 8 + 1 / 4) / 3)
    assert state["noise"] == pytest.approx((1 * 1.0 + 2 * 2.0 + 3 * 6.0) / 6)
    assert state["wanted"] == 8


def test_a_history_that_forgets_is_enough() -> None:
    assert changes(driven(Certified(), opposed(300), 1e-6, capacity=64))[0] == 80 + 20


def simulated(seed: int, lr: float) -> tuple[int, float]:
    """Step of the first change and the loss there over its floor: SGD on a quadratic, d = 20, kappa 30, b = 32."""
    h = torch.linspace(1 / 30, 1, 20, dtype=torch.float64)
    floor = float((lr * h * h / (32 * (2 - lr * h)) / h).sum() / 2)
    generator = torch.Generator().manual_seed(seed)
    theta = torch.ones(20, dtype=torch.float64)
    rule, group = Certified(), history.fresh(4096, 20)
    group["sketches"] = group["sketches"].double()
    state: State = rule.initial_state()
    averaged = 0.0
    for k in range(1, 4000):
        gradient = h * theta + torch.randn(20, generator=generator, dtype=torch.float64) * (h / 32).sqrt()
        history.add(group, gradient)
        reading = GradientNoise(0.0, float(h.sum()), 15.0, 32)
        moment = Moment(lr, 32, 32 * k, LARGE, sketches=history.Ring(group))
        theta = theta - lr * gradient
        averaged += (float((h * theta.square()).sum()) / 2 - averaged) / 40
        state = rule.propose(state, reading, moment).state
        if state["changes"]:
            return k, averaged / floor
    return k, math.nan


@pytest.mark.parametrize("lr", [0.1, 0.5])
def test_fires_near_the_floor(lr: float) -> None:
    """Of 9 seeds, the loss (mean of some 40 steps) at the first change: median 1.5 floors at most; the worst 15, as known."""
    found = [simulated(seed, lr) for seed in range(9)]
    ratios = sorted(ratio for _, ratio in found)
    assert ratios[4] < 1.5 and ratios[-1] < 15.0
    assert max(step for step, _ in found) < 3900


def test_without_sketches_it_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"AdaptiveBatchSGD\(\.\.\., controller='certified'\)"):
        Certified().propose(Certified().initial_state(), None, Moment(0.1, 16, 16, LARGE))


@pytest.mark.parametrize("wrong", [{"factor": 1.0}, {"share": 0.0}, {"level": 0.5}, {"factor": math.nan}])
def test_hyper_parameters_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"write Certified\(factor=4\.0"):
        Certified(**wrong)


def test_its_state_can_be_saved() -> None:
    state = driven(Certified(), opposed(110), 1e-6)[-1].state
    assert pickle.loads(pickle.dumps(state)) == state
    assert all(isinstance(value, float) for value in state.values())
