"""The table of layer rules, searched by method-resolution order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from fisheropt.persample import PerSample


class Rule(ABC):
    """Says in what form the per-sample gradients of one kind of module come; knows no statistic."""

    in_place: ClassVar[bool]
    """Whether no operation of the module saves its own output, so that a tap may take over its storage."""

    serves: ClassVar[frozenset[str] | None] = None
    """The names of the parameters that it knows; a module that owns others gets the generic rule. None for all."""

    @abstractmethod
    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        """The inputs of the module that its per-sample gradients are made of, and what else `forms` needs of the call."""

    @abstractmethod
    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        """The form of each named parameter of the module, given the gradient of the module's output."""

    @abstractmethod
    def prepare(self, module: nn.Module) -> Rule:
        """The rule for this one module, which may hold what it needs of it."""


_RULES: dict[type[nn.Module], Rule] = {}
_REFUSED: dict[type[nn.Module], str] = {}
_R = TypeVar("_R", bound=type[Rule])


def rule(module_class: type[nn.Module]) -> Callable[[_R], _R]:
    """Register a rule for a class of modules: `@fisheropt.rule(MyLayer)` above a subclass of `Rule`.

    A subclass of `module_class` is served too, as long as it does not override `forward`.
    """

    def register(rule_class: _R) -> _R:
        _RULES[module_class] = rule_class()
        return rule_class

    return register


def refuse(module_class: type[nn.Module], reason: str) -> None:
    """Refuse a class of modules whose per-sample gradients do not exist or cannot be seen, with the reason."""
    _REFUSED[module_class] = reason


def refusal(module: nn.Module) -> str | None:
    """Why the module cannot be served; None if it can."""
    return next((_REFUSED[c] for c in type(module).__mro__ if c in _REFUSED), None)


def find(module: nn.Module) -> Rule:
    """The rule of a module, by method-resolution order, because `fully_shard` swaps the class.

    A class that overrides the `forward` which the rule describes gets the generic rule.
    """
    own = {name for name, _ in module.named_parameters(recurse=False)}
    for ancestor in type(module).__mro__:
        if ancestor in _RULES and type(module).forward is ancestor.forward and "forward" not in vars(module):
            served = _RULES[ancestor].serves
            if served is None or own <= served:
                return _RULES[ancestor].prepare(module)
    return _RULES[nn.Module].prepare(module)
