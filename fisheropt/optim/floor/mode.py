"""The one interface of the modes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from fisheropt.optim.floor.watch import Watch
from fisheropt.optim.group import Group


class Mode(ABC):
    """How a floor τ acts on a step.

    A mode has no state of its own: what it keeps is in the group, as "stiffness" [k, k], its eigenpairs "strengths" [k] and
    "axes" [k, k], "held", "active", "near", "certified".
    """

    exact: ClassVar[bool]
    """Whether the information must be computed at points of the mode's choosing, from model, likelihood and inputs."""

    insistent: ClassVar[bool]
    """Whether every step is measured while information is near the floor."""

    follows: ClassVar[bool]
    """Whether floor="auto" is Λ* at each reading; else it is fixed at the start, by what the start can meet."""

    @abstractmethod
    def learn(self, group: Group, current: Tensor, count: int) -> float:
        """Take in the running information and the level of the group.

        Args:
            group: with "information" and "level" as they are now.
            current: this step's own information, [k, k].
            count: its samples.

        Returns:
            The smallest information in sight.
        """

    @abstractmethod
    def direction(self, group: Group, watch: Watch, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """The direction to step against, given the gradients with weight decay."""

    def step(self, group: Group, watch: Watch, advance: Callable[[], None]) -> None:
        """Take the step by `advance()`; a mode may look at where it led."""
        advance()

    @abstractmethod
    def verdict(self, details: dict[str, Any]) -> str:
        """What the floor does, in a sentence."""
