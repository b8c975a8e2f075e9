"""Kernels that slide over positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from fisheropt.cost import Ways
from fisheropt.cost import convolved as works
from fisheropt.directions import Directions
from fisheropt.persample.base import PerSample, beside_sum, inner, lengths, squares_beside_sum
from fisheropt.persample.outer import Outer


class Geometry(NamedTuple):
    """How a kernel slides; one number an axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@final
@dataclass(frozen=True)
class Convolved(PerSample):
    """hₙ = Σₜ gₙₜ aₙₜᵀ, where aₙₜ is the patch of xₙ under the kernel at position t, and patches overlap.

    No patch is written out: a convolution with one group a sample has the hₙ for its weight's gradient.

    Args:
        g: gradients of the outputs, [n, o, *positions].
        x: the inputs, [n, i, *positions].
        kernel: the weight's shape, [o, i/groups, *window].
        geometry: of the convolution.
    """

    g: Tensor
    x: Tensor
    kernel: torch.Size
    geometry: Geometry
    ways: ClassVar[Mapping[str, Ways]] = works.WAYS

    @property
    def sizes(self) -> tuple[int, ...]:
        positions, window, inputs = self.g.shape[2:].numel(), self.kernel[2:].numel(), self.x.shape[1:].numel()
        outputs, features = self.kernel[0], self.kernel[1:].numel()
        return self.samples, positions, outputs, features, self.geometry.groups, window, inputs

    @property
    def device(self) -> torch.device:
        return self.g.device

    @property
    def samples(self) -> int:
        return self.g.shape[0]

    def to(self, dtype: torch.dtype) -> PerSample:
        if self.g.dtype is dtype and self.x.dtype is dtype:
            return self
        return replace(self, g=self.g.to(dtype), x=self.x.to(dtype))

    def sum(self) -> Tensor:
        return self._weight_gradient(self.g, self.x, self.kernel, self.geometry.groups)

    def square_sum(self) -> Tensor:
        return reduce(torch.add, (h.square().sum(0) for h in self.tiles()))

    def squares_and_sum(self) -> tuple[Tensor, Tensor]:
        return squares_beside_sum(self.tiles())

    def squared_norms(self) -> Tensor:
        return self._norms(self.chosen("norms"))

    def trace_and_sum(self) -> tuple[Tensor, Tensor]:
        way = self.chosen("norms_and_sum")
        if way != "formed":
            return self._norms(way).sum(), self.sum()
        found, total = beside_sum(self.tiles(), lambda h: inner(h, h))
        return found[0] if len(found) == 1 else torch.stack(found).sum(), total

    def _norms(self, way: str) -> Tensor:
        if way == "formed":
            return torch.cat([lengths(h) for h in self.tiles()])
        way = "formed" if way == "patches" else way
        numbers = self.g.shape[2:].numel() * self.kernel[1:].numel()
        return torch.cat([replace(part.unfolded(), way=way).squared_norms() for part in self._parts(numbers)])

    def project(self, directions: Directions) -> Tensor:
        if directions.kind in self.ways and self.chosen(directions.kind, directions.count) == "formed":
            return torch.cat([directions.of_dense(h) for h in self.tiles()])
        return directions.of_implicit(self)

    def project_and_sum(self, directions: Directions) -> tuple[Tensor, Tensor]:
        quantity = f"{directions.kind}_and_sum"
        if quantity not in self.ways or self.chosen(quantity, directions.count) != "formed":
            return self.project(directions), self.sum()
        found, total = beside_sum(self.tiles(), directions.of_dense)
        return torch.cat(found), total

    def combine(self, weights: Tensor) -> Tensor:
        parts = weights.to(self.g.dtype).split(self.tile(self.kernel.numel()))
        tiles = zip(parts, self.tiles(), strict=True)
        return reduce(torch.add, (torch.tensordot(w, h, ([0], [0])) for w, h in tiles))

    def materialise(self) -> Tensor:
        n, groups = self.samples, self.geometry.groups
        g, x = (z.reshape(1, n * z.shape[1], *z.shape[2:]) for z in (self.g, self.x))
        kernels = torch.Size((n * self.kernel[0], *self.kernel[1:]))
        return self._weight_gradient(g, x, kernels, n * groups).unflatten(0, (n, self.kernel[0]))

    def along_dense(self, basis: Tensor) -> Tensor:
        """⟨hₙ, v_k⟩, [n, k]."""
        vectors = basis.to(self.g.dtype).flatten(1).T
        return torch.cat([h.flatten(1) @ vectors for h in self.tiles()])

    def along_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """⟨hₙ, p_k q_kᵀ⟩ by k more filters q_k over x, one set for each group's channels: [n, k]."""
        groups, count = self.geometry.groups, len(left)
        filters = right.to(self.x.dtype).reshape(count, *self.kernel[1:]).repeat(groups, *(1 for _ in self.kernel[1:]))
        features = self._convolution(filters).flatten(2).unflatten(1, (groups, count))
        outputs = self.g.flatten(2).unflatten(1, (groups, -1))
        left = left.to(self.g.dtype).T.reshape(groups, -1, count)
        return torch.einsum("ngot,gok,ngkt->nk", outputs, left, features)

    def tiles(self) -> Iterator[Tensor]:
        """All hₙ, some samples at a time."""
        return (part.materialise() for part in self._parts(self.kernel.numel()))

    def unfolded(self) -> Outer:
        """The patches written out, [n, t, i·window]: window times the input's memory; for one group only."""
        stride, padding, dilation, _ = self.geometry
        patches = torch.nn.functional.pad(self.x, [p for size in reversed(padding) for p in (size, size)])
        axes = len(stride)
        for axis, (step, apart, width) in enumerate(zip(stride, dilation, self.kernel[2:], strict=True), 2):
            patches = patches.unfold(axis, apart * (width - 1) + 1, step)[..., ::apart]
        a = patches.movedim(1, 1 + axes).flatten(1, axes).flatten(2)
        return Outer(self.g.flatten(2).mT, a)

    def _parts(self, numbers: int) -> Iterator[Convolved]:
        tile = self.tile(numbers)
        for g, x in zip(self.g.split(tile), self.x.split(tile), strict=True):
            yield Convolved(g, x, self.kernel, self.geometry)

    def _weight_gradient(self, g: Tensor, x: Tensor, kernel: torch.Size, groups: int) -> Tensor:
        stride, padding, dilation, _ = self.geometry
        empty, none = x.new_empty(kernel), [0 for _ in stride]
        found = torch.ops.aten.convolution_backward(
            g, x, empty, None, stride, padding, dilation, False, none, groups, [False, True, False]
        )
        gradient: Tensor = found[1]
        return gradient

    def _convolution(self, filters: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.geometry
        none = [0 for _ in stride]
        found: Tensor = torch.ops.aten.convolution(
            self.x, filters, None, stride, padding, dilation, False, none, groups
        )
        return found
