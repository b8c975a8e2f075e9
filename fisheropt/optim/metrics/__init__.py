"""In what form GodambeSGD keeps M and applies P = (M + ρI)⁻¹: one file a structure."""

from __future__ import annotations

from torch import Tensor

from fisheropt.optim.group import Group
from fisheropt.optim.metrics.full import LARGEST, Full
from fisheropt.optim.metrics.layerwise import Layerwise
from fisheropt.optim.metrics.lowrank import LowRank, check_rank
from fisheropt.optim.metrics.schedule import scheduled
from fisheropt.optim.metrics.structure import Structure
from fisheropt.statistics.kronecker import LONGEST
from fisheropt.statistics.layerwise import Layerwise as Moments
from fisheropt.statistics.response import Response
from fisheropt.taps import Tap

__all__ = ["NAMES", "STRUCTURES", "Structure", "check_rank", "choose", "interval", "of", "scheduled"]

STRUCTURES: dict[str, Structure] = {
    "full": Full(),
    "kronecker": Layerwise(LONGEST),
    "diagonal": Layerwise(0),
    "lowrank": LowRank(),
}
NAMES = ("auto", *STRUCTURES)


def choose(group: Group, parameters: dict[str, Tensor]) -> Structure:
    """The structure that a group asks for; "auto" is one matrix up to 4096 parameters, and low rank beyond.

    Args:
        group: the parameter group.
        parameters: its trainable ones.
    """
    small = sum(p.numel() for p in parameters.values()) <= LARGEST
    return STRUCTURES[("full" if small else "lowrank") if group["structure"] == "auto" else group["structure"]]


def interval(group: Group, tap: Tap, likelihood: bool) -> int | None:
    """How many steps apart a structure with a schedule of its own is measured; None for that of all optimizers.

    Args:
        group: with its `every`.
        tap: of the group.
        likelihood: whether its backward runs too.
    """
    return of(tap).interval(group, tap, likelihood) if group["every"] == "auto" else None


def of(tap: Tap | None) -> Structure:
    """The structure that a group's tap was placed for."""
    statistic = None if tap is None else tap.statistic
    if isinstance(statistic, Moments):
        return STRUCTURES["kronecker" if statistic.longest else "diagonal"]
    return STRUCTURES["lowrank" if isinstance(statistic, Response) else "full"]
