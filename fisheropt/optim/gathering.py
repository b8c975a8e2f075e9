"""The gradient of a batch that comes in parts, as a device cannot hold it whole.

    g = Σⱼ (bⱼ/b) gⱼ

The parts' gradients are added up beside `p.grad`, so that the user's loop, zero_grad() included, stays as it is.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from fisheropt.control import Part
from fisheropt.optim.amp import LossScale


@final
class Gathering:
    """Gradients of the parts of the batch under way; in no state_dict, as a resumed batch begins anew."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, Tensor] = {}
        self._scales: set[float] = set()
        self._parts = 0
        self.loss: Tensor | float = 0.0

    @property
    def under_way(self) -> bool:
        """Whether parts were added and their batch is not complete."""
        return self._parts > 0

    @property
    def uniform(self) -> bool:
        """Whether all parts so far had one loss scale, so that what was read of them has it as well."""
        return len(self._scales) < 2

    def add(self, parameters: list[Tensor], part: Part, scale: LossScale, loss: Any) -> None:
        """Take in the gradients of a part.

        Args:
            parameters: of all groups.
            part: what was trained on.
            scale: of the loss in its backward.
            loss: of the part; None if it was not given.
        """
        self._parts += 1
        self._scales.add(scale.statistics())
        if loss is not None:
            self.loss = self.loss + part.samples / part.whole * torch.as_tensor(loss).detach().double()
        fresh = [p for p in parameters if p.grad is not None and p not in self._sums]
        self._sums |= {p: torch.zeros_like(p) for p in fresh}
        seen = [p for p in parameters if p.grad is not None]
        if seen:
            grads = scale.unscale([p.grad for p in seen if p.grad is not None])
            torch._foreach_add_([self._sums[p] for p in seen], grads, alpha=part.samples / part.whole)

    def finish(self, scale: LossScale) -> int:
        """Make `p.grad` the gradient of the whole batch, with the loss scale that its last part has.

        Returns:
            The number of parts.
        """
        for parameter, gathered in self._sums.items():
            factor = scale.of_gradients
            parameter.grad = gathered if factor is None else gathered * factor.to(gathered.device)
        parts, self._parts, self._sums = self._parts, 0, {}
        return parts
