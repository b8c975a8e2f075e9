"""One metric of the data of all ranks, from the metric that each rank kept of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fisheropt.taps.reduce import ranks, reduce_sum


def summed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a metric that saw the data of all ranks; to be loaded into a metric of its own, as its sums are of all.

    Σ of the ranks' sums over Σ of their weights, where a mean of the ranks' readings would count unequal shares alike. Every
    rank has to call it. Draws of different ranks are taken as independent, so give each a seed of its own.

    Args:
        state: `metric.state_dict()` of this rank.

    Returns:
        A state for `load_state_dict`, the same on every rank; without the rows of keep=True.

    Raises:
        ValueError: for a metric with ema, which forgets each rank's weights.
    """
    if state["gains"] != state["updates"]:
        raise ValueError(
            "summed(metric.state_dict()): a metric with ema= has no sums of ranks; write ema=None in "
            "FisherMetric(model, likelihood, ...) and clear() it from time to time"
        )
    if ranks() == 1:
        return dict(state)
    names = ("weight", "dof")
    device = next((v.device for v in state["diagonal"].values()), torch.device("cpu"))
    numbers = _of_ranks(torch.tensor([float(state[name]) for name in names], dtype=torch.float64), device).tolist()
    return {
        **state,
        **{name: {key: reduce_sum(value) for key, value in state[name].items()} for name in ("diagonal", "spread")},
        **{name: _of_ranks(state[name], device) for name in ("traces", "covariance")},
        "weight": numbers[0],
        "dof": int(numbers[1]),
        "rows": [],
    }


def _of_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sum over ranks of numbers that are kept on the CPU, on the device that the ranks can talk through."""
    return reduce_sum(values.to(device)).cpu()
