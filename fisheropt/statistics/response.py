"""The response of k tracked directions: what one step of the power method needs of a batch, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fisheropt.directions import DenseDirections, Directions
from fisheropt.statistics.base import JointStatistic, Need


@final
@dataclass(frozen=True)
class Response(JointStatistic):
    """VᵀGV as `Projection` has it and, of the same backward, Y = Σₙ hₙ(hₙᵀV), Σₙ hₙ and every ‖hₙ‖².

    The directions are zero until `tap.aim(directions)` names them, and may be named anew between any two steps.

    Args:
        count: the number of directions k.
        tracked: how many of them are followed, the first; the others are fresh random ones.
        traces: whether readings are traces over all parameters, as matrices in moving directions do not add up.
        centred: whether the matrix is the covariance of the gradients or their second moment.
    """

    count: int
    tracked: int
    traces: bool = False
    centred: bool = True

    def directions(self, parameters: dict[str, Tensor]) -> dict[str, Directions]:
        return {
            name: DenseDirections(p.detach().new_zeros(()).expand(self.count, *p.shape))
            for name, p in parameters.items()
        }

    def needs(self, along: Directions | None) -> tuple[Need, ...]:
        return (("dense", (self.count,)), ("combine", (self.count + 1,)), ("norms", ()))

    def rank(self, parameters: dict[str, Tensor]) -> int:
        return self.count
