"""How FisherFloorSGD acts on what it measures: one mode a file."""

from fisheropt.optim.floor.anchor import Anchor
from fisheropt.optim.floor.backtrack import Backtrack
from fisheropt.optim.floor.metric import Metric
from fisheropt.optim.floor.mode import Mode
from fisheropt.optim.floor.monitor import Monitor
from fisheropt.optim.floor.penalty import Penalty

MODES: dict[str, Mode] = {
    "anchor": Anchor(),
    "penalty": Penalty(),
    "metric": Metric(),
    "backtrack": Backtrack(),
    "monitor": Monitor(),
}

__all__ = ["MODES", "Mode"]
