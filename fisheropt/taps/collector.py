"""What keeps the forms of a backward's layers for, until those of all calls are there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from torch import Tensor

from fisheropt.persample import PerSample

_C = TypeVar("_C", bound="Collector")


class Collector(ABC):
    """Sums over the samples of some backwards, additive over them."""

    @abstractmethod
    def blank(self: _C) -> _C:
        """The same before any backward."""

    @abstractmethod
    def add(self, forms: dict[str, PerSample], z: Tensor, respond: bool) -> None:
        """Take in the samples of one backward.

        Args:
            forms: of all parameters.
            z: the complete coordinates, [n, k].
            respond: whether to form what only M needs, where another backward is M's.
        """

    @abstractmethod
    def merge(self: _C, other: _C) -> _C:
        """The sums over the samples of both."""
