"""state.*: what is saved, and what comes back."""

from __future__ import annotations

import inspect
import io
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    assert_finite,
    group_parameters,
    leaves,
    network,
    numbers,
    parameters,
    tensors,
    train,
    trained,
    values,
)

OLDEST = {"lr", "momentum", "dampening", "weight_decay"}
"""Keywords of the first torch.optim.SGD: no saved group was ever without them."""


@every(given=None)
def test_state_keys(candidate: Candidate) -> None:
    """state.keys: ids 0..n-1, and only values that every loader knows."""
    model, optimizer = trained(candidate)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    count = len(group_parameters(optimizer))
    assert set(saved["state"]) <= set(range(count))
    assert [index for group in saved["param_groups"] for index in group["params"]] == list(range(count))
    allowed = (Tensor, int, float, str, bool, type(None))
    for name, value in leaves(saved).items():
        assert isinstance(value, allowed), f"{name} is a {type(value).__name__}"
    for state in saved["state"].values():
        for name, value in leaves(state).items():
            assert isinstance(value, (Tensor, int, float)), (
                f"state{name} is a {type(value).__name__}: DCP refuses to flatten it"
            )
    assert all(isinstance(key, Tensor) for key in optimizer.state), "a key of state is no parameter"


@every(given=None)
def test_state_round_trip(candidate: Candidate) -> None:
    """state.round_trip: loaded into a fresh optimizer, ten more steps agree bit for bit; the dict is kept."""
    model, optimizer = trained(candidate)
    saved = deepcopy(optimizer.state_dict())
    kept = deepcopy(saved)
    again = network(seed=1)
    fresh = candidate.build(again)
    again.load_state_dict(model.state_dict())
    fresh.load_state_dict(saved)
    assert_equal(saved, kept)
    assert_equal(numbers(fresh), numbers(optimizer))
    train(optimizer, model, range(4, 14))
    train(fresh, again, range(4, 14))
    assert_equal(values(again.parameters()), values(model.parameters()))
    assert_equal(numbers(fresh), numbers(optimizer))


@every(given=None)
def test_state_round_trip_from_before_the_first_step(candidate: Candidate) -> None:
    """state.round_trip: a checkpoint of an optimizer that has not stepped yet loads and trains alike."""
    model, again = network(), network()
    optimizer, fresh = candidate.build(model), candidate.build(again)
    fresh.load_state_dict(deepcopy(optimizer.state_dict()))
    train(optimizer, model, range(4))
    train(fresh, again, range(4))
    assert_equal(values(again.parameters()), values(model.parameters()))


@every(given=None)
def test_state_round_trip_resets_what_was_there(candidate: Candidate) -> None:
    """state.round_trip: loading into an optimizer that has a history of its own forgets that history."""
    model, optimizer = trained(candidate)
    other, used = trained(candidate, steps=3)
    train(used, other, range(20, 22))
    used.load_state_dict(deepcopy(optimizer.state_dict()))
    other.load_state_dict(model.state_dict())
    train(optimizer, model, range(4, 8))
    train(used, other, range(4, 8))
    assert_equal(values(other.parameters()), values(model.parameters()))


@every(given=None)
def test_state_weights_only(candidate: Candidate) -> None:
    """state.weights_only: torch.load(weights_only=True) gives an equal dict."""
    _, optimizer = trained(candidate)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert_equal(torch.load(file, weights_only=True), optimizer.state_dict())


@every(given=None)
def test_state_older(candidate: Candidate) -> None:
    """state.older: dicts without the keywords added since load, and pickles of them step."""
    model, optimizer = trained(candidate)
    later = set(inspect.signature(candidate.cls.__init__).parameters) & set(optimizer.defaults) - OLDEST
    saved = deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for name in later:
            del group[name]
    again = network()
    fresh = candidate.build(again)
    fresh.load_state_dict(saved)
    for group in fresh.param_groups:
        assert later <= set(group)
    train(fresh, again, range(4, 7))
    assert_finite(values(again.parameters()))


@every(given=None)
def test_state_plain_step(candidate: Candidate) -> None:
    """state.plain_step: a number in place of a tensor `step` loads and steps."""
    model, optimizer = trained(candidate)
    saved = deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = float(state["step"])
    fresh = candidate.build(model)
    fresh.load_state_dict(saved)
    train(fresh, model, range(4, 7))
    assert_finite(values(model.parameters()))
    for state in fresh.state_dict()["state"].values():
        assert float(state.get("step", 7)) == 7


@every(given=None)
def test_state_cast(candidate: Candidate) -> None:
    """state.cast: state of float32 parameters loads into float64 ones, finite."""
    _, optimizer = trained(candidate)
    wide = network(dtype=torch.float64)
    fresh = candidate.build(wide)
    fresh.load_state_dict(deepcopy(optimizer.state_dict()))
    for parameter in group_parameters(fresh):
        buffer = fresh.state[parameter].get("momentum_buffer")
        assert buffer is None or buffer.dtype == torch.float64
    train(fresh, wide, range(4, 7))
    assert_finite(values(wide.parameters()))
    assert_finite(fresh.state_dict())


@every(given=None)
def test_state_fp32_stats(candidate: Candidate) -> None:
    """state.fp32_stats: loading keeps dtype and value of every state tensor beside bfloat16 parameters."""
    model, optimizer = trained(candidate, dtype=torch.bfloat16)
    again = network(dtype=torch.bfloat16)
    fresh = candidate.build(again)
    fresh.load_state_dict(deepcopy(optimizer.state_dict()))
    before, after = tensors(optimizer.state_dict()), tensors(fresh.state_dict())
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    assert_equal(after, before)


@every()
def test_state_mismatch(candidate: Candidate) -> None:
    """state.mismatch: another number of groups or of parameters is a ValueError."""
    saved = candidate.make(parameters()).state_dict()
    for other in ([{"params": parameters()}, {"params": parameters()}], parameters([(3, 2)])):
        with pytest.raises(ValueError):
            candidate.make(other).load_state_dict(saved)
