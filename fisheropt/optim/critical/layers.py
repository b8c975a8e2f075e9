"""A few directions for each layer of a large model, read as one block a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisheropt.directions import Coordinates, Directions, Implicit
from fisheropt.optim.critical.signs import random_signs
from fisheropt.persample import Outer
from fisheropt.statistics import JointStatistic
from fisheropt.statistics.base import Need

_EACH = 4


class Block(NamedTuple):
    """The directions start..stop-1, which belong to one layer."""

    layer: str
    start: int
    stop: int


@final
@dataclass(frozen=True)
class Placed(Directions):
    """Directions that are a few of many: `inner` is those from `start` on, all others are zero in this parameter.

    Args:
        inner: the directions of this parameter's layer.
        start: the place of the first.
        total: the number of all directions.
    """

    inner: Directions
    start: int
    total: int

    @property
    def count(self) -> int:
        return self.total

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        return self._padded(Outer(g, a).project(self.inner))

    def of_dense(self, h: Tensor) -> Tensor:
        return self._padded(self.inner.of_dense(h))

    def of_implicit(self, form: Implicit) -> Tensor:
        return self._padded(form.project(self.inner))

    def combine(self, coefficients: Tensor) -> Tensor:
        return self.inner.combine(coefficients[self.start : self.start + self.inner.count])

    def _padded(self, coordinates: Tensor) -> Tensor:
        return pad(coordinates, (self.start, self.total - self.start - self.inner.count))


@final
@dataclass(frozen=True)
class PerLayer(JointStatistic):
    """The covariance of all layers' directions together; what one layer shares with another is read and left out.

    Args:
        along: the part of the directions in each parameter, by name.
        blocks: which directions are whose.
    """

    along: Mapping[str, Directions]
    blocks: tuple[Block, ...]

    def directions(self, parameters: dict[str, Tensor]) -> dict[str, Directions]:
        return {name: self.along[name] for name in parameters if name in self.along}

    def needs(self, along: Directions | None) -> tuple[Need, ...]:
        return super().needs(along.inner if isinstance(along, Placed) else along)

    def rank(self, parameters: dict[str, Tensor]) -> int:
        return self.blocks[-1].stop


def per_layer(parameters: Mapping[str, Tensor]) -> PerLayer:
    """Four random directions of rank one in each module's own parameters, or all directions where there are no more.

    Args:
        parameters: the group's trainable parameters, by name.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, p in parameters.items():
        layers.setdefault(name.rpartition(".")[0] or name, {})[name] = p
    parts, start = [], 0
    for seed, (layer, members) in enumerate(layers.items()):
        inner = _directions(members, seed)
        count = next(iter(inner.values())).count
        parts.append((Block(layer, start, start + count), inner))
        start += count
    along: dict[str, Directions] = {
        name: Placed(d, block.start, start) for block, inner in parts for name, d in inner.items()
    }
    return PerLayer(along, tuple(block for block, _ in parts))


def _directions(members: Mapping[str, Tensor], seed: int) -> dict[str, Directions]:
    size = sum(p.numel() for p in members.values())
    if size > _EACH:
        return random_signs(members, _EACH, seed)
    starts = torch.tensor([0, *(p.numel() for p in members.values())]).cumsum(0).tolist()
    return {name: Coordinates(start, p.shape, size) for (name, p), start in zip(members.items(), starts, strict=False)}


def blocks_of(statistic: object, rank: int) -> tuple[Block, ...]:
    """The blocks in which a statistic's directions are judged: one for all of them unless it is of layers."""
    return statistic.blocks if isinstance(statistic, PerLayer) else (Block("", 0, rank),)


def block_diagonal(matrix: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """The matrix without what the blocks share with each other; itself where there is one block.

    Args:
        matrix: [k, k].
        blocks: that cover 0..k-1.
    """
    if len(blocks) == 1:
        return matrix
    return torch.block_diag(*(matrix[b.start : b.stop, b.start : b.stop] for b in blocks))
