"""The three-state reading of a smallest eigenvalue that is known up to a fluctuation level."""

import math
from enum import Enum
from typing import SupportsFloat

TRUE_RATIO = 2.0
ABOVE_RATIO = TRUE_RATIO + 1


class Status(str, Enum):
    """What n samples can say of the smallest eigenvalue of a Fisher matrix."""

    ABOVE = "ABOVE"
    UNDECIDED = "UNDECIDED"
    BELOW = "BELOW"

    def __str__(self) -> str:
        return self.value


def classify(lambda_min: float, lambda_star: SupportsFloat) -> Status:
    """ABOVE if l > 3 Lambda*, BELOW if l < Lambda* (or l <= 0), else UNDECIDED.

    By Weyl's inequality, whenever ||Gamma_n - Gamma|| <= Lambda*: ABOVE implies lambda_min(Gamma) > 2
    Lambda*, hence Gamma / 2 <= Gamma_n <= 3 Gamma / 2 in every direction; BELOW implies lambda_min(Gamma) < 2
    Lambda*. A decision has error probability at most delta; with T readings of one run, compute Lambda* at
    delta / T.

    Args:
        lambda_min: l, the smallest eigenvalue of Gamma_n.
        lambda_star: Lambda*, the fluctuation level of Gamma_n.

    Reference: huang2025spectral, weyl1912asymptotische
    """
    smallest, level = float(lambda_min), float(lambda_star)
    if math.isnan(smallest) or not level >= 0:
        raise ValueError(
            f"classify({smallest!r}, {level!r}): needs a number and a level that is not negative; a NaN "
            "usually comes from a matrix that is not finite"
        )
    if smallest <= 0 or smallest < level:
        return Status.BELOW
    return Status.ABOVE if smallest > ABOVE_RATIO * level else Status.UNDECIDED
