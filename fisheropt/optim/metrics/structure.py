"""What a structure of the metric offers to the optimizer. It has no state: that is the group's and the parameters'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from typing import Any, NamedTuple

from torch import Tensor

from fisheropt.optim.group import Group
from fisheropt.optim.reading import Reading
from fisheropt.statistics import JointStatistic
from fisheropt.taps import Tap

State = MutableMapping[Any, Any]
"""An optimizer's per-parameter state."""


class InMetric(NamedTuple):
    """A reading in the metric: ‖ĝ‖²_P, and its noise tr(PG)/c, which a gradient of zero would have by itself."""

    squared: float
    noise: float


class Structure(ABC):
    """One form of M, with what it measures, how it learns, and how it steps."""

    @abstractmethod
    def statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic:
        """What to observe of a group.

        Raises:
            ValueError: for a group that the structure cannot serve, or hyper-parameters that mean nothing to it.
        """

    @abstractmethod
    def fresh(self, tap: Tap | None) -> Group:
        """The group's state before any reading, with "metric_ready" and "metric_damping"."""

    @abstractmethod
    def interval(self, group: Group, tap: Tap, likelihood: bool) -> int | None:
        """How many steps apart the optimizer should measure with every="auto"; None for the schedule of all optimizers."""

    @abstractmethod
    def aim(self, group: Group, tap: Tap, state: State, due: bool) -> None:
        """Prepare the step that comes next, which is measured if `due`."""

    @abstractmethod
    def learn(self, group: Group, tap: Tap, state: State, reading: Reading, decay: float) -> InMetric | None:
        """Take a reading into M and renew P.

        Returns:
            The reading in the metric; None without a metric or a covariance.
        """

    @abstractmethod
    def apply(
        self, group: Group, tap: Tap, state: State, gain: float, parameters: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        """γP∇ for the gain γ, shortened where a step by η would be longer than 1 in the metric."""

    @abstractmethod
    def details(self, group: Group, tap: Tap) -> dict[str, Any]:
        """What the report of a group says of the metric."""

    @abstractmethod
    def words(self, group: Group, tap: Tap, likelihood: bool) -> tuple[str, tuple[str, ...]]:
        """Verdict and advice for a group whose metric is ready."""
