"""What smoothing does to a Fisher estimate: effective sample size, drift bias, shrinkage.

After t steps an exponential moving average of decay b, divided by 1 - b^t, weighs the estimate of j steps ago
by w_j = (1 - b) b^j / (1 - b^t). Huang (2025) names smoothing; these readings of the word are ours.
"""

import math

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive


def _checked_decay(decay: float, steps: float, call: str) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"{call}: `decay` must lie in [0, 1), got {decay!r}; write decay=0.9")
    if not steps >= 1:
        raise ValueError(f"{call}: `steps` counts minibatches and must be at least 1, got {steps!r}")


def effective_sample_size(batch: float, decay: float, steps: float = math.inf) -> float:
    """B / sum_j w_j^2 = B (1 + b)(1 - b^t) / ((1 - b)(1 + b^t)), that is B (1 + b)/(1 - b) in the long run.

    The error of the average is that of so many fresh samples, if the Fisher matrix does not drift.

    Args:
        batch: B, samples in a minibatch.
        decay: b.
        steps: t, minibatches averaged so far; unlimited when omitted.
    """
    call = f"effective_sample_size({batch!r}, {decay!r})"
    _checked_decay(decay, steps, call)
    memory = float(decay**steps)
    return checked_positive(batch, "batch", call) * (1 + decay) * (1 - memory) / ((1 - decay) * (1 + memory))


def drift_bias(drift: float, decay: float, steps: float = math.inf) -> float:
    """Lag c sum_j j w_j = c (b / (1 - b) - t b^t / (1 - b^t)) of the average of what moves by c a step.

    Args:
        drift: c, in any norm.
        decay: b.
        steps: t, minibatches averaged so far; unlimited when omitted.
    """
    _checked_decay(decay, steps, f"drift_bias({drift!r}, {decay!r})")
    start = 0.0 if math.isinf(steps) else steps * decay**steps / (1 - decay**steps)
    return float(drift) * (decay / (1 - decay) - start)


def shrink(matrix: Tensor, weight: float, tau: float) -> Tensor:
    """(1 - w) Gamma + w tau I, of smallest eigenvalue at least w tau if Gamma is positive semi-definite.

    Args:
        matrix: Gamma [k, k].
        weight: w in [0, 1].
        tau: Target of the shrinkage.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"shrink: `weight` must lie in [0, 1], got {weight!r}")
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return (1 - weight) * matrix + weight * tau * identity
