"""Pure functions: tensors in, tensors out; usable with no model and no optimizer."""

from fisheropt.theory import dynamics, lyapunov, mixture, rates, spectrum, threshold
from fisheropt.theory.dynamics import effective_dynamics
from fisheropt.theory.from_features import mixture_statistics
from fisheropt.theory.spectrum import effective_spectrum
from fisheropt.theory.threshold import threshold_report
from fisheropt.theory.whitening import required_samples

__all__ = [
    "dynamics",
    "effective_dynamics",
    "effective_spectrum",
    "lyapunov",
    "mixture",
    "mixture_statistics",
    "rates",
    "required_samples",
    "spectrum",
    "threshold",
    "threshold_report",
]
