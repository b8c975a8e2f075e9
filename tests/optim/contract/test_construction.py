"""make.*: how an optimizer is constructed, and what it refuses."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from tests.optim.candidates import Candidate, every, optimizer_classes
from tests.optim.contract.problems import group_parameters, network, parameters, train, values

NUMBERS = ("weight_decay", "momentum", "eps")


def test_every_exported_optimizer_is_a_candidate() -> None:
    """No public optimizer class escapes the contract."""
    fisheropt = pytest.importorskip("fisheropt")
    classes = filter(inspect.isclass, vars(fisheropt).values())
    exported = {cls for cls in classes if issubclass(cls, Optimizer) and not inspect.isabstract(cls)}
    assert exported, "fisheropt exports no optimizer"
    assert exported <= set(optimizer_classes())


@every()
def test_make_subclass(candidate: Candidate) -> None:
    """make.subclass: a torch Optimizer; parameters in each of torch's four forms, none lost."""
    assert issubclass(candidate.cls, Optimizer)
    model = network()
    params = list(model.parameters())
    forms = [
        params,
        (parameter for parameter in params),
        [{"params": params[:1]}, {"params": iter(params[1:]), "lr": 0.5}],
        model.named_parameters(),
    ]
    for form in forms:
        found = group_parameters(candidate.make(form))
        assert [id(parameter) for parameter in found] == [id(parameter) for parameter in params]


@every(given="module")
def test_make_subclass_of_module(candidate: Candidate) -> None:
    """make.subclass: a module stands for its parameters, none lost, none twice."""
    model = network()
    found = group_parameters(candidate.build(model))
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))


@every(rows=["plain"])
def test_make_defaults(candidate: Candidate) -> None:
    """make.defaults: parameters alone are enough; every keyword is in `defaults` and in each group."""
    optimizer = candidate.cls(parameters())
    keywords = [
        name for name in inspect.signature(candidate.cls.__init__).parameters if name not in ("self", "args", "kwargs")
    ]
    for name in keywords[1:]:
        assert name in optimizer.defaults, f"{name} is not in defaults"
        assert all(name in group for group in optimizer.param_groups), f"{name} is not in the groups"


@every(rows=["plain"])
def test_make_lr_second(candidate: Candidate) -> None:
    """make.lr_second: lr is the second positional argument."""
    optimizer = candidate.cls(parameters(), 0.25)
    assert optimizer.defaults["lr"] == 0.25
    assert optimizer.param_groups[0]["lr"] == 0.25


@every()
def test_make_errors(candidate: Candidate) -> None:
    """make.errors: torch's errors for what is no list of distinct leaf parameters."""
    one, two = parameters([(2,), (2,)])
    with pytest.raises(TypeError):
        candidate.make(one)
    with pytest.raises(TypeError):
        candidate.make([{"params": {one, two}}])
    with pytest.raises(ValueError):
        candidate.make([])
    with pytest.raises(ValueError):
        candidate.make([one * 2])
    with pytest.raises(ValueError):
        candidate.make([{"params": [one]}, {"params": [one, two]}])
    with pytest.raises(ValueError):
        candidate.make([{"params": [("one", one)]}, {"params": [two]}])


@every("differentiable")
def test_make_errors_non_leaf_when_differentiable(candidate: Candidate) -> None:
    """make.errors: a non-leaf is what differentiable=True is for."""
    inner = parameters([(2,)])[0]
    outer = inner * 2
    assert group_parameters(candidate.make([outer], differentiable=True))[0] is outer


@every()
def test_make_duplicates_warn(candidate: Candidate) -> None:
    """make.duplicates_warn: the same parameter twice in one group is a UserWarning."""
    one = parameters([(2,)])[0]
    with pytest.warns(UserWarning, match="duplicate"):
        candidate.make([one, one])


@every()
def test_make_bad_lr(candidate: Candidate) -> None:
    """make.bad_lr: a negative lr or one of several elements is a ValueError, 0 is valid."""
    assert candidate.make(parameters(), 0.0).defaults["lr"] == 0.0
    for lr in (-0.1, torch.tensor(-0.1), torch.tensor([0.1, 0.2])):
        with pytest.raises(ValueError):
            candidate.make(parameters(), lr)


@every()
def test_make_bad_numbers(candidate: Candidate) -> None:
    """make.bad_numbers: negative weight_decay, momentum and eps are ValueErrors."""
    for name in filter(candidate.offers, NUMBERS):
        with pytest.raises(ValueError):
            candidate.make(parameters(), **{name: -0.1})


@every("nesterov")
def test_make_bad_nesterov(candidate: Candidate) -> None:
    """make.bad_numbers: nesterov without momentum, or with dampening, is a ValueError."""
    for keywords in ({"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError):
            candidate.make(parameters(), nesterov=True, **keywords)


@every()
def test_make_unknown_keyword(candidate: Candidate) -> None:
    """make.unknown_keyword: a misspelt keyword is a TypeError."""
    with pytest.raises(TypeError):
        candidate.make(parameters(), wieght_decay=0.1)


@every("fused")
def test_make_cliques(candidate: Candidate) -> None:
    """make.cliques: fused excludes foreach and differentiable."""
    for other in ("foreach", "differentiable"):
        with pytest.raises(RuntimeError):
            candidate.make(parameters(), fused=True, **{other: True})


@every(given=None)
def test_make_repr(candidate: Candidate) -> None:
    """make.repr: the class, each group and its values."""
    text = repr(candidate.build(network(), lr=0.125))
    assert text.startswith(candidate.cls.__name__)
    assert "Parameter Group 0" in text and "lr: 0.125" in text
    if candidate.given == "parameters":
        two = repr(candidate.make([{"params": parameters()}, {"params": parameters(), "lr": 0.375}]))
        assert "Parameter Group 1" in two and "lr: 0.375" in two


@every(given="module")
def test_make_from_module_with_frozen_and_shared_parameters(candidate: Candidate) -> None:
    """make.subclass: frozen parameters of a module are accepted and stay; the trained ones move."""
    model = network()
    model[0].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = candidate.build(model)
    before = values(model.parameters())
    train(optimizer, model, [0])
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert moved == [False, False, True, True]


@every(given="module")
def test_make_errors_module_without_parameters(candidate: Candidate) -> None:
    """make.errors: a module without parameters is an empty parameter list."""
    with pytest.raises(ValueError):
        candidate.build(nn.Tanh())
