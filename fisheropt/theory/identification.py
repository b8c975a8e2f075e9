"""How many samples would make a weak direction ABOVE, were its information what it looks like now."""

import math

from fisheropt.theory.arguments import checked_positive, checked_probability
from fisheropt.theory.status import ABOVE_RATIO


def samples_to_identify(eigenvalue: float, largest: float, k: int, delta: float = 0.05) -> int:
    """The least n at which 3 Lambda*(n) < l, with Lambda* = lambda_max (2 e + e^2) of Gaussian scores.

    e = (sqrt(k) + sqrt(2 ln(2/delta))) / sqrt(n), hence n = ((sqrt(k) + sqrt(2 ln(2/delta))) / (sqrt(1 + r/3) - 1))^2
    with r = l/lambda_max. This is the raw criterion, which a bad conditioning makes dear; `required_samples` is the
    whitened one.

    Args:
        eigenvalue: l, of the direction in question, above zero.
        largest: lambda_max.
        k: Directions.
        delta: Probability with which Lambda* may be exceeded.

    Reference: huang2025spectral, davidson2001local
    """
    call = f"samples_to_identify({eigenvalue!r}, {largest!r}, {k!r}, {delta!r})"
    checked_probability(delta, call)
    ratio = checked_positive(eigenvalue, "eigenvalue", call) / checked_positive(largest, "largest", call)
    if ratio > 1 + 1e-12 or k < 1:
        raise ValueError(f"{call}: needs eigenvalue <= largest and at least one direction")
    root = math.sqrt(k) + math.sqrt(2 * math.log(2 / delta))
    relative = math.expm1(math.log1p(ratio / ABOVE_RATIO) / 2)  # sqrt(1 + r/3) - 1, exact also for tiny r
    return math.floor((root / relative) ** 2) + 1
