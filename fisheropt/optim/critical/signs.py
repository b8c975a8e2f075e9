"""Random directions of rank one: nearly free to contract with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fisheropt.directions import DenseDirections, Directions, RankOneDirections


def random_signs(parameters: Mapping[str, Tensor], count: int, seed: int = 0) -> dict[str, Directions]:
    """Directions of random signs, of unit length, from a generator of their own: every run and every rank has the same.

    Args:
        parameters: that they lie in, by name.
        count: k.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(p.numel() for p in parameters.values())

    def signs(size: int, like: Tensor) -> Tensor:
        drawn = torch.randint(0, 2, (count, size), generator=generator) * 2 - 1
        return drawn.to(like.device, torch.promote_types(like.dtype, torch.float32))

    along: dict[str, Directions] = {}
    for name, p in parameters.items():
        if p.ndim < 2:
            along[name] = DenseDirections(signs(p.numel(), p).reshape(count, *p.shape) / total**0.5)
        else:
            along[name] = RankOneDirections(signs(p.shape[0], p), signs(p.shape[1:].numel(), p) / total**0.5)
    return along
