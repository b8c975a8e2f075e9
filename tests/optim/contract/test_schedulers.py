"""sched.*: learning-rate schedulers and weight averaging."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_finite,
    backward,
    batches,
    network,
    parameters,
    set_gradients,
    train,
    values,
)

STEPS = 12


def _sequential(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    parts = [
        lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=3),
        lr_scheduler.ExponentialLR(optimizer, 0.9),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])


def _chained(optimizer: Optimizer) -> Any:
    parts = [lr_scheduler.LinearLR(optimizer, total_iters=4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts, optimizer=optimizer)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=STEPS + 1, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": _sequential,
    "ChainedScheduler": _chained,
}


def _schedule(optimizer: Optimizer, make: Callable[[Optimizer], Any]) -> list[list[float]]:
    scheduler = make(optimizer)
    seen = []
    for step in range(STEPS):
        set_gradients([parameter for group in optimizer.param_groups for parameter in group["params"]], step)
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
    return seen


@pytest.mark.parametrize("name", SCHEDULERS)
@every(rows=["momentum", "acting"])
def test_sched_all(candidate: Candidate, name: str) -> None:
    """sched.all: each scheduler gives the lr that it gives torch.optim.SGD, two groups, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step")
        ours = candidate.make([{"params": parameters()}, {"params": parameters(), "lr": 0.02}])
        theirs = torch.optim.SGD([{"params": parameters()}, {"params": parameters(), "lr": 0.02}], lr=0.1)
        assert _schedule(ours, SCHEDULERS[name]) == _schedule(theirs, SCHEDULERS[name])


def test_sched_all_knows_every_scheduler() -> None:
    """sched.all: the table holds every scheduler that torch exports."""
    abstract = {"LRScheduler"}
    exported = {name for name in lr_scheduler.__all__ if isinstance(getattr(lr_scheduler, name), type)} - abstract
    assert set(SCHEDULERS) == exported


@every(given="module", rows=["acting"])
def test_sched_all_while_measuring(candidate: Candidate) -> None:
    """sched.all: measuring noise does not change the lr that a scheduler sets."""
    model, plain = network(), network()
    optimizer, control = candidate.build(model), torch.optim.SGD(plain.parameters(), lr=0.1)
    schedulers = [lr_scheduler.CosineAnnealingLR(each, T_max=8) for each in (optimizer, control)]
    for step in range(STEPS):
        train(optimizer, model, [step])
        train(control, plain, [step])
        for scheduler in schedulers:
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == control.param_groups[0]["lr"]


@every("momentum", rows=["momentum"])
def test_sched_momentum(candidate: Candidate) -> None:
    """sched.momentum: OneCycleLR and CyclicLR cycle `momentum` as they do for torch.optim.SGD."""
    schedulers: list[Callable[[Optimizer], Any]] = [
        lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=STEPS + 1),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3),
    ]
    for make in schedulers:
        params, reference = parameters(), parameters()
        pair = candidate.make(params), torch.optim.SGD(reference, lr=0.1, momentum=0.9)
        cycled = [_momenta(optimizer, make) for optimizer in pair]
        assert cycled[0] == cycled[1] and len(set(cycled[0])) > 3


def _momenta(optimizer: Optimizer, make: Callable[[Optimizer], Any]) -> list[float]:
    scheduler = make(optimizer)
    seen = []
    for step in range(STEPS):
        set_gradients(optimizer.param_groups[0]["params"], step)
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["momentum"])
    return seen


@every(given=None)
def test_sched_lr_tensor(candidate: Candidate) -> None:
    """sched.lr_tensor: a scheduler changes a Tensor lr in place, the same object, and the step follows."""
    lr = torch.tensor(0.1)
    by_tensor, by_float = network(), network()
    optimizer, plain = candidate.build(by_tensor, lr), candidate.build(by_float, 0.1)
    schedulers = [lr_scheduler.ExponentialLR(each, 0.5) for each in (optimizer, plain)]
    for step in range(4):
        train(optimizer, by_tensor, [step])
        train(plain, by_float, [step])
        for scheduler in schedulers:
            scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert abs(float(lr) - 0.1 * 0.5**4) < 1e-7
    for one, two in zip(values(by_tensor.parameters()), values(by_float.parameters()), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@every(given=None)
def test_sched_swa(candidate: Candidate) -> None:
    """sched.swa: SWALR and averaged models, plain and exponential, run beside it."""
    model = network()
    optimizer = candidate.build(model)
    averages = [AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))]
    scheduler = SWALR(optimizer, swa_lr=0.02, anneal_epochs=3)
    seen = []
    for step in range(5):
        train(optimizer, model, [step])
        scheduler.step()
        seen.append(values(model.parameters()))
        for average in averages:
            average.update_parameters(model)
    update_bn(((inputs,) for inputs, _ in batches(0)), averages[0])
    assert abs(optimizer.param_groups[0]["lr"] - 0.02) < 1e-12
    for average, history in zip(averages[0].module.parameters(), zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(average.detach(), torch.stack(history).mean(0))
    for average in averages:
        assert_finite(values(average.parameters()))


@every(given="module")
def test_sched_swa_average_does_not_feed_the_optimizer(candidate: Candidate) -> None:
    """sched.swa: forward and backward of the averaged copy leave the optimizer's next step as it is."""
    model, alone = network(), network()
    optimizer, single = candidate.build(model), candidate.build(alone)
    train(optimizer, model, range(2))
    train(single, alone, range(2))
    average = AveragedModel(model)
    for step in range(2, 5):
        optimizer.zero_grad()
        backward(average, step + 40)
        backward(model, step)
        optimizer.step()
        train(single, alone, [step])
    for one, two in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, two)
