"""What a metric keeps over updates: a sum, or an exponential average, and what its error needs."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.metric.pullback import Measured, Values
from fisheropt.metric.readings import Estimate


@final
class Running:
    """Σ of what the updates found over Σ of their weights; with a decay b, b·old + (1 - b)·new, corrected for its start.

    Args:
        names: of the parameters.
        mean: whether an update counts by its inputs, and readings are per input; else readings are sums.
        ema: b; None sums.
    """

    def __init__(self, names: tuple[str, ...], *, mean: bool, ema: float | None) -> None:
        self._names, self._mean, self._ema = names, mean, ema
        self.clear()

    def clear(self) -> None:
        """Forget all updates."""
        self._diagonal: Values = {}
        self._spread: Values = {}
        self._traces = torch.zeros(len(self._names), dtype=torch.float64)
        self._covariance = torch.zeros(2 * (len(self._names),), dtype=torch.float64)
        self._weight = self._gains = self._squared_gains = 0.0
        self.rows: list[Tensor] = []
        self.updates = self.dof = 0

    def add(self, found: Measured, weight: float) -> None:
        """One more update of inputs of that total weight."""
        keep, take = (1.0, 1.0) if self._ema is None else (self._ema, 1 - self._ema)
        share = take / weight if self._mean and self._ema is not None else take
        self._weight = keep * self._weight + (weight if self._mean and self._ema is None else take)
        self._gains, self._squared_gains = keep * self._gains + take, keep**2 * self._squared_gains + take**2
        self._diagonal = _mixed(self._diagonal, keep, found.diagonal, share)
        self._spread = _mixed(self._spread, keep**2, found.spread, share**2)
        self._traces = keep * self._traces + share * found.traces.mean(0)
        draws = len(found.traces)
        if draws > 1:
            self._covariance = (
                keep**2 * self._covariance
                + share**2 * torch.cov(found.traces.T).reshape(self._covariance.shape) / draws
            )
        if found.rows is not None:
            self.rows.append(found.rows)
        self.updates += 1
        self.dof += draws - 1

    @property
    def scale(self) -> float:
        """What sums are divided by in readings."""
        return self._weight if self._mean or self._ema is not None else 1.0

    @property
    def effective_updates(self) -> float:
        """(Σ gains)²/Σ gains², the number of updates whose plain mean were as precise."""
        return self._gains**2 / self._squared_gains

    def diagonal(self) -> Values:
        """The estimate of the diagonal by parameter."""
        return {name: total / self.scale for name, total in self._diagonal.items()}

    def variation(self) -> Values:
        """Standard deviation over draws of the diagonal, divided by it; 0 where it is."""
        return {
            name: torch.where(total > 0, self._spread[name].clamp(min=0).sqrt() / total, 0)
            for name, total in self._diagonal.items()
            if name in self._spread
        }

    def trace(self, chosen: Tensor, bound: float | None) -> Estimate:
        """The trace over the chosen parameters.

        Args:
            chosen: a mask [L].
            bound: on its coefficient of variation, infinite for none; None where nothing is random.
        """
        mask = chosen.to(torch.float64)
        value = float(mask @ self._traces) / self.scale
        if bound is None:
            return Estimate(value, 0.0, 0, "exact")
        if self.dof:
            variance = max(0.0, float(mask @ self._covariance @ mask))
            return Estimate(value, variance**0.5 / self.scale, self.dof, "measured")
        if math.isinf(bound):
            return Estimate(value, math.nan, 0, "unknown")
        return Estimate(value, bound * value, 0, "bound")

    def state_dict(self) -> dict[str, Any]:
        """All of it, tensors and numbers."""
        numbers = ("_weight", "_gains", "_squared_gains", "updates", "dof")
        return {
            "diagonal": {name: value.clone() for name, value in self._diagonal.items()},
            "spread": {name: value.clone() for name, value in self._spread.items()},
            "traces": self._traces,
            "covariance": self._covariance,
            "rows": list(self.rows),
            **{name.removeprefix("_"): getattr(self, name) for name in numbers},
        }

    def load_state_dict(self, state: dict[str, Any], like: Values) -> None:
        """Take over a state, onto the devices of the parameters `like`."""
        self.clear()
        self._diagonal = {name: value.to(like[name].device, copy=True) for name, value in state["diagonal"].items()}
        self._spread = {name: value.to(like[name].device, copy=True) for name, value in state["spread"].items()}
        self._traces, self._covariance = state["traces"].clone(), state["covariance"].clone()
        device = next(iter(like.values())).device
        self.rows = [rows.to(device, copy=True) for rows in state["rows"]]
        self._weight, self._gains, self._squared_gains = state["weight"], state["gains"], state["squared_gains"]
        self.updates, self.dof = state["updates"], state["dof"]


def _mixed(old: Values, keep: float, new: Values, take: float) -> Values:
    """The sum keep·old + take·new, into the tensors of old, which no reading shares."""
    if not old:
        return {name: take * value for name, value in new.items()}
    return {name: old[name].mul_(keep).add_(value, alpha=take) for name, value in new.items()}
