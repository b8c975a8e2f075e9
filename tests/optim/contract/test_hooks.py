"""hook.*: hooks and the profiler label, which come from torch patching `step` on the class; and lifetime."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import backward, network, train, trained, values


@every(given=None)
def test_hook_order(candidate: Candidate) -> None:
    """hook.order: global pre, own pre, own post, global post, once a step; removable."""
    model = network()
    optimizer = candidate.build(model)
    calls: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("own pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("own post")),
    ]
    try:
        train(optimizer, model, range(2))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["global pre", "own pre", "own post", "global post"] * 2
    train(optimizer, model, range(2))
    assert len(calls) == 8


@every(given=None)
def test_hook_args(candidate: Candidate) -> None:
    """hook.args: a pre-hook may replace the closure."""
    model = network()
    optimizer = candidate.build(model)

    def replace(stepping: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return (args[0], lambda: 2.0), kwargs

    handle = optimizer.register_step_pre_hook(replace)
    assert optimizer.step(lambda: 1.0) == 2.0
    handle.remove()
    assert optimizer.step(lambda: 1.0) == 1.0


@every(given=None, rows=["plain"])
def test_hook_profiler(candidate: Candidate) -> None:
    """hook.profiler: the label of the step appears exactly once a step."""
    model = network()
    optimizer = candidate.build(model)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        train(optimizer, model, range(3))
    label = f"Optimizer.step#{candidate.cls.__name__}.step"
    counts = [event.count for event in profiler.key_averages() if event.key == label]
    assert counts == [3]


@every(given=None)
def test_hook_released(candidate: Candidate) -> None:
    """hook.released: freed when the last reference goes, though its model lives on; no reference cycle."""
    gc.disable()
    try:
        model, optimizer = trained(candidate)
        alive = weakref.ref(optimizer)
        del optimizer
        assert alive() is None, f"still referenced: {gc.get_referrers(alive())[:3]}"
    finally:
        gc.enable()


@every(given=None)
def test_hook_released_leaves_a_model_that_works(candidate: Candidate) -> None:
    """hook.released: a model whose optimizer is gone trains under another, and is freed with it."""
    model, optimizer = trained(candidate)
    del optimizer
    before = values(model.parameters())
    train(torch.optim.SGD(model.parameters(), lr=0.1), model, range(2))
    assert not torch.equal(next(model.parameters()), before[0])
    replacement = candidate.build(model)
    train(replacement, model, range(2))
    gc.disable()
    try:
        parameter = weakref.ref(next(model.parameters()))
        del model, replacement
        assert parameter() is None, f"still referenced: {gc.get_referrers(parameter())[:3]}"
    finally:
        gc.enable()


@every(given=None)
def test_hook_released_while_a_second_optimizer_lives(candidate: Candidate) -> None:
    """hook.released: two optimizers of one model do not disturb each other's numbers."""
    model, alone = network(), network()
    bystander = candidate.build(model, 0.0)
    optimizer, single = candidate.build(model), candidate.build(alone)
    for step in range(4):
        train(optimizer, model, [step])
        train(single, alone, [step])
    del bystander
    backward(model, 4)
    for own, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(own, other)
