"""How fast gradient descent and SGD contract where the smallest information is known.

For a generalised linear model with canonical link the Hessian of the loss is the model Fisher information, so that
above the threshold the rate follows from the smallest eigenvalue. The claim that convergence is linear there is that of
Huang (2025); the constants are ours.
"""

import math

from fisheropt.theory.arguments import checked_positive


def contraction(lr: float, smallest: float, largest: float) -> float:
    """1 - eta mu, the factor by which a step of gradient descent shrinks the error near the minimum, for eta <= 1/L.

    With lambda_min(Gamma) > 2 Lambda* the mu of the sample is at least half that of the population.

    Args:
        lr: eta.
        smallest: mu, the smallest eigenvalue of the curvature.
        largest: L, the largest.

    Reference: huang2025spectral
    """
    call = f"contraction({lr!r}, {smallest!r}, {largest!r})"
    checked_positive(smallest, "smallest", call)
    _checked_step(lr, largest, call)
    return 1 - lr * smallest


def sgd_error_bound(
    lr: float, smallest: float, largest: float, steps: int, *, start: float, variance: float, batch: float = 1
) -> float:
    """E|e_T|^2 <= (1 - eta mu)^T |e_0|^2 + eta sigma^2/(B mu), for eta <= 1/L.

    Args:
        lr: eta.
        smallest: mu, the smallest eigenvalue of the curvature.
        largest: L, the largest.
        steps: T.
        start: |e_0|^2.
        variance: sigma^2, the trace of the covariance of one sample's gradient.
        batch: B.

    Reference: huang2025spectral
    """
    call = f"sgd_error_bound({lr!r}, {smallest!r}, {largest!r}, {steps!r})"
    rate = contraction(lr, smallest, largest)
    checked_positive(batch, "batch", call)
    if not (steps >= 0 and 0 <= start < math.inf and 0 <= variance < math.inf):
        raise ValueError(f"{call}: `steps`, `start` and `variance` must be finite and not negative")
    return float(rate**steps * start + lr * variance / (batch * smallest))


def _checked_step(lr: float, largest: float, call: str) -> None:
    checked_positive(lr, "lr", call)
    checked_positive(largest, "largest", call)
    if lr * largest > 1 + 1e-12:
        raise ValueError(f"{call}: the bound needs eta <= 1/L; write lr={1 / largest:.3g} or less")
