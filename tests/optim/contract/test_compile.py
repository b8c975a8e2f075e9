"""compile.*: torch.compile of the step, and of the model beside a step that is not compiled (aot_eager)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    backward,
    network,
    numbers,
    parameters,
    set_gradients,
    train,
    values,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # Dynamo does
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every(rows=["momentum"])
def test_compile_matches(candidate: Candidate) -> None:
    """compile.matches: a compiled step equals the eager one in parameters and state."""
    compiled, eager = parameters(), parameters()
    optimizer, reference = candidate.make(compiled), candidate.make(eager)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for seed in range(4):
        set_gradients(compiled, seed)
        set_gradients(eager, seed)
        step()
        reference.step()
    assert_equal(values(compiled), values(eager), rtol=1e-5, atol=1e-5)
    assert_equal(optimizer.state_dict()["state"], reference.state_dict()["state"], rtol=1e-5, atol=1e-5)


@every(given="module", rows=["acting"])
def test_compile_matches_while_measuring(candidate: Candidate) -> None:
    """compile.matches, compile.stable: the same while noise is measured by eager backwards at each step."""
    compiled, eager = network(), network()
    optimizer, reference = candidate.build(compiled), candidate.build(eager)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for seed in range(6):
        optimizer.zero_grad()
        backward(compiled, seed)
        with torch.compiler.set_stance("fail_on_recompile" if seed > 1 else "default"):
            step()
        train(reference, eager, [seed])
    assert_equal(values(compiled.parameters()), values(eager.parameters()), rtol=1e-5, atol=1e-5)
    assert_equal(numbers(optimizer), numbers(reference), rtol=1e-4, atol=1e-5)


@every(rows=["momentum"])
def test_compile_stable(candidate: Candidate) -> None:
    """compile.stable: no recompilation from the third step on, with a Tensor lr under a scheduler."""
    params = parameters()
    optimizer = candidate.make(params, torch.tensor(0.1))
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for seed in range(6):
        set_gradients(params, seed)
        with torch.compiler.set_stance("fail_on_recompile" if seed > 1 else "default"):
            step()
        scheduler.step()


@every(given="module", rows=["acting", "off"])
def test_compile_of_the_model(candidate: Candidate) -> None:
    """compile.matches: a fullgraph-compiled model trains as the eager one."""
    compiled, eager = network(), network()
    optimizer, reference = candidate.build(compiled), candidate.build(eager)
    model = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    assert isinstance(model, nn.Module)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        train(reference, eager, [step])
    assert_equal(values(compiled.parameters()), values(eager.parameters()), rtol=1e-4, atol=1e-5)
