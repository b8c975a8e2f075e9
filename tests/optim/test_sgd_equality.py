"""With its feature off, an optimizer of fisheropt is torch.optim.SGD: parameters and momentum buffers, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice, product
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer

from tests.optim.candidates import Candidate, database, optimizer_classes
from tests.optim.contract.problems import (
    assert_equal,
    group_parameters,
    network,
    parameters,
    set_gradients,
    train,
    trained,
    values,
)

FEATURES_OFF: dict[str, list[dict[str, Any]]] = {
    "FisherFloorSGD": [{"mode": "monitor"}, {"floor": 0}, {"floor": None}],
    "GodambeSGD": [{"metric": None}],
    "AdaptiveBatchSGD": [{"controller": None}],
}
OFF = [
    Candidate(cls, "-".join(f"{key}={value}" for key, value in row.items()), row, given)
    for cls in optimizer_classes()
    for row in FEATURES_OFF.get(cls.__name__, [])
    for given in ("parameters", "module")
]
MOMENTA = [
    {"momentum": 0.0},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
]
ONLY_MEASURE = {"FisherFloorSGD-monitor", "AdaptiveBatchSGD-acting"}
ACTING = [each for each in database() if each.keywords.get("every") == 1]
off = pytest.mark.parametrize("candidate", OFF, ids=str)


def hyperparameters() -> Iterator[dict[str, Any]]:
    """Every combination of torch.optim.SGD's keywords."""
    for momentum, decay, maximize, foreach in product(MOMENTA, (0.0, 0.1), (False, True), (None, False, True)):
        yield {**momentum, "weight_decay": decay, "maximize": maximize, "foreach": foreach}


def some() -> Iterator[dict[str, Any]]:
    """Each fifth combination: every value of every keyword, with different company."""
    return islice(hyperparameters(), None, None, 5)


def assert_same_as_sgd(ours: Optimizer, theirs: Optimizer) -> None:
    """Equal parameters, and `momentum_buffer` under the same key wherever torch.optim.SGD has one."""
    for one, two in zip(group_parameters(ours), group_parameters(theirs), strict=True):
        assert_equal(one.detach(), two.detach())
        assert ("momentum_buffer" in ours.state[one]) is ("momentum_buffer" in theirs.state[two])
        if "momentum_buffer" in theirs.state[two]:
            assert_equal(ours.state[one]["momentum_buffer"], theirs.state[two]["momentum_buffer"])


def test_every_optimizer_can_be_switched_off() -> None:
    """A new optimizer says here with which keywords it is torch.optim.SGD."""
    assert {cls.__name__ for cls in optimizer_classes()} == set(FEATURES_OFF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@off
def test_off_is_sgd_in_training(candidate: Candidate, dtype: torch.dtype) -> None:
    """Combinations of keywords (all of them in float32), three accumulated steps each."""
    for row in hyperparameters() if dtype == torch.float32 else some():
        model, control = network(dtype=dtype), network(dtype=dtype)
        ours, theirs = candidate.build(model, 0.1, **row), SGD(control.parameters(), lr=0.1, **row)
        train(ours, model, range(3), count=2)
        train(theirs, control, range(3), count=2)
        assert_same_as_sgd(ours, theirs)
        assert not torch.equal(next(model.parameters()), next(network(dtype=dtype).parameters()))


@pytest.mark.parametrize("candidate", ACTING, ids=str)
def test_on_measures_at_every_step(candidate: Candidate) -> None:
    """The rows of the contract that act do act: no requirement passes for want of a measurement."""
    model, optimizer = trained(candidate)
    assert optimizer.report().measurements == 4
    control, _ = trained(Candidate(SGD, keywords={"momentum": candidate.keywords.get("momentum", 0.0)}))
    moved_alike = torch.equal(next(model.parameters()), next(control.parameters()))
    assert moved_alike is (str(candidate).removesuffix("-module") in ONLY_MEASURE)


@off
def test_off_is_sgd_when_gradients_are_missing(candidate: Candidate) -> None:
    """Momentum starts in each parameter with its own first gradient, and rests without one."""
    for row in some():
        model, control = network(), network()
        ours, theirs = candidate.build(model, 0.1, **row), SGD(control.parameters(), lr=0.1, **row)
        for seed in range(5):
            for each, optimizer in ((model, ours), (control, theirs)):
                optimizer.zero_grad()
                present = [p for place, p in enumerate(each.parameters()) if (place + seed) % 3]
                set_gradients(present, seed)
                optimizer.step()
        assert_same_as_sgd(ours, theirs)


@off
def test_off_is_sgd_under_a_tensor_lr(candidate: Candidate) -> None:
    """A Tensor lr, edited in place between the steps."""
    for row in some():
        model, control = network(), network()
        rates = torch.tensor(0.1), torch.tensor(0.1)
        ours, theirs = candidate.build(model, rates[0], **row), SGD(control.parameters(), lr=rates[1], **row)
        for step in range(3):
            train(ours, model, [step], count=2)
            train(theirs, control, [step], count=2)
            for rate in rates:
                rate.mul_(0.7)
        assert_same_as_sgd(ours, theirs)


@off
def test_off_exchanges_checkpoints_with_sgd(candidate: Candidate) -> None:
    """A checkpoint of torch.optim.SGD continues bit for bit, and one of ours continues in torch.optim.SGD."""
    row = {"momentum": 0.9, "weight_decay": 0.05}
    control, sgd = trained(Candidate(SGD, keywords=row))
    model, ours = trained(candidate, **row)
    fresh = network()
    for source, target in (
        (sgd, candidate.build(fresh, 0.1, **row)),
        (ours, SGD(fresh.parameters(), lr=0.1, **row)),
    ):
        target.load_state_dict(deepcopy(source.state_dict()))
        fresh.load_state_dict(control.state_dict())
        train(target, fresh, range(4, 7))
        expected = deepcopy(control)
        again = SGD(expected.parameters(), lr=0.1, **row)
        again.load_state_dict(deepcopy(sgd.state_dict()))
        train(again, expected, range(4, 7))
        assert_equal(values(fresh.parameters()), values(expected.parameters()))
        assert_same_as_sgd(target, again)
    assert_equal(values(model.parameters()), values(control.parameters()))


@pytest.mark.parametrize("candidate", [each for each in OFF if each.given == "parameters"], ids=str)
def test_off_is_sgd_for_loose_tensors(candidate: Candidate) -> None:
    """Parameters that no module holds, by made-up gradients, in two groups."""
    for row in some():
        pair = []
        for make in (candidate.make, SGD):
            params = parameters([(3, 2), (), (0,), (2,)])
            pair.append(
                make(
                    [{"params": params[:2]}, {"params": params[2:], "lr": 0.02, "momentum": 0.5}],
                    lr=0.1,
                    **row,
                )
            )
            for seed in range(4):
                set_gradients(params, seed)
                pair[-1].step()
        assert_same_as_sgd(*pair)
