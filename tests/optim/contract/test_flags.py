"""flag.*: torch's own keywords maximize, foreach, fused, differentiable, capturable."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    network,
    numbers,
    parameters,
    set_gradients,
    train,
    values,
    walk,
)

SHAPES = [(3, 2), (), (0,), (2,), (4,)]


@every("maximize")
def test_flag_maximize(candidate: Candidate) -> None:
    """flag.maximize: maximize on g is the default on -g, in parameters and state; decay follows the sign."""
    for extra in ({}, {"weight_decay": 0.3}) if candidate.offers("weight_decay") else ({},):
        up, down = parameters(), parameters()
        rising, falling = candidate.make(up, maximize=True, **extra), candidate.make(down, **extra)
        walk(rising, up, range(5), scale=1.0)
        walk(falling, down, range(5), scale=-1.0)
        assert_equal(values(up), values(down))
        assert_equal(rising.state_dict()["state"], falling.state_dict()["state"])
        assert not torch.equal(up[0], parameters()[0])


@every("maximize", given=None, rows=["plain", "momentum", "monitor", "acting", "metric", "fisher"])
def test_flag_maximize_while_measuring(candidate: Candidate) -> None:
    """flag.maximize: the same for gradients whose noise is measured (a likelihood's loss has one sign only)."""
    up, down = network(), network()
    train(candidate.build(up, maximize=True), up, range(5), sign=-1.0)
    train(candidate.build(down), down, range(5))
    assert_equal(values(up.parameters()), values(down.parameters()), rtol=1e-5, atol=1e-6)


def irregular_walk(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
    """Seven steps with gradients missing in some and the last parameter frozen after the second."""
    for seed in range(7):
        optimizer.zero_grad()
        chosen = [parameter for place, parameter in enumerate(params) if (seed + place) % 3 or seed == 6]
        set_gradients(chosen[:-1] if seed > 1 else chosen, seed)
        optimizer.step()


@every("foreach")
def test_flag_foreach(candidate: Candidate) -> None:
    """flag.foreach: matches the loop in parameters and state, also with maximize, float64 and float32."""
    for dtype in (torch.float64, torch.float32):
        for maximize in (False, True):
            _assert_foreach_matches(candidate, dtype, maximize)


@every("fused")
def test_flag_fused(candidate: Candidate) -> None:
    """flag.fused: the same for fused (torch's own cannot start momentum later in some parameters)."""
    fast, slow = parameters(SHAPES), parameters(SHAPES)
    fused, loop = candidate.make(fast, fused=True), candidate.make(slow, foreach=False)
    walk(fused, fast, range(7))
    walk(loop, slow, range(7))
    assert_equal(values(fast), values(slow), rtol=1e-6, atol=1e-6)
    assert_equal(fused.state_dict()["state"], loop.state_dict()["state"], rtol=1e-6, atol=1e-6)


def _assert_foreach_matches(candidate: Candidate, dtype: torch.dtype, maximize: bool) -> None:
    fast, slow = parameters(SHAPES, dtype), parameters(SHAPES, dtype)
    quick = candidate.make(fast, foreach=True, maximize=maximize)
    loop = candidate.make(slow, foreach=False, maximize=maximize)
    irregular_walk(quick, fast)
    irregular_walk(loop, slow)
    close = 1e-12 if dtype == torch.float64 else 1e-6
    assert_equal(values(fast), values(slow), rtol=close, atol=close)
    assert_equal(quick.state_dict()["state"], loop.state_dict()["state"], rtol=close, atol=close)


@every("foreach", given=None)
def test_flag_foreach_while_measuring(candidate: Candidate) -> None:
    """flag.foreach: the same for gradients whose noise is measured; None on the CPU is the loop."""
    models = [network(dtype=torch.float64) for _ in range(3)]
    for model, foreach in zip(models, (False, True, None), strict=True):
        train(candidate.build(model, foreach=foreach), model, range(5))
    assert_equal(values(models[1].parameters()), values(models[0].parameters()), rtol=1e-9, atol=1e-10)
    assert_equal(values(models[2].parameters()), values(models[0].parameters()))


def stepped(candidate: Candidate, parameter: Tensor, gradient: Tensor, buffer: Tensor, lr: Any) -> tuple[Tensor, ...]:
    """One differentiable step as a function of parameter, gradient, state and lr."""
    parameter = parameter.clone()
    parameter.grad = gradient
    optimizer = candidate.make([parameter], lr, differentiable=True)
    if candidate.offers("momentum") and optimizer.param_groups[0]["momentum"]:
        optimizer.state[parameter]["momentum_buffer"] = buffer.clone()
    optimizer.step()
    state = optimizer.state[parameter].values()
    return parameter, *(value for value in state if isinstance(value, Tensor) and value.requires_grad)


def _differentiable_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameter, gradient, buffer = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return parameter.requires_grad_(), gradient.requires_grad_(), buffer.requires_grad_()


@every("differentiable")
def test_flag_differentiable(candidate: Candidate) -> None:
    """flag.differentiable: autograd through a step passes gradcheck in parameter, gradient and state."""
    for extra in ({}, {"maximize": True}, {"weight_decay": 0.3}):
        row = Candidate(candidate.cls, candidate.row, {**candidate.keywords, **extra})
        inputs = _differentiable_inputs()
        assert gradcheck(lambda *given, row=row: stepped(row, *given, 0.5), inputs)
        assert stepped(row, *inputs, 0.5)[0].requires_grad


@every("differentiable")
def test_flag_differentiable_steps_leaves_without_harm(candidate: Candidate) -> None:
    """flag.differentiable: under no_grad a differentiable step gives the numbers of an ordinary one."""
    one, two = parameters(), parameters()
    with torch.no_grad():
        differentiable = candidate.make([parameter.clone() for parameter in one], differentiable=True)
    ordinary = candidate.make(two)
    inner = differentiable.param_groups[0]["params"]
    with torch.no_grad():
        walk(differentiable, inner, range(3))
    walk(ordinary, two, range(3))
    assert_equal(values(inner), values(two), rtol=1e-6, atol=1e-7)


@every("differentiable")
def test_flag_differentiable_lr(candidate: Candidate) -> None:
    """flag.differentiable_lr: a Tensor lr receives the gradient that gradcheck expects."""
    parameter, gradient, buffer = (value.detach() for value in _differentiable_inputs())
    lr = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    result = stepped(candidate, parameter, gradient, buffer, lr)[0]
    result.sum().backward()
    assert lr.grad is not None and lr.grad.isfinite()
    assert gradcheck(lambda rate: stepped(candidate, parameter, gradient, buffer, rate)[0], lr)


@every("capturable")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_flag_capturable(candidate: Candidate) -> None:
    """flag.capturable: a step replayed in a CUDA graph gives the eager result."""
    eager, captured = ([nn.Parameter(value.detach().cuda()) for value in parameters()] for _ in range(2))
    plain, graphed = candidate.make(eager, capturable=True), candidate.make(captured, capturable=True)
    for params in (eager, captured):
        for parameter in params:
            parameter.grad = torch.ones_like(parameter)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graphed.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graphed.step()
    graph.replay()
    graph.replay()
    for _ in range(3):
        plain.step()
    assert_equal(values(captured), values(eager), rtol=1e-6, atol=1e-7)
    assert_equal(deepcopy(numbers(graphed)), numbers(plain), rtol=1e-6, atol=1e-7)
