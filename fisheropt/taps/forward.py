"""What the layers of one eager forward share with the backward that follows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch
from torch import Tensor

from fisheropt.persample import PerSample


class Forward(ABC):
    """Takes in the forms of each layer when its backward runs, and closes when all of them have."""

    def __init__(self) -> None:
        self._task = -1

    @abstractmethod
    def expect(self, name: str) -> None:
        """Count a call that uses a parameter."""

    @abstractmethod
    def take(self, forms: dict[str, PerSample], lent: Collection[str]) -> dict[str, Tensor]:
        """Take in the gradients of one call.

        Args:
            forms: by parameter.
            lent: the parameters whose gradient is to be returned.

        Returns:
            Σₙ hₙ of these, but where only the statistic is asked for.
        """

    @abstractmethod
    def close(self) -> Tensor | None:
        """What is left to do when every layer that backward reaches has been taken in: the gradient of the leaf."""

    @abstractmethod
    def begin(self) -> None:
        """The first layer of another backward comes by."""

    def arrive(self) -> None:
        """A layer of the running backward comes by."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            self.begin()
