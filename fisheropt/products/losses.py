"""A batch's loss, and the losses of its samples apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

Loss: TypeAlias = Callable[[Any, Any], Tensor]

_AGREEMENT = 1e-3


def mean_loss(loss: Loss, output: Any, targets: Any, call: str) -> Tensor:
    """loss(output, targets), which must be one number."""
    value = loss(output, targets)
    if not isinstance(value, Tensor) or value.ndim > 0:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{call}: loss(output, target) gave {found}, not one number; write F.cross_entropy, say")
    return value


def sample_losses(loss: Loss, output: Any, targets: Any, samples: int, call: str) -> Tensor:
    """Each sample's own loss [n]: the loss of a batch that it makes alone."""
    leaves, spec = tree_flatten((output, targets))
    for leaf in leaves:
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != samples):
            raise ValueError(
                f"{call}: found a tensor {tuple(leaf.shape)} in a batch of {samples} samples; a sample's own loss needs "
                f"outputs and targets with the samples on the first axis"
            )

    def alone(*parts: Any) -> Tensor:
        parts = tuple(part.unsqueeze(0) if isinstance(part, Tensor) else part for part in parts)
        own, target = tree_unflatten(parts, spec)
        return mean_loss(loss, own, target, call)

    return vmap(alone, in_dims=tuple(0 if isinstance(leaf, Tensor) else None for leaf in leaves))(*leaves)


def check_mean(loss: Loss, output: Any, targets: Any, call: str) -> None:
    """Refuse a loss that sums over samples: a mean does not change when every sample is there twice."""
    twice, again = tree_map_only(Tensor, lambda x: torch.cat((x, x)) if x.ndim else x, (output, targets))
    once, double = mean_loss(loss, output, targets, call), mean_loss(loss, twice, again, call)
    if (double - 2 * once).abs() < 1e-3 * once.abs():
        raise ValueError(f"{call}: loss(output, target) is a sum over samples; write reduction='mean'")


def check_separable(loss: Loss, output: Any, targets: Any, samples: int, call: str) -> None:
    """Refuse a loss of a batch that is not the mean of its samples' own, as one with class weights is not.

    Their gradients in the outputs are compared, as the values can agree by chance, at outputs of zero say.
    """
    leaves, spec = tree_flatten(output)
    moved = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    def placed(parts: Any) -> Any:
        held = dict(zip(moved, parts, strict=True))
        return tree_unflatten([held.get(i, leaf) for i, leaf in enumerate(leaves)], spec)

    def together(parts: Any) -> Tensor:
        return mean_loss(loss, placed(parts), targets, call)

    def apart(parts: Any) -> Tensor:
        return sample_losses(loss, placed(parts), targets, samples, call).mean()

    given = tuple(leaves[i] for i in moved)
    pairs = list(zip(grad(together)(given), grad(apart)(given), strict=True))
    for left, right in pairs:
        rounding = max(_AGREEMENT, 8 * torch.finfo(left.dtype).eps)
        if (left - right).abs().max() > rounding * right.abs().max():
            raise ValueError(
                f"{call}: loss(output, target) of a batch is not the mean of its samples' own losses, as with class weights, "
                f"ignored targets or a sum; write lambda z, y: (w[y] * F.cross_entropy(z, y, reduction='none')).mean()"
            )
