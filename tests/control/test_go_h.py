"""GO-H does what its formula says, in the direction that helps, and says what it lacks."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from fisheropt.control import history
from fisheropt.control.base import Moment, Proposal
from fisheropt.control.go_h import GOH

BOUNDS = (2.0, 64.0)


def driven(
    rule: GOH, rows: list[Tensor], budget: int, start: float = 16.0, capacity: int = 4096, bounds: Any = BOUNDS
) -> list[Proposal]:
    """What it proposes at each step, each proposal being followed to the letter."""
    group, state, seen, size = history.fresh(capacity, len(rows[0])), rule.initial_state(), 0.0, start
    proposals = []
    for row in rows:
        history.add(group, row)
        seen += size
        moment = Moment(0.1, size, seen, bounds, budget, sketches=history.Ring(group))  # type: ignore[arg-type]
        before = dict(state)
        proposal = rule.propose(state, None, moment)
        assert state == before or math.isnan(before["log_batch"])
        assert proposal.state.keys() == state.keys()
        state, size = proposal.state, proposal.batch_size
        proposals.append(proposal)
    return proposals


def by_the_book(rule: GOH, rows: list[Tensor], budget: int, start: float = 16.0) -> list[tuple[float, float]]:
    """(b, factor of eta) after each step: the pseudo-code of the design over a plain list, k counted from one."""
    lo, hi = max(BOUNDS[0], start), BOUNDS[1]  # the start is a bound of ours
    log_b, b, seen, found = math.log(start), start, 0.0, []
    for k in range(1, len(rows) + 1):
        seen += b
        if k >= 8 and k % 4 == 0:
            lag = int(min(max(round(rule.horizon * (budget - seen) / b), 1), k // 3))
            window = min(max(lag, 1), min(k - lag, 200))
            u = torch.stack(rows[k - window : k]).mean(0)
            w = torch.stack(rows[k - lag - window : k - lag]).mean(0)
            z = float((u * w).sum() / ((u * u).sum() * (w * w).sum()).sqrt()) * rule.directions**0.5
            log_b += 4 * rule.gain * -math.tanh(z) * min(0.1, b / (budget - seen))
            log_b = min(max(log_b, math.log(lo)), math.log(50 * hi))
        b = min(hi, math.exp(log_b))
        found.append((b, min(1.0, hi / math.exp(log_b))))
    return found


def walk(steps: int, drift: float, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(8, generator=generator)
    return [drift * mean * (-1) ** (k // 9 + k // 40) + torch.randn(8, generator=generator) for k in range(steps)]


@pytest.mark.parametrize("rule", [GOH(), GOH(horizon=0.3, gain=1.0, directions=10.0)])
@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_the_formula(rule: GOH, drift: float) -> None:
    rows = walk(150, drift)
    expected = by_the_book(rule, rows, 6000)
    proposals = driven(rule, rows, 6000)
    assert len({round(b, 6) for b, _ in expected}) > 20
    for proposal, (b, factor) in zip(proposals, expected, strict=True):
        assert proposal.batch_size == pytest.approx(b, rel=1e-5)
        assert proposal.lr_factor == pytest.approx(factor, rel=1e-5)


def test_opposition_cools_and_agreement_heats_down_to_the_start() -> None:
    rule, alternating = GOH(horizon=1e-9), [torch.ones(4) * (-1) ** k for k in range(60)]
    cooled = driven(rule, alternating, 20_000)[-1]
    assert cooled.batch_size > 17 and "oppose" in cooled.why
    heated = driven(rule, alternating + [torch.ones(4)] * 20, 20_000)[-1]
    assert 16 < heated.batch_size < cooled.batch_size and "agree" in heated.why
    assert driven(rule, alternating + [torch.ones(4)] * 300, 20_000)[-1].batch_size == pytest.approx(16)


def test_acts_every_fourth_step_from_the_eighth_on() -> None:
    proposals = driven(GOH(horizon=1e-9), [torch.ones(4) * (-1) ** k for k in range(21)], 100_000)
    sizes = [16.0] + [p.batch_size for p in proposals]
    assert [k for k in range(1, 22) if sizes[k] != pytest.approx(sizes[k - 1], abs=1e-9)] == [8, 12, 16, 20]
    assert [bool(p.why) for p in proposals] == [k >= 8 and k % 4 == 0 for k in range(1, 22)]


def test_beyond_the_largest_batch_the_step_falls() -> None:
    """At equal temperature, up to fifty times; and it comes back."""
    rows = [torch.ones(4) * (-1) ** k for k in range(400)]
    proposals = driven(GOH(horizon=1e-9), rows, 22_000)
    assert proposals[-1].batch_size == 64 and proposals[-1].lr_factor == pytest.approx(1 / 50)
    assert any(0.1 < p.lr_factor < 0.9 for p in proposals)
    back = driven(GOH(horizon=1e-9), rows + [torch.ones(4)] * 80, 22_000)
    assert back[-1].lr_factor == 1 and back[-1].batch_size < 64


def test_the_lag_is_what_is_left_and_a_third_of_the_past_at_most() -> None:
    proposals = driven(GOH(gain=1e-9), [torch.ones(4)] * 300, 301 * 16)
    for k, proposal in enumerate(proposals, start=1):
        if k >= 8 and k % 4 == 0:
            lag = max(min(301 - k, k // 3), 1)
            assert proposal.state["lag"] == lag
            assert proposal.state["window"] == min(lag, k - lag, 200)


def test_a_short_history_bounds_lag_and_window() -> None:
    proposals = driven(GOH(gain=1e-9), [torch.ones(4)] * 1200, 10**6, capacity=600)
    assert (proposals[-1].state["lag"], proposals[-1].state["window"]) == (400, 200)
    assert proposals[-1].state["z"] == pytest.approx(30**0.5)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_gradient_changes_nothing_and_is_forgotten(broken: float) -> None:
    rows = [torch.ones(4) * (-1) ** k for k in range(76)]
    rows[15] = torch.full((4,), broken)
    proposals = driven(GOH(horizon=1e-9), rows, 100_000)
    assert proposals[15].batch_size == pytest.approx(proposals[14].batch_size)
    assert all(math.isfinite(p.batch_size) and math.isfinite(p.lr_factor) for p in proposals)
    assert math.isfinite(proposals[-1].state["z"]) and proposals[-1].batch_size > 1.001 * proposals[15].batch_size


def test_gradients_of_zero_change_nothing() -> None:
    assert driven(GOH(), [torch.zeros(4)] * 30, 1000)[-1].batch_size == pytest.approx(16)


def test_past_the_budget_it_keeps_the_size_and_says_so() -> None:
    """Whatever the gradients do then; the step that spends the rest of the budget is still within it."""
    rows = [torch.ones(4) * (-1) ** (k if k < 44 or k % 24 < 12 else 0) for k in range(200)]
    budget = 800
    proposals = driven(GOH(horizon=1e-9, gain=0.5), rows, budget)
    sizes = [16.0] + [p.batch_size for p in proposals]
    seen = torch.tensor(sizes[:-1]).cumsum(0).tolist()
    spent = next(k for k, samples in enumerate(seen) if samples >= budget)
    assert 16 < sizes[spent] < BOUNDS[1] and len({round(size, 6) for size in sizes[: spent + 1]}) > 3
    assert all(p.batch_size == pytest.approx(sizes[spent]) and p.lr_factor == 1 for p in proposals[spent:])
    assert all("spent" not in p.why for p in proposals[: spent + 1])
    assert {p.why for p in proposals[spent + 1 :]} == {"the budget is spent; give a larger budget="}


def test_resumed_past_the_budget_it_keeps_the_size_in_use() -> None:
    group, state = history.fresh(64, 4), GOH().initial_state()
    for k in range(40):
        history.add(group, torch.ones(4) * (-1) ** k)
        proposal = GOH().propose(state, None, Moment(0.1, 20, 1000 + k, BOUNDS, 800, sketches=history.Ring(group)))
        state = proposal.state
        assert proposal.batch_size == pytest.approx(20)


def test_without_a_budget_it_says_what_to_write() -> None:
    ring = history.Ring(history.fresh())
    with pytest.raises(ValueError, match=r"write AdaptiveBatchSGD\(\.\.\., budget=len\(data\) \* epochs\)"):
        GOH().propose(GOH().initial_state(), None, Moment(0.1, 16, 16, BOUNDS, sketches=ring))
    with pytest.raises(ValueError, match=r"sketches=history\.Ring\(group\)"):
        GOH().propose(GOH().initial_state(), None, Moment(0.1, 16, 16, BOUNDS, 100))


@pytest.mark.parametrize("wrong", [{"horizon": 0.0}, {"gain": -1.0}, {"directions": math.nan}])
def test_hyper_parameters_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"write GOH\(horizon=1\.0"):
        GOH(**wrong)


def test_its_state_can_be_saved() -> None:
    state = driven(GOH(), walk(30, 0.0), 1000)[-1].state
    assert pickle.loads(pickle.dumps(state)) == state
    assert all(isinstance(value, float) for value in state.values())


def excess(rule: GOH | None, seed: int, steps: int = 1500) -> float:
    """Loss at the end of SGD on a quadratic of 300 dimensions (kappa 10), over that of an efficient estimate."""
    h = torch.logspace(-1, 0, 300, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    theta, budget, seen, size, factor = torch.full((300,), 0.5, dtype=torch.float64), steps * 16, 0, 16, 1.0
    group, state = history.fresh(steps, 300), {} if rule is None else rule.initial_state()
    while seen < budget:
        noise = torch.randn(300, generator=generator, dtype=torch.float64) * (h / size).sqrt()
        gradient = h * theta + noise
        theta = theta - 0.5 * factor * gradient
        seen += size
        if rule is not None:
            history.add(group, gradient)
            moment = Moment(0.5, size, seen, (16, 512), budget, sketches=history.Ring(group))
            proposal = rule.propose(state, None, moment)
            state, size, factor = proposal.state, round(proposal.batch_size), proposal.lr_factor
    return float((h * theta.square()).sum() / 2 / (300 / (2 * budget)))


def test_cools_in_time_on_a_quadratic() -> None:
    """Three seeds of each: at least three times better than a fixed batch, and than lag 1; within 3 of the limit."""
    fixed, greedy, goh = (sum(excess(r, s) for s in range(3)) / 3 for r in (None, GOH(horizon=1e-9), GOH()))
    assert goh < 3 and fixed > 3 * goh and greedy > 1.2 * goh
