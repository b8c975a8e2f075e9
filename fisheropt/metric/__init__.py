"""The metric tensor of a network, its Fisher matrix: estimates with error bars, and bounds on both sides."""

from fisheropt.metric.fisher import FisherMetric
from fisheropt.metric.low_rank import LowRank
from fisheropt.metric.ranks import summed
from fisheropt.metric.readings import Estimate, Interval, Variation

__all__ = ["Estimate", "FisherMetric", "Interval", "LowRank", "Variation", "summed"]
