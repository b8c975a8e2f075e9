"""The loss scale of automatic mixed precision, as `torch.amp.GradScaler` hands it over."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class LossScale:
    """By what the loss was multiplied before backward.

    Args:
        of_gradients: the factor that `p.grad` still has; None if it has none.
        of_statistics: the factor that the per-sample gradients had in backward.
        overflow: whether the scaler found an inf, so that the step must not happen.
    """

    of_gradients: Tensor | None
    of_statistics: Tensor | None
    overflow: bool

    def unscale(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients without the factor; `p.grad` is not written to."""
        if self.of_gradients is None:
            return grads
        inverse = self.of_gradients.double().reciprocal().float()  # as GradScaler.unscale_ computes it
        return [g * inverse.to(g.device) for g in grads]

    def statistics(self) -> float:
        """The factor as a number; read only where something was measured."""
        return 1.0 if self.of_statistics is None else float(self.of_statistics)


def loss_scale(attributes: dict[str, Any]) -> LossScale:
    """What a GradScaler has set on an optimizer for the call of `step`, given the optimizer's attributes."""
    found_inf = attributes.get("found_inf")
    if found_inf is None:
        return LossScale(None, None, False)
    held = attributes.get("grad_scale")
    return LossScale(held, calling_scale() if held is None else held, bool(found_inf))


def calling_scale() -> Tensor | None:
    """The scale of the GradScaler whose `step` is on the stack.

    After the user's `scaler.unscale_(optimizer)`, torch hands over no scale, though the statistics were taken with it.
    """
    frame = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, torch.amp.GradScaler):
            return caller._get_scale_async()
        frame = frame.f_back  # type: ignore[assignment]
    return None
