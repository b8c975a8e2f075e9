"""The noise record: one flat dictionary of numbers for any logger."""

from __future__ import annotations

from torch.optim import Optimizer

from fisheropt.optim import FisherOptimizer


def record(optimizer: Optimizer) -> dict[str, float]:
    """The numbers of the optimizer's report, by names like "noise_trace", or "group1/noise_trace" from the second group.

    Args:
        optimizer: any; one that is not of fisheropt, or has measured nothing, gives an empty record.

    Returns:
        Numbers only: what the report says in words or lists is left out.
    """
    if not isinstance(optimizer, FisherOptimizer):
        return {}
    numbers: dict[str, float] = {}
    for index, group in enumerate(optimizer.report().groups):
        prefix = f"group{index}/" if index else ""
        numbers |= {
            prefix + key: float(value)
            for key, value in group.as_dict().items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
    return numbers
