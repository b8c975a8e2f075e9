"""Statistics of several ranks, as DistributedDataParallel and `fully_shard` average their gradients.

With R ranks the gradient that a step uses is the mean of theirs, so that one sample contributes h/R to it. For an optimizer
only matrices of the directions' size travel, or a few numbers for each parameter.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fisheropt.theory.between import BetweenComponent, component_of, rank_sums


def ranks() -> int:
    """The number of ranks that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def reduce_augmented(augmented: Tensor, divisor: float) -> Tensor:
    """[[Σhhᵀ, Σh], [Σhᵀ, c]] over the samples of all ranks.

    Args:
        augmented: of this rank.
        divisor: by which the sum of the ranks' gradients is divided, their number for a mean.
    """
    scale = torch.full_like(augmented[0], 1 / divisor)
    scale[-1] = 1
    return reduce_sum(scale[:, None] * augmented * scale)


def reduce_sum(values: Tensor) -> Tensor:
    """The sum over ranks, the same on each."""
    if ranks() == 1:
        return values
    total = values.contiguous().clone()
    dist.all_reduce(total)
    return total


def between_ranks(augmented: Tensor, scale: float) -> BetweenComponent | None:
    """How far the means of the ranks' per-sample gradients differ beyond chance; None on one rank.

    In units of one sample's gradient in its own rank's objective, before ranks are averaged.

    Args:
        augmented: [[Σhhᵀ, Σh], [Σhᵀ, c]] over this rank's samples.
        scale: of the loss in backward.
    """
    if ranks() == 1:
        return None
    count, mean = augmented[-1, -1], augmented[:-1, -1] / scale
    scatter = count * (count * augmented[:-1, :-1] / scale**2 - torch.outer(mean, mean))
    return component_of(reduce_sum(rank_sums(mean, scatter, count)))
