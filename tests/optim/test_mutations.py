"""The contract can fail: a sound SGD passes it, and each known fault is caught by what it breaks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.optim.candidates import Candidate
from tests.optim.contract import mutants_state, mutants_step
from tests.optim.contract.faults import MUTANTS
from tests.optim.contract.problems import parameters, walk
from tests.optim.contract.requirements import IDS, statements
from tests.optim.contract.sound import SoundSGD

assert mutants_state and mutants_step  # importing them fills MUTANTS
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
]
FAULTS = [(cls, requirement) for cls, requirements in MUTANTS.items() for requirement in requirements]
OFFERED = [
    name
    for name in IDS
    if not name.startswith("dist.") and name not in ("flag.fused", "flag.capturable", "amp.fused", "make.cliques")
]


ROWS: dict[str, dict[str, Any]] = {"momentum": {"momentum": 0.9}, "plain": {}}


def candidates(cls: type[SoundSGD], test: Callable[..., Any]) -> list[Candidate]:
    """The optimizer in a row that the test applies to: with momentum, where faults show, if it may be."""
    admits = getattr(test, "admits", lambda candidate: False)
    return [each for each in (Candidate(cls, row, keywords) for row, keywords in ROWS.items()) if admits(each)][:1]


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Callable[[Callable[..., Any], Candidate], None]:
    """Call a requirement with the candidate and whatever fixtures it asks for."""

    def call(test: Callable[..., Any], under: Candidate) -> None:
        torch._dynamo.reset()
        asked = [name for name in inspect.signature(test).parameters if name not in ("candidate", "name")]
        given = {name: request.getfixturevalue(name) for name in asked}
        if "name" in inspect.signature(test).parameters:
            given["name"] = "ExponentialLR"
        test(candidate=under, **given)

    return call


@pytest.mark.parametrize("requirement", IDS)
def test_every_requirement_has_a_test(requirement: str) -> None:
    """No id of the contract is without its function."""
    assert statements(requirement)


@pytest.mark.parametrize("requirement", OFFERED)
def test_sound_sgd_passes(requirement: str, check: Callable[..., None]) -> None:
    """What a fault is a change to has none itself."""
    tests = [(test, under) for test in statements(requirement) for under in candidates(SoundSGD, test)]
    assert tests
    for test, under in tests:
        check(test, under)


@pytest.mark.filterwarnings("ignore:a step is being taken")
@pytest.mark.parametrize("cls", MUTANTS, ids=lambda cls: cls.__name__)
def test_mutant_works_otherwise(cls: type[SoundSGD]) -> None:
    """A mutant is caught for its fault, not for being broken: it steps ordinary parameters."""
    params = parameters([(3, 2), (2,)])
    walk(cls(params, lr=0.1, momentum=0.9), params, range(3))
    assert not torch.equal(params[0], parameters([(3, 2)])[0])


@pytest.mark.parametrize(("cls", "requirement"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_fault_is_caught(cls: type[SoundSGD], requirement: str, check: Callable[..., None]) -> None:
    """At least one test of the requirement fails on the fault."""
    tests = [(test, under) for test in statements(requirement) for under in candidates(cls, test)]
    assert any(_fails(check, test, under) for test, under in tests)


def _fails(check: Callable[..., None], test: Callable[..., Any], under: Candidate) -> bool:
    try:
        check(test, under)
    except pytest.skip.Exception:
        return False
    except (Exception, pytest.fail.Exception):
        return True
    return False
