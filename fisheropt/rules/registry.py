"""The table of layer rules, searched by method-resolution order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fisheropt.persample import PerSample
from fisheropt.rules.containers import held


class Rule(ABC):
    """Says in what form the per-sample gradients of one kind of module come; knows no statistic."""

    in_place: ClassVar[bool]
    """Whether no operation of the module saves its own output, so that a tap may take over its storage."""

    serves: ClassVar[frozenset[str] | None] = None
    """The names of the parameters that it knows; a module that owns others gets the generic rule. None for all."""

    adopts: ClassVar[tuple[str, ...]] = ()
    """The names of children that the module never calls, whose parameters it serves too."""

    lends: ClassVar[frozenset[str]] = frozenset()
    """The names of weights in which the module is linear and that its forward reads as its attributes: a call may be lent
    them without their need for a gradient, which then comes with the statistic."""

    beside: ClassVar[str] = "other outputs. Use its first alone"
    """What no loss may use of the other outputs, and what to write."""

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

    def refusal(self, module: nn.Module) -> str | None:
        """Why a module of such settings has no per-sample gradients, with what to write; None if it has."""
        return None

    def per_position(self, module: nn.Module) -> int | None:
        """How many trailing axes of its output one position has, where the module treats positions apart.

        Samples and positions are then the first two axes of the output and of all that `saved` returns. None for a module
        that mixes positions, or whose rule does not show them.
        """
        return None

    def observed(self, output: Any) -> tuple[Any, tuple[Any, ...]]:
        """The one tensor of the module's outputs through which it is seen, and what else `returned` needs of them."""
        return output, ()

    def returned(self, module: nn.Module, seen: Tensor, others: tuple[Any, ...], close: Callable[[Any], Any]) -> Any:
        """What the module returns, of the tensor that is seen and of others, which `close` keeps any gradient from."""
        return (seen, *map(close, others)) if others else seen


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
    found = _known(module)
    if found is not None:
        return found.refusal(module)
    return next((_REFUSED[c] for c in type(module).__mro__ if c in _REFUSED), None)


def adopts(module: nn.Module) -> tuple[str, ...]:
    """The names of the descendants that are never called with samples, whose parameters the module's rule serves."""
    found = _known(module)
    return (*(() if found is None else found.adopts), *held(module))


def owned(module: nn.Module, children: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that the module multiplies by itself, of its own and of some descendants, in its names of them."""
    yield from module.named_parameters(recurse=False)
    for child in children:
        yield from module.get_submodule(child).named_parameters(prefix=child, recurse=False)


def batched(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], axes: int) -> Tensor:
    """The module's one input, which must have so many axes or more for its first to be that of the samples."""
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    if x.ndim < axes:
        raise RuntimeError(
            f"{module} was called with an input of shape {tuple(x.shape)}, which has no axis of samples; write "
            f"model(x.unsqueeze(0)) for a batch of one"
        )
    return x


def needed(module: nn.Module) -> bool:
    """Whether the module's own weight is trained: nothing else needs the input, which may be overwritten otherwise."""
    weight = module.weight
    return isinstance(weight, Tensor) and weight.requires_grad


def find(module: nn.Module) -> Rule:
    """The rule of a module, by method-resolution order, because `fully_shard` swaps the class.

    A class that overrides the `forward` which the rule describes gets the generic rule.
    """
    return (_known(module) or _RULES[nn.Module]).prepare(module)


def _known(module: nn.Module) -> Rule | None:
    """The rule written for the module's class; None where only the generic one is left."""
    if is_parametrized(module):
        return None
    own = {name for name, _ in owned(module, held(module))}
    for ancestor in type(module).__mro__:
        if ancestor is nn.Module or ancestor not in _RULES or type(module).forward is not ancestor.forward:
            continue
        found = _RULES[ancestor]
        if "forward" not in vars(module) and (found.serves is None or own <= found.serves):
            return found
    return None
