"""SASA+ drops the step when <theta, d> balances, keeps a bounded summary, and has the defaults of its authors."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import asdict

import pytest
import torch

from fisheropt.control.base import Moment, Proposal
from fisheropt.control.sasa import BLOCKS, SASA
from fisheropt.theory.stationarity import sasa_interval


def driven(rule: SASA, drifts: list[float]) -> list[Proposal]:
    state, proposals = rule.initial_state(), []
    for k, drift in enumerate(drifts, start=1):
        before = copy.deepcopy(state)
        proposals.append(rule.propose(state, None, Moment(0.1, 32, 32 * k, (2.0, 64.0), drift=drift)))
        assert state == before
        state = proposals[-1].state
        assert state.keys() == rule.initial_state().keys()
    return proposals


def noise(steps: int, mean: float = 0.0, seed: int = 0) -> list[float]:
    draws = torch.randn(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (draws + mean).tolist()


QUICK = SASA(leak=2, fewest=200, every=100, warmup=0)


def test_defaults_are_those_of_statopt() -> None:
    expected = {"significance": 0.05, "leak": 8, "fewest": 1000, "every": 100, "warmup": 1000, "drop": 10.0}
    assert asdict(SASA()) == expected


@pytest.mark.parametrize("leak", [1, 3, 8])
@pytest.mark.parametrize("steps", [60, 999, 5000])
def test_the_summary_is_of_the_newest_part(leak: int, steps: int) -> None:
    """Block means of equal length that cover the newest 1/leak of the steps and one block more at most."""
    drifts = noise(steps)
    state = driven(SASA(leak=leak, fewest=10**6), drifts)[-1].state
    length, blocks, pending = int(state["length"]), state["blocks"], int(state["count"])
    ends = steps - pending
    expected = [sum(drifts[ends - length * (i + 1) : ends - length * i]) / length for i in reversed(range(len(blocks)))]
    assert blocks == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert length * (len(blocks) - 1) <= steps / leak + length
    assert length * len(blocks) + pending > steps / leak - length
    assert len(blocks) < 2 * BLOCKS and (length == 1 or len(blocks) >= BLOCKS - 1)


def test_drops_where_the_mean_is_zero() -> None:
    """Of 6 series of zero mean: all within 3000 steps, as the halves agree in sign half the time."""
    for seed in range(6):
        proposals = driven(QUICK, noise(3000, 0.0, seed))
        assert proposals[-1].lr_factor <= 0.1 and proposals[-1].batch_size == 32


@pytest.mark.parametrize("mean", [-0.5, 0.5])
def test_does_not_drop_where_the_mean_is_not_zero(mean: float) -> None:
    assert all(driven(QUICK, noise(3000, mean, seed))[-1].lr_factor == 1 for seed in range(3))


def test_halves_of_opposite_sign_are_no_stationarity() -> None:
    """A mean that crosses zero is zero over all; asked of a later drop too, which looks at the whole alone otherwise."""
    crossing = [x + (0.15 if k < 1000 else -0.15) for k, x in enumerate(noise(2000))]
    rule = SASA(leak=1, fewest=1900, every=2000, warmup=0)
    before = driven(rule, crossing[:-1])[-1].state
    for drops in (0.0, 1.0):
        moment = Moment(0.1, 32, 64, (2.0, 64.0), drift=crossing[-1])
        state = rule.propose({**before, "drops": drops}, None, moment).state
        assert state["lower"] < 0 < state["upper"] and state["drops"] == drops


def test_the_first_drop_asks_more_than_the_later_ones() -> None:
    """Halves far from zero on the same side, the whole wide: stopped by the first test alone."""
    drifts = [0.05 + (0.75 if k >= 1000 else 0.0) + x for k, x in enumerate(noise(2000, 0.0, 3))]
    rule = SASA(leak=1, fewest=1900, every=2000, warmup=0, significance=0.0005)
    first = driven(rule, drifts)[-1].state
    assert first["lower"] < 0 < first["upper"] and first["drops"] == 0
    later = rule.propose(
        {**driven(rule, drifts[:-1])[-1].state, "drops": 1.0, "lr_factor": 0.1},
        None,
        Moment(0.1, 32, 64, (2.0, 64.0), drift=drifts[-1]),
    )
    assert later.state["drops"] == 2 and later.lr_factor == pytest.approx(0.01)


def test_the_interval_is_that_of_batch_means() -> None:
    drifts = noise(2000, 0.3)
    state = driven(SASA(leak=1, fewest=150, warmup=10**6, significance=0.1), drifts)[-1].state
    expected = sasa_interval(torch.tensor(state["blocks"], dtype=torch.float64), 0.9)
    assert (state["lower"], state["upper"]) == pytest.approx(expected)


def test_tests_begin_late_and_come_every_hundred_steps() -> None:
    asked = [k for k, p in enumerate(driven(SASA(), noise(9000, 0.0, 1)), start=1) if p.why]
    assert asked[0] == 8100 and all(k % 100 == 0 for k in asked)


def test_a_drop_begins_anew_and_keeps_the_factor() -> None:
    proposals = driven(QUICK, noise(3000))
    dropped = next(k for k, p in enumerate(proposals) if p.lr_factor < 1)
    assert proposals[dropped].state["blocks"] == [] and proposals[dropped].state["steps"] == 0
    assert proposals[dropped + 1].lr_factor == pytest.approx(0.1)
    later = [k for k, p in enumerate(proposals) if p.lr_factor < 0.05]
    assert not later or later[0] - dropped >= 300


def test_steps_without_a_number_do_not_count() -> None:
    drifts = noise(50)
    with_gaps = [x for pair in zip(drifts, [math.nan] * 50, strict=True) for x in pair]
    assert driven(QUICK, with_gaps)[-1].state["blocks"] == driven(QUICK, drifts)[-1].state["blocks"]


@pytest.mark.parametrize("wrong", [{"significance": 0.0}, {"leak": 0}, {"fewest": 50}, {"drop": 1.0}, {"every": 0}])
def test_hyper_parameters_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"write SASA\(significance=0\.05"):
        SASA(**wrong)  # type: ignore[arg-type]


def test_its_state_can_be_saved() -> None:
    state = driven(QUICK, noise(500, 0.5))[-1].state
    assert pickle.loads(pickle.dumps(state)) == state
    assert all(isinstance(value, float) for key, value in state.items() if key != "blocks")
