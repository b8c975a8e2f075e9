"""Which k directions of a group an optimizer watches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fisheropt.directions import DenseDirections, Directions, RankOneDirections
from fisheropt.statistics import FullCovariance, JointStatistic, Projection

Chosen = Literal["auto"] | Mapping[str, Tensor] | Sequence[Tensor]
WHOLE_SPACE = 256
_RANDOM = 16


def statistic(chosen: Chosen, parameters: dict[str, Tensor]) -> JointStatistic:
    """The joint statistic of the chosen directions.

    Args:
        chosen: "auto" for the whole space up to 256 parameters and for 16 random rank-one directions beyond; or per
            parameter a tensor [k, *parameter], by name or in the parameters' order. These are made orthonormal.
        parameters: the group's trainable parameters, by name.

    Raises:
        ValueError: for directions of unknown parameters, of wrong shapes, or linearly dependent ones.
    """
    if isinstance(chosen, str):
        if chosen != "auto":
            raise ValueError(f"directions={chosen!r}: write 'auto', or one tensor [k, *parameter] for each parameter")
        small = sum(p.numel() for p in parameters.values()) <= WHOLE_SPACE
        return FullCovariance() if small else Projection(_random(parameters))
    named = dict(chosen) if isinstance(chosen, Mapping) else dict(zip(parameters, chosen, strict=True))
    return _given(named, parameters)


def _given(named: dict[str, Tensor], parameters: dict[str, Tensor]) -> Projection:
    for name, basis in named.items():
        if name not in parameters:
            raise ValueError(f"directions are given for {name!r}; the trainable parameters are {list(parameters)}")
        if basis.shape[1:] != parameters[name].shape:
            raise ValueError(
                f"directions[{name!r}] has shape {tuple(basis.shape)}; for k directions it must be "
                f"(k, *{tuple(parameters[name].shape)})"
            )
    k = next(iter(named.values())).shape[0]
    flat = torch.cat([basis.detach().double().reshape(k, -1) for basis in named.values()], 1)
    if torch.linalg.matrix_rank(flat) < k:
        raise ValueError(f"the {k} directions are linearly dependent; leave out those that the others span")
    rows = torch.linalg.qr(flat.T).Q.T.split([basis[0].numel() for basis in named.values()], 1)
    along: dict[str, Directions] = {
        name: DenseDirections(row.reshape(basis.shape).to(parameters[name]))
        for (name, basis), row in zip(named.items(), rows, strict=True)
    }
    return Projection(along)


def _random(parameters: dict[str, Tensor]) -> dict[str, Directions]:
    """Signs from a generator of their own, so that every run and every rank has the same directions."""
    generator = torch.Generator().manual_seed(0)
    total = sum(p.numel() for p in parameters.values())

    def signs(size: int, like: Tensor) -> Tensor:
        drawn = torch.randint(0, 2, (_RANDOM, size), generator=generator) * 2 - 1
        return drawn.to(like.device, torch.promote_types(like.dtype, torch.float32))

    along: dict[str, Directions] = {}
    for name, p in parameters.items():
        if p.ndim < 2:
            along[name] = DenseDirections(signs(p.numel(), p).reshape(_RANDOM, *p.shape) / total**0.5)
        else:
            along[name] = RankOneDirections(signs(p.shape[0], p), signs(p[0].numel(), p) / total**0.5)
    return along
