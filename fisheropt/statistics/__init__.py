"""Statistics of per-sample gradients, each written once against the forms of `fisheropt.persample`."""

from fisheropt.statistics.base import Covariance, JointStatistic, Moments, ParameterStatistic, Statistic
from fisheropt.statistics.eigenpairs import NoiseEigenpairs, NoiseGram
from fisheropt.statistics.full import FullCovariance
from fisheropt.statistics.gram import Gram
from fisheropt.statistics.kronecker import Kronecker
from fisheropt.statistics.projection import Projection
from fisheropt.statistics.second_moment import SecondMoment
from fisheropt.statistics.trace import Trace

__all__ = [
    "Covariance",
    "FullCovariance",
    "Gram",
    "JointStatistic",
    "Kronecker",
    "Moments",
    "NoiseEigenpairs",
    "NoiseGram",
    "ParameterStatistic",
    "Projection",
    "SecondMoment",
    "Statistic",
    "Trace",
]
