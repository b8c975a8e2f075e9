"""What an eager call of a module leaves for its backward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from fisheropt.persample import PerSample
from fisheropt.taps.apart import add
from fisheropt.taps.channel import Channel
from fisheropt.taps.forward import Forward
from fisheropt.taps.lend import Rest, missed


class Caller(Protocol):
    """The hook of the module that was called."""

    channel: Channel
    module: nn.Module
    path: str
    names: dict[str, str]
    in_place: bool

    def parameter(self, name: str) -> Tensor:
        """The one that the module has now, by its own name of it."""
        ...

    def seen(self, grad: Tensor) -> Tensor:
        """The number of samples, and of those with a gradient where that is watched."""
        ...

    def forms(
        self, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        """The forms of the named parameters, in the dtype of the sums."""
        ...


@final
@dataclass(slots=True)
class Call:
    """One call of a module in eager mode, and what its backward leaves.

    Args:
        hook: of the module.
        forward: with which the gradients are left.
        gate: of the forward, whose node only a backward reaches that is to be read.
        names: of the parameters that were trained, the module's own.
        lent: the weights that the call was lent.
        context: of the module's rule.
        rest: of the call's arguments, where something was lent.
    """

    hook: Caller
    forward: Forward
    gate: Tensor
    names: tuple[str, ...]
    lent: dict[str, Tensor]
    context: Any
    rest: Rest | None

    @property
    def in_place(self) -> bool:
        return self.hook.in_place

    def backward(self, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the input, beside that which comes through the layer, and of the weights lent.

        The first is a zero with a derivative, for `create_graph=True` alone.
        """
        lacking: Tensor | None = None
        sums: dict[str, Tensor] = {}
        if self.lent and torch.is_grad_enabled():
            lacking, sums = self._differentiably(saved, grad)
        with torch.no_grad():
            if torch.is_autocast_enabled(grad.device.type):
                with torch.autocast(grad.device.type, enabled=False):
                    found = self._take(saved, grad)
            else:
                found = self._take(saved, grad)
        return lacking, *(sums.get(name, found.get(self.hook.names[name])) for name in self.lent)

    def _take(self, saved: tuple[Tensor, ...], grad: Tensor) -> dict[str, Tensor]:
        """Leave the gradients with the forward; Σₙ hₙ of the weights lent."""
        hook = self.hook
        if not torch._C._will_engine_execute_node(self.gate.grad_fn):  # type: ignore[arg-type]
            found = hook.forms(self._trainable(self.lent), saved, self.context, grad) if self.lent else {}
            return {hook.names[name]: form.sum() for name, form in found.items()}  # somebody looks at gradients
        self.forward.arrive()
        if not hook.channel.measuring:
            add(hook.channel.counts[hook.path], hook.seen(grad))
        forms, names = hook.forms(self._trainable(self.names), saved, self.context, grad), hook.names
        lent = [names[name] for name in self.lent]
        return self.forward.take({names[name]: form for name, form in forms.items()}, lent)

    def _differentiably(self, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The same with a graph."""
        hook, lent = self.hook, self._trainable(self.lent)
        sums = {name: form.sum() for name, form in hook.forms(lent, saved, self.context, grad).items()}
        if self.rest is None or not saved or not saved[0].requires_grad:
            return None, sums
        return missed(hook.module, saved[0], self.rest, self.lent, grad), sums

    def _trainable(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those that are not frozen since."""
        parameter, lent = self.hook.parameter, self.lent
        return tuple([n for n in names if (lent[n] if n in lent else parameter(n)).requires_grad])
