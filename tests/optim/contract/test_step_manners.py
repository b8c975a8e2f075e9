"""step.*: what a step may touch, and how often."""

from __future__ import annotations

import random
import warnings

import numpy
import pytest
import torch
from torch import Tensor, nn

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    backward,
    batches,
    group_parameters,
    network,
    numbers,
    parameters,
    set_gradients,
    tensors,
    train,
    values,
    walk,
)


@every(given=None)
def test_step_in_place(candidate: Candidate) -> None:
    """step.in_place: own storage, `.grad` as it was, leaves stay leaves, no graph in them or in state."""
    model = network()
    optimizer = candidate.build(model, **({"maximize": True} if candidate.offers("maximize") else {}))
    storage = [parameter.data_ptr() for parameter in model.parameters()]
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        held = [parameter.grad for parameter in model.parameters()]
        before = values(held)
        optimizer.step()
        for parameter, gradient, value in zip(model.parameters(), held, before, strict=True):
            assert parameter.grad is gradient, ".grad was replaced"
            assert torch.equal(gradient, value), ".grad was written"
    assert [parameter.data_ptr() for parameter in model.parameters()] == storage, "a parameter was rebound"
    for parameter in model.parameters():
        assert parameter.is_leaf and parameter.requires_grad and parameter.grad_fn is None
    for name, value in tensors(optimizer.state_dict()).items():
        assert not value.requires_grad and value.grad_fn is None, f"{name} carries a graph"


@every()
def test_step_in_place_of_views(candidate: Candidate) -> None:
    """step.in_place: a parameter that views a flat buffer writes into that buffer."""
    buffer = torch.ones(6)
    parameter = nn.Parameter(buffer.view(3, 2))
    optimizer = candidate.make([parameter])
    walk(optimizer, [parameter], range(3))
    assert torch.equal(buffer.view(3, 2), parameter)
    assert not torch.equal(buffer, torch.ones(6))


@every()
def test_step_no_sync(candidate: Candidate) -> None:
    """step.no_sync: the ordinary step reads no value back; meta tensors have none."""
    for foreach in (False, True) if candidate.offers("foreach") else (None,):
        extra = {} if foreach is None else {"foreach": foreach}
        params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in ((3, 2), (2,), ())]
        optimizer = candidate.make(params, **extra)
        for _ in range(3):
            for parameter in params:
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()


@every(given=None)
def test_step_deterministic(candidate: Candidate) -> None:
    """step.deterministic: same inputs, same result bit for bit, whatever the global generator says."""
    models = network(), network()
    optimizers = [candidate.build(model) for model in models]
    for seed, model, optimizer in zip((1, 2), models, optimizers, strict=True):
        torch.manual_seed(seed)
        train(optimizer, model, range(4))
    assert_equal(values(models[1].parameters()), values(models[0].parameters()))
    assert_equal(numbers(optimizers[1]), numbers(optimizers[0]))


@every()
def test_step_deterministic_from_gradients(candidate: Candidate) -> None:
    """step.deterministic: the same for made-up gradients, and however many optimizers were stepped before."""
    runs = parameters(), parameters()
    for seed, params in enumerate(runs):
        torch.manual_seed(seed)
        walk(candidate.make(params), params, range(4))
    assert_equal(values(runs[1]), values(runs[0]))


@every(given=None)
def test_step_global_state(candidate: Candidate) -> None:
    """step.global_state: generators, grad mode, default dtype, threads and autocast are as before."""
    model = network()
    before = _global_state()
    optimizer = candidate.build(model)
    for step in range(4):
        train(optimizer, model, [step])
        with torch.no_grad():
            optimizer.step()
    _assert_unchanged(before)


def _global_state() -> dict[str, object]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, numpy.ndarray) else part for part in numpy.random.get_state()],
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _assert_unchanged(before: dict[str, object]) -> None:
    for name, value in _global_state().items():
        assert value == before[name], f"the global {name} state changed"


@every(given=None)
def test_step_quiet(candidate: Candidate, capfd: pytest.CaptureFixture[str]) -> None:
    """step.quiet: no warnings and nothing printed, with noise to measure or without."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network()
        optimizer = candidate.build(model)
        train(optimizer, model, range(3))
        train(optimizer, model, range(3, 6), count=1)
        train(optimizer, model, range(6, 9), count=0)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


@every(given=None)
def test_step_closure(candidate: Candidate) -> None:
    """step.closure: run once, with gradients even inside no_grad, its loss returned; else None."""
    model = network()
    optimizer = candidate.build(model)
    before = values(model.parameters())
    calls: list[bool] = []
    losses: list[Tensor] = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum(nn.functional.mse_loss(model(inputs), target) for inputs, target in batches(0)) / 3
        loss.backward()
        losses.append(loss)
        return loss

    with torch.no_grad():
        returned = optimizer.step(closure)
    assert calls == [True]
    assert returned is losses[0] or float(returned) == float(losses[0])
    assert not torch.equal(next(model.parameters()), before[0])
    assert optimizer.step() is None


@every(given=None)
def test_step_closure_equals_backward_before(candidate: Candidate) -> None:
    """step.closure: a loop by closure trains as the same loop with backward before the step."""
    by_closure, by_backward = network(), network()
    first, second = candidate.build(by_closure), candidate.build(by_backward)
    for step in range(4):

        def closure(step: int = step) -> float:
            first.zero_grad()
            backward(by_closure, step)
            return 0.0

        first.step(closure)
        train(second, by_backward, [step])
    assert_equal(values(by_closure.parameters()), values(by_backward.parameters()))


@every(given=None)
def test_step_zero_grad(candidate: Candidate) -> None:
    """step.zero_grad: None by default, zeros with set_to_none=False."""
    model = network()
    optimizer = candidate.build(model)
    train(optimizer, model, range(2))
    optimizer.zero_grad(set_to_none=False)
    for parameter in group_parameters(optimizer):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    set_gradients(group_parameters(optimizer), seed=0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@every(given=None)
def test_step_zero_grad_either_way_trains_the_same(candidate: Candidate) -> None:
    """step.zero_grad: zeroed in place, set to None, or cleared by the model, training is the same."""
    models = [network() for _ in range(3)]
    optimizers = [candidate.build(model) for model in models]
    clear = [
        lambda: optimizers[0].zero_grad(),
        lambda: optimizers[1].zero_grad(set_to_none=False),
        lambda: models[2].zero_grad(),
    ]
    for step in range(4):
        for model, optimizer, forget in zip(models, optimizers, clear, strict=True):
            forget()
            backward(model, step)
            optimizer.step()
    for model in models[1:]:
        assert_equal(values(model.parameters()), values(models[0].parameters()))
