"""A statistic of each parameter by itself, in eager mode.

It is not additive over calls: of a module called twice, or a weight that two modules share, the sample's gradient is the sum
over calls. How often the forward used a parameter is known when backward runs, so what is used once is reduced at once, and
what is used more often when the last of its calls has come, or none is left that could.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import final

import torch
from torch import Tensor

from fisheropt.persample import PerSample, joined
from fisheropt.statistics import ParameterStatistic
from fisheropt.taps.channel import Channel, Passage
from fisheropt.taps.forward import Forward


@final
class Apart(Forward):
    """Adds the readings of one forward to the leaves' gradients.

    Args:
        channel: of the tap.
        statistic: of each parameter.
        samples: of the forward; one that does not come through a parameter has a gradient of zero there.
    """

    def __init__(self, channel: Channel, statistic: ParameterStatistic, samples: int) -> None:
        super().__init__()
        self.channel, self.statistic, self.passage = channel, statistic, Passage(channel)
        self.samples = samples
        self.calls: dict[str, int] = {}
        self._held: dict[str, list[PerSample]] = {}

    def expect(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def begin(self) -> None:
        self._held = {}
        self.passage.differentiate()
        self.channel.passed += self.samples

    def take(self, forms: dict[str, PerSample], lent: Collection[str]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for name, form in forms.items():
            if self.calls[name] == 1:
                second, sums[name] = self.statistic.of_and_sum(form)
                self._deliver(name, second, form.samples if len(sums) == 1 else 0)
            else:
                sums[name] = form.sum()
                held = self._held.setdefault(name, [])
                held.append(form)
                if len(held) == self.calls[name]:
                    self._reduce(name)
            self._add_sum(name, sums[name], name in lent)
        return sums

    def close(self) -> None:
        for name in list(self._held):
            self._reduce(name)

    def _reduce(self, name: str) -> None:
        form = joined(self._held.pop(name))
        self._deliver(name, self.statistic.of(form), form.samples)

    def _deliver(self, name: str, second: Tensor, samples: int) -> None:
        """Add to a parameter's readings; 0 samples where another of the module's parameters counts them."""
        add(self.channel.leaves[name], second, self.channel.sharded)
        if samples:
            size = self.channel.sizes[name]
            add(size, torch.full((), samples, dtype=size.dtype, device=size.device))

    def _add_sum(self, name: str, total: Tensor, shared: bool) -> None:
        leaf, sharded = self.channel.sums[name], self.channel.sharded
        if shared and leaf.grad is None and not sharded:
            total = _alias(total)
        add(leaf, total, sharded)


def add(leaf: Tensor, value: Tensor, hooked: bool = False) -> None:
    """Add to a leaf's gradient as backward does; nothing is changed in place.

    Args:
        leaf: whose gradient it is.
        value: to be added.
        hooked: whether hooks may wait for it.
    """
    held = leaf.grad
    leaf.grad = value if held is None else held + value
    if hooked:
        placed: dict[int, Callable[[Tensor], None]] | None = getattr(leaf, "_post_accumulate_grad_hooks", None)
        for hook in tuple(placed.values()) if placed else ():
            hook(leaf)


def _alias(total: Tensor) -> Tensor:
    """The same numbers, which stay what they are if the other is changed in place; on a CPU they are copied only then.

    The other becomes `p.grad`: what clips it, unscales it or sets it to zero would change the reading, and a copy of every
    weight's gradient for its sake would be the largest cost of a trace.
    """
    if type(total) is Tensor and total.device.type == "cpu":  # on CUDA torch._foreach_* write to what is still shared
        return torch._lazy_clone(total)
    return total.clone()
