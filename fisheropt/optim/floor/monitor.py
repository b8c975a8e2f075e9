"""Only measure: the step is that of torch.optim.SGD."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from fisheropt.optim.floor.mode import Mode
from fisheropt.optim.floor.spectrum import judged, running_eigen, smallest
from fisheropt.optim.floor.watch import Watch
from fisheropt.optim.group import Group


@final
class Monitor(Mode):
    """Leaves the step as it is."""

    exact, insistent, follows = False, False, False

    def learn(self, group: Group, current: Tensor, count: int) -> float:
        values, vectors = running_eigen(group)
        return min(float(values[0]), smallest(judged(group, vectors, count), current))

    def direction(self, group: Group, watch: Watch, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        return grads

    def verdict(self, details: dict[str, Any]) -> str:
        return ""
