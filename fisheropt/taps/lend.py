"""Weights that a call only reads, because their gradient is formed with the statistic.

Where hₙ is formed anyway, autograd's own product for the weight's gradient Σₙ hₙ would be made twice; and where the
statistic needs Σₙ hₙ beside it, too. So a call is lent its weights without their need for a gradient, and the sink on the
call's output gives it to them. `p.grad` in place of Σₙ hₙ does not do: it holds penalties and the gradients of other uses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere


class Lender(Protocol):
    """The hook of a module that its weights are lent for."""

    lent: dict[str, Tensor]

    def lending(self) -> dict[str, Tensor]:
        """The weights, by the module's names of them; none where autograd is to form their gradients."""
        ...


@final
class Lend:
    """The hook before a call: what is in a module's own dictionary comes before its parameters."""

    def __init__(self, lender: Lender, channel: object) -> None:
        self.lender, self.channel = lender, channel

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # another thread may be evaluating the model
            return
        take_back(module, self.lender.lent)  # of a call that was interrupted
        self.lender.lent = lent = self.lender.lending()
        for name, weight in lent.items():
            vars(module)[name] = weight.detach()


def take_back(module: nn.Module, names: Iterable[str]) -> None:
    """After a call, also one that failed: what any tap has lent."""
    for name in names:
        if name in module._parameters:
            vars(module).pop(name, None)


def alone(module: nn.Module, own: tuple[type, ...]) -> bool:
    """Whether nobody else's hook is called with the module, and could use its weight in the meantime.

    Args:
        module: that is called.
        own: the classes of a tap's hooks.
    """
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return False
    placed = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return not module._backward_hooks and not module._backward_pre_hooks and all(isinstance(h, own) for h in placed)


class Rest(NamedTuple):
    """A call's arguments but the first, which is the module's input.

    Args:
        args: by place.
        kwargs: by name.
        name: of the input; None where it was given by place.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str | None


def rest_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rest:
    """What is to be kept of a call beside its input, which backward has."""
    if args:
        return Rest(args[1:], kwargs, None)
    name, *others = kwargs
    return Rest((), {other: kwargs[other] for other in others}, name)


def missed(module: nn.Module, x: Tensor, rest: Rest, lent: dict[str, Tensor], grad: Tensor) -> Tensor:
    """The zero whose derivative is that of the input's gradient in the weights, which a call that was lent them has not.

    For `create_graph=True`. A module that is lent its weights is linear in them, so the input's gradient is what it is of
    the weights, and of w - w.detach() zero with the same derivative.

    Args:
        module: that was called.
        x: its input, which requires a gradient.
        rest: of the call.
        lent: the weights.
        grad: of the output.
    """
    try:
        for name, weight in lent.items():
            vars(module)[name] = weight - weight.detach()
        named = rest.kwargs if rest.name is None else {rest.name: x, **rest.kwargs}
        output = module.forward(*((x, *rest.args) if rest.name is None else ()), **named)
        (zero,) = torch.autograd.grad(output, x, grad, create_graph=True)
    finally:
        take_back(module, lent)
    found: Tensor = zero
    return found
