"""step.*: the numbers of a step, over shapes, layouts, dtypes and missing gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    assert_finite,
    backward,
    batches,
    network,
    parameters,
    set_gradients,
    train,
    values,
    walk,
)

HALVES = (torch.bfloat16, torch.float16)


@every()
def test_step_descends(candidate: Candidate) -> None:
    """step.descends: least squares falls in 20 closure steps, contiguous and strided, float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        for strided in (False, True):
            weight = parameters([(5, 8)], dtype)[0]
            weight = nn.Parameter(weight.detach().repeat(1, 2)[:, ::2]) if strided else weight
            assert weight.is_contiguous() is not strided
            target, inputs = parameters([(5,), (8,)], dtype, seed=3)
            optimizer = candidate.make([weight], 0.01)
            closure = least_squares(optimizer, weight, inputs.detach(), target.detach())
            first = closure().item()
            for _ in range(20):
                optimizer.step(closure)
            assert closure().item() < 0.9 * first


def least_squares(
    optimizer: torch.optim.Optimizer, weight: Tensor, inputs: Tensor, target: Tensor
) -> Callable[[], Tensor]:
    """The closure of |W x - y|^2."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight @ inputs - target).square().sum()
        loss.backward()
        return loss

    return closure


@every(given="module")
def test_step_descends_given_a_module(candidate: Candidate) -> None:
    """step.descends: the network's own loss falls in 30 accumulated steps."""
    model = network()
    optimizer = candidate.build(model, 0.05)
    losses = []
    for _ in range(31):
        optimizer.zero_grad()
        backward(model, step=0)
        with torch.no_grad():
            losses.append(sum(float((model(inputs) - target).square().mean()) for inputs, target in batches(0, 3)))
        optimizer.step()
    assert losses[-1] < losses[0]


@every()
def test_step_none_grad(candidate: Candidate) -> None:
    """step.none_grad: no gradient, no motion, also with state; none is made up; all without is a no-op."""
    params = parameters([(3, 2), (2,), (4,)])
    optimizer = candidate.make(params)
    before = values(params)
    optimizer.step()
    assert_equal(values(params), before)
    assert all(parameter.grad is None for parameter in params)
    for seed in range(3):
        set_gradients(params[:2], seed)
        optimizer.step()
    assert params[2].grad is None
    assert_equal([params[2]], before[2:])
    resting = values(params)
    optimizer.zero_grad()
    set_gradients(params[:1], seed=4)
    optimizer.step()
    assert params[1].grad is None
    assert_equal(values(params[1:]), resting[1:])
    assert not torch.equal(params[0], resting[0])


@every(given=None)
def test_step_none_grad_of_a_skipped_layer(candidate: Candidate) -> None:
    """step.none_grad: a layer whose forward was not used in a step does not coast."""
    model = network()
    optimizer = candidate.build(model)
    train(optimizer, model, range(3))
    before = values(model.parameters())
    optimizer.zero_grad()
    model[2](torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert_equal(values(model[0].parameters()), before[:2])
    assert not torch.equal(model[2].weight, before[2])


@every(given=None)
def test_step_freeze(candidate: Candidate) -> None:
    """step.freeze: a layer frozen for some steps stays, resumes, and all stays finite."""
    model = network()
    optimizer = candidate.build(model)
    train(optimizer, model, range(3))
    model[0].requires_grad_(False)
    before = values(model[0].parameters())
    train(optimizer, model, range(3, 6))
    assert_equal(values(model[0].parameters()), before)
    model[0].requires_grad_(True)
    train(optimizer, model, range(6, 9))
    assert not torch.equal(model[0].weight, before[0])
    assert_finite(values(model.parameters()))
    assert_finite(optimizer.state_dict()["state"])


@every(given=None)
def test_step_freeze_from_the_start(candidate: Candidate) -> None:
    """step.freeze: parameters with requires_grad=False are accepted, and train once they are released."""
    model = network()
    model[0].requires_grad_(False)
    optimizer = candidate.build(model)
    train(optimizer, model, range(3))
    assert_equal(values(model[0].parameters()), values(network()[0].parameters()))
    model[0].requires_grad_(True)
    train(optimizer, model, range(3, 6))
    assert not torch.equal(model[0].weight, network()[0].weight)
    assert_finite(values(model.parameters()))


@every(given=None)
def test_step_zero_grads(candidate: Candidate) -> None:
    """step.zero_grads: zero gradients without decay or penalty move nothing from the first step; finite after."""
    model = network()
    extra = {"weight_decay": 0.0} if candidate.offers("weight_decay") else {}
    extra |= {"floor": 0.0} if candidate.row == "penalty" else {}
    optimizer = candidate.build(model, **extra)
    before = values(model.parameters())
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step, sign=0.0)
        optimizer.step()
    assert_equal(values(model.parameters()), before)
    train(optimizer, model, range(3, 6))
    assert_finite(values(model.parameters()))
    assert_finite(optimizer.state_dict()["state"])
    assert not torch.equal(next(model.parameters()), before[0])


@every(given=None)
def test_step_zero_lr(candidate: Candidate) -> None:
    """step.zero_lr: lr 0 moves nothing, whatever the gradients, leaves finite state, and training starts."""
    model = network()
    optimizer = candidate.build(model, 0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    before = values(model.parameters())
    for sign in (0.0, 0.0, 1.0, 1.0):
        optimizer.zero_grad()
        backward(model, step=0, sign=sign)
        optimizer.step()
    assert_equal(values(model.parameters()), before)
    assert_finite(optimizer.state_dict()["state"])
    optimizer.param_groups[0]["lr"] = 0.1
    train(optimizer, model, range(3))
    assert_finite(values(model.parameters()))
    assert not torch.equal(next(model.parameters()), before[0])


@every()
def test_step_zero_lr_at_construction(candidate: Candidate) -> None:
    """step.zero_lr: an optimizer constructed at lr 0 moves nothing, and moves once its group says so."""
    params = parameters()
    optimizer = candidate.make(params, 0.0)
    before = values(params)
    walk(optimizer, params, range(3))
    assert_equal(values(params), before)
    optimizer.param_groups[0]["lr"] = 0.1
    walk(optimizer, params, range(3, 5))
    assert not torch.equal(params[0], before[0])


@every()
def test_step_one_per_parameter(candidate: Candidate) -> None:
    """step.one_per_parameter: one optimizer a parameter, stepped from hooks, trains as a group each."""
    hooked, ordinary = network(), network()
    own = {parameter: candidate.make([parameter]) for parameter in hooked.parameters()}

    def step_and_release(parameter: Tensor) -> None:
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in hooked.parameters():
        parameter.register_post_accumulate_grad_hook(step_and_release)
    whole = candidate.make([{"params": [parameter]} for parameter in ordinary.parameters()])
    for step in range(4):
        backward(hooked, step, count=1)
        train(whole, ordinary, [step], count=1)
    assert all(parameter.grad is None for parameter in hooked.parameters())
    assert_equal(values(hooked.parameters()), values(ordinary.parameters()), rtol=1e-6, atol=1e-7)
