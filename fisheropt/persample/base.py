"""What every form of per-sample gradients offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from fisheropt.cost import Ways, Work, cheapest
from fisheropt.directions import Directions

TILE = 1 << 23  # numbers in one temporary of several samples: 32 MiB of float32
_NEAR = 1 << 19  # on a CPU, whose caches hold no more, and whose heap gives larger ones back to be zeroed anew: ours


@dataclass(frozen=True)
class PerSample(ABC):
    """The gradients hₙ of one parameter, n = 1..N, which are never all formed unless asked for.

    Args:
        way: the contraction that is asked for by name; None for the cheapest.
    """

    way: str | None = field(default=None, kw_only=True)
    ways: ClassVar[Mapping[str, Ways]]
    """For each quantity the ways to it; of a projection, by the kind of the directions."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """What the work of a contraction depends on, in the order of the form's own file of `fisheropt.cost`."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the gradients are."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """The number of samples N."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> PerSample:
        """The same in another dtype."""

    @abstractmethod
    def sum(self) -> Tensor:
        """Σₙ hₙ, shaped like the parameter."""

    @abstractmethod
    def square_sum(self) -> Tensor:
        """Σₙ hₙ², elementwise, shaped like the parameter."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """‖hₙ‖², shape [n]."""

    @abstractmethod
    def project(self, directions: Directions) -> Tensor:
        """⟨hₙ, v_k⟩, shape [n, k]."""

    def trace_and_sum(self) -> tuple[Tensor, Tensor]:
        """Σₙ ‖hₙ‖² and Σₙ hₙ: where hₙ is formed for the one, the other is had with it."""
        return self.squared_norms().sum(), self.sum()

    def squares_and_sum(self) -> tuple[Tensor, Tensor]:
        """Σₙ hₙ² and Σₙ hₙ."""
        return self.square_sum(), self.sum()

    def project_and_sum(self, directions: Directions) -> tuple[Tensor, Tensor]:
        """⟨hₙ, v_k⟩ and Σₙ hₙ."""
        return self.project(directions), self.sum()

    @abstractmethod
    def combine(self, weights: Tensor) -> Tensor:
        """Σₙ wₙₖ hₙ for weights [n, k]: [k, *parameter], one weight gradient a column."""

    def work(self, quantity: str) -> Work:
        """The work of a quantity that is had in one way only."""
        return next(iter(self.ways[quantity](*self.sizes).values()))

    def chosen(self, quantity: str, *more: int) -> str:
        """By which way a quantity is had: the cheapest, or that asked for.

        Args:
            quantity: one of `ways`.
            more: sizes of what it is contracted with.
        """
        return cheapest(self.ways[quantity], self.device.type, (*self.sizes, *more), self.way)

    def tile(self, numbers: int) -> int:
        """How many samples of so many numbers each go into one temporary, about as many in each."""
        most = max(1, (_NEAR if self.device.type == "cpu" else TILE) // max(1, numbers))
        return -(-self.samples // max(1, -(-self.samples // most)))

    @abstractmethod
    def materialise(self) -> Tensor:
        """All hₙ, shape [n, *parameter]: for tests, and where nothing cheaper exists."""


def tile_of(numbers: int) -> int:
    """How many samples of so many numbers each go into one temporary."""
    return max(1, TILE // max(1, numbers))


def beside_sum(tiles: Iterable[Tensor], reduce: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
    """What is made of the hₙ of each tile, and Σₙ hₙ of all.

    Args:
        tiles: the hₙ of some samples each.
        reduce: makes it.
    """
    found: list[Tensor] = []
    total: Tensor | None = None
    for h in tiles:
        found.append(reduce(h))
        part = h.sum(0)
        total = part if total is None else total + part
    assert total is not None
    return found, total


def squares_beside_sum(tiles: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Σₙ hₙ² and Σₙ hₙ, with no more than two of each at a time.

    Args:
        tiles: the hₙ of some samples each.
    """
    parts = ((h.square().sum(0), h.sum(0)) for h in tiles)
    return reduce(lambda held, part: (held[0] + part[0], held[1] + part[1]), parts)


def lengths(h: Tensor) -> Tensor:
    """‖hₙ‖², with no square written out: [n]."""
    return torch.linalg.vector_norm(h.flatten(1), dim=1).square()


def inner(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ of all numbers, with no product written out."""
    return torch.dot(x.reshape(-1), y.reshape(-1))
