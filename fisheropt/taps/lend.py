"""Σₙ hₙ for nothing: autograd adds up the weight's own gradient at a second leaf.

A module is lent, for one call, an identity of its weight that has the leaf of Σₙ hₙ for a second input. The gradient of the
call then reaches the weight and the leaf, and the product that would form the sum again is saved. `p.grad` itself does not
do: it holds penalties and the gradients of other uses.
"""

from __future__ import annotations

from typing import Any, Protocol, final

import torch
from torch import Tensor, nn


class Both(torch.autograd.Function):
    """The identity on a weight; its gradient is that of the leaf too."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, leaf: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0]


class Lender(Protocol):
    """The hook of a module that its weights are lent for."""

    lent: tuple[str, ...]

    def lending(self) -> dict[str, Tensor]:
        """The leaves of the sums, by the module's names of its weights; none where they cannot be had so."""
        ...


@final
class Lend:
    """The hook before a call: what is in a module's own dictionary comes before its parameters."""

    def __init__(self, lender: Lender, channel: object) -> None:
        self.lender, self.channel = lender, channel

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        leaves = self.lender.lending()
        self.lender.lent = tuple(leaves)
        for name, leaf in leaves.items():
            vars(module)[name] = Both.apply(getattr(module, name), leaf)  # type: ignore[no-untyped-call]


@final
class TakeBack:
    """The hook after a call, also after one that failed."""

    def __init__(self, lender: Lender, channel: object) -> None:
        self.lender, self.channel = lender, channel

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for name in self.lender.lent:
            vars(module).pop(name, None)
        self.lender.lent = ()
