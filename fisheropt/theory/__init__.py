"""Pure functions: tensors in, tensors out; usable with no model and no optimizer."""

from fisheropt.theory import dynamics, mixture, spectrum, threshold
from fisheropt.theory.dynamics import effective_dynamics
from fisheropt.theory.from_features import mixture_statistics
from fisheropt.theory.spectrum import effective_spectrum
from fisheropt.theory.threshold import threshold_report
from fisheropt.theory.whitening import required_samples

__all__ = [
    "dynamics",
    "effective_dynamics",
    "effective_spectrum",
    "mixture",
    "mixture_statistics",
    "required_samples",
    "spectrum",
    "threshold",
    "threshold_report",
]
