"""The optimizers under contract: every final class of `fisheropt.optim`, and torch.optim.SGD as the control.

A candidate is a class, a row of hyper-parameters and what the class is given: parameters, or the module. A
new optimizer is enrolled by existing; an entry in `FEATURES` adds rows with its own feature off, and acting.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

Test = TypeVar("Test", bound=Callable[..., None])

PLAIN: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
}
"""Rows that every class is given, without the keywords that its signature does not offer."""

FEATURES: dict[str, dict[str, dict[str, Any]]] = {
    "FisherFloorSGD": {
        "off": {"floor": 0, "momentum": 0.9},
        "monitor": {"mode": "monitor", "every": 1, "momentum": 0.9},
        "acting": {"floor": 4.0, "every": 1, "momentum": 0.9},
        "tracked": {"directions": "tracked", "floor": 4.0, "every": 1, "momentum": 0.9},
        "flooring": {"mode": "metric", "likelihood": "gaussian", "floor": 0.01, "every": 1},
        "penalty": {"mode": "penalty", "likelihood": "gaussian", "floor": 4.0, "weight": 2.0, "every": 1},
        "backtrack": {"mode": "backtrack", "likelihood": "gaussian", "floor": 1e-3, "momentum": 0.9},
    },
    "GodambeSGD": {
        "off": {"metric": None, "momentum": 0.9},
        "acting": {"every": 1, "momentum": 0.9},
        "fisher": {"metric": "fisher", "damping": 0.5, "every": 1},
        "likelihood": {"likelihood": "gaussian", "damping": 0.5, "every": 1},
        "running": {"gain": "running", "data_size": 12, "damping": 0.01, "every": 1},
        "lowrank": {"structure": "lowrank", "every": 1, "momentum": 0.9},
        "kronecker": {"structure": "kronecker", "every": 1, "momentum": 0.9},
        "diagonal": {"structure": "diagonal", "every": 1, "momentum": 0.9},
        "godambe": {"structure": "kronecker", "metric": "godambe", "likelihood": "gaussian", "every": 1},
        "sandwich": {"metric": "godambe", "likelihood": "gaussian", "damping": 0.5, "every": 1},
    },
    "AdaptiveBatchSGD": {
        "off": {"controller": None, "momentum": 0.9},
        "acting": {"every": 1, "momentum": 0.9},
        "metric": {"metric": "fisher", "damping": 0.5, "every": 1},
    },
}
"""Rows of one class: its feature off, and acting at every step so that measurements do happen."""

ONLY_GIVEN = {
    "likelihood": "module",
    "godambe": "module",
    "sandwich": "module",
    "penalty": "module",
    "backtrack": "module",
    "flooring": "module",
    "plain": "parameters",
}
"""Rows that mean something only where the class is given a module, or add nothing there."""


@dataclass(frozen=True)
class Candidate:
    """One optimizer class with one row of hyper-parameters, given parameters or a module."""

    cls: type[Optimizer]
    row: str = "plain"
    keywords: Mapping[str, Any] = field(default_factory=dict)
    given: str = "parameters"

    def __str__(self) -> str:
        """Name the candidate in a test id."""
        return f"{self.cls.__name__}-{self.row}" + ("-module" if self.given == "module" else "")

    def offers(self, keyword: str) -> bool:
        """Whether the constructor takes this keyword."""
        return keyword in inspect.signature(self.cls.__init__).parameters

    def make(self, params: Any, lr: Any = 0.1, **extra: Any) -> Optimizer:
        """Construct from parameters (or whatever `params` is), `extra` over the row."""
        return self.cls(params, lr=lr, **{**self.keywords, **extra})  # type: ignore[call-arg]

    def build(self, model: nn.Module, lr: Any = 0.1, **extra: Any) -> Optimizer:
        """Construct for a model in the way that this candidate is given it."""
        return self.make(model if self.given == "module" else model.parameters(), lr, **extra)

    def without(self, *names: str) -> Candidate:
        """The same candidate with some keywords of its row left at their defaults."""
        kept = {key: value for key, value in self.keywords.items() if key not in names}
        return Candidate(self.cls, self.row, kept, self.given)


def optimizer_classes() -> list[type[Optimizer]]:
    """Every concrete optimizer that a module of `fisheropt.optim` defines, in order of name."""
    if importlib.util.find_spec("fisheropt") is None:
        return []
    package = importlib.import_module("fisheropt.optim")
    found = set()
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"fisheropt.optim.{info.name}")
        found |= {value for value in vars(module).values() if _is_ours(value)}
    return sorted(found, key=lambda cls: cls.__name__)


def _is_ours(value: object) -> bool:
    return (
        inspect.isclass(value)
        and issubclass(value, Optimizer)
        and value.__module__.startswith("fisheropt.optim.")
        and not inspect.isabstract(value)
        and not value.__name__.startswith(("_", "Abstract"))
    )


def rows(cls: type[Optimizer]) -> dict[str, dict[str, Any]]:
    """All hyper-parameter rows of a class."""
    probe = Candidate(cls)
    general = {name: {key: row[key] for key in filter(probe.offers, row)} for name, row in PLAIN.items()}
    return general | FEATURES.get(cls.__name__, {})


def database() -> list[Candidate]:
    """Every (class, row, way of constructing)."""
    control = [Candidate(torch.optim.SGD, name, row) for name, row in rows(torch.optim.SGD).items()]
    ours = [
        Candidate(cls, name, row, given)
        for cls in optimizer_classes()
        for name, row in rows(cls).items()
        for given in ("parameters", "module")
        if ONLY_GIVEN.get(name, given) == given
    ]
    return control + ours


@dataclass(frozen=True)
class Selection:
    """The candidates that a requirement applies to; for the others it is not counted."""

    offers: tuple[str, ...] = ()
    given: str | None = "parameters"
    rows: tuple[str, ...] | None = None

    def admits(self, candidate: Candidate) -> bool:
        """Whether the candidate offers the keywords, is constructed as `given` (None: either way), in one of
        the rows.
        """
        return (
            all(map(candidate.offers, self.offers))
            and self.given in (None, candidate.given)
            and (self.rows is None or candidate.row in self.rows)
        )


def every(*offers: str, given: str | None = "parameters", rows: Iterable[str] | None = None) -> Callable[[Test], Test]:
    """Parametrise a test over the candidates of a selection, and leave the selection on it as `admits`."""
    selection = Selection(offers, given, None if rows is None else tuple(rows))
    chosen = [candidate for candidate in database() if selection.admits(candidate)]

    def enrol(test: Test) -> Test:
        test.admits = selection.admits  # type: ignore[attr-defined]
        return pytest.mark.parametrize("candidate", chosen, ids=str)(test)

    return enrol
