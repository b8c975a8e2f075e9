"""state.*: copies, hooks and distributed checkpoints."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    group_parameters,
    network,
    numbers,
    parameters,
    train,
    trained,
    values,
)

OLDEST = {"lr", "momentum", "dampening", "weight_decay"}
"""Keywords of the first torch.optim.SGD: no saved group was ever without them."""


def _pickled(pair: tuple[nn.Module, Optimizer]) -> tuple[nn.Module, Optimizer]:
    return pickle.loads(pickle.dumps(pair))  # noqa: S301


@every(given=None)
def test_state_pickle(candidate: Candidate) -> None:
    """state.pickle: pickled with its model, it keeps every public attribute and trains on alike."""
    _assert_copy_trains_alike(candidate, _pickled)


@every(given=None)
def test_state_deepcopy(candidate: Candidate) -> None:
    """state.deepcopy: the same for copy.deepcopy."""
    _assert_copy_trains_alike(candidate, deepcopy)


def _assert_copy_trains_alike(candidate: Candidate, copy: Any) -> None:
    model, optimizer = trained(candidate)
    other, twin = copy((model, optimizer))
    assert list(map(id, group_parameters(twin))) == list(map(id, other.parameters()))
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public <= {name for name in vars(twin) if not name.startswith("_")}
    before = values(other.parameters())
    train(optimizer, model, range(4, 8))
    assert_equal(values(other.parameters()), before)
    train(twin, other, range(4, 8))
    assert_equal(values(other.parameters()), values(model.parameters()))
    assert_equal(numbers(twin), numbers(optimizer))


@every()
def test_state_pickle_of_a_fresh_optimizer(candidate: Candidate) -> None:
    """state.pickle: copies made before the first step work too, and print."""
    params = parameters()
    optimizer = candidate.make(params)
    for copy in (pickle.loads(pickle.dumps(optimizer)), deepcopy(optimizer)):  # noqa: S301
        assert repr(copy) == repr(optimizer)
        copied = group_parameters(copy)
        for parameter in copied:
            parameter.grad = torch.ones_like(parameter)
        copy.step()
        assert not torch.equal(copied[0], params[0])


@every(given=None)
def test_state_hooks_of_saving(candidate: Candidate) -> None:
    """state.hooks: hooks of state_dict fire in order, replace the dict, honour prepend, can be removed."""
    _, optimizer = trained(candidate)
    calls: list[str] = []

    def mark(saved_by: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        calls.append("post")
        return {**saved, "mark": 1}

    handles = [
        optimizer.register_state_dict_pre_hook(lambda _: calls.append("second")),
        optimizer.register_state_dict_pre_hook(lambda _: calls.append("first"), prepend=True),
        optimizer.register_state_dict_post_hook(mark),
    ]
    assert optimizer.state_dict()["mark"] == 1
    assert calls == ["first", "second", "post"]
    for handle in handles:
        handle.remove()
    assert "mark" not in optimizer.state_dict() and len(calls) == 3


@every(given=None)
def test_state_hooks_of_loading(candidate: Candidate) -> None:
    """state.hooks: the same for load_state_dict."""
    model, optimizer = trained(candidate)
    saved = deepcopy(optimizer.state_dict())
    fresh = candidate.build(model)
    calls: list[str] = []

    def halve(loaded_by: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
        calls.append("pre")
        given = deepcopy(given)
        given["param_groups"][0]["lr"] = 0.05
        return given

    handles = [
        fresh.register_load_state_dict_pre_hook(halve),
        fresh.register_load_state_dict_post_hook(lambda _: calls.append("second")),
        fresh.register_load_state_dict_post_hook(lambda _: calls.append("first"), prepend=True),
    ]
    fresh.load_state_dict(saved)
    assert calls == ["pre", "first", "second"]
    assert fresh.param_groups[0]["lr"] == 0.05 and saved["param_groups"][0]["lr"] == 0.1
    for handle in handles:
        handle.remove()
    fresh.load_state_dict(saved)
    assert fresh.param_groups[0]["lr"] == 0.1 and len(calls) == 3


@every(given=None)
def test_state_dcp(candidate: Candidate) -> None:
    """state.dcp: get/set_optimizer_state_dict, nested and flat; making state moves nothing."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    for flat in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        model, optimizer = trained(candidate)
        saved = deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        again = network()
        fresh = candidate.build(again)
        before = values(again.parameters())
        get_optimizer_state_dict(again, fresh, options=options)
        assert_equal(values(again.parameters()), before)
        assert fresh.param_groups[0]["lr"] == 0.1
        set_optimizer_state_dict(again, fresh, saved, options=options)
        again.load_state_dict(model.state_dict())
        train(optimizer, model, range(4, 8))
        train(fresh, again, range(4, 8))
        assert_equal(values(again.parameters()), values(model.parameters()))
        assert_equal(fresh.state_dict()["state"], optimizer.state_dict()["state"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@every(given=None, rows=["momentum", "acting"])
def test_state_dcp_through_a_file(candidate: Candidate, tmp_path: Path) -> None:
    """state.dcp: saved by torch.distributed.checkpoint and read into a fresh pair, training goes on alike."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optimizer = trained(candidate)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    again = network(seed=1)
    fresh = candidate.build(again)
    weights, state = get_state_dict(again, fresh)
    blank = {"model": weights, "optimizer": state}
    dcp.load(blank, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    set_state_dict(again, fresh, model_state_dict=blank["model"], optim_state_dict=blank["optimizer"])
    train(optimizer, model, range(4, 8))
    train(fresh, again, range(4, 8))
    assert_equal(values(again.parameters()), values(model.parameters()))
