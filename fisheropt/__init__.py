"""Optimizers that see the gradient's noise, not only its mean."""

from fisheropt import inference, likelihoods, monitor, products, theory
from fisheropt.batch_steering import BatchSteering
from fisheropt.control.sampler import AdaptiveBatchSampler
from fisheropt.directions import Coordinates, DenseDirections, Directions, DualDirections, RankOneDirections
from fisheropt.metric import FisherMetric
from fisheropt.optim import AdaptiveBatchSGD, FisherFloorSGD, FisherOptimizer, GodambeSGD
from fisheropt.optim.critical import Contrast
from fisheropt.penalty import FisherFloorPenalty
from fisheropt.persample import Dense, Outer, PerSample
from fisheropt.rules import Rule, rule
from fisheropt.spectra import MeasuredSpectrum, measured_spectrum
from fisheropt.statistics import Covariance, FullCovariance, Gram, Kronecker, Moments, Projection, SecondMoment, Trace
from fisheropt.taps import explain, observe

__version__ = "0.1.0"

__all__ = [
    "AdaptiveBatchSGD",
    "AdaptiveBatchSampler",
    "BatchSteering",
    "Contrast",
    "Coordinates",
    "Covariance",
    "Dense",
    "DenseDirections",
    "Directions",
    "DualDirections",
    "FisherFloorPenalty",
    "FisherFloorSGD",
    "FisherMetric",
    "FisherOptimizer",
    "FullCovariance",
    "GodambeSGD",
    "Gram",
    "Kronecker",
    "MeasuredSpectrum",
    "Moments",
    "Outer",
    "PerSample",
    "Projection",
    "RankOneDirections",
    "Rule",
    "SecondMoment",
    "Trace",
    "explain",
    "get",
    "inference",
    "likelihoods",
    "measured_spectrum",
    "monitor",
    "observe",
    "products",
    "rule",
    "theory",
]


def get(name: str) -> type[FisherOptimizer]:
    """The optimizer class of that name, in any spelling: "FisherFloorSGD", "fisher_floor".

    Args:
        name: of a class of `fisheropt.optim`, case and underscores aside, with or without "SGD".

    Raises:
        ValueError: lists the known names.
    """
    wanted = name.replace("_", "").lower().removesuffix("sgd")
    for optimizer in (AdaptiveBatchSGD, FisherFloorSGD, GodambeSGD):
        if optimizer.__name__.lower().removesuffix("sgd") == wanted:
            return optimizer
    raise ValueError(f"fisheropt.get({name!r}): write 'adaptive_batch', 'fisher_floor' or 'godambe'")
