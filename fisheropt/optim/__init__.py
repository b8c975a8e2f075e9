"""The optimizers: a formula and its hyper-parameters each."""

from fisheropt.optim.adaptive_batch import AdaptiveBatchSGD
from fisheropt.optim.base import FisherOptimizer
from fisheropt.optim.fisher_floor import FisherFloorSGD
from fisheropt.optim.godambe import GodambeSGD

__all__ = ["AdaptiveBatchSGD", "FisherFloorSGD", "FisherOptimizer", "GodambeSGD"]
