"""Random numbers of studies, and what a share of draws is worth."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def share(hits: Tensor) -> tuple[float, float]:
    """Share of true entries and its standard error, taken at (k + 1)/(n + 2) so that it is never zero."""
    count, total = float(hits.sum()), hits.numel()
    moderate = (count + 1) / (total + 2)
    return count / total, math.sqrt(moderate * (1 - moderate) / total)
