"""group.*: parameter groups."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    assert_finite,
    backward,
    network,
    numbers,
    parameters,
    train,
    trained,
    values,
    walk,
)


def halves(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of the two layers."""
    return list(model[0].parameters()), list(model[2].parameters())


@every()
def test_group_lr(candidate: Candidate) -> None:
    """group.lr: each group's own lr is used; a group at 1e-28 stays where it is."""
    model, alone = network(), network()
    first, second = halves(model)
    optimizer = candidate.make([{"params": first}, {"params": second, "lr": 1e-28}], 0.1)
    before = values(second)
    train(optimizer, model, range(4))
    assert_equal(values(second), before)
    fast = candidate.make([{"params": halves(alone)[0], "lr": 0.1}, {"params": halves(alone)[1]}], 1e-28)
    train(fast, alone, range(4))
    assert_equal(values(first), values(halves(alone)[0]))
    assert not torch.equal(first[0], network()[0].weight)


@every(given=None)
def test_group_lr_edit(candidate: Candidate) -> None:
    """group.lr_edit: an edited lr holds from the next step."""
    model = network()
    optimizer = candidate.build(model)
    train(optimizer, model, range(2))
    before = values(model.parameters())
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, model, range(2, 4))
    assert_equal(values(model.parameters()), before)
    optimizer.param_groups[0]["lr"] = 0.1
    train(optimizer, model, range(4, 5))
    assert not torch.equal(next(model.parameters()), before[0])


@every("momentum")
def test_group_lr_edit_scales_a_plain_step(candidate: Candidate) -> None:
    """group.lr_edit: twice the lr is twice the step, for a gradient set by hand and no momentum."""
    steps = []
    for lr in (0.1, 0.2):
        params = parameters(dtype=torch.float64)
        optimizer = candidate.without("nesterov").make(params, 0.1, momentum=0.0)
        optimizer.param_groups[0]["lr"] = lr
        before = values(params)
        walk(optimizer, params, [0])
        steps.append([new - old for new, old in zip(values(params), before, strict=True)])
    assert_equal([2 * step for step in steps[0]], steps[1], rtol=1e-12, atol=1e-12)


@every()
def test_group_independent(candidate: Candidate) -> None:
    """group.independent: two groups do what two optimizers do."""
    together, apart = network(), network()
    first, second = halves(together)
    one = candidate.make([{"params": first}, {"params": second, "lr": 0.02}])
    two = [candidate.make(halves(apart)[0]), candidate.make(halves(apart)[1], 0.02)]
    for step in range(5):
        train(one, together, [step])
        for optimizer in two:
            optimizer.zero_grad()
        backward(apart, step)
        for optimizer in two:
            optimizer.step()
    assert_equal(values(apart.parameters()), values(together.parameters()), rtol=1e-6, atol=1e-7)


@every("weight_decay")
def test_group_weight_decay(candidate: Candidate) -> None:
    """group.weight_decay: may differ by group."""
    params, single = parameters(), parameters()
    optimizer = candidate.make(
        [{"params": params[:1], "weight_decay": 0.0}, {"params": params[1:], "weight_decay": 0.5}]
    )
    decayed = candidate.make(single, weight_decay=0.5)
    walk(optimizer, params, range(3))
    walk(decayed, single, range(3))
    assert_equal(values(params[1:]), values(single[1:]))
    assert not torch.equal(params[0], single[0])


@every()
def test_group_add(candidate: Candidate) -> None:
    """group.add: a group added later gets the defaults, keeps extra keys, leaves other state, and trains."""
    model = network()
    first, second = halves(model)
    optimizer = candidate.make(first)
    for seed in range(3):
        train(optimizer, model, [seed])
    state = deepcopy(optimizer.state_dict()["state"])
    optimizer.add_param_group({"params": second, "lr": 0.05, "note": "head"})
    kept = optimizer.state_dict()["state"]
    assert_equal({key: kept[key] for key in state}, state)
    added = optimizer.param_groups[1]
    assert added["note"] == "head" and added["lr"] == 0.05
    assert set(optimizer.defaults) <= set(added)
    before = values(model.parameters())
    train(optimizer, model, range(3, 5))
    for old, new in zip(before, model.parameters(), strict=True):
        assert not torch.equal(old, new)
    with pytest.raises(TypeError):
        optimizer.add_param_group([nn.Parameter(torch.zeros(2))])


@every(given="module")
def test_group_add_beside_a_module(candidate: Candidate) -> None:
    """group.add: a loose parameter joins an optimizer that was given a module, and both train."""
    model, loose = network(), nn.Parameter(torch.ones(2))
    optimizer = candidate.build(model)
    train(optimizer, model, range(2))
    optimizer.add_param_group({"params": [loose]})
    before = values([*model.parameters(), loose])
    for step in range(2, 4):
        optimizer.zero_grad()
        backward(model, step)
        loose.square().sum().backward()
        optimizer.step()
    for old, new in zip(before, [*model.parameters(), loose], strict=True):
        assert not torch.equal(old, new)


@every()
def test_group_empty(candidate: Candidate) -> None:
    """group.empty: a group without parameters is allowed, stepped over, saved and loaded."""
    params, plain, fresh = parameters(), parameters(), parameters()
    optimizer = candidate.make([{"params": []}, {"params": params}])
    reference = candidate.make(plain)
    walk(optimizer, params, range(3))
    walk(reference, plain, range(3))
    assert_equal(values(params), values(plain))
    again = candidate.make([{"params": []}, {"params": fresh}])
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    assert_equal(numbers(again), numbers(optimizer))


@every()
def test_group_named(candidate: Candidate) -> None:
    """group.named: names come back from state_dict, which loads into an unnamed optimizer, and back."""
    model, fresh = network(), network()
    named = candidate.make(model.named_parameters())
    train(named, model, range(3))
    saved = deepcopy(named.state_dict())
    assert saved["param_groups"][0]["param_names"] == [name for name, _ in model.named_parameters()]
    unnamed = candidate.make(fresh.parameters())
    fresh.load_state_dict(model.state_dict())
    unnamed.load_state_dict(saved)
    train(named, model, range(3, 6))
    train(unnamed, fresh, range(3, 6))
    assert_equal(values(fresh.parameters()), values(model.parameters()))


@every(given="module", rows=["plain", "momentum", "acting"])
def test_group_named_module_and_parameters_exchange_state(candidate: Candidate) -> None:
    """group.named: what an optimizer given the module saved loads into one given parameters, and back."""
    by_parameters = replace(candidate, given="parameters")
    for source, target in ((candidate, by_parameters), (by_parameters, candidate)):
        model, optimizer = trained(source, steps=3)
        other = network()
        fresh = target.build(other)
        fresh.load_state_dict(deepcopy(optimizer.state_dict()))
        other.load_state_dict(model.state_dict())
        train(fresh, other, range(3, 5))
        assert_finite(values(other.parameters()))
